"""Segments: named filters of an org, stored or declared in `segments/`, and who was in them when.

Functions take a connection of `connect`; each change is one transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import yaml
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.errors import CheckFailed, UserError
from orchestration.filters import Filter, compile_filter, describe
from orchestration.people import Catalog, customers_as_of, read_catalog, select_people
from orchestration.settings import project_dir, project_variables, target_schema

EVERY_ORG = "*"


@dataclass(frozen=True)
class Segment:
    """A row of audience_segments. members_count: at the last materialization, None before the first."""

    org_id: str
    segment_name: str
    description: str
    origin: str
    filter: dict[str, Any]
    filter_version: int
    members_count: int | None
    created_at: datetime
    updated_at: datetime
    materialized_at: datetime | None
    materialized_as_of: datetime | None
    materialized_filter_version: int | None


@dataclass(frozen=True)
class RuleCount:
    """People who match a rule below the top of a filter: by itself, and with those before it, joined as the filter joins them."""

    path: str
    rule: str
    alone_count: int
    together_count: int


@dataclass(frozen=True)
class Preview:
    """A filter's figures. size: members, as an export lists them; contactable_count: those with an e-mail address or a phone
    number, None for a login that may not read contacts; consented_count: those who said yes."""

    org_id: str
    as_of: datetime
    size: int
    contactable_count: int | None
    consented_count: int
    combinator: str
    is_negated: bool
    rules: list[RuleCount]


@dataclass(frozen=True)
class Materialization:
    """What one segment's membership became. error: why it stayed as it was."""

    org_id: str
    segment_name: str
    members_count: int | None = None
    entered_count: int = 0
    left_count: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Change:
    """What sync does, or would do, to a segment: create, update or delete."""

    action: str
    org_id: str
    segment_name: str
    what: str = ""


@dataclass(frozen=True)
class Declared:
    """A segment of a file in `segments/`."""

    file: str
    org_id: str
    segment_name: str
    description: str
    filter: dict[str, Any]


def connect() -> psycopg.Connection:
    """A connection to a database that has the tables of segments."""
    dbt.ensure_table(f"{target_schema()}_state.suppressed_visitors")
    return database.connect(autocommit=True, application_name="audience segments")


def _run(
    connection: psycopg.Connection, query: str, parameters: dict[str, Any], **parts: sql.Composable
) -> psycopg.Cursor[Any]:
    """A statement in which {segments}, {memberships} and {customers} are tables and other names are `parts`."""
    schema = target_schema()
    tables = {
        "segments": sql.Identifier(f"{schema}_state", "audience_segments"),
        "memberships": sql.Identifier(f"{schema}_state", "segment_memberships"),
        "customers": sql.Identifier(schema, "audience_customers"),
    }
    try:
        # Never prepared: the plan is made for the values of this filter.
        return connection.execute(sql.SQL(query).format(**tables, **parts), parameters, prepare=False)
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"{connection.info.user} may not do this ({error.diag.message_primary}): analysts change stored segments of their orgs; "
            "the rest, and filters that count events, need the owner of the tables."
        ) from error


# Reading


def list_segments(
    connection: psycopg.Connection, org_id: str | None = None, segment_name: str | None = None
) -> list[Segment]:
    """Segments by org and name, of one org or name if given."""
    query = (
        "select * from {segments} where org_id = coalesce(%(org)s, org_id) and segment_name = coalesce(%(name)s, segment_name)"
        " order by org_id, segment_name"
    )
    cursor = _run(connection, query, {"org": org_id, "name": segment_name})
    cursor.row_factory = class_row(Segment)
    return cursor.fetchall()


def find_segment(connection: psycopg.Connection, segment_name: str, org_id: str | None = None) -> Segment:
    """The segment of that name; the org may be left out while one org has it. Raises UserError when none or several have."""
    found = list_segments(connection, org_id, segment_name)
    if len(found) > 1:
        orgs = ", ".join(segment.org_id for segment in found)
        raise UserError(f"Several orgs have a segment {segment_name!r} ({orgs}): name one with --org.")
    if not found:
        of_org = f" of org {org_id!r}" if org_id else ""
        raise UserError(
            f"There is no segment {segment_name!r}{of_org}: audience segments list shows those that there are."
        )
    return found[0]


def preview(connection: psycopg.Connection, document: Any, org_id: str) -> Preview:
    """A filter's figures, from one scan of the org's customers."""
    as_of = customers_as_of(connection)
    _check_org(connection, org_id)
    selection = select_people(document, org_id, as_of, read_catalog())
    compiled = selection.filter
    rules = [sql.SQL(f", {{}} as rule_{number}").format(part.condition) for number, part in enumerate(compiled.parts)]
    schema = f"{target_schema()}_contacts"
    (reads_contacts,) = connection.execute("select has_schema_privilege(%s, 'usage')", [schema]).fetchone()
    contacts = sql.SQL(_CONTACTS).format(
        contacts=sql.Identifier(schema, "customer_contacts"), condition=compiled.condition
    )
    groups = _run(
        connection, _PREVIEW, selection.parameters, contactable=sql.SQL("contacts.visitor_id is not null" if reads_contacts else "false"),
        contacts_of_members=contacts if reads_contacts else sql.SQL(""), source=selection.source, eligible=selection.eligible,
        condition=compiled.condition, rules=sql.SQL("").join(rules), decided_by=sql.SQL(_decided_by(compiled)),
        alone=sql.SQL("".join(f", cast(coalesce(sum(people_count) filter (where rule_{number}), 0) as bigint)" for number in range(len(rules)))),
        places=sql.SQL(", ".join(str(place + 1) for place in range(3 + len(rules)))),
    ).fetchall()  # fmt: skip
    size, consented, contactable = (sum(row[figure] for row in groups) for figure in (2, 3, 4))
    if not reads_contacts:
        contactable = None
    negated = compiled.document.get("not", False)
    return Preview(
        org_id, as_of, size, contactable, consented, compiled.document["combinator"], negated, _rule_counts(compiled, groups)
    )  # fmt: skip


def _decided_by(compiled: Filter) -> str:
    """Which rule decides whether a person matches: the first that fails of rules joined by `and`, that holds of `or`."""
    decides = "is true" if compiled.document["combinator"] == "or" else "is not true"
    cases = [f"when rule_{number} {decides} then {number}" for number in range(len(compiled.parts))]
    return f"case {' '.join(cases)} else {len(cases)} end" if cases else "0"


def _rule_counts(compiled: Filter, groups: Sequence[tuple[int, ...]]) -> list[RuleCount]:
    """Of rows of _PREVIEW: the deciding rule, people, members, consented, contactable, and who matches each rule."""
    joined_by_or = compiled.document["combinator"] == "or"
    counts = []
    for number, part in enumerate(compiled.parts):
        alone = sum(row[5 + number] for row in groups)
        together = sum(row[1] for row in groups if (row[0] <= number if joined_by_or else row[0] > number))
        counts.append(RuleCount(part.path, part.text, alone, together))
    return counts


# People are counted first by what they match, in parallel and each rule evaluated once for a person; the figures are sums
# of these few rows. Contacts are looked up for members alone: a null is not.
_PREVIEW = """
select {decided_by}, cast(sum(people_count) as bigint), cast(coalesce(sum(people_count) filter (where is_member), 0) as bigint),
    cast(coalesce(sum(people_count) filter (where is_member and is_consented), 0) as bigint),
    cast(coalesce(sum(people_count) filter (where is_contactable), 0) as bigint){alone}
from (
    select {condition} as is_member, people.is_consented, {contactable} as is_contactable{rules}, count(*) as people_count
    {source}
    {contacts_of_members}
    where {eligible}
    group by {places}
) as figures
group by 1
"""
_CONTACTS = """
    left join {contacts} as contacts
        on contacts.org_id = %(org_id)s and contacts.visitor_id = case when {condition} then people.visitor_id end
        and (contacts.email is not null or contacts.phone is not null)
"""


def _orgs(connection: psycopg.Connection) -> list[str]:
    """Orgs that have customers, each found by one look into the index."""
    query = """
        with recursive orgs as (
            select min(org_id) as org_id from {customers}
            union all
            select (select min(org_id) from {customers} where org_id > orgs.org_id) from orgs where org_id is not null
        )
        select org_id from orgs where org_id is not null
    """
    return [org_id for (org_id,) in _run(connection, query, {})]


def _check_org(connection: psycopg.Connection, org_id: str) -> None:
    known = _orgs(connection)
    if org_id not in known:
        raise UserError(f"Org {org_id!r} has no customers: correct --org (there are {', '.join(known) or 'none yet'}).")


# Changing


def create_segment(
    connection: psycopg.Connection, segment_name: str, org_id: str, document: Any, description: str = ""
) -> Segment:
    """Stores a new segment. Raises UserError for a name that is taken or no name, an unknown org and a filter that is not valid."""
    customers_as_of(connection)
    _check_name(segment_name)
    _check_org(connection, org_id)
    values = {"org": org_id, "name": segment_name, "description": description, "origin": "stored",
              "filter": Jsonb(_normalized(document, read_catalog()))}  # fmt: skip
    if not _run(connection, _INSERT + " on conflict do nothing", values).rowcount:
        raise UserError(f"Org {org_id} has a segment {segment_name!r} already: update it, or choose another name.")
    return find_segment(connection, segment_name, org_id)


def update_segment(
    connection: psycopg.Connection,
    segment_name: str,
    org_id: str | None = None,
    document: Any = None,
    description: str | None = None,
) -> Segment:
    """Changes the filter or description of a stored segment; what is None stays. Raises UserError for one of a file."""
    if document is None and description is None:
        raise UserError("Nothing to update: give --filter or --description.")
    segment = _stored(connection, segment_name, org_id)
    filter_ = None if document is None else _normalized(document, read_catalog())
    _update(connection, segment.org_id, segment_name, description, filter_)
    return find_segment(connection, segment_name, segment.org_id)


def delete_segment(connection: psycopg.Connection, segment_name: str, org_id: str | None = None) -> Segment:
    """Deletes a stored segment with the history of its members. Raises UserError for one of a file."""
    segment = _stored(connection, segment_name, org_id)
    _delete(connection, segment.org_id, segment_name)
    return segment


def _stored(connection: psycopg.Connection, segment_name: str, org_id: str | None) -> Segment:
    segment = find_segment(connection, segment_name, org_id)
    if segment.origin == "yaml":
        raise UserError(
            f"Segment {segment_name!r} is declared in segments/: change it there, then run audience segments sync."
        )
    return segment


def _normalized(document: Any, catalog: Catalog) -> dict[str, Any]:
    """The document of a valid filter, as it is stored."""
    return compile_filter(document, catalog.fields, catalog.limits).document


def _check_name(segment_name: str) -> None:
    longest = project_variables()["label_max_characters"]
    if (
        not segment_name
        or segment_name != segment_name.strip()
        or not segment_name.isprintable()
        or len(segment_name) > longest
    ):
        raise UserError(
            f"{segment_name[:60]!a} is no name of a segment: give 1 to {longest} printable characters without spaces around them."
        )


_INSERT = """
insert into {segments} (org_id, segment_name, description, origin, filter)
values (%(org)s, %(name)s, %(description)s, %(origin)s, %(filter)s)
"""


def _update(
    connection: psycopg.Connection,
    org_id: str,
    segment_name: str,
    description: str | None,
    filter_: dict[str, Any] | None,
) -> None:
    """Writes what is not None. The version of the filter is counted by the table."""
    _run(
        connection,
        """
        update {segments} set description = coalesce(%(description)s, description), filter = coalesce(%(filter)s, filter),
            updated_at = clock_timestamp()
        where org_id = %(org)s and segment_name = %(name)s
        """,
        {
            "org": org_id,
            "name": segment_name,
            "description": description,
            "filter": None if filter_ is None else Jsonb(filter_),
        },
    )


def _delete(connection: psycopg.Connection, org_id: str, segment_name: str) -> None:
    _run(
        connection,
        "delete from {segments} where org_id = %(org)s and segment_name = %(name)s",
        {"org": org_id, "name": segment_name},
    )


# Materializing


def materialize(
    connection: psycopg.Connection, segment_name: str | None = None, org_id: str | None = None
) -> list[Materialization]:
    """Observes who is in each segment now, or in one of them, and keeps the history. A segment that fails stops no other."""
    as_of = customers_as_of(connection)
    catalog = read_catalog()
    if segment_name is not None:
        chosen = [find_segment(connection, segment_name, org_id)]
    else:
        chosen = list_segments(connection, org_id)
    done = []
    for segment in chosen:
        try:
            done += _materialize(connection, segment, as_of, catalog)
        except UserError as error:
            done.append(Materialization(segment.org_id, segment.segment_name, error=str(error)))
    return done


def check(done: Iterable[Materialization]) -> None:
    """Raises CheckFailed when a segment could not be materialized."""
    failed = [one for one in done if one.error]
    if failed:
        raise CheckFailed(
            "Segments that could not be materialized keep their members of before; correct their filters.\n"
            + "\n".join(f"{one.segment_name} of {one.org_id}: {one.error}" for one in failed)
        )


def _materialize(
    connection: psycopg.Connection, segment: Segment, as_of: datetime, catalog: Catalog
) -> list[Materialization]:
    key = {"org": segment.org_id, "name": segment.segment_name}
    with connection.transaction():
        # Written first, so that of two at once the second waits, sees what the first one found, and a sync waits for both.
        # What it says is read then, too: it may have changed.
        locked = _run(
            connection,
            "update {segments} set materialized_at = greatest(clock_timestamp(), materialized_at + interval '1 microsecond')"
            " where org_id = %(org)s and segment_name = %(name)s returning filter, filter_version, materialized_at",
            key,
        ).fetchone()
        if not locked:  # deleted meanwhile
            return []
        document, version, moment = locked
        selection = select_people(document, segment.org_id, as_of, catalog)
        observed = {**key, "moment": moment, "version": version}
        members, entered, left = _run(
            connection, _MATERIALIZE, {**selection.parameters, **observed}, members=selection.members
        ).fetchone()
        _run(connection, _RECORD, {**observed, "members": members, "as_of": as_of})
    return [Materialization(segment.org_id, segment.segment_name, members, entered, left)]


# The parts of the statement see the same state, that of before: who leaves and who enters are different people.
_MATERIALIZE = """
with members as materialized (
    {members}
),
current_members as (
    select visitor_id from {memberships} where org_id = %(org)s and segment_name = %(name)s and left_at is null
),
left_now as (
    update {memberships} as memberships set left_at = %(moment)s
    where org_id = %(org)s and segment_name = %(name)s and left_at is null
        and not exists (select from members where members.visitor_id = memberships.visitor_id)
    returning visitor_id
),
entered as (
    insert into {memberships} (org_id, segment_name, visitor_id, entered_at)
    select %(org)s, %(name)s, visitor_id, %(moment)s
    from members
    where not exists (select from current_members where current_members.visitor_id = members.visitor_id)
    order by visitor_id
    returning visitor_id
)
select (select count(*) from members), (select count(*) from entered), (select count(*) from left_now)
"""

_RECORD = """
update {segments} set members_count = %(members)s, materialized_as_of = %(as_of)s, materialized_filter_version = %(version)s
where org_id = %(org)s and segment_name = %(name)s
"""


# Declared segments


def sync(connection: psycopg.Connection, *, plan: bool = False) -> list[Change]:
    """Makes the segments of origin yaml those of `segments/`; returns what changed, or with `plan` what would.

    One for every org is made for each org that has customers by now. Raises UserError for a file that cannot be used and
    for a name that a stored segment has.
    """
    customers_as_of(connection)
    declared = _declared(_orgs(connection), read_catalog())
    with connection.transaction():
        _run(connection, "lock table {segments} in share row exclusive mode", {})
        stored = {(segment.org_id, segment.segment_name): segment for segment in list_segments(connection)}
        changes = _changes(declared, stored)
        for change in changes if not plan else ():
            if change.action == "delete":
                _delete(connection, change.org_id, change.segment_name)
                continue
            one = declared[change.org_id, change.segment_name]
            if change.action == "update":
                _update(connection, one.org_id, one.segment_name, one.description, one.filter)
            else:
                values = {"org": one.org_id, "name": one.segment_name, "description": one.description, "origin": "yaml",
                          "filter": Jsonb(one.filter)}  # fmt: skip
                _run(connection, _INSERT, values)
    return changes


def _changes(declared: dict[tuple[str, str], Declared], stored: dict[tuple[str, str], Segment]) -> list[Change]:
    changes = []
    for key, one in sorted(declared.items()):
        found = stored.get(key)
        if not found:
            changes.append(Change("create", *key, describe(one.filter)))
            continue
        if found.origin != "yaml":
            raise UserError(
                f"{one.file}: org {one.org_id} has a stored segment {one.segment_name!r}: delete that, or name this one otherwise."
            )
        if found.filter != one.filter:
            changes.append(Change("update", *key, f"{describe(found.filter)} -> {describe(one.filter)}"))
        elif found.description != one.description:
            changes.append(Change("update", *key, "description"))
    gone = [key for key, segment in stored.items() if segment.origin == "yaml" and key not in declared]
    return changes + [Change("delete", *key, "with the history of its members") for key in gone]


def _declared(orgs: Sequence[str], catalog: Catalog) -> dict[tuple[str, str], Declared]:
    folder = project_dir() / "segments"
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: run the command from a whole checkout.")
    found: dict[tuple[str, str], Declared] = {}
    for path in sorted(folder.glob("*.yml")):
        name = f"segments/{path.name}"
        content = _content(path.read_text(), name)
        try:
            _check_name(content["name"])
            filter_ = _normalized(content["filter"], catalog)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        for org_id in orgs if content["org_id"] == EVERY_ORG else [content["org_id"]]:
            one = Declared(name, org_id, content["name"], content["description"].strip(), filter_)
            other = found.setdefault((org_id, content["name"]), one)
            if other is not one:
                raise UserError(f"{name}: {other.file} declares {one.segment_name!r} for org {org_id} too: rename one.")
    return found


def _content(text: str, name: str) -> dict[str, Any]:
    """What a file declares. Raises UserError for anything but a segment."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is no YAML ({str(error).splitlines()[0]}): correct it.") from error
    texts = ("name", "org_id", "description")
    if (
        not isinstance(content, dict)
        or content.keys() != {*texts, "filter"}
        or not all(isinstance(content[key], str) for key in texts)
    ):
        raise UserError(
            f"{name}: give name, org_id ('*' for every org) and description as texts, and filter; nothing else."
        )
    return content

"""Who is meant by an e-mail address, a phone number, a user id or a device, and to whom lists with him went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.people import customers_as_of
from orchestration.settings import target_schema


@dataclass(frozen=True)
class Given:
    """By what people, or events, are meant. Several are erased or exported as one."""

    emails: Sequence[str] = ()
    phones: Sequence[str] = ()
    user_ids: Sequence[str] = ()
    device_ids: Sequence[str] = ()
    event_ids: Sequence[str] = ()

    def check(self) -> None:
        """Raises UserError when nothing is given, something is blank, or people are given beside events."""
        names = {"emails": "--email", "phones": "--phone", "user_ids": "--user-id", "device_ids": "--device", "event_ids": "--event"}  # fmt: skip
        given = asdict(self)
        if not any(given.values()):
            raise UserError("Nobody is named: give --email, --phone, --user-id or --device.")
        for kind, values in given.items():
            if any(not value.strip() for value in values):
                raise UserError(f"A blank {names[kind]} names nobody: give the identifier.")
        if any("\0" in value for values in given.values() for value in values):
            raise UserError("An identifier has a NUL character, which no stored one has: give it without.")
        if any(len([digit for digit in phone if digit.isdigit()]) < 5 for phone in self.phones):
            raise UserError("A --phone has less than five digits, which is no number of one person: give all of it.")
        if self.event_ids and any(given[kind] for kind in given if kind != "event_ids"):
            raise UserError("--event erases single events: give either events or people.")


@dataclass(frozen=True)
class Delivery:
    """An export whose list had the subject, by a list that is kept or by his membership at the time, and what became of it."""

    export_id: str
    org_id: str
    segment_name: str
    purpose: str | None
    format: str
    destination: str
    outcome: str
    logged_at: str


@contextmanager
def connect() -> Iterator[psycopg.Connection]:
    """A connection to a database in which something was built. Raises UserError where nothing was yet."""
    dbt.ensure_table(f"{target_schema()}_state.subject_requests")
    with database.connect(autocommit=True, application_name="audience rights") as connection:
        customers_as_of(connection)
        yield connection


def state(name: str) -> sql.Identifier:
    return sql.Identifier(f"{target_schema()}_state", name)


def find(connection: psycopg.Connection, org_id: str, given: Given) -> dict[str, Any]:
    """The subject as find_subject of the database tells it: visitor_ids, device_ids, emails, phones, landing_ids and more.

    In a transaction, because it uses a table of that long. Raises UserError for who may not ask.
    """
    given.check()
    try:
        return connection.execute(
            sql.SQL("select {}(%s, %s)").format(state("find_subject")), [org_id, Jsonb(asdict(given))]
        ).fetchone()[0]  # type: ignore[index]
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(f"{connection.info.user} may not do this ({error.diag.message_primary}): run it as the owner.") from error  # fmt: skip


class NothingHeld(UserError):
    """There is nothing on whom was named."""


def nothing_held(org_id: str, given: Given) -> NothingHeld:
    named = [value for values in asdict(given).values() for value in values]
    some = ", ".join(map(repr, named[:3])) + (" and others" if len(named) > 3 else "")
    return NothingHeld(f"Org {org_id!r} holds nothing on {some}: check the org and the spelling.")


# An export had him on its list when a kept list says so, or when he was a member of its segment at the time. Of a delta
# that is less certain: it may have had him in an earlier one of its line.
_DELIVERIES = """
select cast(export_id as text), org_id, segment_name, purpose, format, destination, outcome, to_char(logged_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
from (
    select distinct on (export_id) * from {log} where org_id = %(org_id)s order by export_id, log_number desc
) as latest
where outcome not in ('refused', 'failed') and (
    exists (
        select from {lists} as lists where lists.export_id = latest.export_id and lists.visitor_ids && %(visitor_ids)s::text[]
    )
    or exists (
        select from {memberships} as stays
        cross join (
            -- the list is of some moment between these
            select min(logged_at) as asked_at, coalesce(min(logged_at) filter (where outcome in ('completed', 'failed')), max(logged_at)) as read_at
            from {log} as log where log.export_id = latest.export_id
        ) as reading
        where stays.org_id = latest.org_id and stays.segment_name = latest.segment_name and stays.visitor_id = any(%(visitor_ids)s::text[])
            and stays.entered_at <= reading.read_at and coalesce(stays.left_at, 'infinity') > reading.asked_at
    )
)
order by logged_at, export_id
"""


def deliveries(connection: psycopg.Connection, subject: dict[str, Any]) -> list[Delivery]:
    """Exports that had the subject on their lists, the oldest first."""
    query = sql.SQL(_DELIVERIES).format(
        log=state("segment_export_log"), lists=state("segment_export_members"), memberships=state("segment_memberships")
    )
    return [Delivery(*row) for row in connection.execute(query, subject)]

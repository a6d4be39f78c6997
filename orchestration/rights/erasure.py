"""The erasure of people, or of single events.

The order: what landed, memberships and what keeps copies out are one transaction, which leaves an open request; a build makes
the tables follow; files and the request are finished, once nothing is found any more. Killed anywhere, `finish` goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from orchestration import segments
from orchestration.build import build, build_lock
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import runner
from orchestration.people import customers_as_of
from orchestration.rights import catalogue, files, subjects
from orchestration.rights.subjects import Delivery, Given
from orchestration.settings import project_variables

# How long writers of the landing table wait behind an erasure that waits for one of them.
LOCK_TIMEOUT = "30s"
# Who is on no list until the tables follow.
SUPPRESSED = "suppressed_visitors"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Erasure:
    """An erasure: before it what would be removed, afterwards its receipt, which names nobody.

    request_id: of subject_requests; None for a dry run. finished_at: None of one that the owner has to finish. rows_by_table:
    rows on the subject before. deliveries: exports that had him on their lists. files: those of exports that are removed, by
    the owner. shared: identifiers that others use too, which stay; of a dry run only.
    """

    org_id: str
    rows_by_table: dict[str, int]
    deliveries: list[Delivery]
    files: list[str]
    request_id: str | None = None
    login_name: str | None = None
    requested_at: str | None = None
    finished_at: str | None = None
    shared: dict[str, list[str]] = field(default_factory=dict)


def preview(org_id: str, given: Given) -> Erasure:
    """What an erasure would remove; it changes nothing. Raises UserError when nothing is held, and for who is no admin of the
    org."""
    given.check()
    with subjects.connect() as connection:
        request_id = subjects.ask(connection, org_id, "preview")
        with connection.transaction():
            held = subjects.read(connection, request_id, org_id, given)
            # an admin's erasure leaves the files to the owner
            found = files.files_with(connection, held.subject) if runner.is_owner(connection) else []
        shared = {kind: values for kind, values in held.subject["shared"].items() if values}
        return Erasure(org_id, held.rows_by_table, held.deliveries, [str(one.path) for one in found], shared=shared)


def erase(org_id: str, given: Given, progress: Progress | None = None) -> Erasure:
    """Erases people, or events, of an org. The owner's builds without them and returns the receipt; an admin's is open, with
    finished_at None, until the owner's `finish`.

    The build is for the same moment as the last one, so that it computes anew what they touched and nothing else. Raises
    UserError when nothing is held and for who is no admin of the org, CheckFailed when the build fails or something is still
    found: then `finish` goes on.
    """
    given.check()
    with subjects.connect() as connection:
        owns = runner.is_owner(connection)
        if owns:
            with build_lock():  # beside another build nothing is removed, because the tables could not follow
                pass
        request_id = subjects.ask(connection, org_id, "erasure")
        removed = _remove(connection, request_id, org_id, given)
    if not owns:
        return removed
    return next(done for done in finish(progress) if done.request_id == request_id)


def finish(progress: Progress | None = None) -> list[Erasure]:
    """Builds, and finishes every erasure of this target that is open. Returns their receipts. Raises UserError for who does not
    own the tables."""
    with subjects.connect() as connection:
        if not runner.is_owner(connection):
            raise UserError(
                f"{connection.info.user} may not build: leave audience erase --finish to a login that is a member of audience_owner."
            )
        open_ids = _open_requests(connection)
        if not open_ids:
            return []
        try:
            build(as_of=customers_as_of(connection).isoformat(), progress=progress)
        except (CheckFailed, UserError) as error:
            raise CheckFailed(
                f"What landed is erased, but the tables do not follow yet: audience erase --finish does the rest. {error}"
            ) from error
    with segments.connect() as connection:
        done = [_finish(connection, request_id) for request_id in open_ids]
        _clean(connection, {table for one in done for table in one.rows_by_table})
        return done


def finish_followed(connection: psycopg.Connection) -> tuple[list[Erasure], list[str]]:
    """Finishes the erasures that the last build followed: their receipts, and why others are open. For the owner, after a build."""
    done, open_still = [], []
    for request_id in _open_requests(connection):
        try:
            done.append(_finish(connection, request_id))
        except CheckFailed as error:
            open_still.append(str(error))
    _clean(connection, {table for one in done for table in one.rows_by_table})
    return done, open_still


def _remove(connection: psycopg.Connection, request_id: str, org_id: str, given: Given) -> Erasure:
    """Removes what a build does not, in one transaction; the request is open from then on."""
    try:
        with connection.transaction():
            connection.execute(sql.SQL("set local lock_timeout = {}").format(LOCK_TIMEOUT))
            answer = subjects.call(connection, "erase_subject", request_id, org_id, given)
    except psycopg.errors.LockNotAvailable as error:
        raise UserError(
            f"Somebody has been writing events for more than {LOCK_TIMEOUT} without committing, so nothing was erased: "
            "end that transaction, or try again later."
        ) from error
    sent = [Delivery(**one) for one in answer["deliveries"]]
    return Erasure(org_id, dict(sorted(answer["rows_by_table"].items())), sent, [], request_id)


def _open_requests(connection: psycopg.Connection) -> list[str]:
    query = "select cast(request_id as text) from {} where subject is not null order by requested_at"
    return [found for (found,) in connection.execute(sql.SQL(query).format(subjects.state("subject_requests")))]


def _finish(connection: psycopg.Connection, request_id: str) -> Erasure:
    """Removes the files, forgets whom the request is of and looks for him once more, in one transaction."""
    requests = subjects.state("subject_requests")
    query = sql.SQL("select subject from {} where request_id = %s").format(requests)
    subject = connection.execute(query, [request_id]).fetchone()[0]  # type: ignore[index]
    # those that may have read the person; those that begin now find nobody
    runner.wait_for(connection, subject["org_id"])
    names = files.remove(connection, files.files_with(connection, subject))
    with connection.transaction():
        connection.execute(
            sql.SQL("select {}(%s, %s)").format(subjects.state("remove_memberships")),
            [subject["org_id"], subject["visitor_ids"]],
        )
        row = connection.execute(
            sql.SQL(
                "update {} set subject = null, files = files || %s::text[], finished_at = clock_timestamp() where request_id = %s"
                " returning login_name, cast(requested_at as text), cast(finished_at as text), rows_by_table, deliveries, files"
            ).format(requests),
            [names, request_id],
        ).fetchone()
        left = catalogue.count_rows(connection, subject)
        if left and not _came_back(connection, subject, request_id):
            found = ", ".join(f"{table} ({count:,})" for table, count in left.items())
            raise CheckFailed(
                f"Erasure {request_id} is not finished, because rows are still in {found}: run audience erase --finish again."
            )
    login, requested_at, finished_at, counts, sent, all_files = row  # type: ignore[misc]
    return Erasure(
        subject["org_id"], counts, [Delivery(**one) for one in sent], all_files, request_id, login, requested_at, finished_at,
    )  # fmt: skip


def _came_back(connection: psycopg.Connection, subject: dict[str, Any], request_id: str) -> bool:
    """Did he do something after he was erased? Then there are rows on him again, and rightly."""
    query = sql.SQL(
        "select exists (select from {events} where org_id = %(org_id)s and (user_id = any(%(visitor_ids)s)"
        " or anonymous_id = any(%(device_ids)s)) and occurred_at > (select requested_at from {requests} where request_id = %(id)s))"
    ).format(
        events=sql.Identifier(project_variables()["landing_schema"], "events"),
        requests=subjects.state("subject_requests"),
    )
    return connection.execute(query, {**subject, "id": request_id}).fetchone()[0]  # type: ignore[index]


def _clean(connection: psycopg.Connection, tables: set[str]) -> None:
    """Frees what the removed rows took, and counts anew: the statistics of a column hold common values of it.

    Of tables that are empty they are forgotten: the server may have counted while a build, or the erasure, had rows in them, and
    counts no empty table again.
    """
    for table in catalogue.read_catalogue(connection):
        if table.full_name in tables or table.name == SUPPRESSED:
            connection.execute(sql.SQL("vacuum (analyze) {}").format(table.identifier))
        if table.is_personal:
            is_empty = sql.SQL("select not exists (select from {})").format(table.identifier)
            if connection.execute(is_empty).fetchone() == (True,):
                _forget_statistics(connection, table)


def _forget_statistics(connection: psycopg.Connection, table: catalogue.Table) -> None:
    """A column that gets its own type loses its statistics; no row is touched."""
    query = (
        "select attname, format_type(atttypid, atttypmod) from pg_stats join pg_attribute using (attname)"
        " where schemaname = %s and tablename = %s and attrelid = format('%%I.%%I', schemaname, tablename)::regclass"
    )
    for column, type_name in connection.execute(query, [table.schema, table.name]).fetchall():
        if table.classes[column] != "none":
            change = sql.SQL("alter table {} alter column {} type {}")
            connection.execute(change.format(table.identifier, sql.Identifier(column), sql.SQL(type_name)))

"""Whom a campaign may go to: a segment's people, read once through the door of exports into a table of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from orchestration import segments
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import door, runner

# Rows held at a time.
BATCH = 200


@dataclass(frozen=True)
class Audience:
    """The members of a segment as an export listed them. consented_count: those who said yes; contactable_count:
    those with an e-mail address, and reachable_count: of whom both is true. None without the right to read addresses."""

    entry: door.Entry
    members_count: int
    consented_count: int
    contactable_count: int | None
    reachable_count: int | None


def request(
    connection: psycopg.Connection, segment_name: str, purpose: str, org_id: str | None, *,
    include_pii: bool, destination: Callable[[], str],
) -> door.Entry:  # fmt: skip
    """Asks the door for the people, as an export; whoever may materialize the segment does that first.

    destination: gives the name of where messages go, or raises UserError. That is logged, as is every refusal.
    """
    asked = {"include_pii": include_pii, "is_delta": False, "format_name": door.CAMPAIGN_FORMAT}
    where = ""
    try:
        where = destination()
        if runner.may(connection, "audience_segments", "select"):
            org_id = org_id or segments.find_segment(connection, segment_name).org_id
        if runner.is_owner(connection) and segments.list_segments(connection, org_id, segment_name):
            segments.check(segments.materialize(connection, segment_name, org_id))
    except (UserError, CheckFailed) as error:
        door.ask(connection, org_id or "", segment_name, purpose, **asked, destination=where, refusal=str(error))
        raise
    return door.request(connection, org_id or "", segment_name, purpose, **asked, destination=where)


_KEEP = """
create temporary table campaign_recipients as
select row_number() over () as number, row_number() over (partition by {address}) > 1 as is_repeated, listed.* from {listed}
"""


def read(connection: psycopg.Connection, entry: door.Entry) -> Audience:
    """Reads the people of a request, once. They are kept until the session ends, and nowhere else."""
    connection.execute("drop table if exists pg_temp.campaign_recipients")
    # of several people with one address, one gets the message
    address = "lower(btrim(listed.email)), listed.is_consented" if entry.include_pii else "listed.visitor_id"
    with door.reading(connection):
        connection.execute(
            sql.SQL(_KEEP).format(listed=door.listed(entry, door.types(connection, entry)), address=sql.SQL(address))
        )
    connection.execute("create unique index on pg_temp.campaign_recipients (number)")
    emails = ("count(email)", "count(email) filter (where is_consented)") if entry.include_pii else ("null", "null")
    counts = ", ".join(("count(*)", "count(*) filter (where is_consented)", *emails))
    found = connection.execute(f"select {counts} from pg_temp.campaign_recipients").fetchone()
    entry = door.record(
        connection, entry.export_id, "completed", format_counts={"rows": found[0], "consented": found[1]}
    )
    return Audience(entry, *found)


def people(connection: psycopg.Connection, audience: Audience) -> Iterator[dict[str, Any]]:
    """Those who said yes, and have an address where it may be read: the columns of the export, by name."""
    reachable = "is_consented" + (" and email is not null" if audience.entry.include_pii else "")
    query = f"select * from pg_temp.campaign_recipients where {reachable} and number > %s order by number limit {BATCH}"
    last = 0
    while True:
        with connection.cursor(row_factory=dict_row) as cursor:
            batch = cursor.execute(query, [last]).fetchall()
        if not batch:
            return
        last = batch[-1]["number"]
        yield from batch

"""The door of the database through which a segment leaves: ask, read, and say what became of it.

Functions take a connection of `segments.connect`. Who may do what is decided by the database (macros/mechanics/exports.sql).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from orchestration.errors import UserError
from orchestration.exports import log
from orchestration.exports.formats import FORMATS, is_for_ads
from orchestration.people import read_catalog
from orchestration.settings import target_schema

# Of an export that a campaign reads its recipients by. It has no file.
CAMPAIGN_FORMAT = "email"
CONTACT_COLUMNS = ("email", "phone", "first_name", "last_name", "full_name")


@dataclass(frozen=True)
class Entry:
    """A row of segment_export_log: one outcome of an export."""

    log_number: int
    export_id: UUID
    logged_at: datetime
    login_name: str
    role_name: str
    org_id: str
    segment_name: str
    filter: dict[str, Any] | None
    filter_version: int | None
    purpose: str | None
    include_pii: bool
    columns: list[str]
    format: str
    destination: str
    kind: str
    since_export_id: UUID | None
    rows_count: int | None
    entered_count: int | None
    left_count: int | None
    suppressed_count: int | None
    file_sha256: str | None
    is_queued: bool
    format_counts: dict[str, Any] | None
    outcome: str
    reason: str | None
    previous_hash: str
    row_hash: str


def columns(format_name: str, *, include_pii: bool, is_delta: bool) -> list[str]:
    """What is exported: ids and the columns that filters may name; `change` of a delta, contact details on request. Of a list
    for an ad platform what it is made of."""
    fields = sorted(read_catalog().fields.columns)
    if is_for_ads(format_name):
        return [name for name in FORMATS[format_name].reads if name in (*CONTACT_COLUMNS, *fields)]
    return [*(["change"] if is_delta else []), "org_id", "visitor_id", *(CONTACT_COLUMNS if include_pii else ()), *fields, "entered_at"]  # fmt: skip


def ask(
    connection: psycopg.Connection, org_id: str, segment_name: str, purpose: str, *,
    include_pii: bool, is_delta: bool, format_name: str, destination: str, is_queued: bool = False, refusal: str | None = None,
) -> Entry:  # fmt: skip
    """Asks for an export, or says with `refusal` why it is not even tried: logged and committed, requested or refused."""
    wanted = columns(format_name, include_pii=include_pii, is_delta=is_delta)
    return _call(
        connection, "request_segment_export", org_id, segment_name, purpose, include_pii, wanted, format_name, destination,
        is_delta, is_queued, refusal,
    )  # fmt: skip


def ask_standing(
    connection: psycopg.Connection, export_name: str, night: date, org_id: str, segment_name: str, purpose: str, *,
    include_pii: bool, is_delta: bool, format_name: str, destination: str, refusal: str | None = None,
) -> Entry:  # fmt: skip
    """As `ask`, for a standing export of a night. Raises UserError when the night has one, unless that was refused or failed."""
    wanted = columns(format_name, include_pii=include_pii, is_delta=is_delta)
    return _call(
        connection, "request_standing_export", export_name, night, org_id, segment_name, purpose, include_pii, wanted,
        format_name, destination, is_delta, refusal,
    )  # fmt: skip


def request(connection: psycopg.Connection, org_id: str, segment_name: str, purpose: str, **asked: Any) -> Entry:
    """Asks for an export, with the arguments of `ask`. Raises UserError with the reason of a refusal."""
    entry = ask(connection, org_id, segment_name, purpose, **asked)
    if entry.outcome == "refused":
        raise UserError(f"Segment {segment_name!r} of org {org_id!r} is not exported: {entry.reason}.")
    return entry


def record(
    connection: psycopg.Connection, export_id: UUID, outcome: str, file_sha256: str | None = None, reason: str | None = None,
    *, format_counts: dict[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Logs what became of an export. Raises UserError for one of somebody else, or of which this cannot be."""
    return _call(
        connection,
        "record_segment_export",
        export_id,
        outcome,
        file_sha256,
        reason,
        format_counts and Jsonb(format_counts),
    )


def count_withdrawn(connection: psycopg.Connection, export_id: UUID) -> int:
    """People on a list that was read who may not be on it any more. Raises UserError for an export of somebody else."""
    function = sql.Identifier(f"{target_schema()}_state", "count_withdrawn")
    try:
        return connection.execute(sql.SQL("select {}(%s)").format(function), [export_id]).fetchone()[0]
    except psycopg.errors.InvalidParameterValue as error:
        raise UserError(str(error.diag.message_primary)) from error


def _call(connection: psycopg.Connection, function: str, *arguments: Any) -> Entry:
    """Calls a function that logs, and keeps the head of the log beside the exports."""
    marks = sql.SQL(", ").join([sql.Placeholder()] * len(arguments))
    query = sql.SQL("select * from {}({})").format(sql.Identifier(f"{target_schema()}_state", function), marks)
    cursor = connection.cursor(row_factory=class_row(Entry))
    try:
        entry = cursor.execute(query, arguments).fetchone()
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"{connection.info.user} may export nothing ({error.diag.message_primary}): an administrator gives the role with "
            "audience members add."
        ) from error
    except psycopg.errors.InvalidParameterValue as error:
        raise UserError(str(error.diag.message_primary)) from error
    log.keep_head(connection, entry.log_number, entry.row_hash)
    return entry


@contextmanager
def reading(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction in which an export is read: all of it is of one moment."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        yield


def types(connection: psycopg.Connection, entry: Entry) -> dict[str, str]:
    """The columns of an export with their types, in order."""
    found = connection.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = to_regclass(%s) and attnum > 0",
        [f"{target_schema()}.audience_customers"],
    ).fetchall()
    known = {
        **dict.fromkeys(("change", *CONTACT_COLUMNS), "text"),
        **dict(found),
        "entered_at": "timestamp with time zone",
    }
    return {name: known[name] for name in entry.columns}


def listed(entry: Entry, types: dict[str, str]) -> sql.Composed:
    """The rows of an export for a from-clause, as `listed`; of one statement in `reading`. types: of its columns."""
    definitions = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in types.items()]
    return sql.SQL("{}({}) as listed ({})").format(
        sql.Identifier(f"{target_schema()}_state", "read_segment_export"),
        sql.Literal(entry.export_id),
        sql.SQL(", ").join(definitions),
    )


def rows(connection: psycopg.Connection, entry: Entry) -> Iterator[tuple[str | None, ...]]:
    """The rows of an export as texts in the order of its columns, one by one; for formats that are not made by COPY."""
    query = sql.SQL("copy (select * from {}) to stdout").format(listed(entry, types(connection, entry)))
    with connection.cursor().copy(query) as copied:
        yield from copied.rows()

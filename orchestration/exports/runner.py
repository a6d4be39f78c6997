"""Exports a segment: whole or not at all, and the log tells the truth wherever the process is killed.

The order: the request is committed, the rows go into a .part file that is on the disk, the outcome with the file's sha256 is
committed, the file gets its name and is brought where it should go, the delivery is committed. Recovery goes on from
wherever that ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from orchestration import segments
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import destinations, door, files, formats
from orchestration.exports.delivery import Delivery, safe_name
from orchestration.settings import target_schema

# The newest row of each export, as row-level security shows them.
LATEST = """
select * from (select distinct on (export_id) * from {log} order by export_id, log_number desc) as latest
where export_id = coalesce(%(export_id)s, export_id) and org_id = coalesce(%(org_id)s, org_id) and {condition}
order by log_number
"""
# Exports that go on: of this login, or for the owner of anybody. One that waits in the queue has no process.
UNFINISHED = "outcome in ('requested', 'started', 'completed') and not (is_queued and outcome = 'requested') and (%(is_owner)s or login_name = session_user)"


@dataclass(frozen=True)
class Export:
    """An export: its last row in the log, and its file unless that was delivered elsewhere or is yet to be made."""

    entry: door.Entry
    file: Path | None = None


def export_segment(
    connection: psycopg.Connection, segment_name: str, purpose: str, org_id: str | None = None, *,
    include_pii: bool = False, is_delta: bool = False, format_name: str = "csv", to: str | None = None, is_queued: bool = False,
) -> Export:  # fmt: skip
    """Writes a segment's people into a file and brings it to `to`: a folder, by default `exports` in AUDIENCE_HOME, or a URL.

    is_queued: Dagster's sensor, or `run_requested`, does it later. Whoever may materialize the segment does that first; for
    others it is as last materialized. Raises UserError for a refusal, also for a destination that cannot be used, which is
    logged, and for a delivery that fails.
    """
    if not is_queued and may(connection, "segment_export_log", "select"):
        recover(connection)
    asked = {"include_pii": include_pii, "is_delta": is_delta, "format_name": format_name, "is_queued": is_queued}
    try:
        destination = _checked(format_name, to, is_delta, is_queued)
        if may(connection, "audience_segments", "select"):
            org_id = org_id or segments.find_segment(connection, segment_name).org_id
        if is_owner(connection) and segments.list_segments(connection, org_id, segment_name):
            segments.check(segments.materialize(connection, segment_name, org_id))
    except (UserError, CheckFailed) as error:
        refused = {"destination": safe_name(to or ""), "refusal": str(error)}
        door.ask(connection, org_id or "", segment_name, purpose, **asked, **refused)
        raise
    entry = door.request(connection, org_id or "", segment_name, purpose, **asked, destination=destination)
    return Export(entry) if is_queued else write_file(connection, entry, to)


def _checked(format_name: str, to: str | None, is_delta: bool, is_queued: bool) -> str:
    """What the log says of `to`; nothing for the exports of whoever makes the list later. Raises UserError for what cannot
    be used, the format included."""
    if format_name not in files.FORMAT_NAMES:
        raise UserError(f"There is no format {format_name!r}: give one of {', '.join(files.FORMAT_NAMES)}.")
    if is_delta and formats.is_for_ads(format_name):
        raise UserError(
            f"A list for {format_name} cannot say who entered and who left: leave --delta out, and replace the list."
        )
    if to is None and is_queued:
        return ""
    if to is None or not files.is_remote(to):
        return str(files.usable_folder(to))
    destinations.check(to)
    if is_queued and safe_name(to) != to:
        raise UserError(f"{safe_name(to)} has a part that is not kept: an export to it cannot wait, leave --later out.")
    return safe_name(to)


def export_standing(
    connection: psycopg.Connection, export_name: str, night: date, org_id: str, segment_name: str, purpose: str, *,
    include_pii: bool = False, is_delta: bool = False, format_name: str = "csv", to: str | None = None,
) -> Export:  # fmt: skip
    """Makes a standing export of a night, once: what is left of it is done, and what was refused or failed is asked for anew.

    Materializes the segment first. Raises UserError for a refusal, which is logged, and for what goes on elsewhere or fails.
    """
    entry = of_night(connection, export_name, night, org_id)
    if entry and entry.outcome in ("delivered", "acknowledged"):
        return Export(entry)
    if entry and entry.outcome == "undelivered" and not _withdrawn(connection, entry):
        return _deliver(connection, entry)
    asked = {"include_pii": include_pii, "is_delta": is_delta, "format_name": format_name}
    try:
        destination = _checked(format_name, to, is_delta, is_queued=False)
        segments.check(segments.materialize(connection, segment_name, org_id))
    except (UserError, CheckFailed) as error:
        refused = {"destination": safe_name(to or ""), "refusal": str(error)}
        door.ask_standing(connection, export_name, night, org_id, segment_name, purpose, **asked, **refused)
        raise
    entry = door.ask_standing(
        connection, export_name, night, org_id, segment_name, purpose, **asked, destination=destination
    )
    if entry.outcome == "refused":
        raise UserError(f"Segment {segment_name!r} of org {org_id!r} is not exported: {entry.reason}.")
    return write_file(connection, entry)


def of_night(connection: psycopg.Connection, export_name: str, night: date, org_id: str) -> door.Entry | None:
    """The newest row of a standing export of a night; None: it was not asked for yet."""
    table = sql.Identifier(f"{target_schema()}_state", "standing_export_nights")
    query = sql.SQL("select export_id from {} where org_id = %s and export_name = %s and night = %s").format(table)
    found = connection.execute(query, [org_id, export_name, night]).fetchone()
    return find(connection, found[0]) if found else None


def requested(connection: psycopg.Connection) -> list[door.Entry]:
    """Exports that wait in the queue, the oldest first."""
    return _latest(connection, "is_queued and outcome = 'requested'")


def run_requested(connection: psycopg.Connection, export_id: UUID) -> Export:
    """Makes an export that waits in the queue, once. Raises UserError when another process does, or did, and for a
    destination to which it may not go."""
    entry = door.record(connection, export_id, "started")
    try:
        files.check_queued(entry.destination)
        if is_owner(connection):
            segments.check(segments.materialize(connection, entry.segment_name, entry.org_id))
    except (UserError, CheckFailed) as error:
        door.record(connection, export_id, "failed", reason=str(error))
        raise
    return write_file(connection, entry)


def write_file(connection: psycopg.Connection, entry: door.Entry, to: str | None = None) -> Export:
    """Reads an accepted request into its file and delivers it. Raises UserError when that ends early, which is logged."""
    try:
        sha256, counts = files.stream(connection, entry)
        entry = door.record(connection, entry.export_id, "completed", sha256, format_counts=counts)
    except BaseException as error:
        _abandon(connection, entry, error)
        if isinstance(error, OSError | psycopg.Error):
            raise UserError(
                f"The export ended early ({_sentence(error)}): put that right, then run it again."
            ) from error
        raise
    if ended := _withdrawn(connection, entry):
        raise UserError(f"Export {entry.export_id} is not delivered: {ended.reason}. Run it again without them.")
    return _deliver(connection, entry, to)


def acknowledge(connection: psycopg.Connection, export_id: UUID) -> door.Entry:
    """Marks a delivered export as taken: later deltas of its segment, format and destination begin there."""
    return door.record(connection, export_id, "acknowledged")


def latest(connection: psycopg.Connection, org_id: str | None = None) -> list[door.Entry]:
    """The newest row of each export that this login may see, of one org if given."""
    return _latest(connection, org_id=org_id)


def history(connection: psycopg.Connection, export_id: UUID) -> list[door.Entry]:
    """All that happened to an export. Raises UserError for one that this login may not see."""
    with connection.cursor(row_factory=class_row(door.Entry)) as cursor:
        query = sql.SQL("select * from {} where export_id = %s order by log_number").format(_log())
        found = cursor.execute(query, [export_id]).fetchall()
    if not found:
        raise UserError(f"There is no export {export_id}: audience exports list shows those that there are.")
    return found


def find(connection: psycopg.Connection, export_id: UUID) -> door.Entry:
    """The newest row of an export. Raises UserError for one that this login may not see."""
    return history(connection, export_id)[-1]


def retry(connection: psycopg.Connection, export_id: UUID, to: str | None = None) -> Export:
    """Delivers again what was not delivered, or asks anew for what failed. to: the whole URL, where the log keeps a part of it.

    Raises UserError for an export that came to a good end, or goes on.
    """
    recover(connection)
    entry = find(connection, export_id)
    to = to or entry.destination or None
    if entry.format == door.CAMPAIGN_FORMAT:
        raise UserError(f"Export {export_id} is of a campaign: audience campaigns send goes on with it.")
    if entry.outcome not in ("failed", "undelivered"):
        raise UserError(f"Export {export_id} is {entry.outcome}: there is nothing to do again.")
    if to and safe_name(to) != entry.destination:
        raise UserError(f"Export {export_id} goes to {entry.destination}: give its URL, or make another export.")
    if entry.outcome == "undelivered" and not _withdrawn(connection, entry):
        return _deliver(connection, entry, to)
    return export_segment(
        connection, entry.segment_name, entry.purpose or "", entry.org_id, include_pii=entry.include_pii,
        is_delta=entry.kind == "delta", format_name=entry.format, to=to,
    )  # fmt: skip


def recover(connection: psycopg.Connection) -> list[door.Entry]:
    """Finishes exports whose process is gone: delivers a file that is complete, gives up and logs one that is not.

    Returns their new rows in the log. A complete file that is not on this machine is left to the one that has it; one for a
    URL is left to `retry`.
    """
    return [done for entry in unfinished(connection) if (done := _recover(connection, entry.export_id))]


def unfinished(connection: psycopg.Connection, export_id: UUID | None = None) -> list[door.Entry]:
    """Exports, or one, of which the log has no end yet: of this login, and for the owner of anybody."""
    return _latest(connection, UNFINISHED, export_id=export_id, is_owner=is_owner(connection))


def stages(connection: psycopg.Connection, entry: door.Entry) -> list[tuple[str, int]]:
    """How many of a segment's members are in which lifecycle stage: a look at a list that shows nobody. For its owner."""
    schema = target_schema()
    query = sql.SQL(
        "select lifecycle_stage, count(*) from {memberships} join {customers} using (org_id, visitor_id)"
        " where org_id = %s and segment_name = %s and left_at is null group by 1 order by 2 desc, 1"
    ).format(
        memberships=sql.Identifier(f"{schema}_state", "segment_memberships"),
        customers=sql.Identifier(schema, "audience_customers"),
    )
    return connection.execute(query, [entry.org_id, entry.segment_name]).fetchall()


def _latest(
    connection: psycopg.Connection, condition: str = "true", *,
    export_id: UUID | None = None, org_id: str | None = None, is_owner: bool = False,
) -> list[door.Entry]:  # fmt: skip
    query = sql.SQL(LATEST).format(log=_log(), condition=sql.SQL(condition))
    with connection.cursor(row_factory=class_row(door.Entry)) as cursor:
        return cursor.execute(query, {"export_id": export_id, "org_id": org_id, "is_owner": is_owner}).fetchall()


def _log() -> sql.Identifier:
    return sql.Identifier(f"{target_schema()}_state", "segment_export_log")


def _recover(connection: psycopg.Connection, export_id: UUID) -> door.Entry | None:
    if not _lock(connection, "try_advisory_lock", export_id):  # its process lives
        return None
    try:
        # read under the lock: it may have ended meanwhile
        return next((_finish(connection, entry) for entry in unfinished(connection, export_id)), None)
    finally:
        _lock(connection, "advisory_unlock", export_id)


def wait_for(connection: psycopg.Connection, org_id: str) -> None:
    """Until no process makes an export of an org any more; what dead ones left is finished."""
    for entry in unfinished(connection):
        if entry.org_id == org_id:
            _lock(connection, "advisory_lock", entry.export_id)
            _lock(connection, "advisory_unlock", entry.export_id)
    recover(connection)


def _lock(connection: psycopg.Connection, function: str, export_id: UUID) -> bool:
    """Calls a function on the lock that the process of an export holds (export_lock_key in macros/mechanics/exports.sql)."""
    query = sql.SQL("select {}(hashtextextended(%s, 42))").format(sql.Identifier(f"pg_{function}"))
    return connection.execute(query, [f"audience export {export_id}"]).fetchone()[0]


def _finish(connection: psycopg.Connection, entry: door.Entry) -> door.Entry | None:
    part, reason = files.part_of(entry), "its process ended before the file was complete"
    if entry.outcome == "completed":
        found = next((path for path in (part, files.file_of(entry)) if path.exists()), None)
        if found is None:
            return None
        if ended := _withdrawn(connection, entry):
            return ended
        if files.sha256_of(found) == entry.file_sha256:
            if not files.is_remote(entry.destination):
                return _deliver(connection, entry).entry
            files.publish(entry)
            return door.record(
                connection, entry.export_id, "undelivered", reason="its process ended before it was delivered"
            )
        reason = "the file is not the one that was written"
    part.unlink(missing_ok=True)  # first: after the row nobody would look for it
    return door.record(connection, entry.export_id, "failed", reason=reason)


def is_owner(connection: psycopg.Connection) -> bool:
    """May this login write the memberships, as their owner may?"""
    return may(connection, "segment_memberships", "insert")


def may(connection: psycopg.Connection, table: str, privilege: str) -> bool:
    """Has this login the privilege on a table of the state?"""
    name = sql.Identifier(f"{target_schema()}_state", table).as_string(connection)
    found = "select has_schema_privilege(%s, 'usage') and has_table_privilege(%s, %s)"
    return connection.execute(found, [f"{target_schema()}_state", name, privilege]).fetchone()[0]


def _deliver(connection: psycopg.Connection, entry: door.Entry, to: str | None = None) -> Export:
    """Gives a complete file of which nobody withdrew its name, brings it where it should go, and logs that; what was brought
    elsewhere is not kept."""
    file = files.publish(entry)
    if not files.is_remote(entry.destination):
        return Export(door.record(connection, entry.export_id, "delivered"), file)
    # the same id each time, so that a receiver takes it once
    name = str(entry.export_id)
    try:
        destinations.deliver(file, to or entry.destination, Delivery(name, name, files.media_type_of(entry.format)))
    except UserError as error:
        door.record(connection, entry.export_id, "undelivered", reason=str(error))
        raise UserError(
            f"{error} The file is kept until audience exports retry {entry.export_id} delivers it."
        ) from error
    done = door.record(connection, entry.export_id, "delivered")
    file.unlink()
    return Export(done)


def _withdrawn(connection: psycopg.Connection, entry: door.Entry) -> door.Entry | None:
    """Gives up a file with people who withdrew since it was made, and logs that; None: there are none."""
    count = door.count_withdrawn(connection, entry.export_id)
    if not count:
        return None
    for path in (files.part_of(entry), files.file_of(entry)):
        path.unlink(missing_ok=True)
    reason = f"{count:,} of its people withdrew after it was made"
    return door.record(connection, entry.export_id, "failed", reason=reason)


def _abandon(connection: psycopg.Connection, entry: door.Entry, error: BaseException) -> None:
    """Logs a failure and removes what was written; without a connection the next recovery does."""
    if not connection.closed:
        files.part_of(entry).unlink(missing_ok=True)
        door.record(connection, entry.export_id, "failed", reason=_sentence(error))


def _sentence(error: BaseException) -> str:
    """What went wrong, without the values of rows that the details of an error of the database may have."""
    if isinstance(error, psycopg.Error):
        return error.diag.message_primary or type(error).__name__
    if isinstance(error, UserError):
        return str(error)
    return str(getattr(error, "strerror", None) or type(error).__name__)

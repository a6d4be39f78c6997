"""Exports a segment into a file: whole or not at all, and the log tells the truth wherever the process is killed.

The order: the request is committed, the rows go into a .part file that is on the disk, the outcome with the file's sha256 is
committed, the file gets its name, the delivery is committed. Recovery goes on from wherever that ended.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from orchestration import segments
from orchestration.errors import UserError
from orchestration.exports import door, log
from orchestration.exports.copies import FORMATS
from orchestration.settings import target_schema

BLOCK_BYTES = 1 << 20

# Exports that go on: of this login, or for the owner of anybody.
UNFINISHED = """
select * from (select distinct on (export_id) * from {log} order by export_id, log_number desc) as last
where outcome in ('requested', 'completed') and (%(is_owner)s or login_name = session_user)
    and export_id = coalesce(%(export_id)s, export_id)
order by log_number
"""


@dataclass(frozen=True)
class Export:
    """A delivered export: its file, and its last row in the log."""

    file: Path
    entry: door.Entry


def export_segment(
    connection: psycopg.Connection, segment_name: str, purpose: str, org_id: str | None = None, *,
    include_pii: bool = False, is_delta: bool = False, format_name: str = "csv", folder: Path | None = None,
) -> Export:  # fmt: skip
    """Writes a segment's people into a file of the folder, by default `exports` in AUDIENCE_HOME.

    Whoever may materialize it does that first; for others it is as last materialized. Raises UserError for a refusal, which
    is logged, and for a folder that cannot be written.
    """
    if format_name not in FORMATS:
        raise UserError(f"There is no format {format_name!r}: give one of {', '.join(FORMATS)}.")
    folder = _usable(folder)
    recover(connection)
    org_id = org_id or segments.find_segment(connection, segment_name).org_id
    if _is_owner(connection) and segments.list_segments(connection, org_id, segment_name):
        segments.check(segments.materialize(connection, segment_name, org_id))
    entry = door.request(
        connection, org_id, segment_name, purpose, include_pii=include_pii, is_delta=is_delta, format_name=format_name,
        destination=str(folder),
    )  # fmt: skip
    return write_file(connection, entry)


def write_file(connection: psycopg.Connection, entry: door.Entry) -> Export:
    """Reads an accepted request into its file. Raises UserError when that ends early, which is logged."""
    try:
        sha256 = stream(connection, entry)
        entry = door.record(connection, entry.export_id, "completed", sha256)
    except BaseException as error:
        _abandon(connection, entry, error)
        if isinstance(error, OSError | psycopg.Error):
            raise UserError(
                f"The export ended early ({_sentence(error)}): put that right, then run it again."
            ) from error
        raise
    return _deliver(connection, entry)


def acknowledge(connection: psycopg.Connection, export_id: UUID) -> door.Entry:
    """Marks a delivered export as taken: later deltas of its segment, format and destination begin there."""
    return door.record(connection, export_id, "acknowledged")


def recover(connection: psycopg.Connection) -> list[door.Entry]:
    """Finishes exports whose process is gone: delivers a file that is complete, gives up and logs one that is not.

    Returns their new rows in the log. A complete file that is not on this machine is left to the one that has it.
    """
    return [done for entry in unfinished(connection) if (done := _recover(connection, entry.export_id))]


def unfinished(connection: psycopg.Connection, export_id: UUID | None = None) -> list[door.Entry]:
    """Exports, or one, of which the log has no end yet: of this login, and for the owner of anybody."""
    query = sql.SQL(UNFINISHED).format(log=sql.Identifier(f"{target_schema()}_state", "segment_export_log"))
    with connection.cursor(row_factory=class_row(door.Entry)) as cursor:
        return cursor.execute(query, {"is_owner": _is_owner(connection), "export_id": export_id}).fetchall()


def _recover(connection: psycopg.Connection, export_id: UUID) -> door.Entry | None:
    key = f"audience export {export_id}"
    lock = "select pg_try_advisory_lock(hashtextextended(%s, 42))"
    if not connection.execute(lock, [key]).fetchone()[0]:  # its process lives
        return None
    try:
        # read under the lock: it may have ended meanwhile
        return next((_finish(connection, entry) for entry in unfinished(connection, export_id)), None)
    finally:
        connection.execute("select pg_advisory_unlock(hashtextextended(%s, 42))", [key])


def _finish(connection: psycopg.Connection, entry: door.Entry) -> door.Entry | None:
    part, reason = _part(entry), "its process ended before the file was complete"
    if entry.outcome == "completed":
        found = next((path for path in (part, _file(entry)) if path.exists()), None)
        if found is None:
            return None
        if _sha256(found) == entry.file_sha256:
            return _deliver(connection, entry).entry
        reason = "the file is not the one that was written"
    part.unlink(missing_ok=True)  # first: after the row nobody would look for it
    return door.record(connection, entry.export_id, "failed", reason=reason)


def _is_owner(connection: psycopg.Connection) -> bool:
    """May this login write the memberships, as their owner may?"""
    name = sql.Identifier(f"{target_schema()}_state", "segment_memberships").as_string(connection)
    return connection.execute("select has_table_privilege(%s, 'insert')", [name]).fetchone()[0]


def _usable(folder: Path | None) -> Path:
    try:
        if folder is None:
            return log.exports_folder()
        folder = folder.expanduser().resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be used for exports ({error.strerror}): give another --to."
        ) from error
    return folder


def _file(entry: door.Entry) -> Path:
    names = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] for name in (entry.org_id, entry.segment_name)]
    return Path(entry.destination) / "-".join([*names, f"{entry.export_id}.{entry.format}"])


def _part(entry: door.Entry) -> Path:
    file = _file(entry)
    return file.with_name(f"{file.name}.part")


def stream(connection: psycopg.Connection, entry: door.Entry) -> str:
    """Streams the rows into the .part file, which is on the disk on return; the sha256 of its bytes."""
    digest, block = hashlib.sha256(), bytearray()
    with os.fdopen(os.open(_part(entry), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
        with door.reading(connection):
            for piece in FORMATS[entry.format](connection, entry):
                block += piece
                if len(block) >= BLOCK_BYTES:
                    _flush(file, digest, block)
        _flush(file, digest, block)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _flush(file, digest, block: bytearray) -> None:
    digest.update(block)
    while block:
        del block[: file.write(block)]


def _deliver(connection: psycopg.Connection, entry: door.Entry) -> Export:
    """Gives a complete file its name, for good, and logs the delivery."""
    part, file = _part(entry), _file(entry)
    if part.exists():
        part.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Export(file, door.record(connection, entry.export_id, "delivered"))


def _abandon(connection: psycopg.Connection, entry: door.Entry, error: BaseException) -> None:
    """Logs a failure and removes what was written; without a connection the next recovery does."""
    if not connection.closed:
        _part(entry).unlink(missing_ok=True)
        door.record(connection, entry.export_id, "failed", reason=_sentence(error))


def _sentence(error: BaseException) -> str:
    """What went wrong, without the values of rows that the details of an error of the database may have."""
    if isinstance(error, psycopg.Error):
        return error.diag.message_primary or type(error).__name__
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

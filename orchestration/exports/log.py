"""The log of exports: its head, kept outside of the database, and the check that nobody changed it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from orchestration import database
from orchestration.errors import CheckFailed, UserError
from orchestration.settings import audience_home, target_schema

TRIGGERS = {"chained", "unchanged"}
# By functions of PostgreSQL alone: a changed export_log_hash would agree with the rows that it made.
WRONG = """
select log_number, place from (
    select log_number, row_number() over (order by log_number) as place, previous_hash, row_hash,
        lag(row_hash, 1, '') over (order by log_number) as row_hash_before,
        encode(sha256(convert_to(previous_hash || (
            select cast(jsonb_object_agg(key, value) as text) from jsonb_each(to_jsonb(entry) - 'row_hash') where value <> 'null'
        ), 'UTF8')), 'hex') as row_hash_now
    from {log} as entry
) as rows
where log_number <> place or previous_hash <> row_hash_before or row_hash <> row_hash_now
order by place limit 1
"""


@dataclass(frozen=True)
class LogReport:
    """A log without a difference: its rows, and how many heads kept beside the exports it agrees with."""

    rows: int
    heads: int
    row_hash: str | None


def exports_folder() -> Path:
    """Where exports go by default, and the heads of the log. Only its owner may look into it."""
    folder = audience_home() / "exports"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def heads_file() -> Path:
    return exports_folder() / "log_heads.ndjson"


def keep_head(connection: psycopg.Connection, log_number: int, row_hash: str) -> None:
    """Adds the number and hash of a row to the heads; it is on the disk on return."""
    head = {"log": _place(connection), "log_number": log_number, "row_hash": row_hash}
    file = os.open(heads_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, (json.dumps(head) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def _place(connection: psycopg.Connection) -> str:
    """Which log: one home may serve several servers, databases and schemas."""
    info = connection.info
    return f"{info.host}:{info.port}/{info.dbname}/{target_schema()}"


def _heads(connection: psycopg.Connection) -> dict[int, str]:
    if not heads_file().exists():
        return {}
    found: dict[int, str] = {}
    for number, line in enumerate(heads_file().read_text().splitlines(), 1):
        try:
            head = json.loads(line)
            if head["log"] == _place(connection):
                found[head["log_number"]] = head["row_hash"]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckFailed(f"Line {number} of {heads_file()} is no head of a log: restore the file.") from error
    return found


def verify_log() -> LogReport:
    """Computes the chain of the log again and compares it with the heads. Raises CheckFailed with the first difference.

    Raises UserError for a login that may not read all of it.
    """
    with database.connect() as connection:
        return check(connection)


def check(connection: psycopg.Connection) -> LogReport:
    """As verify_log, in a connection whose time zone is UTC."""
    heads = _heads(connection)
    name = f"{target_schema()}_state"
    found = connection.execute(
        "select pg_has_role(relowner, 'usage'),"
        " array(select cast(tgname as text) from pg_trigger where tgrelid = pg_class.oid and tgenabled = 'A')"
        " from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname = %s and relname = 'segment_export_log'",
        [name],
    ).fetchone()
    if not found:
        raise CheckFailed("There is no table segment_export_log: restore it from the backup.")
    is_owner, active = found
    if not is_owner:
        raise UserError(f"{connection.info.user} may not read the whole log: verify it as its owner.")
    missing = TRIGGERS - set(active)
    if missing:
        raise CheckFailed(f"Triggers of the log are off or gone ({', '.join(sorted(missing))}): find out who did it.")
    return _compare(connection, sql.Identifier(name, "segment_export_log"), heads)


def _compare(connection: psycopg.Connection, log: sql.Identifier, heads: dict[int, str]) -> LogReport:
    wrong = connection.execute(sql.SQL(WRONG).format(log=log)).fetchone()
    if wrong:
        number, place = wrong
        what = f"row {number} was changed" if number == place else f"row {place} is missing"
        raise CheckFailed(f"The log is not as it was written: {what}. Keep a copy, and compare it with a backup.")
    there = dict(
        connection.execute(
            sql.SQL("select log_number, row_hash from {} where log_number = any(%s)").format(log), [list(heads)]
        ).fetchall()
    )
    for number, row_hash in sorted(heads.items()):
        if there.get(number) != row_hash:
            what = "was written anew" if number in there else "is missing"
            raise CheckFailed(
                f"The log is not the one whose heads are in {heads_file()}: row {number} {what}. Compare it with a backup."
            )
    last = connection.execute(
        sql.SQL("select log_number, row_hash from {} order by log_number desc limit 1").format(log)
    ).fetchone()
    return LogReport(*((last[0], len(heads), last[1]) if last else (0, 0, None)))

"""Back-up and restore of what no build can compute again: the landing tables and the tables of state.

A back-up is a zip: manifest.json, and of each table its rows as PostgreSQL's COPY writes them, all of one moment. Tables are
those that the database has, so that a table that a release adds is in it. It holds personal data: only its owner may read it.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orchestration import database, dbt
from orchestration.build import build_lock
from orchestration.errors import UserError
from orchestration.settings import project_variables, target_schema

FORMAT = "audience backup 1"
# What a build had consumed means nothing in another database: without it the next build computes everything.
COMPUTED = "model_state"
# What the first run writes into empty tables; what is restored takes their place.
MADE_BY_THE_FIRST_RUN = {"landing.runner_state", "landing.privacy_key"}
# Ordinary tables with their columns, but for those that PostgreSQL computes; those that others refer to come first.
TABLES = """
with recursive tables as (
    select oid, relname, relnamespace from pg_class where relkind = 'r' and relnamespace = to_regnamespace(quote_ident(%(schema)s))
),
depths as (
    select oid, 0 as depth from tables
    union
    select conrelid, depth + 1 from depths join pg_constraint on confrelid = depths.oid and contype = 'f' and conrelid <> confrelid
    where depth < 20
)
select relname, array(
    select attname from pg_attribute
    where attrelid = tables.oid and attnum > 0 and not attisdropped and attgenerated = '' order by attnum
)
from tables join (select oid, max(depth) as depth from depths group by oid) as deepest using (oid)
order by depth, relname
"""
TRIGGERS = """
select tgrelid::regclass::text, tgname, case tgenabled when 'A' then 'enable always' when 'R' then 'enable replica' else 'enable' end
from pg_trigger where tgrelid = to_regclass(%s) and not tgisinternal and tgenabled <> 'D'
"""


@dataclass(frozen=True)
class TableRows:
    """A table as it is named in a back-up, `landing.` or `state.` before its name, and how many rows it has."""

    table: str
    rows: int


@dataclass(frozen=True)
class BackupReport:
    """file: of the back-up, `bytes` large. made_at: the moment that it is of."""

    file: str
    made_at: str
    bytes: int
    tables: list[TableRows]


@dataclass(frozen=True)
class _Table:
    name: str
    identifier: sql.Identifier
    columns: list[str]

    def copy(self, direction: str, columns: list[str]) -> sql.Composed:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        return sql.SQL("copy {} ({}) " + direction).format(self.identifier, names)


Progress = Callable[[int, int, str], None]


def back_up(file: Path, *, progress: Progress | None = None) -> BackupReport:
    """Writes a back-up, whole or not at all; loads, builds and exports may run meanwhile.

    progress: called with (tables done, tables, name). Raises UserError for a file that is there or cannot be written.
    """
    if file.exists():
        raise UserError(f"{file} is there already: name another file, so that no back-up is lost.")
    part = file.with_name(f"{file.name}.part")
    with _usable(part), database.connect(application_name="audience backup") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        made_at = connection.execute("select now()").fetchone()[0].astimezone(UTC).isoformat()
        tables = _tables(connection)
        if not tables:
            raise UserError("There is nothing to back up: this database has no landing tables.")
        done = []
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as out:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                for number, table in enumerate(tables):
                    done.append(TableRows(table.name, _write(connection, archive, table)))
                    if progress:
                        progress(number + 1, len(tables), table.name)
                columns = {table.name: table.columns for table in tables}
                manifest = {
                    "format": FORMAT, "made_at": made_at,
                    "tables": [{"table": one.table, "rows": one.rows, "columns": columns[one.table]} for one in done],
                }  # fmt: skip
                archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            out.flush()
            os.fsync(out.fileno())
        part.rename(file)
    return BackupReport(str(file), made_at, file.stat().st_size, done)


@contextmanager
def _usable(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{part} cannot be written ({error.strerror}): free some disk, or name another file."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _write(connection: psycopg.Connection, archive: zipfile.ZipFile, table: _Table) -> int:
    cursor = connection.cursor()
    with (
        archive.open(f"{table.name}.copy", "w", force_zip64=True) as entry,
        cursor.copy(table.copy("to stdout", table.columns)) as copy,
    ):
        for data in copy:
            entry.write(data)
    return cursor.rowcount


def restore(file: Path, *, progress: Progress | None = None) -> BackupReport:
    """Fills the tables of an empty database with a back-up, in one transaction; the next build computes the rest.

    Raises UserError, with nothing changed, for a file that is no whole back-up, and for a database that is not empty.
    """
    with _opened(file) as archive:
        manifest = _manifest(archive, file)
        _refuse_filled()
        dbt.prepare()
        with build_lock(), database.connect(application_name="audience restore") as connection:
            _refuse_filled()
            done = _fill(connection, archive, manifest, progress)
    return BackupReport(str(file), manifest["made_at"], file.stat().st_size, done)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): correct the name.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, psycopg.DataError) as error:
        raise UserError(f"{file} is no whole back-up ({error}): nothing was changed. Take another one.") from error


def _manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(archive.read("manifest.json"))
    except (KeyError, ValueError):
        manifest = {}
    if manifest.get("format") != FORMAT:
        raise UserError(f"{file} was not made by audience backup: give a file that was.")
    return manifest


def _refuse_filled() -> None:
    with database.connect() as connection:
        for table in _tables(connection):
            if table.name in MADE_BY_THE_FIRST_RUN:
                continue
            query = sql.SQL("select exists (select from {})").format(table.identifier)
            if connection.execute(query).fetchone() == (True,):
                raise UserError(
                    f"The database {connection.info.dbname} is not empty, {table.name} has rows: nothing was changed. "
                    "Restore into a new database."
                )


def _fill(
    connection: psycopg.Connection, archive: zipfile.ZipFile, manifest: dict[str, Any], progress: Progress | None
) -> list[TableRows]:
    here = {table.name: table for table in _tables(connection)}
    stored = {one["table"]: one for one in manifest["tables"]}
    _refuse_newer(stored, here)
    names = [name for name in here if name in stored]
    with _without_triggers(connection, [here[name] for name in names]):
        for name in MADE_BY_THE_FIRST_RUN.intersection(names):
            connection.execute(sql.SQL("delete from {}").format(here[name].identifier))
        connection.execute(sql.SQL("delete from {}").format(sql.Identifier(f"{target_schema()}_state", COMPUTED)))
        done = []
        for number, name in enumerate(names):
            done.append(TableRows(name, _read(connection, archive, here[name], stored[name])))
            if progress:
                progress(number + 1, len(names), name)
    landing = project_variables()["landing_schema"]
    connection.execute(sql.SQL("select {}()").format(sql.Identifier(landing, "ensure_erased_stay_out")))
    return done


@contextmanager
def _without_triggers(connection: psycopg.Connection, tables: list[_Table]) -> Iterator[None]:
    """In a transaction: triggers would stamp, chain and follow the rows as if they were new."""
    found = [
        trigger
        for table in tables
        for trigger in connection.execute(TRIGGERS, [table.identifier.as_string(connection)]).fetchall()
    ]
    for table, name, _ in found:
        connection.execute(sql.SQL(f"alter table {table} disable trigger {{}}").format(sql.Identifier(name)))
    yield
    for table, name, enable in found:
        connection.execute(sql.SQL(f"alter table {table} {enable} trigger {{}}").format(sql.Identifier(name)))


def _tables(connection: psycopg.Connection) -> list[_Table]:
    """The tables of a back-up that this database has, those that others refer to first."""
    found = []
    for place, schema in (("landing", project_variables()["landing_schema"]), ("state", f"{target_schema()}_state")):
        for name, columns in connection.execute(TABLES, {"schema": schema}):
            if name != COMPUTED:
                found.append(_Table(f"{place}.{name}", sql.Identifier(schema, name), columns))
    return found


def _refuse_newer(stored: dict[str, dict[str, Any]], here: dict[str, _Table]) -> None:
    for name, one in stored.items():
        unknown = set(one["columns"]) - set(here[name].columns) if name in here else {"the table"}
        if unknown:
            raise UserError(
                f"The back-up has {', '.join(sorted(unknown))} of {name}, which this release does not know: nothing was "
                "changed. Restore it with the release that made it, or a later one."
            )


def _read(connection: psycopg.Connection, archive: zipfile.ZipFile, table: _Table, stored: dict[str, Any]) -> int:
    cursor = connection.cursor()
    with (
        archive.open(f"{table.name}.copy") as entry,
        cursor.copy(table.copy("from stdin", stored["columns"])) as copy,
    ):
        while data := entry.read(1 << 20):
            copy.write(data)
    if cursor.rowcount != stored["rows"]:
        raise UserError(f"{table.name} has {cursor.rowcount:,} rows in the back-up instead of {stored['rows']:,}: nothing was changed.")  # fmt: skip
    _continue_numbering(connection, table)
    return cursor.rowcount


def _continue_numbering(connection: psycopg.Connection, table: _Table) -> None:
    """Numbers that the database gives go on after those that are there."""
    name = table.identifier.as_string(connection)
    query = "select column_name, pg_get_serial_sequence(%s, column_name) from unnest(cast(%s as text[])) as column_name"
    for column, sequence in connection.execute(query, [name, table.columns]).fetchall():
        if sequence:
            highest = sql.SQL("select max({}) from {}").format(sql.Identifier(column), table.identifier)
            (number,) = connection.execute(highest).fetchone()
            if number is not None:
                connection.execute("select setval(cast(%s as regclass), %s)", [sequence, number])

"""A hundred people by chance are exported, erased, and sent again: what is held on each, and that nothing comes back."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestration import database, dbt, segments
from orchestration.build import build
from orchestration.exports import log, runner
from orchestration.load import load_files
from orchestration.rights import erasure
from orchestration.rights.export import export_subject
from orchestration.sample import write_sample
from orchestration.verify import verify
from tests import people
from tests.filters import group, rule
from tests.projects import AS_OF, END, own_project

PEOPLE = 100
# Rows of other kinds than those that a build computes: their numbers are those of a database.
NUMBERED = ("landing_id", "landed_xid", "change_id")
MARTS = """
select n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname ~ '^audience(_contacts|_intermediate)?$' and c.relname !~ '__changes$' order by 1, 2
"""


def marts(connection: psycopg.Connection) -> dict[str, Counter[str]]:
    """Every row of every table of the target, without numbers that the database gave."""
    tables = connection.execute(MARTS).fetchall()
    numbers = ", ".join(f"'{name}'" for name in NUMBERED)
    query = 'select cast(to_jsonb(rows) - array[{}] as text) from "{}"."{}" as rows'
    return {table: Counter(connection.execute(query.format(numbers, schema, table))) for schema, table in tables}


def rejected(connection: psycopg.Connection) -> list[tuple[str]]:
    return connection.execute("select raw_row from analytics.rejected_rows order by 1").fetchall()


def exported_lists(connection: psycopg.Connection) -> None:
    """Lists with everybody: a file of each kind, and one that was acknowledged."""
    for (org,) in connection.execute("select distinct org_id from audience.audience_customers").fetchall():
        segments.create_segment(connection, "Every body", org, group(rule("events_count", ">=", 0)))
        done = runner.export_segment(connection, "Every body", "a test", org, include_pii=True)
        runner.acknowledge(connection, done.entry.export_id)
        for format_name in ("ndjson", "parquet", "google"):
            runner.export_segment(connection, "Every body", "a test", org, include_pii=True, format_name=format_name)


def prove(
    connection: psycopg.Connection,
    files: list[Path],
    folder: Path,
    seed: int,
    without: Callable[[set[str], set[str]], list[Path]],
) -> None:
    by = random.Random(seed)
    exported_lists(connection)
    there = people.everybody(connection)
    customers = connection.execute(
        "select org_id, visitor_id from audience.audience_customers order by 1, 2"
    ).fetchall()
    chosen = [there[key] for key in by.sample(customers, PEOPLE)]
    words = people.identifiers(chosen, there.values())
    assert len(words) > PEOPLE and people.traces(connection, words, log.exports_folder()) == {
        word.lower() for word in words
    }
    before, rejected_before = people.rows_of_people(connection), rejected(connection)

    held: dict[str, Counter[str]] = {name: Counter() for name in before}
    givens: dict[str, list[Any]] = {}
    for number, one in enumerate(chosen):
        given = people.given_of(one, words, by)
        out = folder / f"{number}.json"
        report = export_subject(one.org_id, given, out)
        content = json.loads(out.read_text())
        assert one.visitor_id in content["identifiers"]["visitor_ids"] and out.stat().st_mode & 0o777 == 0o600
        assert report.rows_by_table == {name: len(rows) for name, rows in content["tables"].items()}
        assert len(content["deliveries"]) == 4 * (
            content["tables"].get("audience_state.segment_memberships") is not None
        )
        told = content["tables"]["analytics.events"]
        assert {row["landing_id"] for row in one.rows} == {
            row["landing_id"] for row in told if not row["rejection_reason"]
        }
        for name, rows in content["tables"].items():
            held[name] += Counter(map(people.canonical, rows))
        givens.setdefault(one.org_id, []).append(given)
        out.unlink()

    by_org = {org: people.merged(found) for org, found in givens.items()}
    planned = {org: erasure.preview(org, given) for org, given in by_org.items()}
    assert people.rows_of_people(connection) == before  # a look changes nothing
    for org, given in by_org.items():
        done = erasure.erase(org, given)
        assert done.rows_by_table == planned[org].rows_by_table and done.files == planned[org].files != []
        assert not any(Path(file).exists() for file in done.files) and len(done.deliveries) == 4
        theirs = people.identifiers([one for one in chosen if one.org_id == org], there.values())
        assert people.traces(connection, theirs, log.exports_folder()) == set()
    after = people.rows_of_people(connection)
    desks = {device for one in chosen for device in one.values("anonymous_id")} - words
    neighbours = desks | {one.visitor_id for one in there.values() if one.values("anonymous_id") & desks}
    for name in before.keys() - {"audience_state.segment_export_members"}:
        gone, new = before[name] - after[name], after[name] - before[name]
        assert not held[name] - gone, name
        # sessions on a device that others use too are other sessions without him
        assert all(neighbours & set(map(str, json.loads(row).values())) for row in (gone - held[name]) + new), name
    for name in ("analytics.events", "audience.audience_customers", "audience_state.segment_memberships"):
        assert sum(held[name].values()) >= PEOPLE / 2, name

    nothing_is_left(connection, words)
    kept = people.rows_of_people(connection)
    removed = sum(held["analytics.events"].values())
    for number in range(2):
        report = load_files(files)
        assert report.accepted == 0 and report.rejected_reasons["erased"] >= removed
        assert report.received == report.rejected + report.duplicate
        nothing_is_left(connection, words)
        done = build(as_of=AS_OF, full_refresh=number > 0)
        assert done.changed == []
        nothing_is_left(connection, words)
    assert people.rows_of_people(connection) == kept

    erased_ids = {json.loads(row)["event_id"] for row in held["analytics.events"]}
    erased_lines = {line for (line,) in Counter(rejected_before) - Counter(rejected(connection))}
    never = without(erased_ids, erased_lines)
    expected, expected_rejections = never_had_them(never)
    found = marts(connection)
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()
    assert rejected(connection) == expected_rejections


def nothing_is_left(connection: psycopg.Connection, words: set[str]) -> None:
    assert people.traces(connection, words, log.exports_folder()) == set()
    assert log.verify_log().rows > 0


def never_had_them(files: list[Path]) -> tuple[dict[str, Counter[str]], list[tuple[str]]]:
    """The tables of a database of its own, into which only the other people's rows were loaded."""
    name = f"{os.environ['PGDATABASE']}_without"
    with database.connect(autocommit=True) as connection:
        connection.execute(f"create database \"{name}\" template template0 encoding 'UTF8'")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGDATABASE", name)
            dbt.prepare()
            load_files(files)
            build(as_of=AS_OF)
            with database.connect(autocommit=True) as connection:
                return marts(connection), rejected(connection)
    finally:
        with database.connect(autocommit=True) as connection:
            connection.execute(f'drop database "{name}" with (force)')


def files_without(files: list[Path], folder: Path, event_ids: set[str], rejected_lines: set[str]) -> list[Path]:
    """The newline-JSON files without the lines of these events, and these lines that became none."""
    found = []
    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            kept = [line for line in lines if not _ids(line) & event_ids and line.rstrip("\n") not in rejected_lines]
        found.append(folder / file.name.removesuffix(".gz"))
        found[-1].write_text("".join(kept))
    return found


def with_receipts(source: Path, folder: Path) -> Path:
    """A copy of newline-JSON events that say when they were received: else it is when they are loaded, and two loads differ."""
    file = folder / source.name.removesuffix(".gz")
    with gzip.open(source, "rt") as lines, file.open("w") as copy:
        for line in lines:
            row = json.loads(line)
            assert "received_at" not in row
            copy.write(json.dumps({**row, "received_at": row["occurred_at"]}) + "\n")
    return file


def _ids(line: str) -> set[str]:
    try:
        row = json.loads(line)
    except ValueError:
        return set()
    return {row.get("event_id")} if isinstance(row, dict) else set()


def test_a_hundred_people_of_the_sample(database, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    # as newline-JSON, so that lines can be left out
    load_files([file.path for file in write_sample(tmp_path / "sample", events=6_000, seed=5, end=END)])
    with segments.connect() as connection:
        ours = "'landing_id' - 'landed_xid' - 'rejection_reason'"
        rows = connection.execute(
            f"select (to_jsonb(events) - {ours})::text from analytics.events order by landing_id"
        ).fetchall()
        bad = rejected(connection)
        for table in ("events", "events_removed", "rejected_rows"):
            connection.execute(f"truncate analytics.{table}")
        file = tmp_path / "all.ndjson"
        file.write_text("".join(f"{row}\n" for (row,) in [*rows, *bad]))
        load_files([file])
        build(as_of=AS_OF)
        prove(connection, [file], tmp_path, 5, lambda *erased: files_without([file], tmp_path / "home", *erased))
        assert not verify(everything=True).differences


def test_a_hundred_people_of_real_journeys(database, audience_test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    file = with_receipts(audience_test_data / "ecom_composite_events.ndjson.gz", tmp_path)
    with own_project(tmp_path / "project") as project, segments.connect() as connection:
        with (project / "seeds" / "event_taxonomy.csv").open("a") as taxonomy:
            taxonomy.write("ecom_composite,product_view,event_view\necom_composite,add_to_cart,ticket_cta\n")
        load_files([file])
        build(as_of=AS_OF)
        prove(connection, [file], tmp_path, 3, lambda *erased: files_without([file], tmp_path / "home", *erased))

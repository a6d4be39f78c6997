"""Exports as files and log: what is in them, how they end, killed anywhere, and what a changed log is found by."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster
import fsspec
import psycopg
import pyarrow.parquet
import pytest

from orchestration import segments
from orchestration.build import build
from orchestration.defs.exports import requested_exports, segment_export
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import destinations, door, files, formats, log, runner
from tests.filters import group, rule
from tests.projects import AS_OF, audience, build_sample, people_as_before

ORG = "north_hall"
EVERYBODY = group(rule("events_count", ">=", 0))
KILLS = 20
LOG = "audience_state.segment_export_log"


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    build_sample(tmp_path_factory.mktemp("exports"), 4_000)
    yield


@pytest.fixture
def connection(built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A connection with a segment of everybody; the log is empty before, and the customers are as built afterwards."""
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    with segments.connect() as connection:
        connection.execute(
            "delete from audience_state.audience_segments; delete from audience_state.segment_export_members;"
            f" alter table {LOG} disable trigger unchanged; truncate {LOG}; alter table {LOG} enable always trigger unchanged"
        )
        with people_as_before(connection):
            segments.create_segment(connection, "Every body", ORG, EVERYBODY)
            yield connection


def export(connection: psycopg.Connection, **options: Any) -> runner.Export:
    return runner.export_segment(connection, "Every body", "a test", ORG, **options)


@contextmanager
def killed_later(connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection of a process that ends with the block; the server has let go of its locks afterwards."""
    with segments.connect() as killed:
        server_process = killed.info.backend_pid
        yield killed
    while connection.execute("select from pg_stat_activity where pid = %s", [server_process]).fetchone():
        time.sleep(0.01)


def records(done: runner.Export) -> list[dict[str, str]]:
    with done.file.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logged(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"select outcome, reason, rows_count, file_sha256 from {LOG} order by log_number"
    ).fetchall()


def people(connection: psycopg.Connection) -> dict[str, bool]:
    query = "select visitor_id, is_opted_out from audience.audience_customers where org_id = %s order by 1"
    return dict(connection.execute(query, [ORG]).fetchall())


def change(connection: psycopg.Connection, assignment: str, visitor: str) -> None:
    connection.execute(f"update audience.audience_customers set {assignment} where visitor_id = %s", [visitor])


def give_contact(connection: psycopg.Connection, visitor: str, **values: str) -> None:
    connection.execute("delete from audience_contacts.customer_contacts where visitor_id = %s", [visitor])
    names = ", ".join(values)
    marks = ", ".join(["%s"] * len(values))
    connection.execute(
        f"insert into audience_contacts.customer_contacts (org_id, visitor_id, {names}) values (%s, %s, {marks})",
        [ORG, visitor, *values.values()],
    )


def test_a_file_has_the_members_and_the_log_its_hash(connection):
    done = export(connection)
    listed = [row["visitor_id"] for row in records(done)]
    expected = {visitor for visitor, is_opted_out in people(connection).items() if not is_opted_out}
    assert set(listed) == expected and len(listed) == len(expected) > 50
    assert len(listed) == segments.preview(connection, EVERYBODY, ORG).size
    content = done.file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert logged(connection) == [("requested", None, None, None), ("completed", None, len(listed), sha256),
                                  ("delivered", None, len(listed), sha256)]  # fmt: skip
    assert done.file.stat().st_mode & 0o777 == 0o600 and done.file.parent.stat().st_mode & 0o777 == 0o700
    assert done.file.name == f"north_hall-every_body-{done.entry.export_id}.csv"
    assert not content.startswith(b"\xef\xbb\xbf")
    assert content.decode().splitlines()[0].split(",") == done.entry.columns
    assert done.entry.login_name == connection.info.user and done.entry.purpose == "a test"


def test_without_personal_data_there_is_none(connection):
    first, second, *_ = people(connection)
    give_contact(connection, first, email="jane@example.com", phone="+447911123456", first_name="Jane")
    for visitor, identifier in ((first, "jane@example.com"), (second, "+447911123456")):
        change(connection, f"visitor_id = '{identifier}'", visitor)
        connection.execute(
            "update audience_contacts.customer_contacts set visitor_id = %s where visitor_id = %s",
            [identifier, visitor],
        )
    text = export(connection).file.read_text()
    assert "@" not in text and "7911" not in text and "Jane" not in text
    assert len([row for row in records(export(connection)) if row["visitor_id"] == ""]) == 2
    full = {row["visitor_id"]: row for row in records(export(connection, include_pii=True))}
    assert full["jane@example.com"]["email"] == "jane@example.com"
    assert full["jane@example.com"]["phone"] == "+447911123456"


HARMLESS = [
    "Jane",
    "-",
    "5",
    "-5",
    "+44.5",
    "a=b",
    "Ümit",
    "\u6771",
    "O'Neil",
    "two\nlines",
    'said "hi"',
    "a,b",
    "\U0001f3ab",
]
FORMULAS = [
    '=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", '"=1', "'=1", "\n=1", "\u00a0=1",
    "\uff1d1+1", "\uff0b1", "\uff201", "\uff0d1", "+44 (0)7911 123456", "-", "\ufeff=1", "\tx",
]  # fmt: skip


def test_no_value_runs_as_a_formula(connection):
    visitors = [visitor for visitor, is_opted_out in people(connection).items() if not is_opted_out]
    given = dict(zip(visitors, [*HARMLESS, *FORMULAS], strict=False))
    for visitor, value in given.items():
        give_contact(connection, visitor, first_name=value)
    found = {row["visitor_id"]: row["first_name"] for row in records(export(connection, include_pii=True))}
    for visitor, value in given.items():
        assert found[visitor] == (f"'{value}" if value in FORMULAS else value), value
    done = export(connection, include_pii=True, format_name="ndjson")
    lines = [json.loads(line) for line in done.file.read_text().split("\n")[:-1]]
    names = {line["visitor_id"]: line["first_name"] for line in lines}
    assert {visitor: names[visitor] for visitor in given} == given
    assert all(isinstance(line["events_count"], int) and line["is_opted_out"] is False for line in lines)


def test_who_opted_out_since_is_not_listed(connection):
    segments.materialize(connection)
    visitor = next(visitor for visitor, is_opted_out in people(connection).items() if not is_opted_out)
    change(connection, "is_opted_out = true", visitor)
    entry = door.request(
        connection, ORG, "Every body", "a test", include_pii=False, is_delta=False, format_name="csv", destination="/"
    )
    with door.reading(connection):
        listed = {row[1] for row in door.rows(connection, entry)}
    assert visitor not in listed and len(listed) > 50
    assert door.record(connection, entry.export_id, "completed", "0" * 64).suppressed_count == 1


def changes(done: runner.Export) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"entered": set(), "left": set()}
    for row in records(done):
        found[row["change"]].add(row["visitor_id"])
    return found


def test_a_delta_tells_who_came_and_who_went_since_the_acknowledged_one(connection):
    listed = [visitor for visitor, is_opted_out in people(connection).items() if not is_opted_out]
    refused, gone, renamed, back, *_ = listed
    change(connection, "is_opted_out = true", back)
    first = export(connection)
    assert export(connection, is_delta=True).entry.kind == "full"  # nothing is acknowledged
    runner.acknowledge(connection, first.entry.export_id)
    assert changes(export(connection, is_delta=True)) == {"entered": set(), "left": set()}

    change(connection, "is_opted_out = true", refused)
    connection.execute("delete from audience.audience_customers where visitor_id = %s", [gone])
    change(connection, "visitor_id = 'logged in'", renamed)
    change(connection, "is_opted_out = false", back)
    for _ in range(2):  # until it is acknowledged, the same again
        done = export(connection, is_delta=True)
        assert changes(done) == {"entered": {"logged in", back}, "left": {refused, gone, renamed}}
        assert (done.entry.kind, done.entry.since_export_id) == ("delta", first.entry.export_id)
        assert (done.entry.rows_count, done.entry.entered_count, done.entry.left_count) == (5, 2, 3)
    assert export(connection, is_delta=True, format_name="ndjson").entry.kind == "full"  # another line
    runner.acknowledge(connection, done.entry.export_id)
    kept = connection.execute(
        "select count(*) from audience_state.segment_export_members where export_id = %s", [first.entry.export_id]
    )
    assert kept.fetchone() == (0,)
    change(connection, "is_opted_out = false", refused)
    assert changes(export(connection, is_delta=True)) == {"entered": {refused}, "left": set()}


def test_only_what_was_delivered_is_acknowledged_and_once(connection):
    done = export(connection)
    runner.acknowledge(connection, done.entry.export_id)
    with pytest.raises(UserError, match="is acknowledged and cannot become acknowledged"):
        runner.acknowledge(connection, done.entry.export_id)
    told = audience("exports", "acknowledge", "x")
    assert (told.returncode, told.stderr) == (
        2,
        "audience: 'x' is no id of an export: give the one that audience exports list shows.\n",
    )


@pytest.mark.parametrize(
    ("purpose", "org", "segment", "format_name", "reason"),
    [
        (" ", ORG, "Every body", "csv", "no purpose is given"), ("a test", ORG, "Nobody", "csv", "there is no segment 'Nobody'"),
        ("a test", "never_heard", "Every body", "csv", "there is no segment"), ("a test", ORG, "Every body", "../x", "its format is no name"),
    ],
)  # fmt: skip
def test_a_refusal_is_logged(connection, purpose, org, segment, format_name, reason):
    segments.materialize(connection)
    with pytest.raises(UserError, match=reason):
        door.request(
            connection,
            org,
            segment,
            purpose,
            include_pii=False,
            is_delta=False,
            format_name=format_name,
            destination="/",
        )
    ((outcome, told, *_),) = logged(connection)
    assert outcome == "refused" and reason in told


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format_name": "xlsx"}, "There is no format 'xlsx'"),
        ({"to": "/proc/nowhere"}, "/proc/nowhere cannot be used for exports"),
        ({"to": "ftp://ana:secret@example.org/lists"}, "ftp"),
        ({"format_name": "meta", "is_delta": True}, "cannot say who entered and who left"),
        ({"segment_name": "Nobody", "org_id": None}, "'Nobody'"),
    ],
)
def test_what_is_not_even_tried_is_logged(connection, options, reason):
    asked = {"segment_name": "Every body", "purpose": "a test", "org_id": ORG, **options}
    with pytest.raises(UserError, match=reason) as refused:
        runner.export_segment(connection, **asked)
    ((outcome, told, *_),) = logged(connection)
    assert (outcome, told) == ("refused", str(refused.value))
    assert "secret" not in str(connection.execute(f"table {LOG}").fetchall())


def test_a_filter_that_changed_is_observed_first(connection):
    segments.materialize(connection)
    segments.update_segment(connection, "Every body", ORG, group(rule("orders_count", ">=", 1)))
    with pytest.raises(UserError, match="its members were not observed since its filter changed: materialize"):
        door.request(
            connection,
            ORG,
            "Every body",
            "a test",
            include_pii=False,
            is_delta=False,
            format_name="csv",
            destination="/",
        )
    assert export(connection).entry.filter_version == 2


def test_a_small_segment_warns_and_ad_platforms_are_refused_it(connection):
    segments.update_segment(connection, "Every body", ORG, group(rule("orders_count", ">=", 1)))
    done = export(connection)
    count = done.entry.rows_count
    assert 0 < count < 50
    assert logged(connection)[0][:2] == (
        "requested",
        f"warned: it has {count} people, fewer than 50: they may be recognised",
    )
    with pytest.raises(UserError, match=f"it has {count} people, and meta wants at least 50"):
        door.request(
            connection,
            ORG,
            "Every body",
            "a test",
            include_pii=True,
            is_delta=False,
            format_name="meta",
            destination="/",
        )


def test_an_export_that_fails_is_logged_and_leaves_no_file(connection, monkeypatch):
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    monkeypatch.setattr(log, "keep_head", lambda *_: None)
    with pytest.raises(UserError, match=r"ended early .No space left on device."):
        export(connection)
    assert [row[:2] for row in logged(connection)] == [("requested", None), ("failed", "No space left on device")]
    assert [path.name for path in log.exports_folder().iterdir()] == []


def test_killed_anywhere_the_log_tells_the_truth_and_the_next_one_completes(connection):
    connection.execute(
        "insert into audience.audience_customers"
        " select (jsonb_populate_record(people, jsonb_build_object('visitor_id', 'many_' || number))).*"
        " from audience.audience_customers as people cross join generate_series(1, 30000) as number"
        " where (org_id, visitor_id) in (select org_id, min(visitor_id) from audience.audience_customers where org_id = %s and not is_opted_out group by 1)",
        [ORG],
    )
    command = [
        sys.executable,
        "-m",
        "orchestration.cli",
        "segments",
        "export",
        "Every body",
        "--org",
        ORG,
        "--purpose",
        "a test",
    ]
    started = time.monotonic()
    subprocess.run(command, env=os.environ, check=True, capture_output=True)
    whole, draw = time.monotonic() - started, random.Random(3)
    for number in range(KILLS):
        process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number % 4 == 0:  # while it writes, however busy the machine is
            while process.poll() is None and not any(log.exports_folder().glob("*.part")):
                time.sleep(0.001)
        else:  # spread over the run's second part: before it, Python starts
            time.sleep(whole * (0.35 + 0.65 * (number + draw.random()) / KILLS))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_truthful(connection)
    deadline = time.monotonic() + 30  # the server notices that a client is gone
    while runner.recover(connection) or runner.unfinished(connection):
        assert time.monotonic() < deadline, "an export is still open"
        time.sleep(0.1)
    assert {outcome for outcome, *_ in logged(connection)} >= {"delivered", "failed"}
    done = export(connection)
    assert len(records(done)) > 30_000
    assert_truthful(connection)
    assert not list(done.file.parent.glob("*.part"))
    log.verify_log()


def test_recovery_delivers_a_complete_file_and_gives_up_another(connection):
    segments.materialize(connection)
    ends = {}
    for damage in ("", "x"):
        entry = door.request(connection, ORG, "Every body", "a test", include_pii=False, is_delta=False, format_name="csv",
                             destination=str(log.exports_folder()))  # fmt: skip
        sha256, _ = files.stream(connection, entry)
        entry = door.record(connection, entry.export_id, "completed", sha256)
        part = next(log.exports_folder().glob(f"*{entry.export_id}.csv.part"))
        part.write_bytes(part.read_bytes() + damage.encode())
        ends[entry.export_id] = "failed" if damage else "delivered"
    assert {done.export_id: done.outcome for done in runner.recover(connection)} == ends
    (file,) = log.exports_folder().glob("*every_body*")
    assert ends[UUID(file.stem[-36:])] == "delivered" and file.suffix == ".csv"
    assert runner.recover(connection) == []


def assert_truthful(connection: psycopg.Connection) -> None:
    """A file that is there is that of a completed row."""
    found = dict(
        connection.execute(f"select export_id::text, file_sha256 from {LOG} where outcome = 'completed'").fetchall()
    )
    for file in log.exports_folder().glob("*.csv"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == found[file.stem[-36:]], file


# The log


# Other formats, other places, and exports that wait


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_list_for_an_ad_platform_has_hashes_and_counts(connection, monkeypatch):
    monkeypatch.setattr(formats, "minimum_people", lambda: {"meta": 2})
    first, second, third = list(people(connection))[:3]
    connection.execute("delete from audience_contacts.customer_contacts where org_id = %s", [ORG])
    give_contact(connection, first, email=" Ada@Example.com ", first_name="Ada")
    give_contact(connection, second, phone="+44 7911 123456")
    give_contact(connection, third, email="no address")
    done = export(connection, format_name="meta", include_pii=True)
    assert done.file.name.endswith(f"{done.entry.export_id}.meta.csv")
    with done.file.open(newline="", encoding="utf-8") as file:
        rows = {(row["email"], row["phone"], row["fn"]) for row in csv.DictReader(file)}
    assert rows == {(sha256("ada@example.com"), "", sha256("ada")), ("", sha256("447911123456"), "")}
    assert done.entry.columns == ["email", "phone", "first_name", "last_name"]
    members = done.entry.rows_count
    assert (done.entry.format_counts["rows"], done.entry.format_counts["left_out"]) == (2, members - 2)
    assert done.entry.format_counts["invalid"] == {"email": 1}


def test_a_list_in_which_too_few_could_be_found_is_none(connection):
    with pytest.raises(UserError, match=r"meta could find \d+ people of the list, and wants 100 at least: widen"):
        export(connection, format_name="meta", include_pii=True)
    assert [outcome for outcome, *_ in logged(connection)] == ["requested", "failed"]
    assert list(log.exports_folder().glob("*.meta*")) == []


def test_an_ad_platforms_list_needs_personal_data_and_is_no_delta(connection):
    with pytest.raises(UserError, match="contact details are personal data"):
        export(connection, format_name="tiktok")
    with pytest.raises(UserError, match="A list for google cannot say who entered and who left"):
        export(connection, format_name="google", include_pii=True, is_delta=True)


def test_parquet_has_what_csv_has_with_its_types(connection):
    done, plain = export(connection, format_name="parquet"), export(connection)
    rows = pyarrow.parquet.read_table(done.file).to_pylist()
    texts = records(plain)
    assert [row["visitor_id"] for row in rows] == [row["visitor_id"] for row in texts]
    assert [str(row["sessions_count"]) for row in rows] == [row["sessions_count"] for row in texts]
    assert all(row["entered_at"].tzinfo and isinstance(row["is_consented"], bool) for row in rows)


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    memory.mkdirs("/lists", exist_ok=True)
    yield memory
    memory.rm("/lists", recursive=True)


def test_what_is_delivered_elsewhere_is_not_kept(connection, store):
    done = export(connection, to="memory://lists")
    (there,) = store.ls("/lists", detail=False)
    assert hashlib.sha256(store.cat(there)).hexdigest() == done.entry.file_sha256
    assert (done.file, done.entry.destination, done.entry.outcome) == (None, "memory://lists", "delivered")
    assert list(log.exports_folder().glob("*.csv*")) == []


def test_what_could_not_be_delivered_is_kept_logged_and_tried_again(connection, store, monkeypatch):
    def full(*_: Any) -> None:
        raise UserError("The store is full: make room.")

    with monkeypatch.context() as patch:
        patch.setattr(destinations, "deliver", full)
        with pytest.raises(
            UserError, match=r"The store is full: make room\. The file is kept until audience exports retry"
        ):
            export(connection, to="memory://lists")
        entry = runner.latest(connection)[-1]
        assert (entry.outcome, entry.reason) == ("undelivered", "The store is full: make room.")
        with pytest.raises(UserError, match="The store is full"):
            runner.retry(connection, entry.export_id)
    (kept,) = log.exports_folder().glob("*.csv")
    done = runner.retry(connection, entry.export_id)
    assert done.entry.outcome == "delivered" and not kept.exists() and len(store.ls("/lists")) == 1
    outcomes = [one.outcome for one in runner.history(connection, entry.export_id)]
    assert outcomes == ["requested", "completed", "undelivered", "undelivered", "delivered"]
    with pytest.raises(UserError, match="is delivered: there is nothing to do again"):
        runner.retry(connection, entry.export_id)


def test_killed_before_its_delivery_an_export_waits_for_a_retry(connection, store):
    with killed_later(connection) as killed:
        segments.materialize(killed)
        asked = {"include_pii": False, "is_delta": False, "format_name": "csv", "destination": "memory://lists"}
        entry = door.request(killed, ORG, "Every body", "a test", **asked)
        done, _ = files.stream(killed, entry)
        door.record(killed, entry.export_id, "completed", done)
    assert [one.outcome for one in runner.recover(connection)] == ["undelivered"]
    assert runner.retry(connection, entry.export_id).entry.outcome == "delivered"


def test_a_failed_export_is_asked_for_anew(connection, monkeypatch):
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        patch.setattr(log, "keep_head", lambda *_: None)
        with pytest.raises(UserError, match="ended early"):
            export(connection)
    failed = runner.latest(connection)[-1]
    again = runner.retry(connection, failed.export_id)
    assert again.entry.export_id != failed.export_id and again.file.exists()
    assert (again.entry.purpose, again.entry.destination) == (failed.purpose, failed.destination)


def test_an_export_that_waits_is_made_once(connection):
    asked = export(connection, is_queued=True).entry
    assert (asked.outcome, asked.is_queued) == ("requested", True)
    assert runner.recover(connection) == [], "it has no process that could have ended"
    assert [one.export_id for one in runner.requested(connection)] == [asked.export_id]
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not open to you"), door.reading(connection):
        list(door.rows(connection, asked))
    done = runner.run_requested(connection, asked.export_id)
    assert len(records(done)) == done.entry.rows_count > 0
    with pytest.raises(UserError, match="is delivered and cannot become started"):
        runner.run_requested(connection, asked.export_id)
    assert runner.requested(connection) == []


def test_what_waits_goes_nowhere_that_the_owner_does_not_allow(connection, tmp_path, monkeypatch):
    allowed = tmp_path / "allowed"
    monkeypatch.setenv("AUDIENCE_EXPORT_DESTINATIONS", f" {allowed} , memory://lists/")
    segments.materialize(connection)
    for to in (
        f"{allowed}/../elsewhere",
        str(tmp_path / "allowed_too"),
        "memory://lists/../other",
        "sftp://inside/lists",
    ):
        asked = {"include_pii": False, "is_delta": False, "format_name": "csv", "destination": to, "is_queued": True}
        entry = door.request(connection, ORG, "Every body", "a test", **asked)
        with pytest.raises(UserError, match="is not among the destinations of exports that wait"):
            runner.run_requested(connection, entry.export_id)
        assert runner.find(connection, entry.export_id).outcome == "failed"
    done = export(connection, is_queued=True, to=str(allowed / "spring"))
    assert runner.run_requested(connection, done.entry.export_id).file.parent == allowed / "spring"


def test_an_export_whose_worker_was_killed_is_given_up(connection):
    asked = export(connection, is_queued=True).entry
    with killed_later(connection) as killed:
        door.record(killed, asked.export_id, "started")
        assert runner.recover(connection) == [], "its process lives"
    assert [(one.outcome, one.reason) for one in runner.recover(connection)] == [
        ("failed", "its process ended before the file was complete")
    ]


def test_dagster_makes_what_waits_and_shows_no_person(connection):
    asked = export(connection, is_queued=True).entry
    with dagster.instance_for_test() as instance:
        ticks = [
            requested_exports.evaluate_tick(dagster.build_sensor_context(instance=instance)).run_requests
            for _ in range(2)
        ]
    assert [[run.run_key for run in runs] for runs in ticks] == [[str(asked.export_id)]] * 2
    run = dagster.materialize([segment_export], run_config=ticks[0][0].run_config)
    (shown,) = [event.materialization.metadata for event in run.get_asset_materialization_events()]
    (last,) = [one for one in runner.latest(connection) if one.export_id == asked.export_id]
    assert (last.outcome, shown["rows"].value, shown["sha256"].value) == (
        "delivered",
        last.rows_count,
        last.file_sha256,
    )
    assert shown["log"].value == f"{last.log_number} {last.row_hash}"
    stages = shown["members by lifecycle stage"].value.splitlines()[2:]
    assert sum(int(line.split("|")[2]) for line in stages) == last.rows_count
    told = " ".join(str(entry.value) for entry in shown.values())
    assert not any(visitor in told for visitor in people(connection))


def test_the_commands_list_and_show_what_became_of_exports(connection):
    export_id = str(export(connection).entry.export_id)
    listed = audience("exports", "list", "--org", ORG, "--json")
    assert [one["outcome"] for one in json.loads(listed.stdout) if one["export_id"] == export_id] == ["delivered"]
    assert export_id in audience("exports", "list").stdout.replace("\n", "")
    shown = audience("exports", "show", export_id)
    assert shown.returncode == 0 and "purpose: a test" in shown.stdout and "completed" in shown.stdout
    assert audience("exports", "retry", export_id).returncode == 2
    waiting = audience("segments", "export", "Every body", "--org", ORG, "--purpose", "later", "--later")
    assert waiting.returncode == 0 and "is asked for" in waiting.stdout
    missing = audience("exports", "show", "00000000-0000-0000-0000-000000000000")
    assert (missing.returncode, "There is no export" in missing.stderr) == (2, True)


# The log


@pytest.mark.parametrize("statement", ["update {} set purpose = 'x'", "delete from {}", "truncate {}"])
def test_rows_of_the_log_are_never_changed_even_by_the_owner(connection, statement):
    export(connection)
    for setting in ("origin", "replica"):
        connection.execute(f"set session_replication_role = {setting}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="never changed or removed"):
            connection.execute(statement.format(LOG))
    connection.execute("set session_replication_role = origin")
    assert len(logged(connection)) == 3


REHASH = f"""do $$ declare entry {LOG}; before text := ''; begin
    for entry in select * from {LOG} order by log_number loop
        entry.previous_hash := before;
        entry.row_hash := audience_state.export_log_hash(entry);
        update {LOG} set previous_hash = entry.previous_hash, row_hash = entry.row_hash where log_number = entry.log_number;
        before := entry.row_hash;
    end loop;
end $$"""


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (f"update {LOG} set purpose = 'another' where log_number = 2", "row 2 was changed"),
        (f"delete from {LOG} where log_number = 2", "row 2 is missing"),
        (f"delete from {LOG} where log_number >= 3", "row 3 is missing"),
        (f"delete from {LOG}", "row 1 is missing"),
        (f"update {LOG} set login_name = 'somebody' where log_number = 1; {REHASH}", "row 1 was written anew"),
    ],
)  # fmt: skip
def test_a_changed_log_is_found(connection, damage, sentence):
    export(connection)
    assert log.verify_log().rows == 3
    connection.execute(f"alter table {LOG} disable trigger unchanged; {damage}")
    with pytest.raises(CheckFailed, match=r"Triggers of the log are off or gone .unchanged."):
        log.verify_log()
    connection.execute(f"alter table {LOG} enable always trigger unchanged")
    with pytest.raises(CheckFailed, match=sentence):
        log.verify_log()
    assert audience("verify-log").returncode == 1


def test_a_log_that_is_gone_is_found(connection):
    with connection.transaction(force_rollback=True):
        connection.execute(f"alter table {LOG} rename to elsewhere")
        with pytest.raises(CheckFailed, match="There is no table segment_export_log"):
            log.check(connection)


def test_another_time_zone_computes_the_same_chain(connection):
    export(connection)
    connection.execute("set timezone = 'Asia/Tokyo'")
    export(connection)
    assert log.verify_log().rows == 6


def test_the_log_survives_a_full_refresh_and_the_loss_of_the_marts(connection):
    export(connection)
    before = logged(connection)
    connection.execute("drop schema audience cascade")
    build(as_of=AS_OF, full_refresh=True)
    assert logged(connection) == before
    assert export(connection).entry.log_number == 6
    log.verify_log()

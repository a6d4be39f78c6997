"""Erasures one by one: what is whose, logins by mistake, interruptions, writers beside them, who may, and bad input."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import alerts, database, hot_leads, segments
from orchestration.build import build
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import log, runner
from orchestration.load import load_files
from orchestration.rights import catalogue, erasure
from orchestration.rights.export import export_subject
from orchestration.rights.subjects import Given
from tests import people
from tests.filters import group, rule
from tests.projects import AS_OF, Project, audience

ORG = "north_hall"
STATE = "audience_state"
OPT_OUT = {"dnt": "true"}


def event(event_id: str, hour: int = 1, **columns: Any) -> dict[str, Any]:
    return {"event_id": event_id, "org_id": ORG, "event_type": "page_view", "occurred_at": f"2026-06-01T{hour:02}:00:00Z",
            "received_at": f"2026-06-01T{hour:02}:00:01Z", "anonymous_id": None, "user_id": None, "properties": {}, **columns}  # fmt: skip


def land(connection: psycopg.Connection, *rows: dict[str, Any]) -> None:
    for row in rows:
        names = sql.SQL(", ").join(map(sql.Identifier, row))
        marks = sql.SQL(", ").join([sql.Placeholder()] * len(row))
        values = [Jsonb(value) if isinstance(value, dict) else value for value in row.values()]
        connection.execute(sql.SQL("insert into analytics.events ({}) values ({})").format(names, marks), values)


def there(connection: psycopg.Connection) -> set[str]:
    return {event_id for (event_id,) in connection.execute("select event_id from analytics.events")}


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_HOME", str(tmp_path_factory.mktemp("home")))
        # nobody's, so that the tables are there
        land(connection, *(event(f"other {n}", user_id=f"other {n}", anonymous_id=f"phone of {n}") for n in range(60)))
        build(as_of=AS_OF)
        yield connection


def test_what_is_whose(connection, tmp_path):
    """One person with two devices, one of them everybody's, and every kind of row that the models do not read."""
    land(
        connection,
        event("own", anonymous_id="laptop", properties={"email": " Ann@Example.com", "phone": "+49 30 1234567"}),
        event("login", 2, anonymous_id="laptop", user_id="ann"),
        event("at the desk", 3, anonymous_id="desk", user_id="ann"),
        *(event(f"desk {n}", 4, anonymous_id="desk", user_id=f"guest {n}") for n in range(4)),
        event("nobody at the desk", 5, anonymous_id="desk"),
        event("said no", 6, user_id="ann", properties=OPT_OUT),
        event("by mail alone", 7, properties={"email": "ann@example.com"}),
        event("family", 8, user_id="ann", properties={"email": "family@example.com"}),
        event("family too", 8, user_id="bob", properties={"email": "family@example.com"}),
        event("no org", 9, user_id="ann", org_id=None), event("other org", 9, user_id="ann", org_id="harbor_live"),
        event("negative", 9, user_id="ann", properties={"revenue": -1}),
    )  # fmt: skip
    bad = tmp_path / "bad.ndjson"
    bad.write_text(
        '{"org_id": "north_hall", "user_id": "ann", "event_type": "x", "occurred_at": "soon"}\n'
        '{"org_id": "north_hall", "user_id": "anna", "event_type": "x", "occurred_at": "soon"}\n'
        '{"org_id": "north_hall", "user_id": "bob", "event_type": "x", "occurred_at": "soon", "properties": {"note": "ann"}}\n'
        'broken, "ANN@example.com", 1\n'
    )
    assert load_files([bad]).rejected == 4
    build(as_of=AS_OF)
    kept = there(connection) - {
        "own",
        "login",
        "at the desk",
        "said no",
        "by mail alone",
        "family",
        "no org",
        "negative",
    }
    planned = erasure.preview(ORG, Given(emails=["ANN@example.com "]))
    assert planned.rows_by_table["analytics.events"] == 8 and planned.rows_by_table["analytics.rejected_rows"] == 2
    assert planned.shared == {"device_ids": ["desk"], "emails": ["family@example.com"]}
    report = export_subject(ORG, Given(device_ids=["laptop"]), tmp_path / "ann.json")
    assert report.rows_by_table == planned.rows_by_table
    done = erasure.erase(ORG, Given(emails=["ann@example.com"]))
    assert done.rows_by_table == planned.rows_by_table and there(connection) == kept
    left = [row for (row,) in connection.execute("select raw_row from analytics.rejected_rows")]
    assert len(left) == 2 and not any("broken" in row for row in left)
    assert people.traces(connection, {"laptop", "ann@example.com", "+49 30 1234567"}) == set()

    assert load_files([bad]).rejected_reasons == {"erased": 2, "unparsable_time": 2}
    assert connection.execute("select count(*) from analytics.rejected_rows").fetchone() == (2,)
    land(
        connection,
        event("again", 10, user_id="ann"), event("again 2", 10, anonymous_id="laptop"), event("again 3", 10, properties={"email": "Ann@example.com"}),
        event("again 4", 10, properties={"phone": "004930 1234567"}), event("again 5", user_id="ann", occurred_at="2090-01-01T00:00:00Z"),
        event("", 10, user_id="ann"), event("again 6", 10, user_id="ann", org_id=" "),
    )  # fmt: skip
    assert there(connection) == kept
    # other users of his device, the other org, and he himself later
    stays = [event("new owner", 11, anonymous_id="laptop", user_id="eve"), event("other org 2", user_id="ann", org_id="harbor_live"),
             event("back", user_id="ann", occurred_at="2090-01-01T00:00:00Z", received_at="2090-01-01T00:00:00Z")]  # fmt: skip
    land(connection, *stays)
    assert there(connection) == kept | {row["event_id"] for row in stays}
    connection.execute("delete from analytics.events where event_id = any(%s)", [[row["event_id"] for row in stays]])


def test_copies_are_counted_as_rejected(connection, tmp_path):
    rows = [event(f"copy {n}", user_id="cat" if n % 2 else "dog") for n in range(6)]
    file = tmp_path / "copies.ndjson"
    # deliveries of one event that differ, and one that is the same
    rows += [{**rows[1], "url": "https://a.example/"}, rows[3], {**rows[2], "url": "https://a.example/"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert load_files([file]).accepted == 6
    build(as_of=AS_OF)
    erasure.erase(ORG, Given(user_ids=["cat"]))
    again = load_files([file])
    assert (again.received, again.accepted) == (9, 0) and again.rejected_reasons == {"erased": 5}
    connection.execute("delete from analytics.events where user_id = 'dog'")
    again = load_files([file])
    assert (again.accepted, again.rejected, again.duplicate) == (3, 5, 1)


def test_a_login_by_mistake_is_undone(connection):
    project = Project(connection)
    land(
        connection,
        *(event(f"hers {n}", n, anonymous_id="her phone") for n in range(1, 4)),
        event("his", 4, anonymous_id="his phone", user_id="him"),
    )
    build(as_of=AS_OF)
    before = project.rows("audience")
    land(connection, event("mistake", 5, anonymous_id="her phone", user_id="him", event_type="identify"))
    build(as_of=AS_OF)
    merged = connection.execute(
        "select events_count from audience.audience_customers where visitor_id = 'him'"
    ).fetchone()
    assert merged == (5,) and project.rows("audience") != before
    planned = erasure.preview(ORG, Given(event_ids=["mistake"]))
    assert (
        planned.rows_by_table == {"analytics.events": 1, "audience_intermediate.int_events_enriched": 1}
        and not planned.deliveries
    )
    erasure.erase(ORG, Given(event_ids=["mistake"]))
    assert project.rows("audience") == before
    land(
        connection,
        event("mistake", 5, anonymous_id="her phone", user_id="him", event_type="identify"),
        event("late", 6, user_id="him"),
    )
    assert "mistake" not in there(connection) and "late" in there(connection)


@pytest.mark.parametrize("place", ["build", "files.remove", "catalogue.count_rows"])
def test_killed_anywhere_it_is_finished_later(connection, monkeypatch, place):
    name = f"killed at {place}"
    land(connection, event(name, user_id=name, anonymous_id=f"phone of {name}"))
    build(as_of=AS_OF)
    whole, look = erasure._remove, catalogue.count_rows

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if place == "catalogue.count_rows":
            # the second look: the first one is before
            patch.setattr(
                erasure,
                "_remove",
                lambda *given: (whole(*given), patch.setattr(f"orchestration.rights.{place}", killed))[0],
            )
        else:
            patch.setattr(f"orchestration.rights.erasure.{place}", killed)
        erasure.erase(ORG, Given(user_ids=[name]))
    assert catalogue.count_rows is look and name not in there(connection)
    assert connection.execute(
        f"select count(*) from {STATE}.subject_requests where subject is not null"
    ).fetchone() == (1,)
    ((done),) = erasure.finish()
    assert done.rows_by_table["audience.audience_customers"] == 1
    assert people.traces(connection, {f"phone of {name}"}) == set() and erasure.finish() == []


def test_a_failed_build_leaves_the_request_open(connection, monkeypatch):
    land(connection, event("unlucky", user_id="unlucky"))
    build(as_of=AS_OF)

    def fails(**_: Any) -> None:
        raise CheckFailed("The build failed.")

    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckFailed, match=r"erase --finish does the rest\. The build failed"),
    ):
        patch.setattr(erasure, "build", fails)
        erasure.erase(ORG, Given(user_ids=["unlucky"]))
    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckFailed, match=r"rows are still in audience.audience_customers \(1\)"),
    ):
        patch.setattr(erasure, "build", lambda **_: None)
        erasure.finish()
    assert len(erasure.finish()) == 1


def test_an_erasure_is_a_removal_in_the_next_delta(connection):
    land(connection, *(event(f"from {n}", user_id=f"member {n}") for n in range(60)))
    build(as_of=AS_OF)
    with segments.connect() as own:
        segments.create_segment(own, "Members", ORG, group(rule("events_count", ">=", 0)))
        first = runner.export_segment(own, "Members", "a test", ORG)
        runner.acknowledge(own, first.entry.export_id)
        done = erasure.erase(ORG, Given(user_ids=["member 7"]))
        assert [one.export_id for one in done.deliveries] == [str(first.entry.export_id)] and done.files == [
            str(first.file)
        ]
        assert not first.file.exists() and people.traces(connection, {"member 7"}, log.exports_folder()) == set()
        delta = runner.export_segment(own, "Members", "a test", ORG, is_delta=True)
        assert (delta.entry.entered_count, delta.entry.left_count) == (0, 1)
        stands_in = "sha256:" + hashlib.sha256(b"member 7").hexdigest()
        assert f"left,north_hall,{stands_in}," in delta.file.read_text()
        runner.acknowledge(own, delta.entry.export_id)
        kept = connection.execute(
            f"select count(*) from {STATE}.segment_export_members where cast(visitor_ids as text) ~ 'sha256'"
        )
        assert kept.fetchone() == (0,) and log.verify_log().rows > 0


def test_no_alert_tells_of_whom_was_erased(connection, monkeypatch):
    monkeypatch.delenv(alerts.WEBHOOK, raising=False)
    acts = ("page_view", "event_view", "ticket_cta_click", "checkout_started")
    moment = "2026-07-01T12:10:00Z"
    land(connection, *(event(f"hot {act}", user_id="lead-of-alerts", event_type=act, occurred_at=moment, received_at=moment) for act in acts))  # fmt: skip
    assert hot_leads.alert_hot_leads(datetime(2026, 7, 1, 13, tzinfo=UTC)).alerted_count == 1
    assert "Hot leads: 1 new" in alerts.log_file().read_text()
    done = erasure.erase(ORG, Given(user_ids=["lead-of-alerts"]))
    assert done.rows_by_table[f"{STATE}.hot_lead_alerts"] == 1
    assert people.traces(connection, {"lead-of-alerts"}, alerts.log_file()) == set()
    assert connection.execute(f"select count(*) from {STATE}.hot_lead_alerts").fetchone() == (0,)


def test_statistics_of_tables_that_are_empty_tell_nothing(connection):
    """As when the server analyzes a table of changes in the midst of a build, or one of the state in that of an erasure."""
    land(connection, event("counted", user_id="was-counted"))
    build(as_of=AS_OF)
    feeds = connection.execute(
        "select format('%I.%I', table_schema, table_name), '' from information_schema.columns"
        " where table_schema ~ '^audience' and table_name like '%\\_\\_changes' and column_name = 'visitor_id'"
    ).fetchall()
    suppressed = f"{STATE}.suppressed_visitors"
    for table, other in [*feeds, (suppressed, ", org_id, purpose")]:
        values = (
            ", weight) select 'was-counted', 1" if not other else f"{other}) select 'was-counted', 'org ' || n, 'all'"
        )
        connection.execute(f"insert into {table} (visitor_id{values} from generate_series(1, 40) as n")
        connection.execute(f"analyze {table}")
        connection.execute(f"delete from {table}")
    told = "select count(*) from pg_stats where schemaname ~ '^audience' and cast(most_common_vals as text) like '%was-counted%'"
    assert feeds and connection.execute(told).fetchone()[0] > len(feeds)
    erasure.erase(ORG, Given(user_ids=["was-counted"]))
    assert people.traces(connection, {"was-counted"}) == set()


def test_what_a_writer_commits_late_is_erased_too(connection):
    land(connection, event("early", user_id="writer"))
    build(as_of=AS_OF)
    with database.connect() as writer:
        land(writer, event("uncommitted", user_id="writer"))
        erasing = threading.Thread(target=erasure.erase, args=(ORG, Given(user_ids=["writer"])))
        erasing.start()
        waits = "select count(*) from pg_locks where not granted and relation = 'analytics.events'::regclass"
        while connection.execute(waits).fetchone() == (0,):
            assert erasing.is_alive()
            time.sleep(0.05)
        writer.commit()
        erasing.join()
    assert not {"early", "uncommitted"} & there(connection)


def test_a_writer_who_does_not_end_is_not_waited_for(connection, monkeypatch):
    monkeypatch.setattr(erasure, "LOCK_TIMEOUT", "100ms")
    with database.connect() as writer:
        land(writer, event("stays open", user_id="somebody"))
        with pytest.raises(UserError, match="Somebody has been writing events for more than 100ms"):
            erasure.erase(ORG, Given(user_ids=["other 1"]))
        writer.rollback()
    assert "other 1" in there(connection)


def test_a_column_that_nobody_classified_stops_both(connection, tmp_path):
    connection.execute("alter table audience.audience_customers add column nickname text")
    try:
        for attempt in (
            lambda: erasure.preview(ORG, Given(user_ids=["other 1"])),
            lambda: export_subject(ORG, Given(user_ids=["other 1"]), tmp_path / "x"),
        ):
            with pytest.raises(
                CheckFailed, match=r"not said what audience\.audience_customers\.nickname tells of people"
            ):
                attempt()
    finally:
        connection.execute("alter table audience.audience_customers drop column nickname")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["erase"], "Nobody is named: give --email, --phone, --user-id or --device."),
        (["erase", "--user-id", "x"], "No org is named: give --org."),
        (["erase", "--org", ORG, "--email", " "], "A blank --email names nobody: give the identifier."),
        (["erase", "--org", ORG, "--phone", "12"], "A --phone has less than five digits, which is no number of one person: give all of it."),
        (["erase", "--org", ORG, "--user-id", "x", "--event", "y"], "--event erases single events: give either events or people."),
        (["erase", "--org", ORG, "--user-id", "x'; --", "--yes"], "Org 'north_hall' holds nothing on \"x'; --\": check the org and the spelling."),
        (["erase", "--finish", "--user-id", "x"], "--finish goes on with what was erased before: leave the other options out."),
        (["subject-export", "--org", "nobody", "--user-id", "other 1", "--out", "x.json"], "Org 'nobody' holds nothing on 'other 1': check the org and the spelling."),
        (["subject-export", "--org", ORG, "--user-id", "other 1", "--out", "/"], "/ is there already: give --out another name."),
        (["subject-export", "--org", ORG, "--user-id", "other 1", "--out", "/nowhere/x"], "/nowhere/x cannot be written (No such file or directory): give --out another place."),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_sentence(connection, arguments, told):
    result = audience(*arguments)
    assert (result.returncode, result.stderr) == (2, f"audience: {told}\n")
    assert not Path("x.json").exists()

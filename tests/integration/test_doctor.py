"""`audience doctor` finds what is wrong, says what to do, and is content when nothing is."""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from orchestration import database, doctor, doctor_server
from orchestration.build import build, build_lock
from orchestration.settings import project_variables
from tests.projects import audience, shuffled_sample

LOGIN = f"doctors_patient_{os.getpid()}"
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """A project whose sample is old, built a moment ago."""
    from orchestration.load import load_files

    load_files(shuffled_sample(tmp_path_factory.mktemp("sample"), events=1_000))
    build()
    with database.connect(autocommit=True) as found:
        yield found


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables of policy."""

    def put(**values: object) -> None:
        variables = {**project_variables(), **values}
        monkeypatch.setattr(doctor, "project_variables", lambda: variables)
        monkeypatch.setattr(doctor_server, "project_variables", lambda: variables)

    return put


def found(name: str) -> doctor.Finding:
    return next(one for one in doctor.examine() if one.name == name)


def test_a_project_in_order_has_nothing_to_be_done(connection):
    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, anonymous_id) values ('new', 'north_hall', 'page_view', now(), 'd')"
    )
    findings = doctor.examine()
    assert [one for one in findings if one.state != "ok"] == []
    assert all(one.remedy == "" for one in findings)
    assert next(one for one in findings if one.name == "pending").found.endswith("build: 1.")
    connection.execute("delete from analytics.events where event_id = 'new'")
    assert found("events").state == "failed"


def test_the_command_lists_every_check_and_ends_with_1_when_one_failed(connection):
    result = audience("doctor", "--json")
    findings = json.loads(result.stdout)
    assert result.returncode == 1 and "checks failed: events." in result.stderr
    assert {one["name"] for one in findings if one["state"] == "failed"} == {"events"}
    shown = audience("doctor").stdout
    assert all(one["name"] in shown and one["remedy"] in shown for one in findings)
    assert "Rows that wait for the next build: 0." in shown


def test_a_server_that_does_not_answer_fails_the_connection_and_no_further_check_is_made(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://ada:hunter2@127.0.0.1:1/events")
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    findings = doctor.examine()
    assert findings[-1].name == "connection" and findings[-1].state == "failed"
    assert "correct DATABASE_URL" in findings[-1].remedy
    assert "hunter2" not in str(findings)


def test_packages_of_other_versions_fail(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "dagster" else version(name))
    assert doctor.check_packages().found.startswith("dagster is 0.1 and has to be")


def test_little_free_disk_fails(limits):
    limits(disk_minimum_megabytes=10**12)
    assert doctor.check_disk().state == "failed"


def test_a_webhook_that_no_alert_can_go_to_fails_and_keeps_its_secret(monkeypatch):
    monkeypatch.delenv("AUDIENCE_ALERT_WEBHOOK", raising=False)
    assert doctor.check_alerts().state == "ok"
    monkeypatch.setenv("AUDIENCE_ALERT_WEBHOOK", "https://chat.example/services/secret-part")
    assert doctor.check_alerts().state == "ok" and "secret-part" not in doctor.check_alerts().found
    monkeypatch.setenv("AUDIENCE_ALERT_WEBHOOK", "http://chat.example/services/secret-part")
    finding = doctor.check_alerts()
    assert finding.state == "failed" and "https://" in finding.remedy and "secret-part" not in str(finding)


def test_a_session_that_waits_is_named_with_the_one_that_blocks_it(connection, limits):
    limits(lock_wait_seconds=0)
    with database.connect() as blocker, database.connect() as waiter:
        blocker.execute("lock table audience_state.org_members")
        thread = threading.Thread(target=waiter.execute, args=["select from audience_state.org_members"])
        thread.start()
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while (finding := found("locks")).state == "ok":
                assert time.monotonic() < until
            assert finding.state == "failed"
            assert str(waiter.info.backend_pid) in finding.found
            assert f"pg_terminate_backend({blocker.info.backend_pid})" in finding.remedy
        finally:
            blocker.rollback()
            thread.join()
    assert found("locks").state == "ok"


def test_a_transaction_that_writes_fails_and_what_landed_behind_it_is_counted(connection, limits):
    limits(transaction_minutes=0)
    with database.connect() as other:
        other.execute("select from analytics.events limit 1")
        assert found("transactions").state == "warning"
        other.execute("create table analytics.unfinished ()")
        connection.execute(
            "insert into analytics.events (event_id, org_id, event_type, occurred_at) values ('held', 'o', 'page_view', now())"
        )
        finding = found("transactions")
        assert finding.state == "failed" and f"pg_terminate_backend({other.info.backend_pid})" in finding.remedy
        assert found("pending").found.endswith("transaction: 1.")
        other.rollback()
    assert found("transactions").state == "ok"
    assert found("pending") == doctor.ok("pending", "Rows that wait for the next build: 1.")
    connection.execute("delete from analytics.events where event_id = 'held'")


def test_a_build_that_runs_is_shown_and_one_that_runs_for_long_is_called_wrong(connection, limits):
    with build_lock() as lock:
        assert str(lock.info.backend_pid) in found("build lock").found
        assert found("build lock").state == "ok"
        limits(build_max_hours=0)
        assert found("build lock").state == "warning"
    assert found("build lock").state == "ok"


@pytest.mark.parametrize(
    ("late", "missing", "state"), [(26, 50, "ok"), (0, 50, "warning"), (0, 0, "failed")], ids=["ok", "late", "missing"]
)
def test_a_build_that_is_late_or_missing(connection, limits, late, missing, state):
    limits(build_late_after_hours=late, build_missing_after_hours=missing)
    assert found("last build").state == state


class AnotherClock:
    """A connection to a server whose clock is ahead."""

    def __init__(self, connection: psycopg.Connection, ahead: timedelta) -> None:
        self.connection, self.ahead = connection, ahead

    def execute(self, *query: Any) -> Any:
        self.row = self.connection.execute(*query).fetchone()
        return self

    def fetchone(self) -> tuple[object, ...]:
        return (self.row[0] + self.ahead,)


def test_a_clock_that_is_ahead_is_told(connection):
    finding = doctor_server.check_clock(AnotherClock(connection, timedelta(seconds=60)))
    assert finding.state == "warning" and finding.found.startswith("The server's clock and this machine's are 60.")


def test_a_restored_dump_is_told_until_the_next_build(connection):
    (here,) = connection.execute("select position from analytics.runner_state where name = 'cluster'").fetchone()
    try:
        connection.execute("update analytics.runner_state set position = 1 where name = 'cluster'")
        assert found("cluster").state == "warning"
    finally:
        connection.execute("update analytics.runner_state set position = %s where name = 'cluster'", [here])


def test_tables_that_nobody_vacuums_are_named(connection, limits):
    connection.execute("alter table audience_state.org_members set (autovacuum_enabled = false)")
    finding = found("vacuum")
    connection.execute("alter table audience_state.org_members reset (autovacuum_enabled)")
    assert (finding.state, "audience_state.org_members" in finding.remedy) == ("warning", True)
    limits(dead_rows_minimum_count=0, dead_rows_share=0)
    connection.execute(
        "create table analytics.worn with (autovacuum_enabled = true) as select generate_series(1, 1000)"
    )
    connection.execute("delete from analytics.worn")
    connection.execute("select pg_stat_force_next_flush()")
    assert found("vacuum").found.startswith("Tables with many dead rows: ")
    connection.execute("drop table analytics.worn")


def test_a_login_without_rights_hears_which_are_missing(connection):
    connection.execute(f"create role {LOGIN} login password 'secret'")
    try:
        with psycopg.connect(user=LOGIN, password="secret", autocommit=True) as patient:
            finding = doctor_server.check_privileges(patient)
            assert finding.state == "failed" and f"grant audience_owner to {LOGIN}" in finding.remedy
            connection.execute(f"grant audience_owner to {LOGIN}")
            assert "may not create schemas" in doctor_server.check_privileges(patient).found
            connection.execute(f"grant create on database {connection.info.dbname} to {LOGIN}")
            assert "pg_read_all_stats" in doctor_server.check_privileges(patient).remedy
            connection.execute(f"grant pg_read_all_stats to {LOGIN}")
            assert doctor_server.check_privileges(patient).state == "ok"
    finally:
        connection.execute(f"drop owned by {LOGIN}; drop role {LOGIN}")


def test_what_the_server_refuses_to_say_is_a_finding(connection):
    def check_secrets(connection: psycopg.Connection) -> doctor.Finding:
        connection.execute("select * from no_such_table")
        raise AssertionError

    finding = doctor._asked(check_secrets, connection)
    assert (finding.name, finding.state) == ("secrets", "failed") and "no_such_table" in finding.found

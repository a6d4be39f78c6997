"""Jobs, sensors and metadata of Dagster on a database, within this process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from orchestration import alerts, database, dbt
from orchestration.build import build_lock
from orchestration.exports import webhooks
from orchestration.settings import manifest_path
from tests.projects import END, shuffled_sample
from tests.receivers import Chat, chat


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    from orchestration.load import load_files

    load_files(shuffled_sample(tmp_path_factory.mktemp("sample"), events=1_000))
    subprocess.run(dbt.command("parse"), check=True, capture_output=True, env=database.environment())
    assert manifest_path().exists()
    with database.connect(autocommit=True) as found:
        yield found


@pytest.fixture(scope="module")
def instance(connection: psycopg.Connection) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as found:
        yield found


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    """Runs a job in this process; nothing waits before a retry."""
    from orchestration.definitions import defs

    def execute(job: str, **config: object) -> dg.ExecuteInProcessResult:
        return defs.resolve_job_def(job).execute_in_process(
            instance=instance, raise_on_error=False, run_config=config or None
        )

    return execute


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path))
    monkeypatch.setenv("AUDIENCE_WEBHOOK_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setattr(webhooks.time, "sleep", lambda _: None)
    with chat() as found:
        monkeypatch.setenv("AUDIENCE_ALERT_WEBHOOK", found.url)
        yield found


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    [found] = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key.path[-1] == asset
    ]
    return {name: value.value for name, value in found.metadata.items()}


def test_a_night_says_what_it_wrote_and_a_second_one_writes_nothing(connection, run):
    first = run("nightly")
    assert first.success
    people = connection.execute("select count(*) from audience.audience_customers").fetchone()[0]
    customers = metadata(first, "audience_customers")
    assert customers["rows changed"] == people > 0
    assert customers["seconds"] > 0
    build = metadata(first, "build")
    assert build["received"] == build["accepted"] + build["rejected"] + build["duplicate"] > 900
    assert build["models changed"] > 30 and build["rows changed"] > people
    assert "| model | seconds | rows changed |" in build["slowest models"]
    assert all(check.passed for check in first.get_asset_check_evaluations())
    assert len(first.get_asset_check_evaluations()) == build["tests"] > 0

    second = run("nightly")
    assert second.success and metadata(second, "audience_customers")["rows, about"] == people
    assert metadata(second, "build")["rows changed"] < people / 10


def test_a_full_refresh_wants_its_confirmation(run):
    config = {"audience_dbt_assets": {"config": {"full_refresh": True, "confirm": "please"}}}
    refused = run("full_refresh", ops=config)
    assert not refused.success
    [failure] = refused.get_step_failure_events()
    assert "confirm: audience" in failure.step_failure_data.error_display_string
    assert not [event for event in refused.all_events if event.is_step_up_for_retry]
    config["audience_dbt_assets"]["config"]["confirm"] = "audience"
    done = run("full_refresh", ops=config)
    assert done.success


def test_a_backfill_loads_builds_and_verifies(connection, run, tmp_path):
    moment = datetime(2025, 3, 1, 12, tzinfo=UTC)
    rows = [
        {"event_id": f"old {number}", "org_id": "north_hall", "event_type": "page_view", "anonymous_id": f"d{number % 7}",
         "occurred_at": (moment + timedelta(days=number)).isoformat(), "received_at": (moment + timedelta(days=number)).isoformat()}
        for number in range(30)
    ]  # fmt: skip
    (tmp_path / "march.ndjson").write_text("\n".join(map(json.dumps, rows)))
    config = {"folder": str(tmp_path), "first_day": "2025-03-01", "last_day": "2025-03-30"}
    for accepted, duplicate in ((30, 0), (0, 30)):
        done = run("backfill", ops={"load_build_and_verify": {"config": config}})
        assert done.success
        [output] = [event for event in done.all_events if event.is_successful_output]
        found = {name: value.value for name, value in output.step_output_data.metadata.items()}
        assert (found["accepted"], found["duplicate"]) == (accepted, duplicate)
        assert found["rows verified"] > 0 and found["cells or rows that differ"] == 0
    assert connection.execute(
        "select sum(events_count) from audience.audience_overview_daily where org_id = 'north_hall' and event_date < '2025-04-01'"
    ).fetchone() == (30,)


def test_cells_that_differ_fail_the_verify_job_by_name(connection, run):
    connection.execute("update audience.audience_customers set events_count = events_count + 1")
    config = {"ops": {"compare_with_the_events": {"config": {"orgs": ["north_hall"], "days": [str(END)]}}}}
    failed = run("verify", **config)
    connection.execute("update audience.audience_customers set events_count = events_count - 1")
    assert not failed.success
    [failure] = failed.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.metadata["failed"].value == "audience_customers"
    assert run("verify", **config).success


def fail(connection: psycopg.Connection, run: Callable, monkeypatch: pytest.MonkeyPatch) -> dg.ExecuteInProcessResult:
    """A night whose test finds a currency without a rate, of an order by somebody with an address."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, user_id, properties) values"
        " ('rateless', 'north_hall', 'purchase', now() - interval '1 hour', 'jane@example.com',"
        """ '{"order_id": "o-1", "revenue": 5, "currency": "XTS"}')"""
    )
    return run("nightly")


def test_a_night_that_fails_is_told_by_names_alone_and_is_not_repeated_for_a_test(
    connection, run, instance, room, monkeypatch
):
    from orchestration.defs.alerts import failed_runs, failure_text

    result = fail(connection, run, monkeypatch)
    connection.execute("delete from analytics.events where event_id = 'rateless'")
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    [event] = [event for event in result.all_events if event.is_run_failure]
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs", dagster_event=event, dagster_instance=instance, dagster_run=instance.get_run_by_id(result.run_id)
    ).for_run_failure()  # fmt: skip
    failed_runs(context)
    [text] = room.texts
    assert text.startswith(
        f"Run {result.run_id} of nightly failed.\nStep audience_dbt_assets: assert_exchange_rates_exist"
    )
    assert text.endswith("operations.md#a-run-failed")
    assert "jane" not in text and "XTS" not in text
    instance.add_run_tags(result.run_id, {"dagster/will_retry": "true"})
    retried = dg.build_run_status_sensor_context(
        sensor_name="failed_runs", dagster_event=event, dagster_instance=instance, dagster_run=instance.get_run_by_id(result.run_id)
    ).for_run_failure()  # fmt: skip
    assert failure_text(retried).endswith("It is started again.")
    assert run("nightly").success


def test_a_model_that_fails_is_tried_again_and_only_what_is_left_is_done(connection, run, monkeypatch):
    """The server refuses to write customers once: the models before it are not written again."""
    connection.execute(
        "create sequence public.refusals; create function public.refuse_once() returns trigger language plpgsql as $$"
        " begin if nextval('public.refusals') = 1 then raise 'No space left on device'; end if; return null; end $$;"
        "create trigger refuse_once before insert or update or delete on audience.audience_customers"
        " for each statement execute function public.refuse_once();"
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, anonymous_id)"
        " values ('late one', 'north_hall', 'page_view', now() - interval '1 hour', 'somebody new')"
    )
    waits: list[float] = []
    monkeypatch.setattr("dagster._core.execution.plan.active.time.sleep", waits.append)
    result = run("nightly")
    connection.execute("drop function public.refuse_once() cascade; drop sequence public.refusals")
    assert result.success
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 1
    rows = [
        (event.materialization.asset_key.path[-1], event.materialization.metadata["rows changed"].value)
        for event in result.get_asset_materialization_events()
        if "rows changed" in event.materialization.metadata and event.materialization.asset_key.path[-1] != "build"
    ]
    written = [name for name, count in rows if count]
    assert written.count("int_events_enriched") == 1 and written.count("audience_customers") == 1
    assert ("int_events_enriched", 0) in rows


def test_a_build_waits_for_another_one(connection, monkeypatch):
    import threading

    with build_lock():
        waiting: list[str] = []

        def wait() -> None:
            with build_lock(wait_seconds=30):
                waiting.append("has it")

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(1.5)
        assert thread.is_alive() and not waiting
    thread.join(30)
    assert waiting == ["has it"]


def test_old_runs_are_forgotten_with_their_logs_and_no_others():
    from orchestration.defs.history import forget

    with dg.instance_for_test() as own:

        @dg.op
        def say() -> None:
            print("said")

        @dg.job(executor_def=dg.in_process_executor)
        def hourly() -> None:
            say()

        @dg.job(executor_def=dg.in_process_executor)
        def daily() -> None:
            say()

        old, other = hourly.execute_in_process(instance=own), daily.execute_in_process(instance=own)
        unfinished = own.create_run_for_job(hourly, status=dg.DagsterRunStatus.STARTED)
        assert forget(own, "hourly", 1) == 0
        assert forget(own, "hourly", 0) == 1
        left = {one.run_id for one in own.get_runs()}
        assert left == {other.run_id, unfinished.run_id}
        assert not own.all_logs(old.run_id) and own.all_logs(other.run_id)
        assert forget(own, None, 0) == 1 and {one.run_id for one in own.get_runs()} == {unfinished.run_id}


def test_that_something_landed_is_said_once(connection, instance):
    from orchestration.defs.landing import landed_events

    connection.execute("delete from analytics.events where received_at > now() - interval '3 days'")
    quiet = landed_events(dg.build_sensor_context(instance))
    assert isinstance(quiet, dg.SkipReason)
    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at)"
        " values ('fresh', 'north_hall', 'page_view', now(), now() - interval '30 minutes')"
    )
    said = landed_events(dg.build_sensor_context(instance))
    [event] = said.asset_events
    assert event.asset_key.path == ["landing", "events"]
    assert 30 <= event.metadata["lag of the newest event, minutes"].value < 35
    again = landed_events(dg.build_sensor_context(instance, cursor=said.cursor))
    assert isinstance(again, dg.SkipReason)
    connection.execute("delete from analytics.events where event_id = 'fresh'")


def test_what_the_doctor_finds_is_told_once_also_after_a_restart(connection, instance, room, monkeypatch):
    from orchestration import doctor_server
    from orchestration.defs.alerts import doctors_findings
    from orchestration.settings import project_variables

    def look(cursor: str | None) -> str:
        context = dg.build_sensor_context(instance, cursor=cursor)
        doctors_findings(context)
        return context.cursor

    cursor = look(None)
    assert json.loads(cursor) == {"events": "failed"}
    [text] = room.texts
    assert text.startswith("events, failed: No event was received in the last 50 hours.")
    assert text.endswith("operations.md#the-doctor-found-something")
    assert look(cursor) == cursor and len(room.texts) == 1
    variables = {**project_variables(), "build_missing_after_hours": 0, "build_late_after_hours": 0}
    monkeypatch.setattr(doctor_server, "project_variables", lambda: variables)
    cursor = look(cursor)
    assert room.texts[1].startswith("last build, failed:") and "events" not in room.texts[1]
    monkeypatch.setattr(doctor_server, "project_variables", project_variables)
    look(cursor)
    assert room.texts[2].startswith("last build is well again.")
    assert len(alerts.log_file().read_text().splitlines()) == 3
    assert os.environ["AUDIENCE_ALERT_WEBHOOK"] not in alerts.log_file().read_text()

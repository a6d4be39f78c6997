"""The job that erases: it does, and nobody is named in what Dagster keeps, nor in any log, also when it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from orchestration import database, dbt, erasure_requests
from orchestration.build import build, build_lock
from orchestration.errors import CheckFailed, UserError
from orchestration.rights import erasure
from orchestration.rights.subjects import Given
from tests.projects import audience

NAMES = (b"jane.roe@", b"jane roe", b"5550123")
GIVEN = Given(emails=["Jane.Roe@example.com"], phones=["+49 30 5550123"])


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_HOME", str(tmp_path_factory.mktemp("home")))
        land(found)
        build()
        subprocess.run(dbt.command("parse"), check=True, capture_output=True, env=database.environment())
        yield found


def land(connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, user_id, anonymous_id, properties) values"
        """ ('hers', 'north_hall', 'login', now() - interval '3 days', 'u-1', 'laptop', '{"email": "jane.roe@example.com", "name": "Jane Roe", "phone": "+49 30 5550123"}'),"""
        """ ('his', 'north_hall', 'login', now() - interval '3 days', 'u-2', 'desk', '{"email": "other@example.com"}')"""
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as found:
        yield found


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    from orchestration.definitions import defs

    def execute(request: str, confirm: str = "audience") -> dg.ExecuteInProcessResult:
        config = {"ops": {"erase_people": {"config": {"request": request, "confirm": confirm}}}}
        return defs.resolve_job_def("erase").execute_in_process(
            instance=instance, raise_on_error=False, run_config=config
        )

    return execute


def traces(*folders: str | Path) -> list[str]:
    """Files that name her."""
    files = [file for folder in folders for file in Path(folder).rglob("*") if file.is_file()]
    assert files
    return [f"{file}: {name!r}" for file in files for name in NAMES if name in file.read_bytes().lower()]


def kept(instance: dg.DagsterInstance) -> list[str | Path]:
    """All folders to which Dagster, dbt and the command write."""
    return [instance.root_directory, os.environ["AUDIENCE_HOME"], os.environ["DBT_TARGET_PATH"], os.environ["DBT_LOG_PATH"]]  # fmt: skip


def events(connection: psycopg.Connection) -> list[str]:
    return [name for (name,) in connection.execute("select event_id from analytics.events order by event_id")]


def said(result: dg.ExecuteInProcessResult) -> str:
    [failure] = result.get_step_failure_events()
    return failure.step_failure_data.error_display_string


def test_what_fails_erases_nobody_names_nobody_and_can_be_done_again(connection, run, instance, monkeypatch):
    request = erasure_requests.ask("north_hall", GIVEN)
    [file] = (Path(os.environ["AUDIENCE_HOME"]) / "erasures").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert traces(file.parent.parent), "the look for traces finds the request"
    hidden = file.read_bytes()

    assert "confirm: audience" in said(run(request, "yes"))
    assert "There is no such request" in said(run("jane.roe@example.com"[::-1]))
    with build_lock():
        assert "Nothing was erased, and the request is kept. Another build" in said(run(request))
    for error in (UserError("Jane.Roe@example.com is locked."), ValueError("jane.roe@example.com")):
        with monkeypatch.context() as patch:
            patch.setattr(erasure, "erase", lambda *_, error=error: (_ for _ in ()).throw(error))
            text = said(run(request))
            assert "jane" not in text.lower() and ("not shown" in text or "ValueError" in text)
    assert events(connection) == ["hers", "his"] and file.read_bytes() == hidden
    file.unlink()
    assert traces(*kept(instance)) == []


def test_a_person_is_erased_and_the_storage_of_dagster_has_no_trace(connection, run, instance):
    request = erasure_requests.ask("north_hall", GIVEN)
    done = run(request)
    assert done.success
    assert events(connection) == ["his"]
    assert connection.execute("select count(*) from audience.audience_customers").fetchone() == (1,)
    [output] = [event for event in done.all_events if event.is_successful_output]
    metadata = output.step_output_data.metadata
    receipt = connection.execute(
        "select cast(request_id as text) from audience_state.subject_requests where kind = 'erasure'"
    ).fetchone()
    assert (metadata["receipt"].value,) == receipt and metadata["rows"].value > 2
    assert traces(*kept(instance)) == []
    assert "There is no such request" in said(run(request))


def test_a_request_of_nobody_is_refused_or_removed_and_names_nobody(connection, run, instance):
    with pytest.raises(UserError, match="holds nothing on"):
        erasure_requests.ask("north_hall", GIVEN)
    connection.execute("insert into analytics.events (event_id, org_id, event_type, occurred_at, user_id) values ('late', 'north_hall', 'login', now(), 'jane roe')")  # fmt: skip
    request = erasure_requests.ask("north_hall", Given(user_ids=["jane roe"]))
    erasure.erase("north_hall", Given(user_ids=["jane roe"]))
    assert "so it is removed" in said(run(request))
    assert traces(*kept(instance)) == []


def test_an_erasure_whose_build_fails_is_finished_later(connection, run, instance, monkeypatch):
    land(connection)
    build()
    connection.execute("insert into analytics.events (event_id, org_id, event_type, occurred_at, user_id) values ('hers again', 'north_hall', 'login', now(), 'jane roe')")  # fmt: skip
    request = erasure_requests.ask("north_hall", Given(user_ids=["jane roe"]))

    def fail(**_: object) -> None:
        raise CheckFailed("duplicate key (jane roe)")

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "build", fail)
        text = said(run(request))
    assert "audience erase --finish" in text and "jane" not in text
    assert "hers again" not in events(connection)
    assert len(erasure.finish()) == 1
    run(request)
    assert traces(*kept(instance)) == []


def test_the_command_keeps_a_request_and_erases_nothing(connection):
    asked = audience("erase", "--org", "north_hall", "--user-id", "u-2", "--later")
    assert asked.returncode == 0 and "nothing is erased before" in asked.stdout
    request = asked.stdout.split()[1]
    assert (Path(os.environ["AUDIENCE_HOME"]) / "erasures" / f"{request}.json").exists()
    assert "his" in events(connection)

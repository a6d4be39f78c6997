"""A real daemon with its storage in PostgreSQL, killed as machines and operators kill: nothing twice, nothing blocked, told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._cli import job as cli
from dagster._cli.workspace.cli_target import get_workspace_from_cli_opts
from dagster._core.workspace.context import WorkspaceRequestContext
from dagster_shared.cli import WorkspaceOpts
from psycopg import sql

from orchestration import database, dbt, segments
from orchestration.build import build
from orchestration.exports import runner
from orchestration.settings import project_dir
from orchestration.verify import verify
from tests.integration.test_faults import held
from tests.integration.test_hot_leads import land_lead
from tests.projects import shuffled_sample
from tests.receivers import Chat, chat
from tests.tied import tied

PATIENCE_SECONDS = 240
STORAGE_LOGIN = f"dagster_storage_{os.getpid()}"
ACTIVE = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED]  # fmt: skip


def wait_for(happened: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := happened()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)
    return found


@dataclass
class Host:
    """The daemon with its code server and its runs, in a session of their own."""

    instance: dg.DagsterInstance
    workspace: WorkspaceRequestContext
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the daemon, if it is not running."""
        if self.process:
            return
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                tied([str(Path(sys.executable).with_name("dagster-daemon")), "run", "-m", "orchestration.definitions"]),
                cwd=project_dir(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """As a machine that loses its power: the daemon, the code server, the runs and their dbt."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def launch(self, job: str, **tags: str) -> str:
        """Puts a run into the queue, as `dagster job launch` does, but with definitions that are loaded already; its id."""
        location = cli.get_code_location_from_workspace(self.workspace, None)
        repository = cli.get_remote_repository_from_code_location(location, None)
        run = cli._create_run(
            instance=self.instance, code_location=location, remote_repo=repository, run_config={}, tags=tags,
            remote_job=cli.get_remote_job_from_remote_repo(repository, job), op_selection=None, run_id=None,
        )  # fmt: skip
        return self.instance.submit_run(run.run_id, self.workspace).run_id

    def status(self, run_id: str) -> str:
        return self.instance.get_run_by_id(run_id).status.value

    def ended(self, run_id: str) -> str:
        return wait_for(lambda: (one := self.status(run_id)) in ("SUCCESS", "FAILURE", "CANCELED") and one)

    def retry_of(self, run_id: str) -> str:
        tags = {"dagster/parent_run_id": run_id}
        return wait_for(lambda: self.instance.get_runs(dg.RunsFilter(tags=tags)))[0].run_id

    def worker(self, run_id: str) -> int:
        """The process that does a run."""
        events = [entry.message for entry in self.instance.all_logs(run_id)]
        return int(
            re.search(r"Executing steps in process \(pid: (\d+)\)|\(pid: (\d+)\)", " ".join(events))[0].split()[-1][:-1]
        )


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """A built project with segments; the login of Dagster's storage has a schema of its own and no other right."""
    from orchestration.load import load_files

    load_files(shuffled_sample(tmp_path_factory.mktemp("sample"), events=1_000))
    build()
    with segments.connect() as own:
        segments.sync(own)
        segments.materialize(own)
    with database.connect(autocommit=True) as found:
        login = sql.Identifier(STORAGE_LOGIN)
        found.execute(sql.SQL("create role {} login password 'secret'").format(login))
        found.execute(sql.SQL("create schema dagster authorization {}").format(login))
        found.execute(
            sql.SQL("alter role {} in database {} set search_path = dagster").format(login, sql.Identifier(module_database))
        )  # fmt: skip
        try:
            yield found
        finally:
            found.execute(sql.SQL("drop owned by {0}; drop role {0}").format(login))


@pytest.fixture(scope="module")
def room(module_database: str) -> Iterator[Chat]:
    with chat() as found:
        yield found


@pytest.fixture(scope="module")
def host(connection: psycopg.Connection, room: Chat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("dagster")
    settings = (project_dir() / "deploy" / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(settings.replace("poll_interval_seconds: 30", "poll_interval_seconds: 2"))
    info = connection.info
    place = f"{info.dbname}?host={os.environ['PGHOST']}&port={info.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        patch.setenv("DAGSTER_POSTGRES_URL", f"postgresql+psycopg2://{STORAGE_LOGIN}:secret@/{place}")
        patch.setenv("AUDIENCE_HOME", str(folder))
        patch.setenv("AUDIENCE_WEBHOOK_ALLOWED_HOSTS", "127.0.0.1")
        patch.setenv("AUDIENCE_ALERT_WEBHOOK", room.url)
        patch.setenv("PYTHONPATH", str(project_dir()))
        subprocess.run(dbt.command("parse"), check=True, capture_output=True, env=database.environment())
        opts = WorkspaceOpts(module_name=["orchestration.definitions"], working_directory=str(project_dir()))
        with (
            dg.DagsterInstance.get() as instance,
            get_workspace_from_cli_opts(instance, dg.__version__, opts) as workspace,
        ):
            found = Host(instance, workspace, folder)
            try:
                yield found
            finally:
                found.kill()


def test_the_storage_has_a_schema_of_its_own_and_its_login_reads_nothing_else(connection, host):
    host.instance.get_runs()
    schemas = connection.execute(
        "select distinct relnamespace::regnamespace::text from pg_class where relkind = 'r' and relowner = %s::regrole",
        [STORAGE_LOGIN],
    ).fetchall()
    assert schemas == [("dagster",)]
    with psycopg.connect(user=STORAGE_LOGIN, password="secret", autocommit=True) as login:
        for table in ("analytics.events", "audience.audience_customers", "audience_state.model_state"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                login.execute(f"select from {table}")


def dbt_connections(connection: psycopg.Connection) -> int:
    query = (
        "select count(*) from pg_stat_activity where application_name = 'dbt audience' and datname = current_database()"
    )
    return connection.execute(query).fetchone()[0]


def land_somebody(connection: psycopg.Connection, visitor: str) -> None:
    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, anonymous_id)"
        " values (%s, 'north_hall', 'page_view', now() - interval '1 hour', %s)",
        [f"visit of {visitor}", visitor],
    )


def known(connection: psycopg.Connection, visitor: str) -> int:
    query = "select count(*) from audience.audience_customers where visitor_id = %s"
    return connection.execute(query, [visitor]).fetchone()[0]


def test_a_worker_that_is_killed_in_a_model_is_told_and_the_run_starts_again_when_its_dbt_has_ended(
    connection, host, room
):
    land_somebody(connection, "worker")
    host.start()
    with held("audience_customers") as hold:
        run_id = host.launch("nightly")
        assert hold.wait(lambda: host.status(run_id) != "FAILURE") == {"audience_customers"}
        os.kill(host.worker(run_id), signal.SIGKILL)
        assert host.ended(run_id) == "FAILURE"
        retry = host.retry_of(run_id)
        wait_for(lambda: host.status(retry) == "STARTED")
        time.sleep(3)
        assert dbt_connections(connection) == 1, "the retry waits for the dbt that was left behind"
    assert host.ended(retry) == "SUCCESS"
    assert known(connection, "worker") == 1
    [text] = wait_for(lambda: [text for text in room.texts if run_id in text])
    assert "of nightly failed." in text and "its process may have died" in text and "started again" in text
    assert verify(everything=True).differing == 0


def test_a_machine_that_loses_its_power_in_a_night_blocks_no_other_night_and_nothing_is_done_twice(
    connection, host, room
):
    with segments.connect() as own:
        export = runner.export_segment(own, "Champions", "a test", "north_hall", is_queued=True).entry.export_id
    land_lead(connection, "lead-1")
    assert host.ended(host.launch("hot_leads_snapshot")) == "SUCCESS"
    land_somebody(connection, "power")
    with held("int_visits") as hold:
        run_id = host.launch("nightly")
        assert hold.wait(lambda: host.status(run_id) != "FAILURE") == {"int_visits"}
        wait_for(lambda: _outcome(export) == "delivered")
        next_night = host.launch("nightly")
        time.sleep(5)
        assert host.status(next_night) == "QUEUED", "one build at a time"
        host.kill()
    assert host.status(run_id) == "STARTED"

    land_somebody(connection, "next night")
    host.start()
    assert host.ended(run_id) == "FAILURE"
    assert host.ended(host.retry_of(run_id)) == "SUCCESS"
    [text] = wait_for(lambda: [text for text in room.texts if run_id in text])
    assert "started again" in text
    assert host.ended(next_night) == "SUCCESS"
    assert host.ended(host.launch("hot_leads_snapshot")) == "SUCCESS"
    assert known(connection, "power") == known(connection, "next night") == 1
    assert verify(everything=True).differing == 0
    assert sum("lead-1" in text for text in room.texts) == 1
    assert len(host.instance.get_runs(dg.RunsFilter(job_name="export"))) == 1
    log = connection.execute("select outcome from audience_state.segment_export_log where export_id = %s order by log_number", [export])  # fmt: skip
    assert [outcome for (outcome,) in log] == ["requested", "started", "completed", "delivered"]
    assert not host.instance.get_runs(dg.RunsFilter(job_name="nightly", statuses=ACTIVE))


def test_a_build_that_takes_too_long_is_ended_and_told(connection, host, room):
    host.start()
    land_somebody(connection, "patience")
    with held("audience_customers") as hold:
        run_id = host.launch("nightly", **{"dagster/max_runtime": "1", "dagster/max_retries": "0"})
        assert hold.wait(lambda: host.status(run_id) != "FAILURE") <= {"audience_customers"}
        assert host.ended(run_id) in ("FAILURE", "CANCELED")
        wait_for(lambda: not dbt_connections(connection))
    wait_for(lambda: [text for text in room.texts if run_id in text])
    assert host.ended(host.launch("nightly")) == "SUCCESS"
    assert known(connection, "patience") == 1


def _outcome(export_id: object) -> str:
    with segments.connect() as own:
        return runner.find(own, export_id).outcome

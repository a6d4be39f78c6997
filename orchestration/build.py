"""The dbt build: one at a time, with progress, and an account of what it changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import psycopg

from orchestration import database, dbt, segments
from orchestration.errors import CheckFailed, UserError
from orchestration.load import ensure_landing_tables, parse_new_user_agents
from orchestration.moments import parse_moment
from orchestration.segments import Materialization
from orchestration.settings import target_folder, target_schema

LOCK_HELD = "AUDIENCE_BUILD_LOCK"
# The same as the variable as_of, for which dbt would parse the whole project again.
AS_OF = "AUDIENCE_AS_OF"
# A server notices within about a second that a killed dbt has left, when it looks (client_connection_check_interval).
LEAVING_SECONDS = 5


@dataclass(frozen=True)
class NodeResult:
    """What became of one dbt node. rows: rows written or removed, None where that says nothing."""

    name: str
    kind: str
    status: str
    message: str
    seconds: float
    rows: int | None


@dataclass(frozen=True)
class BuildReport:
    """A finished build. seconds: wall time of dbt, its start-up included. segments: materialized after it."""

    nodes: list[NodeResult]
    seconds: float
    segments: list[Materialization] = field(default_factory=list)

    @property
    def changed(self) -> list[NodeResult]:
        return [node for node in self.nodes if node.kind == "model" and node.rows]

    @property
    def failed(self) -> list[NodeResult]:
        return [node for node in self.nodes if node.status in ("error", "fail", "runtime error")]

    @property
    def warned(self) -> list[NodeResult]:
        return [node for node in self.nodes if node.status == "warn"]


def parse_as_of(text: str) -> str:
    """The moment as ISO 8601 in UTC; a date is its first instant in UTC.

    Raises UserError for what is not a date or time.
    """
    try:
        return parse_moment(text).isoformat()
    except ValueError as error:
        raise UserError(
            f"--as-of {text!r} is not a date or time ({error}): give ISO 8601, for example 2026-06-30T02:00:00+02:00."
        ) from error


@contextmanager
def build_lock(wait_seconds: float = 0) -> Iterator[psycopg.Connection]:
    """Holds the database lock of the target schema, on the connection that it yields; a dbt typed by hand finds it taken.

    Raises UserError when another build holds it, for longer than `wait_seconds`.
    """
    until = time.monotonic() + wait_seconds
    with database.connect(autocommit=True, application_name="audience build") as connection:
        while not _take_lock(connection):
            if time.monotonic() >= until:
                raise UserError(
                    f"Another build of schema {target_schema()} is running: wait for it to end, then run this again."
                )
            time.sleep(1)
        yield connection


def _take_lock(connection: psycopg.Connection) -> bool:
    key = [f"audience build {target_schema()}"]
    if connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 42))", key).fetchone() != (True,):
        return False
    if _typed_dbt_stays(connection):
        connection.execute("select pg_advisory_unlock(hashtextextended(%s, 42))", key)
        return False
    return True


def _typed_dbt_stays(connection: psycopg.Connection) -> bool:
    """Whether a dbt without the lock is at work: one typed by hand, told by the name of its connections.

    What a killed one left behind goes within seconds, and is waited for.
    """
    until = time.monotonic() + LEAVING_SECONDS
    while connection.execute(
        "select 1 from pg_stat_activity where datname = current_database() and application_name = %s",
        [f"dbt {target_schema()}"],
    ).fetchone():
        if time.monotonic() > until:
            return True
        time.sleep(0.1)
    return False


def build(
    *,
    as_of: str | None = None,
    full_refresh: bool = False,
    select: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> BuildReport:
    """Runs `dbt build`, then, unless a part was selected, materializes the segments; reports both.

    as_of: ISO 8601, default the start of the run. progress: called with (done, total, node name).
    Raises UserError beside another build, CheckFailed when a model, a test or a segment failed.
    """
    arguments = ["build", "--exclude-resource-type", "unit_test"]
    if full_refresh:
        arguments += ["--full-refresh"]
    if select:
        arguments += ["--select", select]
    variables = {AS_OF: parse_as_of(as_of)} if as_of else {}
    with build_lock() as lock:
        parse_landed_user_agents()
        report = _run(arguments, progress, lock, variables)
        return report if select else replace(report, segments=_materialize())


def _materialize() -> list[Materialization]:
    with segments.connect() as connection:
        done = segments.materialize(connection)
    segments.check(done)
    return done


def parse_landed_user_agents() -> None:
    """Parses the user agents of rows that collectors wrote themselves; the loader parses those of files."""
    ensure_landing_tables()
    with database.connect() as connection:
        parse_new_user_agents(connection)


def _run(
    arguments: list[str],
    progress: Callable[[int, int, str], None] | None,
    lock: psycopg.Connection,
    variables: dict[str, str],
) -> BuildReport:
    started = datetime.now(UTC)
    output: list[str] = []
    # dbt inherits the lock's connection: were this process killed, the lock would last until its dbt has ended
    with dbt.start(*arguments, variables={LOCK_HELD: "held", **variables}, keep_open=[lock.fileno()]) as process:
        for line in process.stdout or ():
            _follow(line, output, progress)
    report = BuildReport(_results(started), (datetime.now(UTC) - started).total_seconds())
    if process.returncode or report.failed:
        details = "\n".join(f"{node.name}: {node.message.strip()}" for node in report.failed)
        raise CheckFailed(
            "The build failed. A model that failed keeps its last good state, and the next build completes it; "
            "a test that failed says what is wrong with what was built.\n" + (details or "\n".join(output[-20:]))
        )
    return report


def _follow(line: str, output: list[str], progress: Callable[[int, int, str], None] | None) -> None:
    """Takes one JSON log line of dbt: errors go to `output`, finished nodes to `progress`."""
    try:
        event = json.loads(line)
    except ValueError:
        output.append(line.rstrip())
        return
    name, data = event["info"]["name"], event.get("data", {})
    if event["info"]["level"] == "error":
        output.append(event["info"]["msg"])
    if progress and data.get("total") and name.startswith("Log") and "Start" not in name:
        progress(data["index"], data["total"], data.get("node_info", {}).get("node_name", ""))


def _rows_changed(response: dict) -> int | None:
    """Rows written or removed by a maintained model; a view or a test writes none."""
    return response.get("rows_affected") if response.get("code") in ("FULL", "CHANGED") else None


def _results(started: datetime) -> list[NodeResult]:
    path = target_folder() / "run_results.json"
    if not path.exists() or path.stat().st_mtime < started.timestamp() - 1:
        return []
    found = json.loads(path.read_text())["results"]
    return [
        NodeResult(
            name=result["unique_id"].split(".")[2],
            kind=result["unique_id"].split(".")[0],
            status=result["status"],
            message=result.get("message") or "",
            seconds=result["execution_time"],
            rows=_rows_changed(result.get("adapter_response") or {}),
        )
        for result in found
    ]

"""What an operator reads of a build, from dbt's log, and what the jobs beside the nightly one do. Knows nothing of Dagster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orchestration.build import BuildReport, NodeResult
from orchestration.build import build as run_build
from orchestration.errors import UserError
from orchestration.load import LoadReport, load_files
from orchestration.settings import project_variables, target_schema
from orchestration.verify import VerifyReport
from orchestration.verify import verify as run_verify

RESULTS = {"LogModelResult", "LogSeedResult", "LogTestResult", "LogFunctionResult"}
FAILED = ("error", "fail", "runtime error")
SLOWEST_COUNT = 10
# What dbt says of a maintained model that it has brought up to date.
_WRITTEN = re.compile(r"(?:FULL|CHANGED) (\d+)")


def node_of(event: Mapping[str, Any]) -> NodeResult | None:
    """What became of a node, from an event of dbt's JSON log; None for events about something else.

    rows: written or removed by a maintained model. The message is left out: it may quote rows.
    """
    data = event.get("data", {})
    node = data.get("node_info", {})
    if event["info"]["name"] not in RESULTS or not node:
        return None
    status = node.get("node_status") or data["status"].lower()
    written = _WRITTEN.fullmatch(data.get("status", ""))
    return NodeResult(
        name=node["unique_id"].split(".")[2], kind=node["unique_id"].split(".")[0], status=status, message="",
        seconds=data.get("execution_time", 0.0), rows=int(written[1]) if written else None,
    )  # fmt: skip


def relation_of(event: Mapping[str, Any]) -> str:
    """The quoted name of the table or view that an event's node makes; empty for a test."""
    return event.get("data", {}).get("node_info", {}).get("node_relation", {}).get("relation_name") or ""


def rows_about(connection: psycopg.Connection, relation: str) -> int | None:
    """How many rows a table has, as its statistics say; None for a view, and before the first analyze."""
    query = "select cast(reltuples as bigint) from pg_class where oid = to_regclass(%s) and reltuples >= 0 and relkind = 'r'"
    found = connection.execute(query, [relation]).fetchone()
    return found[0] if found else None


def slowest(nodes: Sequence[NodeResult]) -> list[NodeResult]:
    """The models that took longest, the slowest first."""
    models = [node for node in nodes if node.kind == "model"]
    return sorted(models, key=lambda node: -node.seconds)[:SLOWEST_COUNT]


def failed_names(nodes: Sequence[NodeResult]) -> list[str]:
    return [node.name for node in nodes if node.status in FAILED]


def is_worth_a_retry(nodes: Sequence[NodeResult]) -> bool:
    """Whether another attempt may end better: not when nothing but tests failed, which would find the same rows."""
    return {node.kind for node in nodes if node.status in FAILED} != {"test"}


def deliveries(connection: psycopg.Connection) -> dict[str, int]:
    """Rows that were received in all, and what became of them: accepted, rejected, duplicate. As of the last build."""
    query = "select sum(received_count), sum(accepted_count), sum(rejected_count), sum(duplicate_count) from {}"
    table = sql.Identifier(target_schema(), "data_quality_daily")
    counts = connection.execute(sql.SQL(query).format(table)).fetchone()
    names = ("received", "accepted", "rejected", "duplicate")
    return {name: int(count or 0) for name, count in zip(names, counts, strict=True)}


def newest_receipt(connection: psycopg.Connection) -> datetime | None:
    """When the newest event was received; None when that is longer ago than what counts as missing."""
    variables = project_variables()
    table = sql.Identifier(variables["landing_schema"], "events")
    query = sql.SQL("select max(received_at) from {} where received_at > now() - %s").format(table)
    return connection.execute(query, [timedelta(hours=variables["events_missing_after_hours"])]).fetchone()[0]


def lag_minutes(newest: datetime, now: datetime | None = None) -> float:
    return round(((now or datetime.now(UTC)) - newest).total_seconds() / 60, 1)


def refuse_unconfirmed(confirm: str) -> None:
    """Raises UserError unless a full refresh was confirmed with the name of the schema that it recomputes."""
    if confirm != target_schema():
        raise UserError(
            f"A full refresh recomputes every table, which takes as long as a first build: confirm it with confirm: "
            f"{target_schema()}, or run nightly."
        )


def backfill(folder: str, first: str, last: str) -> tuple[LoadReport, BuildReport, VerifyReport]:
    """Loads the files of a folder, builds, and compares sampled days from `first` to `last` (YYYY-MM-DD) with the events.

    Raises UserError, before anything is loaded, for a folder that is not there and for days that are none.
    """
    days = sampled_days(first, last)
    if not Path(folder).is_dir():
        raise UserError(f"{folder!r} is no folder of the machine that Dagster runs on: name the one with the files.")
    loaded = load_files([Path(folder)])
    return loaded, run_build(), run_verify(days=days)


def sampled_days(first: str, last: str, count: int = 5) -> list[date]:
    """At most `count` days from first to last, both included, evenly apart. Raises UserError for what is no period."""
    try:
        begin, end = date.fromisoformat(first), date.fromisoformat(last)
    except ValueError as error:
        raise UserError(f"{first} to {last} is no period ({error}): give two days as YYYY-MM-DD.") from error
    if end < begin:
        raise UserError(f"{first} to {last} ends before it begins: give the earlier day first.")
    span = (end - begin).days
    steps = min(count - 1, span)
    return [begin + timedelta(days=span * step // max(steps, 1)) for step in range(steps + 1)]

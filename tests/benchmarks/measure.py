"""Measures one history on an embedded server of its own: load, first build, further days, questions, one event, nothing new,
exports."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from orchestration import database, embedded
from orchestration.build import BuildReport, build
from orchestration.exports import log
from orchestration.load import ensure_landing_tables, load_files
from orchestration.settings import target_folder
from tests.benchmarks import exports, questions
from tests.benchmarks.inputs import Events

NAIVE_BASELINE = Path(__file__).with_name("naive_baseline.sql")
DAY = timedelta(days=1)

# A page view by the visitor of the newest order, who is known to every table.
ONE_EVENT = """
insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at, anonymous_id, user_id, session_id,
    url, user_agent, properties)
select 'benchmark-event', org_id, 'page_view', %(moment)s, %(moment)s, anonymous_id, user_id, 'benchmark-session',
    url, user_agent, properties - array['order_id', 'revenue', 'currency', 'quantity']
from analytics.events
where rejection_reason is null and event_type = 'purchase' and properties ->> 'dnt' is distinct from 'true'
order by landing_id desc limit 1
"""
CHANGES_KEPT = "select sum(n_tup_ins) from pg_stat_user_tables where relname like '%\\_\\_changes'"
# Of sessions that have ended: a session that waits reports now and then.
SQL_SECONDS = "select active_time / 1000 from pg_stat_database where datname = current_database()"
CONNECTIONS = "select sessions from pg_stat_database where datname = current_database()"


def measure(events: Events, figures: dict, say: Callable[[str], None]) -> None:
    """Fills `figures` step by step, so that an interrupted run keeps what it had."""
    embedded.start()
    try:
        say("landing tables, load")
        started = time.perf_counter()
        ensure_landing_tables()
        figures["landing tables made"] = time.perf_counter() - started
        figures["load"] = _load(events.base)
        if not events.folder:
            figures["naive baseline"] = {"first": _naive_baseline()}
        say("first build")
        figures["first build"] = _build(_end_of_landed())
        # a night lies between: autovacuum would have come by, and the baseline is treated the same way
        _execute("vacuum (analyze)")
        if events.same_rows and events.same_rows not in events.days:
            _same_rows(events, figures, say)
        for number, file in enumerate(events.days, 1):
            say(f"day {number}")
            figures[f"day {number}"] = _day(file)
            if not events.folder and number == 1:
                figures["naive baseline"]["nightly"] = _naive_baseline()
        if events.same_rows in events.days:
            figures["same rows"] = figures["day 1"]
        say("questions")
        _execute("vacuum (analyze)")
        with database.connect() as connection:
            figures["questions"] = questions.ask(connection)
        _idle_builds_and_one_event(figures, say)
        say("exports")
        figures["exports"] = exports.measure(log.exports_folder())
    finally:
        embedded.stop()


def _same_rows(events: Events, figures: dict, say: Callable[[str], None]) -> None:
    """Another first day, undone afterwards: a copy of the database takes its place."""
    say("same rows")
    _execute("create database kept template audience strategy file_copy", dbname="postgres")
    figures["same rows"] = _day(events.same_rows)
    _execute("drop database audience with (force)", dbname="postgres")
    _execute("alter database kept rename to audience", dbname="postgres")


def _idle_builds_and_one_event(figures: dict, say: Callable[[str], None]) -> None:
    tomorrow = _end_of_landed() + DAY
    say("nothing new")
    # what a day changes by passing alone is no work for the event: it is built first
    figures["a day passes"] = _build(tomorrow)
    figures["idle, same as_of"] = _build(tomorrow)
    say("one event")
    _execute(ONE_EVENT, {"moment": tomorrow - DAY / 2})
    figures["one event"] = _build(tomorrow)
    say("nothing new, now")
    figures["brought to now"] = _build(None)
    figures["idle, default as_of"] = _build(None)


def _end_of_landed() -> datetime:
    """The end of the UTC day in which the newest row was received: the as_of of what has landed."""
    return _one("select date_trunc('day', max(received_at)) + interval '1 day' from analytics.events")


def _load(files: list[Path]) -> dict:
    report = load_files(files)
    return {"rows": report.received, "wall": report.seconds}


def _day(file: Path) -> dict:
    loaded = _load([file])
    _execute("checkpoint")
    return _build(_end_of_landed()) | {"landed": loaded["rows"], "load": loaded["wall"]}


def _naive_baseline() -> float:
    started = time.perf_counter()
    with database.connect() as connection:
        connection.execute(NAIVE_BASELINE.read_text())
    return time.perf_counter() - started


def _build(as_of: datetime | None) -> dict:
    """One build: wall seconds and where they went, rows written or removed, changes kept for models that read them."""
    kept, connections, active, started = _one(CHANGES_KEPT) or 0, _one(CONNECTIONS), _one(SQL_SECONDS), time.time()
    report = build(as_of=as_of and as_of.isoformat())
    ended = time.time()
    first, last = _span(target_folder() / "run_results.json")
    return {
        "as_of": str(as_of or "now"),
        "load average": os.getloadavg()[0],  # well above two on two cores: something else ran, and seconds say little
        "wall": ended - started,
        "before first node": first - started,
        "after last node": ended - last,
        "sql": _one(SQL_SECONDS) - active,
        "models": _seconds(report, "model"),
        "seeds": _seconds(report, "seed"),
        "tests": _seconds(report, "test"),
        "connections": _one(CONNECTIONS) - connections,
        "connection seconds": _connection_seconds(),
        "rows": sum(node.rows for node in report.changed),
        "rows by model": {node.name: node.rows for node in sorted(report.changed, key=lambda node: -node.rows)},
        "changes kept": int((_one(CHANGES_KEPT) or 0) - kept),
        "slowest": {n.name: n.seconds for n in sorted(report.nodes, key=lambda node: -node.seconds)[:5]},
    }


def _seconds(report: BuildReport, kind: str) -> float:
    """Of all nodes of a kind, added up."""
    return sum(node.seconds for node in report.nodes if node.kind == kind)


def _span(results: Path) -> tuple[float, float]:
    """When the first seed, model or test began, and the last one ended."""
    found = [n for n in json.loads(results.read_text())["results"] if not n["unique_id"].startswith("operation.")]
    steps = [step for node in found for step in node["timing"]]
    moments = [
        [datetime.fromisoformat(step[name]).timestamp() for step in steps] for name in ("started_at", "completed_at")
    ]
    return min(moments[0]), max(moments[1])


def _connection_seconds() -> float:
    """What one connection costs."""
    started = time.perf_counter()
    for _ in range(10):
        _connect().close()
    return (time.perf_counter() - started) / 10


def _execute(statement: str, values: dict | None = None, **other: str) -> None:
    with _connect(**other) as connection:
        connection.execute(statement, values)


def _connect(**other: str) -> psycopg.Connection:
    variables = {database.LIBPQ_NAMES[name]: value for name, value in embedded.start().variables.items()}
    return psycopg.connect(**(variables | other), autocommit=True)


def _one(query: str):
    with database.connect() as connection:
        return connection.execute(query).fetchone()[0]

"""Measures load, first build, an increment and an idle build, beside a naive baseline in the same run.

  make bench                            a sample of a million events of the project's own
  .venv/bin/python -m tests.benchmarks --events 200000
  .venv/bin/python -m tests.benchmarks base.ndjson.gz inc_1.ndjson.gz    your files: history, then one day

The baseline is what a team without this project runs every night: four aggregates over all raw events. Seconds drift
with the machine; the ratios are what to compare. Runs on an embedded server of its own in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BASELINE = """
create temp table customers on commit drop as
select org_id, coalesce(user_id, anonymous_id) as visitor, min(occurred_at), max(occurred_at), count(*),
    count(*) filter (where event_type = 'purchase') as orders, sum((properties ->> 'revenue')::numeric) as revenue
from analytics.events group by 1, 2;
create temp table channels on commit drop as
select org_id, occurred_at::date, properties ->> 'utm_source', properties ->> 'utm_medium', count(distinct anonymous_id),
    count(distinct session_id), sum((properties ->> 'revenue')::numeric)
from analytics.events group by 1, 2, 3, 4;
create temp table devices on commit drop as
select org_id, occurred_at::date, user_agent, properties ->> 'network_type', count(distinct anonymous_id),
    avg((properties ->> 'page_load_ms')::numeric)
from analytics.events group by 1, 2, 3, 4;
create temp table cohorts on commit drop as
with firsts as (
    select org_id, coalesce(user_id, anonymous_id) as visitor, date_trunc('week', min(occurred_at)) as cohort
    from analytics.events where event_type = 'purchase' group by 1, 2
)
select e.org_id, cohort, date_trunc('week', occurred_at) as week, count(distinct visitor)
from analytics.events as e
join firsts on firsts.org_id = e.org_id and firsts.visitor = coalesce(e.user_id, e.anonymous_id) group by 1, 2, 3;
"""


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def sample_files(folder: Path, events: int) -> tuple[list[Path], list[Path]]:
    """A sample whose last file is the day to add; returns history and increment."""
    from orchestration.sample import write_sample

    files = [file.path for file in write_sample(folder, events=events)]
    return files[:-1], files[-1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="history and one increment")
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="bench"))
    os.environ |= {
        "AUDIENCE_HOME": str(folder),
        "DBT_TARGET_PATH": str(folder / "target"),
        "DBT_LOG_PATH": str(folder / "logs"),
    }
    from orchestration import database, embedded
    from orchestration.build import build
    from orchestration.load import load_files

    try:
        history, increment = (
            (arguments.files[:-1], arguments.files[-1:])
            if arguments.files
            else sample_files(folder / "sample", arguments.events)
        )
        embedded.start()
        loaded = load_files(history)
        print(
            f"load            {loaded.received:>10,} rows  {loaded.seconds:8.1f} s  {loaded.received / loaded.seconds:,.0f} rows/s"
        )

        def baseline() -> None:
            with database.connect() as connection:
                connection.execute(BASELINE)

        base = timed(baseline)
        print(f"baseline        four aggregates over all events  {base:8.1f} s")

        def report(name: str, action: Callable) -> None:
            result = action()
            sql = sum(node.seconds for node in result.nodes if node.kind == "model")
            rows = sum(node.rows or 0 for node in result.changed)
            print(
                f"{name:<15} {rows:>10,} rows  {result.seconds:8.1f} s  models {sql:8.1f} s  "
                f"{sql / base:6.2f} x baseline"
            )

        report("first build", build)
        load_files(increment)
        report("increment", build)
        report("nothing new", build)
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

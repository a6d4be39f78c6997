"""Measures load, first build, further days, questions, one event and idle builds, beside a baseline in the same run.

  make bench                                                         histories of one and five million events
  .venv/bin/python -m tests.benchmarks --history 100000 --json figures.json
  .venv/bin/python -m tests.benchmarks --data DIR DIR                files made before

A report, not a test: it ends with 0 when figures are over budget, with 1 when something broke. docs/performance.md
says what is compared. Everything runs in a temporary folder, on servers of its own that are gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestration.settings import PG_VARIABLES, project_dir
from tests.benchmarks import inputs, questions
from tests.benchmarks.measure import measure

# Snowplow's dbt package on PostgreSQL took 43.8 s for its first run on a million of the generated events, and the
# baseline 10.6 s beside it.
OTHER_PACKAGE = 43.8 / 10.6


@dataclass(frozen=True)
class Line:
    """A figure of the report. `value` gets the figures of a history and those of the smallest one.

    at_most, at_least: the budget, set for a history of `budget_for` events and judged at every size.
    """

    label: str
    value: Callable[[dict, dict], float]
    form: str = ",.2f"
    at_most: float | None = None
    at_least: float | None = None
    budget_for: str = ""

    def cell(self, figures: dict, smallest: dict) -> str:
        try:
            value = self.value(figures, smallest)
        except KeyError:  # not measured: interrupted, or without the reference baseline
            return "-"
        over = (self.at_most is not None and value > self.at_most) or (
            self.at_least is not None and value < self.at_least
        )
        return format(value, self.form) + (("  over" if over else "    ok") if self.budget else "")

    @property
    def budget(self) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        limit = f"at most {self.at_most:,}" if self.at_least is None else f"at least {self.at_least:,}"
        return f"{limit} {self.budget_for}".rstrip()


def where_it_went(step: str) -> list[Line]:
    """The parts of a build's wall seconds; seeds, models and tests are sums over nodes."""
    names = ("before first node", "seeds", "models", "tests", "after last node")
    lines = [Line(f"  {name}, s", lambda f, _, name=name: f[step][name]) for name in names]
    lines.append(Line("  SQL, s", lambda f, _: f[step]["sql"]))
    lines.append(Line("  connections", lambda f, _: f[step]["connections"], ",.0f"))
    return [*lines, Line("  all connections, s", lambda f, _: f[step]["connections"] * f[step]["connection seconds"])]


def further_day(step: str) -> list[Line]:
    """A nightly increment: a tenth of the baseline's nightly in SQL, a quarter in all with what dbt adds."""
    return [
        Line(f"{step}: rows landed", lambda f, _: f[step]["landed"], ",.0f"),
        Line("  wall, s", lambda f, _: f[step]["wall"]),
        Line("  SQL, s", lambda f, _: f[step]["sql"]),
        Line("  models in dbt, s", lambda f, _: f[step]["models"]),
        Line("  rows written or removed", lambda f, _: f[step]["rows"], ",.0f"),
        Line("  SQL / baseline's nightly", lambda f, _: f[step]["sql"] / f["baseline"]["nightly"], ".3f", 0.1, budget_for="(5M)"),
        Line("  wall / baseline's nightly", lambda f, _: f[step]["wall"] / f["baseline"]["nightly"], ".3f", 0.25, budget_for="(5M)"),
        Line("  SQL / naive baseline", lambda f, _: f[step]["sql"] / f["naive baseline"]["nightly"], ".3f"),
    ]  # fmt: skip


def answers(name: str) -> list[Line]:
    """A query function: at most 20 ms, hot leads 50; the baseline's own is asked five times for 30 days or 12 weeks."""
    limit = 50 if name == "get_high_intent_visitors" else 20
    return [
        Line(f"{name}, ms", lambda f, _: f["questions"][name], ",.1f", limit, budget_for="(5M)"),
        Line("  baseline's / ours", lambda f, _: f["baseline"]["answers"][name] / f["questions"][name], ",.0f"),
    ]


LINES = [
    Line("landing tables made, s", lambda f, _: f["landing tables made"]),
    Line("load: s", lambda f, _: f["load"]["wall"]),
    Line("  events/s", lambda f, _: f["load"]["rows"] / f["load"]["wall"], ",.0f", at_least=40_000),
    Line("baseline: first computation, s", lambda f, _: f["baseline"]["first"]),
    Line("  nightly, s", lambda f, _: f["baseline"]["nightly"]),
    Line("naive baseline, s", lambda f, _: f["naive baseline"]["first"]),
    Line("first build: wall, s", lambda f, _: f["first build"]["wall"]),
    *where_it_went("first build"),
    Line("  wall / baseline's first", lambda f, _: f["first build"]["wall"] / f["baseline"]["first"]),
    # first builds: at most 0.7 of another package's, which is known as a multiple of the baseline
    Line("  the same / other package's", lambda f, _: f["first build"]["wall"] / f["baseline"]["first"] / OTHER_PACKAGE, at_most=0.7, budget_for="(1M)"),
    Line("  wall / naive baseline", lambda f, _: f["first build"]["wall"] / f["naive baseline"]["first"]),
    *further_day("day 1"),
    *further_day("day 2"),
    # an increment depends on the new rows and not on the history
    Line("same rows: landed", lambda f, _: f["same rows"]["landed"], ",.0f"),
    Line("  SQL, s", lambda f, _: f["same rows"]["sql"]),
    Line("  SQL / on the smallest history", lambda f, least: f["same rows"]["sql"] / least["same rows"]["sql"], at_most=1.3, budget_for="(10M / 1M)"),
    *(line for name in questions.FUNCTIONS for line in answers(name)),
    *(Line(f"30 days of {name}, ms", lambda f, _, name=name: f["questions"][name], ",.1f", 5, budget_for="(5M)") for name in questions.MARTS),
    Line("export of 10,000 people, s", lambda f, _: f["exports"]["10000 s"], at_most=0.5),
    Line("export of 1,000,000 people, s", lambda f, _: f["exports"]["1000000 s"]),
    Line("  its share of plain COPY's speed", lambda f, _: f["exports"]["1000000 share"], at_least=0.7),
    Line("  highest memory, MB", lambda f, _: f["exports"]["1000000 MB"], ",.0f", at_most=100),
    Line("a day passes: rows", lambda f, _: f["a day passes"]["rows"], ",.0f"),
    # one event: its own rows and those of its visitor, session and day
    Line("one event: rows written or removed", lambda f, _: f["one event"]["rows"], ",.0f", at_most=99, budget_for="(1M)"),
    Line("  changes kept for readers", lambda f, _: f["one event"]["changes kept"], ",.0f"),
    Line("  wall, s", lambda f, _: f["one event"]["wall"]),
    Line("  wall / idle", lambda f, _: f["one event"]["wall"] / f["idle, same as_of"]["wall"]),
    Line("idle, default as_of: wall, s", lambda f, _: f["idle, default as_of"]["wall"]),
    *where_it_went("idle, default as_of"),
    Line("idle, same as_of: wall, s", lambda f, _: f["idle, same as_of"]["wall"]),
    *where_it_went("idle, same as_of"),
]  # fmt: skip


def print_report(figures: dict[int, dict]) -> None:
    smallest = next(iter(figures.values()))
    rows = [("", *(f"{size:,}" for size in figures), "budget")]
    for line in LINES:
        cells = [line.cell(found, smallest) for found in figures.values()]
        if any(cell != "-" for cell in cells):
            rows.append((line.label, *cells, line.budget))
    for label, *cells, budget in rows:
        print(f"{label:<38}" + "".join(f"{cell:>16}" for cell in cells) + f"   {budget}".rstrip())
    for size, found in figures.items():
        for step in ("idle, default as_of", "idle, same as_of", "one event"):
            nodes = found.get(step, {}).get("slowest", {}).items()
            print_list(f"{size:,} {step}, slowest", [f"{name[:60]} {seconds:.2f} s" for name, seconds in nodes])
        written = found.get("one event", {}).get("rows by model", {}).items()
        print_list(f"{size:,} one event, rows", [f"{name} {count}" for name, count in written])


def print_list(title: str, parts: list[str]) -> None:
    if parts:
        print(textwrap.fill(f"{title}: {', '.join(parts)}", 118, subsequent_indent="    "))


def run(options: argparse.Namespace, work: Path, figures: dict[int, dict], say: Callable[[str], None]) -> None:
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    for events in inputs.find(options.data, options.history, cache, say):
        say(f"{events.size:,} events")
        found = figures[events.size] = {}
        if events.folder:  # its server has stopped before the other one starts
            say("baseline")
            found["baseline"] = inputs.reference_baseline(events.folder, work)
        home = work / "ours"
        os.environ |= {"AUDIENCE_HOME": str(home), "DBT_TARGET_PATH": str(home / "target"), "DBT_LOG_PATH": str(home / "logs")}  # fmt: skip
        measure(events, found, say)
        shutil.rmtree(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", nargs="+", type=int, default=[1_000_000, 5_000_000], help="events of each history")
    parser.add_argument("--data", nargs="+", type=Path, default=[], help="folders of generated files, one per history")
    parser.add_argument("--cache", type=Path, default=project_dir() / ".audience" / "benchmarks", help="folder that keeps the files it makes")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    for name in (*PG_VARIABLES, "DATABASE_URL", "AUDIENCE_SCHEMA", "AUDIENCE_AS_OF"):
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, figures = time.monotonic(), {}

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.0f} s  {text}", file=sys.stderr, flush=True)

    work = Path(tempfile.mkdtemp(prefix="bench"))
    work.chmod(0o755)  # the servers' user reads it
    try:
        run(options, work, figures, say)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if figures:
            print_report(figures)
            if options.json:
                options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""What is measured against: the event files of each history, and what others need for the same events.

AUDIENCE_BENCH_BASELINE names a folder with a generator of events (gen_events.py, to_contract.py) and a baseline
(run_baseline.py, pgctl.py). Without it the events are the project's own sample, and the baseline is naive_baseline.sql.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestration.sample import write_sample


@dataclass
class Events:
    """Files of one history: `base`, two further days, and as many rows of one further day as the largest history gets.

    `folder` holds the generator's files; None for the sample, which has no such rows either.
    """

    size: int
    base: list[Path]
    days: list[Path]
    same_rows: Path | None = None
    folder: Path | None = None


def reference() -> Path | None:
    """The folder of the generator and the baseline."""
    folder = os.environ.get("AUDIENCE_BENCH_BASELINE")
    return Path(folder).resolve() if folder else None


def find(folders: list[Path], sizes: list[int], cache: Path, say: Callable[[str], None]) -> list[Events]:
    """The events of each history, smallest first: of the given folders, else of `sizes`, made in `cache` when missing."""
    if not reference():
        if folders:
            raise SystemExit("--data is for generated files: name the generator's folder in AUDIENCE_BENCH_BASELINE.")
        return [_sample(size, cache / f"sample-{size}", say) for size in sorted(sizes)]
    found = [_generated(folder, say) for folder in folders or [cache / str(size) for size in sizes]]
    found.sort(key=lambda events: events.size)
    for events in found[:-1]:
        events.same_rows = _day_as_large(found[-1].size, events, cache, say)
    found[-1].same_rows = found[-1].days[0]
    return found


def _sample(size: int, folder: Path, say: Callable[[str], None]) -> Events:
    if not folder.exists():
        say(f"write a sample of {size:,} events")
        partial = folder.with_name(f"{folder.name}.part")
        write_sample(partial, events=size)
        partial.replace(folder)
    files = sorted(folder.iterdir(), key=lambda path: path.name.split(".")[0])  # months, then days
    return Events(size, files[:-2], files[-2:])


def _generated(folder: Path, say: Callable[[str], None]) -> Events:
    if not (folder / "manifest.json").exists():  # one of the cache, named by its size
        say(f"generate {folder.name} events")
        _script("gen_events.py", "--events", folder.name, "--out", folder)
    size = json.loads((folder / "manifest.json").read_text())["args"]["events"]
    base, *days = (_converted(folder / f"{name}.parquet", say) for name in ("base", "inc_1", "inc_2"))
    return Events(size, [base], days, folder=folder)


def _day_as_large(largest: int, events: Events, cache: Path, say: Callable[[str], None]) -> Path:
    """A further day of this history with as many rows as a day of the largest has: the history itself stays the same.

    Not the largest history's own day: most of its visitors would be new to a smaller one.
    """
    arguments = json.loads((events.folder / "manifest.json").read_text())["args"]
    rows = largest // arguments["days"]
    path = cache / f"same-{events.size}-{arguments['seed']}-{rows}.ndjson.gz"
    if not path.exists():
        say(f"generate a day of {rows:,} rows for {events.size:,} events")
        with tempfile.TemporaryDirectory(prefix="bench", dir=cache) as folder:
            history = ["--events", events.size, "--days", arguments["days"], "--seed", arguments["seed"]]
            _script("gen_events.py", *history, "--inc-events", rows, "--inc-days", 1, "--out", folder)
            _converted(Path(folder, "inc_1.parquet"), say).replace(path)
    return path


def _converted(parquet: Path, say: Callable[[str], None]) -> Path:
    path = parquet.with_suffix(".ndjson.gz")
    if not path.exists():
        say(f"convert {parquet.name}")
        partial = path.with_suffix(".part")
        _script("to_contract.py", parquet, partial)
        partial.replace(path)
    return path


def reference_baseline(data: Path, work: Path) -> dict:
    """Seconds of the reference baseline for the same events, on a server of its own that is gone afterwards."""
    server, out = work / "baseline", work / "baseline.json"
    options = ["--skip-load-variants", "--skip-export", "--calls", 5, "--out", out]
    try:
        _script("run_baseline.py", "--data", data.resolve(), *options, server=server)
    finally:
        if server.exists():
            _script("pgctl.py", "stop", server=server)
            shutil.rmtree(server)
    found = json.loads(out.read_text())["r"]
    nights = [night["wall"] for night in found["nightly.TOTAL"]]
    asked = {re.sub(r"rpc\.(\D+?)(_\d+[a-z]?)+", r"\1", name): runs[0]["p50_ms"] for name, runs in found.items() if name.startswith("rpc.")}  # fmt: skip
    return {
        "first": found["full.TOTAL"][0]["wall"],
        "nightly": statistics.median(nights),
        "nights": nights,
        "answers": asked,
    }


def _script(name: str, *arguments: object, server: Path | None = None) -> None:
    """Runs a script of the reference folder; its output goes to the standard error."""
    variables = {"PYTHONDONTWRITEBYTECODE": "1"} | ({"PERF_PGDATA": str(server)} if server else {})
    command = [sys.executable, str(reference() / name), *map(str, arguments)]
    subprocess.run(command, env=os.environ | variables, stdout=sys.stderr, check=True)

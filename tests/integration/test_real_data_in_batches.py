"""Real event data in twelve batches, delivered in another order: in the middle and at the end, as one full refresh.

The data are no part of this project: AUDIENCE_TEST_DATA names their folder. Without it these tests are skipped.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zlib import crc32

import pytest

from orchestration import database as server
from orchestration.load import load_files
from tests import states

BATCHES = 12
# Builds after these batches. Between the others nothing is built, as on a night when the machine was off.
BUILDS = (3, 7, 11, 12)
COMPARED = (7, 12)
# Every thirtieth event is received days or weeks after it happened; every hundredth is delivered again, later.
LATE, REPEATED = 30, 100


@dataclass(frozen=True)
class Case:
    """A file, the days of a batch so that twelve span it, and of how many people one is taken, to keep the test short."""

    name: str
    days_per_batch: int
    one_in: int


CASES = (Case("ecom_composite_events", 15, 1), Case("jaffle_orders", 61, 4))


def batches(case: Case, source: Path, folder: Path) -> list[tuple[Path, datetime]]:
    """The rows by time of receipt, in files of equal spans of time, with the first moment after each span."""
    rng = random.Random(7)
    rows = []
    with gzip.open(source, "rt") as file:
        for line in file:
            row = json.loads(line)
            if crc32((row["anonymous_id"] or row["user_id"]).encode()) % case.one_in:
                continue
            occurred_at = datetime.fromisoformat(row["occurred_at"])
            late = rng.uniform(86400, 40 * 86400) if rng.randrange(LATE) == 0 else rng.uniform(0, 5)
            deliveries = [late, late + rng.uniform(0, 40 * 86400)] if rng.randrange(REPEATED) == 0 else [late]
            rows += [(occurred_at + timedelta(seconds=delay), row) for delay in deliveries]
    first = min(received_at for received_at, _ in rows).replace(hour=0, minute=0, second=0, microsecond=0)
    contents: list[list[str]] = [[] for _ in range(BATCHES)]
    for received_at, row in rows:
        number = min((received_at - first).days // case.days_per_batch, BATCHES - 1)
        contents[number].append(json.dumps({**row, "received_at": received_at.isoformat()}))
    found = []
    for number, lines in enumerate(contents):
        path = folder / f"batch_{number}.ndjson"
        path.write_text("\n".join(lines) + "\n")
        found.append((path, first + timedelta(days=(number + 1) * case.days_per_batch)))
    return found


@pytest.mark.skipif(
    not os.environ.get("AUDIENCE_SCHEDULES"), reason="takes minutes: for long runs, with AUDIENCE_SCHEDULES"
)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_twelve_shuffled_batches_equal_a_full_refresh(
    audience_test_data: Path, database: str, tmp_path: Path, case: Case
) -> None:
    delivered = batches(case, audience_test_data / f"{case.name}.ndjson.gz", tmp_path)
    random.Random(11).shuffle(delivered)
    as_of = datetime.min.replace(tzinfo=UTC)
    with server.connect(autocommit=True) as connection:
        builders: dict[str, states.Builder] = {}

        def run(schema: str, *arguments: str) -> None:
            if schema in builders:
                builders[schema].run(as_of.isoformat(), *arguments)
            else:
                builders[schema] = states.Builder(schema, tmp_path, connection, as_of.isoformat())

        for number, (path, moment) in enumerate(delivered, start=1):
            load_files([path])
            as_of = max(as_of, moment)
            if number in BUILDS:
                run("audience")
            if number in COMPARED:
                run("fresh", "--full-refresh")
                differing = states.differences(connection, "audience", "fresh")
                assert not differing, f"after batch {number}\n" + "\n".join(differing)
        counts = states.row_counts(connection, "audience")
    assert counts["audience_customers"] > 0

"""What customers were at a moment in the past, of real orders: built for this moment, and counted from the file.

The data are no part of this project: AUDIENCE_TEST_DATA names their folder. Without it these tests are skipped.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestration import database
from orchestration.build import build
from orchestration.load import load_files
from tests.projects import Questions

END = datetime.fromisoformat("1998-07-01T00:00:00+00:00")
PAST = "1998-03-15T12:00:00+00:00"


@pytest.fixture(scope="module")
def purchases(audience_test_data: Path) -> dict[str, list[tuple[datetime, Decimal]]]:
    """When each customer bought and for how much, in order."""
    found: dict[str, list[tuple[datetime, Decimal]]] = defaultdict(list)
    with gzip.open(audience_test_data / "cdnow_orders.ndjson.gz", "rt") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line, parse_float=Decimal)
            found[row["user_id"]].append((datetime.fromisoformat(row["occurred_at"]), row["properties"]["revenue"]))
    return {customer: sorted(bought) for customer, bought in found.items()}


@pytest.fixture(scope="module")
def connection(audience_test_data: Path, module_database: str) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as opened:
        load_files([audience_test_data / "cdnow_orders.ndjson.gz"])
        build(as_of=END.isoformat())
        yield opened


def test_the_first_cohorts_are_those_that_are_known(connection):
    rows = Questions(connection).ask("get_audience_cohorts", "cdnow", 80)
    found = defaultdict(list)
    for row in rows:
        if row["week_number"] <= 4:
            found[row["cohort_week"]].append((row["eligible_count"], row["repurchased_count"]))
    assert [again for _, again in found[date(1996, 12, 30)]][1:] == [56, 72, 54, 48]
    assert [again for _, again in found[date(1997, 1, 6)]][1:] == [74, 105, 72, 82]
    assert {size for size, _ in found[date(1996, 12, 30)]} == {1102}
    assert {size for size, _ in found[date(1997, 1, 6)]} == {1662}
    assert sum(row["eligible_count"] for row in rows if row["week_number"] == 0) == 23_570


def stage_of(bought: list[datetime], moment: datetime) -> str:
    idle = moment - bought[-1]
    if idle >= timedelta(days=60):
        return "churned" if idle >= timedelta(days=180) else "at_risk"
    # purchases of a day have the same moment, so a session is a day
    sessions = sorted(set(bought))
    recent = len(sessions) - bisect_right(sessions, moment - timedelta(days=30))
    if len(bought) >= 4 or recent >= 10:
        return "champion"
    return "repeat_buyer" if len(bought) > 1 else "customer"


def test_customers_of_a_past_moment_are_those_of_the_orders_until_then(connection, purchases):
    moment = datetime.fromisoformat(PAST)
    build(as_of=PAST)
    expected, stages = {}, Counter()
    for customer, bought in purchases.items():
        until = [(at, paid) for at, paid in bought if at <= moment]
        if until:
            stage = stage_of([at for at, _ in until], moment)
            expected[customer] = (len(until), sum(paid for _, paid in until), stage)
            stages[stage] += 1
    found = connection.execute(
        "select visitor_id, orders_count::int, net_revenue_amount, lifecycle_stage from audience.audience_customers"
    ).fetchall()
    assert {customer: tuple(facts) for customer, *facts in found} == expected
    flows = connection.execute(
        "select stage, sum(moved)::int from audience.lifecycle_transitions"
        " cross join lateral (values (to_stage, transitions_count), (from_stage, -transitions_count)) as moves (stage, moved)"
        " where stage <> '(new)' group by stage having sum(moved) <> 0"
    ).fetchall()
    assert Counter(dict(flows)) == stages

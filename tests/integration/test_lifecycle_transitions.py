"""Transitions between lifecycle stages against a plain reading of the events: the stage of each visitor at each moment.

With AUDIENCE_TEST_DATA real events are read as well.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from orchestration import database
from orchestration.build import build
from orchestration.load import load_files
from tests.projects import AS_OF, assert_exact
from tests.readings import MOMENT, build_in_batches, events_of_people, orders_of, sessions_of

DRAWS = 100
RECENT, AT_RISK, CHURNED = timedelta(days=30), timedelta(days=60), timedelta(days=180)

Transition = tuple[str, date, str, str]


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """The sample and a crowd, shuffled into two batches with a build after each: the first three weeks earlier."""
    with database.connect(autocommit=True) as opened:
        build_in_batches(opened, tmp_path_factory.mktemp("lifecycle"), 12_000, [MOMENT - timedelta(days=21), MOMENT])
        yield opened


def stage_at(moment: datetime, seen: list[datetime], orders: list[datetime], joined: list[datetime]) -> str:
    idle = moment - seen[bisect_right(seen, moment) - 1]
    bought = bisect_right(orders, moment)
    recent = bisect_right(joined, moment) - bisect_right(joined, moment - RECENT)
    if idle >= AT_RISK:
        return "churned" if idle >= CHURNED else "at_risk"
    if bought >= 4 or (bought and recent >= 10):
        return "champion"
    return ("prospect", "customer", "repeat_buyer")[min(bought, 2)]


def transitions_of(org: str, events: list[Any], zone: ZoneInfo, until: datetime) -> Counter[Transition]:
    """How often visitors of an org went from one stage to another on each local day."""
    seen, orders, joined = defaultdict(list), defaultdict(list), defaultdict(list)
    for event in events:
        seen[event.visitor_id].append(event.occurred_at)
    for order in orders_of(events):
        orders[order.visitor_id].append(order.occurred_at)
    for session in sessions_of(events):
        for visitor, moment in {event.visitor_id: event.occurred_at for event in reversed(session)}.items():
            joined[visitor].append(moment)
    found: Counter[Transition] = Counter()
    for visitor, moments in seen.items():
        sessions, before = sorted(joined[visitor]), "(new)"
        limits = {moment + limit for moment in moments for limit in (AT_RISK, CHURNED)}
        for moment in sorted({*moments, *limits, *(start + RECENT for start in sessions)}):
            if moment <= until:
                stage = stage_at(moment, moments, orders[visitor], sessions)
                if stage != before:
                    found[org, moment.astimezone(zone).date(), before, stage] += 1
                before = stage
    return found


def expected_transitions(connection: psycopg.Connection, until: datetime) -> Counter[Transition]:
    zones = dict(connection.execute("select org_id, time_zone from audience_seeds.orgs").fetchall())
    found: Counter[Transition] = Counter()
    for org, events in events_of_people(connection, until).items():
        found += transitions_of(org, events, ZoneInfo(zones.get(org) or "UTC"), until)
    return found


@pytest.fixture(scope="module")
def expected(connection: psycopg.Connection) -> Counter[Transition]:
    return expected_transitions(connection, MOMENT)


def stored(connection: psycopg.Connection) -> Counter[Transition]:
    rows = connection.execute(
        "select org_id, event_date, from_stage, to_stage, transitions_count from audience.lifecycle_transitions"
    ).fetchall()
    return Counter({tuple(key): count for *key, count in rows})


def test_transitions_of_every_day_are_what_the_events_say(connection, expected):
    assert stored(connection) == expected
    assert len({(before, after) for _, _, before, after in expected}) >= 10
    assert max(expected.values()) > 5


def test_transitions_of_any_range_add_up(connection, expected):
    draw, seen = random.Random(3), 0
    orgs = sorted({org for org, *_ in expected})
    for _ in range(DRAWS):
        org = draw.choice(orgs)
        days = [day for owner, day, *_ in expected if owner == org]
        first, last = sorted(draw.choices(days, k=2))
        rows = connection.execute(
            "select from_stage, to_stage, sum(transitions_count)::int from audience.lifecycle_transitions"
            " where org_id = %s and event_date between %s and %s group by 1, 2",
            [org, first, last],
        ).fetchall()
        sums: Counter[tuple[str, str]] = Counter()
        for (owner, day, before, after), count in expected.items():
            if owner == org and first <= day <= last:
                sums[before, after] += count
        assert {(before, after): count for before, after, count in rows} == sums
        seen += len(rows)
    assert seen > 5 * DRAWS


def test_what_came_into_a_stage_less_what_left_it_is_its_size(connection):
    sizes = connection.execute(
        "select org_id, lifecycle_stage, count(*) from audience.audience_customers group by 1, 2"
    ).fetchall()
    flows = connection.execute(
        "select org_id, stage, sum(moved) from audience.lifecycle_transitions"
        " cross join lateral (values (to_stage, transitions_count), (from_stage, -transitions_count)) as moves (stage, moved)"
        " where stage <> '(new)' group by 1, 2 having sum(moved) <> 0"
    ).fetchall()
    assert sorted(flows) == sorted(sizes) and len(sizes) > 8


def test_every_table_is_exact_after_increments(connection):
    assert_exact()


def test_on_real_events(connection, audience_test_data: Path):
    load_files([audience_test_data / "ecom_composite_events.ndjson.gz"])
    build(as_of=AS_OF)
    expected = expected_transitions(connection, MOMENT)
    assert stored(connection) == expected
    assert sum(org == "ecom_composite" for org, *_ in expected) > 500

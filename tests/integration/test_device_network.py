"""Devices and networks against a plain reading of the events, and percentiles against the sorted values themselves.

With AUDIENCE_TEST_DATA real events are asked for as well.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from math import ceil
from typing import Any

import pytest

from orchestration import database
from tests.projects import Questions, questions_of_sample
from tests.readings import MOMENT, events_of_people, orders_of, rate, sessions_of, slice_of

DRAWS = 120  # for each org
ALL = ("(all)", "(all)")
WIDTH = Decimal("0.1")  # of a bucket: how wrong a percentile may be
BUCKETS = "select from_value, to_value from audience_seeds.histogram_buckets order by from_value"


@pytest.fixture(scope="module")
def answers(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Questions]:
    with database.connect(autocommit=True) as connection:
        yield questions_of_sample(connection, tmp_path_factory.mktemp("devices"), events=20_000)


class Slices:
    """What happened of one org, by device type and network of the session that it happened in."""

    def __init__(self, events: list[Any]) -> None:
        self.acts: dict[tuple[str, str], list[tuple[date, str, str]]] = defaultdict(list)
        self.sessions: dict[tuple[str, str], list[date]] = defaultdict(list)
        self.loads: dict[tuple[str, str], list[tuple[date, int]]] = defaultdict(list)
        orders = {order.event_id for order in orders_of(events)}
        for session in sessions_of(events):
            for key in (slice_of(session), ALL):
                self.sessions[key].append(session[0].event_date)
                for event in session:
                    self.acts[key].append((event.event_date, event.visitor_id, "visit"))
                    if event.event_type == "checkout_start" or event.event_id in orders:
                        self.acts[key].append((event.event_date, event.visitor_id, event.event_type))
                    if event.page_load_ms is not None:
                        self.loads[key].append((event.event_date, event.page_load_ms))
        days = [event.event_date for event in events]
        self.first_date, self.last_date = min(days), max(days)

    def row(self, key: tuple[str, str], first: date, last: date) -> dict[str, Any] | None:
        people = defaultdict(set)
        for day, visitor, act in self.acts[key]:
            if first <= day <= last:
                people[act].add(visitor)
        if not people and key != ALL:
            return None
        visitors, checkouts, buyers = (len(people[act]) for act in ("visit", "checkout_start", "purchase"))
        loads = [load for day, load in self.loads[key] if first <= day <= last]
        return {
            "device_type": key[0],
            "network_type": key[1],
            "visitors_count": visitors,
            "checkout_visitors_count": checkouts,
            "buyers_count": buyers,
            "sessions_count": sum(first <= day <= last for day in self.sessions[key]),
            "page_loads_count": len(loads),
            "page_load_p75_ms": sorted(loads)[ceil(len(loads) * 3 / 4) - 1] if loads else None,
            "page_load_mean_ms": mean(loads),
            "checkout_rate": rate(checkouts, visitors),
            "purchase_rate": rate(buyers, visitors),
        }


def mean(loads: list[int]) -> Decimal | None:
    return (Decimal(sum(loads)) / len(loads)).quantize(Decimal("0.1"), ROUND_HALF_UP) if loads else None


def test_devices_and_networks_are_what_the_events_say(answers):
    draw, several, wrong = random.Random(2), 0, []
    for org, events in events_of_people(answers.connection, MOMENT).items():
        slices = Slices(events)
        length = (slices.last_date - slices.first_date).days + 1
        for number in range(DRAWS):
            days = draw.choice((1, 1, 6, 7, 8, 14, 28, 30, length, draw.randint(1, length)))
            first = slices.first_date + timedelta(days=draw.randint(-3, length))
            last = first + timedelta(days=days - 1)
            given = answers.ask("get_audience_device_network", org, first, last)
            assert [(row["device_type"], row["network_type"]) for row in given[:1]] == [ALL]
            assert [row["visitors_count"] for row in given[1:]] == sorted(
                (row["visitors_count"] for row in given[1:]), reverse=True
            )
            expected = [row for key in slices.acts if (row := slices.row(key, first, last))]
            by_slice = {(row["device_type"], row["network_type"]): row for row in given}
            assert by_slice.keys() == {(row["device_type"], row["network_type"]) for row in expected}
            for row in expected:
                found = by_slice[row["device_type"], row["network_type"]]
                told, true = found.pop("page_load_p75_ms"), row.pop("page_load_p75_ms")
                del found["alert_opened_at"]  # see test_device_network_alerts.py
                assert found == row, (number, org, first, last)
                assert (told is None) == (true is None)
                if true:
                    wrong.append(abs(Decimal(told) / true - 1))
                several += row["visitors_count"] > 10
    assert several > 1_000
    assert len(wrong) > 1_000 and max(wrong) <= WIDTH
    assert sorted(wrong)[len(wrong) // 2] < WIDTH / 4, "within the bucket the values are not taken to lie evenly"


def test_buckets_meet_without_a_gap_and_hold_every_page_load(answers):
    buckets = answers.connection.execute(BUCKETS).fetchall()
    assert buckets[0][0] == 0 and buckets[-1][1] > 600_000
    assert all(before[1] + 1 == after[0] for before, after in pairwise(buckets))
    assert all(to - low <= low * WIDTH for low, to in buckets)


def test_the_page_loads_of_days_and_weeks_are_those_of_the_devices(answers):
    by_slice = "select org_id, device_type, network_type, sum(page_loads_count) from audience.{} group by 1, 2, 3 having sum(page_loads_count) > 0"
    daily, weekly, devices = (
        sorted(answers.connection.execute(by_slice.format(mart)).fetchall())
        for mart in ("device_network_page_loads_daily", "device_network_page_loads_weekly", "device_network_daily")
    )
    assert daily == weekly == devices and len(daily) > 20

"""Paths against a plain reading of the events: journeys walked event by event, without a visit or an order of the project.

With AUDIENCE_TEST_DATA real events are asked for as well.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from math import ceil
from typing import Any

import pytest

from orchestration import database
from orchestration.build import build
from orchestration.load import load_files
from tests.projects import AS_OF, END, Questions, questions_of_sample
from tests.readings import MOMENT, crowd, events_of_people, orders_of, rate, write

DRAWS = 50  # for each org
MILESTONES = ("event_view", "ticket_cta", "checkout_start")
FUNNEL = {"event_view": 1, "ticket_cta": 2, "checkout_start": 3, "purchase": 4}
WIDTH = Decimal("0.1")  # of a bucket: how wrong a percentile may be


def wanderers() -> list[dict[str, Any]]:
    """Visitors on two devices who act in the same second, come back after a week to the second, and go round and round."""
    draw, rows = random.Random(8), []
    for number in range(120):
        moment = MOMENT.replace(microsecond=0) - timedelta(days=draw.randrange(20, 60), seconds=draw.randrange(86400))
        for step in range(draw.randrange(1, 25)):
            moment += draw.choice(
                (timedelta(0), timedelta(seconds=draw.randrange(900)), timedelta(hours=draw.randrange(200)), timedelta(days=7), timedelta(days=7, seconds=1))
            )  # fmt: skip
            kind = draw.choice((*MILESTONES, *MILESTONES, "page_view", "purchase"))
            properties = {"order_id": f"w{number}.{draw.randrange(4)}", "revenue": "5"} if kind == "purchase" else {}
            rows.append({
                "event_id": f"w{number}.{step}.{draw.randrange(10**6)}", "org_id": "north_hall", "event_type": kind, "properties": properties,
                "occurred_at": moment.isoformat(), "received_at": (moment + timedelta(seconds=draw.randrange(60))).isoformat(),
                "anonymous_id": f"w{number}.{draw.randrange(2)}", "user_id": f"w{number}",
            })  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def answers(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Questions]:
    folder = tmp_path_factory.mktemp("paths")
    with database.connect(autocommit=True) as connection:
        project = questions_of_sample(connection, folder, events=20_000)
        load_files([write(folder / "more.ndjson", crowd(5) + wanderers())])
        build(as_of=AS_OF)
        yield project


@dataclass
class Journey:
    visitor: str
    day: date | None = None
    first_at: datetime | None = None
    bought_at: datetime | None = None
    steps: tuple[str, ...] = ()

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.steps[:8], "...") if len(self.steps) > 8 else self.steps or ("(none)",)


def journeys_of(events: list[Any]) -> list[Journey]:
    """Walks every visitor's events: a milestone that is not the last step again is a step, an order is the end."""
    orders = {order.event_id for order in orders_of(events)}
    by_visitor = defaultdict(list)
    for event in events:
        by_visitor[event.visitor_id].append(event)
    found = []
    for visitor, trail in by_visitor.items():
        journey, before = None, None
        for event in sorted(trail, key=lambda event: (event.occurred_at, FUNNEL.get(event.event_type, 0))):
            if before is None or event.occurred_at - before > timedelta(days=7):
                journey = None
            before = event.occurred_at
            is_order = event.event_id in orders
            if event.event_type not in MILESTONES and not is_order:
                continue
            if journey is None:
                journey = Journey(visitor, day=event.event_date)
                found.append(journey)
            if is_order:
                journey.bought_at, journey = event.occurred_at, None
                continue
            journey.first_at = journey.first_at or event.occurred_at
            if journey.steps[-1:] != (event.event_type,):
                journey.steps += (event.event_type,)
    return found


@pytest.fixture(scope="module")
def journeys(answers: Questions) -> dict[str, list[Journey]]:
    return {org: journeys_of(events) for org, events in events_of_people(answers.connection, MOMENT).items()}


def expected_rows(journeys: list[Journey], first: date, last: date) -> list[dict[str, Any]]:
    """Every path that a journey of the range begins with, in the order of the function; with the true times of its purchases."""
    alike = defaultdict(list)
    for journey in journeys:
        if first <= journey.day <= last:
            for length in range(1, len(journey.path) + 1):
                alike[journey.path[:length]].append(journey)
    rows = []
    for path, group in alike.items():
        ended = [journey for journey in group if journey.path == path]
        bought = [journey for journey in group if journey.bought_at]
        rows.append({
            "path": " > ".join(path),
            "steps_count": 0 if path == ("(none)",) else len(path),
            "visitors_count": len({journey.visitor for journey in group}),
            "journeys_count": len(group),
            "purchases_count": len(bought),
            "ended_journeys_count": len(ended),
            "ended_purchases_count": sum(journey.bought_at is not None for journey in ended),
            "conversion_rate": rate(len(bought), len(group)),
            "seconds": sorted((journey.bought_at - journey.first_at).total_seconds() for journey in bought if journey.first_at),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (-row["journeys_count"], row["path"].encode()))


def wrongness(told: Decimal | None, seconds: list[float], share: float) -> Decimal | None:
    """How far a percentile is from that of the times, as a share of it; beyond the rounding to seconds and tenths of minutes."""
    assert (told is None) == (not seconds)
    if told is None:
        return None
    true = Decimal(seconds[ceil(len(seconds) * share) - 1])
    beyond = max(Decimal(0), abs(told * 60 - true) - Decimal("3.5"))
    return beyond / true if beyond else Decimal(0)


def test_paths_are_what_the_events_say(answers, journeys):
    draw, compared, cut, wrong = random.Random(2), 0, 0, []
    assert sum(len(journeys[org]) for org in journeys) > 2_000
    for org, taken in journeys.items():
        days = sorted(journey.day for journey in taken)
        length = (days[-1] - days[0]).days + 1
        for number in range(DRAWS):
            span = draw.choice((1, 6, 7, 8, 14, 28, 30, length, draw.randint(1, length)))
            first = days[0] + timedelta(days=draw.randint(-3, length)) if span < length else days[0]
            last, limit = first + timedelta(days=span - 1), draw.choice((1, 3, 20, 1000))
            given = answers.ask("get_audience_paths", org, first, last, limit)
            expected = expected_rows(taken, first, last)[:limit]
            question = (number, org, first, last, limit)
            assert [row["path"] for row in given] == [row["path"] for row in expected], question
            for told, row in zip(given, expected, strict=True):
                seconds = row.pop("seconds")
                for name, share in (("median_minutes", 0.5), ("p90_minutes", 0.9)):
                    wrong.append(wrongness(told.pop(name), seconds, share))
                assert told == row, question
                compared += row["visitors_count"] != row["journeys_count"]
                cut += row["path"].endswith("...")
    wrong = [share for share in wrong if share is not None]
    assert compared > 200 and cut > 10, (compared, cut)
    assert len(wrong) > 500 and max(wrong) <= WIDTH, (len(wrong), max(wrong))


def test_journeys_are_conserved(answers, journeys):
    """Every journey with a step is in one path of one step; every order of a visitor ends one journey."""
    orders = dict(
        answers.connection.execute(
            "select org_id, count(*) from audience_intermediate.int_orders where orders_count = 1 and visitor_id is not null group by org_id"
        ).fetchall()
    )
    for org, taken in journeys.items():
        rows = answers.ask("get_audience_paths", org, END - timedelta(days=3000), END + timedelta(days=3), 1000)
        firsts = [row for row in rows if row["steps_count"] == 1]
        none = sum(row["purchases_count"] for row in rows if row["steps_count"] == 0)
        assert sum(row["journeys_count"] for row in firsts) == sum(bool(journey.steps) for journey in taken)
        assert sum(row["purchases_count"] for row in firsts) + none == orders[org]
        assert sum(row["ended_journeys_count"] for row in rows) == len(taken)
        assert sum(row["ended_purchases_count"] for row in rows) == orders[org]


def test_times_of_days_and_weeks_are_those_of_the_paths(answers):
    by_path = "select org_id, path, sum(purchases_count) from audience.{} where path <> '(none)' group by 1, 2 having sum(purchases_count) > 0"
    daily, weekly, paths = (
        sorted(answers.connection.execute(by_path.format(mart)).fetchall())
        for mart in ("audience_paths_times_daily", "audience_paths_times_weekly", "audience_paths")
    )
    assert daily == weekly == paths and len(daily) > 20


def test_a_limit_is_twenty_unless_given(answers, journeys):
    first = END - timedelta(days=100)
    rows = answers.ask("get_audience_paths", "north_hall", first, END)
    assert rows == answers.ask("get_audience_paths", "north_hall", first, END, 1000)[:20]
    assert len(rows) == 20

"""The calibration of the propensity score: against a plain reading of the events, and against builds of those days.

The expected counts are made in Python from `enriched_events`, one row per event: no visit, order or customer is read for
them. A build with the as_of of a past date has to give its visitors the same scores. With AUDIENCE_TEST_DATA the same is
asked of real events.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from math import sqrt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from orchestration import database
from orchestration.build import build
from orchestration.load import load_files
from orchestration.verify import verify
from tests.projects import AS_OF
from tests.readings import MOMENT, ORGS, build_in_batches, events_of_people, orders_of, rate, sessions_of

ZONES = {"north_hall": "Europe/Berlin", "harbor_live": "America/New_York", "nowhere": "UTC", "ecom_composite": "UTC"}
WEEK_STARTS = {**ORGS, "ecom_composite": 1}
WINDOW, MICROSECOND = timedelta(days=30), timedelta(microseconds=1)
SLOW = {"3g", "2g", "slow-2g"}
BANDS = ((8, "contact_now"), (6, "retarget"), (4, "nurture"), (0, "awareness"))

# Everybody is who they turned out to be from their first event on, so that a build of a past moment knows them as well.
IDENTIFY = """
update analytics.events as landed set user_id = known.visitor_id
from audience.enriched_events as known
where known.org_id = landed.org_id and known.event_id = landed.event_id and known.visitor_id is not null
    and landed.user_id is distinct from known.visitor_id
"""


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """The sample and a crowd, shuffled into three batches; the second build is for a moment before the first one's."""
    with database.connect(autocommit=True) as opened:
        build_in_batches(
            opened, tmp_path_factory.mktemp("calibration"), 9_000, [MOMENT - timedelta(days=ago) for ago in (21, 40, 0)]
        )
        yield opened


@dataclass
class Visit:
    """What a visitor did in a session on a local day."""

    session: int
    day: date
    events: list[Any] = field(default_factory=list)

    @property
    def last_at(self) -> datetime:
        return self.events[-1].occurred_at

    @property
    def network(self) -> str | None:
        known = [event.network_type for event in self.events if event.network_type != "unknown"]
        return known[-1] if known else None


class Org:
    """One org's events, read again for every date."""

    def __init__(self, name: str, events: list[Any]) -> None:
        self.name, self.zone = name, ZoneInfo(ZONES[name])
        self.visits: dict[str, list[Visit]] = defaultdict(list)
        for number, session in enumerate(sessions_of(events)):
            parts: dict[tuple[str, date], Visit] = {}
            for event in session:
                visit = parts.setdefault((event.visitor_id, event.event_date), Visit(number, event.event_date))
                visit.events.append(event)
            for (visitor, _), visit in parts.items():
                self.visits[visitor].append(visit)
        self.orders: dict[str, list[date]] = defaultdict(list)
        for order in orders_of(events):
            self.orders[order.visitor_id].append(order.event_date)
        self.first_day = min(event.event_date for event in events)

    def midnight(self, day: date) -> datetime:
        return datetime.combine(day, time(), self.zone)

    def dates(self, until: datetime) -> list[date]:
        """First days of weeks, a week of which was over by then."""
        days = [self.first_day + timedelta(days=number) for number in range(1000)]
        return [
            day for day in days
            if day.isoweekday() == WEEK_STARTS[self.name] and self.midnight(day + timedelta(days=7)) <= until
        ]  # fmt: skip

    def score(self, visitor: str, day: date) -> int | None:
        """What the visitor scored when the day began; nothing for who had not been seen for 30 days."""
        began = self.midnight(day).astimezone(ZoneInfo("UTC"))
        before = [visit for visit in self.visits[visitor] if visit.day < day]
        recent = [visit for visit in before if visit.last_at >= began - WINDOW]
        if not recent:
            return None
        done = {event.event_type for visit in recent for event in visit.events if event.occurred_at >= began - WINDOW}
        loads = [event.page_load_ms for visit in recent for event in visit.events if event.page_load_ms is not None]
        networks = [(visit.last_at, visit.network) for visit in recent if visit.network]
        is_slow = bool(networks and max(networks)[1] in SLOW) or sum(loads) > 3000 * len(loads)
        points = (
            3 * ("ticket_cta" in done) + 4 * ("checkout_start" in done) + (len({visit.session for visit in before}) >= 2)
            - 2 * is_slow + 3 * any(ordered < day for ordered in self.orders[visitor])
        )  # fmt: skip
        return max(0, min(10, points))

    def calibration(self, day: date) -> dict[int, tuple[int, int]]:
        """Visitors by score when the day began, and how many of them bought in the seven days from then on."""
        visitors, buyers = Counter(), Counter()
        for visitor in self.visits:
            score = self.score(visitor, day)
            if score is not None:
                visitors[score] += 1
                buyers[score] += any(day <= ordered < day + timedelta(days=7) for ordered in self.orders[visitor])
        return {score: (count, buyers[score]) for score, count in visitors.items()}


def stored(connection: psycopg.Connection, org: str) -> dict[date, dict[int, tuple[int, int]]]:
    rows = connection.execute(
        "select score_date, propensity_score, visitors_count, buyers_count from audience.propensity_calibration"
        " where org_id = %s",
        [org],
    ).fetchall()
    found: dict[date, dict[int, tuple[int, int]]] = defaultdict(dict)
    for day, score, visitors, buyers in rows:
        found[day][score] = (visitors, buyers)
    return dict(found)


def assert_is_what_the_events_say(connection: psycopg.Connection, until: datetime, orgs: list[str]) -> Counter[int]:
    """Every date of these orgs; returns how many visitors had which score."""
    events, seen = events_of_people(connection, until), Counter()
    for name in orgs:
        org = Org(name, events[name])
        expected = {day: found for day in org.dates(until) if (found := org.calibration(day))}
        assert stored(connection, name) == expected, name
        for scores in expected.values():
            seen.update({score: visitors for score, (visitors, _) in scores.items()})
            seen["buyers"] += sum(buyers for _, buyers in scores.values())
        seen["dates"] += len(expected)
    return seen


def test_the_calibration_is_what_the_events_say(connection):
    seen = assert_is_what_the_events_say(connection, MOMENT, list(ORGS))
    assert seen["dates"] > 35 and seen["buyers"] > 50, seen
    assert all(seen[score] for score in (0, 1, 3, 4, 5, 6, 7, 8, 10)), seen


def test_rates_are_those_of_the_counts(connection):
    rows = connection.execute(
        "select org_id, score_date, propensity_score, propensity_band, visitors_count, buyers_count, purchase_rate,"
        " purchase_rate_low, purchase_rate_high, org_purchase_rate, lift from audience.propensity_calibration"
    ).fetchall()
    totals: dict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0])
    for org, day, _, _, visitors, buyers, *_ in rows:
        totals[org, day][0] += visitors
        totals[org, day][1] += buyers
    for org, day, score, band, visitors, buyers, share, low, high, org_share, lift in rows:
        all_visitors, all_buyers = totals[org, day]
        assert (share, org_share) == (rate(buyers, visitors), rate(all_buyers, all_visitors))
        assert band == next(name for least, name in BANDS if score >= least)
        assert lift == rate(buyers * all_visitors, visitors * all_buyers)
        z, p = 1.96, buyers / visitors
        middle, scale = p + z * z / (2 * visitors), 1 + z * z / visitors
        reach = z * sqrt(p * (1 - p) / visitors + z * z / (4 * visitors**2))
        assert (float(low), float(high)) == pytest.approx(
            ((middle - reach) / scale, (middle + reach) / scale), abs=1e-6
        )
    assert sum(lift is not None and lift > 1 for *_, lift in rows) > 30
    assert sum(lift is None for *_, lift in rows) > 0


def test_every_table_is_exact_after_increments(connection):
    report = verify(everything=True)
    assert report.differences == [] and report.waiting == 0 and not report.waits


def assert_builds_gave_these_scores(connection: psycopg.Connection, orgs: list[str], ago: tuple[int, ...]) -> None:
    """Builds for the last moment before a date begins: as many customers, seen in the 30 days before, have each score."""
    connection.execute(IDENTIFY)
    build(as_of=AS_OF)
    calibrations = {name: stored(connection, name) for name in orgs}
    for number in ago:
        for name, calibration in calibrations.items():
            day = sorted(calibration)[-number]
            began = datetime.combine(day, time(), ZoneInfo(ZONES[name])).astimezone(ZoneInfo("UTC"))
            build(as_of=(began - MICROSECOND).isoformat())
            counts = connection.execute(
                "select propensity_score, count(*) from audience.audience_customers"
                " where org_id = %s and last_seen_at >= %s group by 1",
                [name, began - WINDOW],
            ).fetchall()
            assert dict(counts) == {score: visitors for score, (visitors, _) in calibration[day].items()}, (name, day)
            assert len(counts) > 3


def test_builds_of_past_dates_gave_these_scores(connection):
    assert_builds_gave_these_scores(connection, ["north_hall", "harbor_live"], (1, 5, 14))
    build(as_of=AS_OF)
    assert_is_what_the_events_say(connection, MOMENT, list(ORGS))
    assert verify(everything=True).differences == []


def test_on_real_events(connection, audience_test_data: Path):
    load_files([audience_test_data / "ecom_composite_events.ndjson.gz"])
    build(as_of=AS_OF)
    seen = assert_is_what_the_events_say(connection, MOMENT, ["ecom_composite"])
    assert seen["dates"] > 20 and seen["buyers"] > 1_000
    assert_builds_gave_these_scores(connection, ["ecom_composite"], (2, 9, 17))

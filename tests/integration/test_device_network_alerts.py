"""Alerts of devices and networks: quiet on noise, awake to a real drop, and each decision counted again in Python.

Simulated visitors are fed to the recorded definitions of the models, in bulk: years of days in one statement each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from math import erfc, sqrt
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.rows import namedtuple_row

from orchestration import database
from orchestration.recorded_models import recorded_models
from tests.projects import AS_OF, Questions, questions_of_sample
from tests.readings import events_of_people, orders_of, sessions_of, slice_of

WINDOW, WEEK = 28, 7
NOISE_WEEKS, PLANTED_WORLDS = 200, 20
END_OF_SIMULATION = date(2026, 5, 31)
# Device types and networks by their share of visitors: some large, some too small to be tested.
SHARES = {
    ("mobile", "unknown"): 0.29, ("mobile", "wifi"): 0.18, ("desktop", "wifi"): 0.13, ("mobile", "4g"): 0.12,
    ("desktop", "ethernet"): 0.10, ("desktop", "unknown"): 0.06, ("mobile", "5g"): 0.05, ("tablet", "wifi"): 0.03,
    ("mobile", "cellular"): 0.02, ("tablet", "unknown"): 0.01, ("mobile", "2g"): 0.006, ("tv", "wifi"): 0.004,
}  # fmt: skip
CONVERSION, SLOW = 0.04, ("mobile", "3g")
VISITORS, SLOW_VISITORS = 20_000, 2_000  # in a window

Slice = tuple[str, str]
# Visitors of an org, day and slice: new ones, of them buyers, and those who were there a week before.
Counts = dict[tuple[str, date, Slice], tuple[int, int, int]]


@pytest.fixture(scope="module")
def answers(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Questions]:
    with database.connect(autocommit=True) as connection:
        yield questions_of_sample(connection, tmp_path_factory.mktemp("alerts"), events=20_000)


# What happens in the simulation


def noise(draw: np.random.Generator) -> Counts:
    """Every slice converts alike, for years; a fifth of the visitors comes again a week later."""
    found: Counts = {}
    days = NOISE_WEEKS * WEEK + WINDOW
    for key, share in SHARES.items():
        new = draw.poisson(300 * share, days)
        again = np.concatenate([np.zeros(WEEK, int), draw.binomial(new[:-WEEK], 0.2)])
        found |= dated("noise", key, new, draw.binomial(new, CONVERSION), again)
    return found


def planted(draw: np.random.Generator) -> Counts:
    """Worlds in which one slice converts half as well as everybody in the second half of the time."""
    found: Counts = {}
    days = 2 * WINDOW
    rate = np.where(np.arange(days) < WINDOW, CONVERSION, CONVERSION / 2)
    for world in range(PLANTED_WORLDS):
        for key, share in SHARES.items():
            new = draw.poisson(VISITORS / WINDOW * share, days)
            found |= dated(f"planted {world}", key, new, draw.binomial(new, CONVERSION), np.zeros(days, int))
        new = draw.poisson(SLOW_VISITORS / WINDOW, days)
        found |= dated(f"planted {world}", SLOW, new, draw.binomial(new, rate), np.zeros(days, int))
    return found


def dated(org: str, key: Slice, *counts: Any) -> Counts:
    first = END_OF_SIMULATION - timedelta(days=len(counts[0]) - 1)
    rows = zip(*(column.tolist() for column in counts), strict=True)
    return {(org, first + timedelta(days=number), key): row for number, row in enumerate(rows)}


VISITOR_DAYS = """
create temporary table simulated_counts (
    org_id text, event_date date, device_type text, network_type text, new_count integer, buyers_count integer, again_count integer
);
create temporary view simulated_days as
select
    org_id, device_type, network_type, event_date,
    case when number <= new_count then date '0001-01-01' else event_date - 7 end as previous_network_visit_date,
    cast(null as date) as previous_network_ticket_cta_date,
    cast(null as date) as previous_network_checkout_date,
    case when number <= buyers_count then date '0001-01-01' end as previous_network_purchase_date
from simulated_counts
cross join lateral generate_series(1, new_count + again_count) as visitors (number)
"""
CHAIN = ("int_device_network_windows", "int_device_network_worse_days", "device_network_alerts")


@pytest.fixture(scope="module")
def simulated(answers: Questions) -> Counts:
    """What was simulated, while the tables simulated_<model> hold what the models make of it."""
    draw, connection = np.random.default_rng(5), answers.connection
    counts = noise(draw) | planted(draw)
    connection.execute(VISITOR_DAYS)
    with connection.cursor().copy("copy simulated_counts from stdin") as copy:
        for (org, day, key), row in counts.items():
            copy.write_row((org, day, *key, *row))
    models = {model.name: model for model in recorded_models(connection, "audience")}
    stands_for = {"int_visitor_days": "simulated_days"}
    for name in CHAIN:
        body = models[name].body
        for model, table in stands_for.items():
            body = re.sub(rf'("\w+"\.)?"audience_intermediate"\."{model}"', table, body)
        connection.execute(f"create temporary table simulated_{name} as {body}")
        if models[name].add:
            # as a build leaves them: a sum of nothing is no row
            connection.execute(f"delete from simulated_{name} where visitors_count = 0")
        stands_for[name] = f"simulated_{name}"
    return counts


def rows_of(connection: psycopg.Connection, table: str) -> list[Any]:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(f"select * from {table}").fetchall()


# What a plain reading says


class Windows:
    """Distinct visitors and buyers of each org, day and slice in the window that ends on the day."""

    def __init__(self) -> None:
        self.members: dict[tuple[str, date], dict[Slice, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def add(self, org: str, key: Slice, days: list[date], buys: bool, people: int = 1) -> None:
        """The days of visitors who came, or bought, on the same days."""
        for day in {day + timedelta(days=number) for day in days for number in range(WINDOW)}:
            self.members[org, day][key][buys] += people


def windows_of_simulation(counts: Counts) -> Windows:
    windows = Windows()
    for (org, day, key), (new, buyers, _) in counts.items():
        _, _, again = counts.get((org, day + timedelta(days=WEEK), key), (0, 0, 0))
        windows.add(org, key, [day], False, new - again)
        windows.add(org, key, [day, day + timedelta(days=WEEK)], False, again)
        windows.add(org, key, [day], True, buyers)
    return windows


def windows_of_events(events: dict[str, list[Any]]) -> Windows:
    windows = Windows()
    for org, rows in events.items():
        orders = {order.event_id for order in orders_of(rows)}
        days: dict[tuple[Slice, str, bool], list[date]] = defaultdict(list)
        for session in sessions_of(rows):
            for event in session:
                days[slice_of(session), event.visitor_id, False].append(event.event_date)
                if event.event_id in orders:
                    days[slice_of(session), event.visitor_id, True].append(event.event_date)
        for (key, _, buys), found in days.items():
            windows.add(org, key, found, buys)
    return windows


def worse_days(windows: Windows, last_day: dict[str, date]) -> dict[tuple[str, date, Slice], tuple[float, float, bool]]:
    """Of each slice that converts worse on a day: p, p after the correction, and whether an alert may open."""
    found = {}
    for (org, day), slices in windows.members.items():
        if day > last_day[org]:
            continue
        visitors, buyers = (sum(counts[place] for counts in slices.values()) for place in (0, 1))
        tests = []
        for key, (mine, bought) in slices.items():
            rest, share = visitors - mine, buyers / visitors if visitors else 0
            if min(mine, rest) >= 200 and mine * share >= 10:
                spread = sqrt(share * (1 - share) * (1 / mine + 1 / rest))
                own, reference = bought / mine, (buyers - bought) / rest
                tests.append((erfc((reference - own) / spread / sqrt(2)) / 2 if spread else 1.0, key, own, reference))
        adjusted = 0.0
        for number, (chance, key, own, reference) in enumerate(sorted(tests)):
            adjusted = max(adjusted, min(1.0, chance * (len(tests) - number) * 3))
            if chance <= 0.05:
                found[org, day, key] = (chance, adjusted, adjusted <= 0.05 and own <= 0.8 * reference)
    return found


def openings(worse: dict[tuple[str, date, Slice], tuple[float, float, bool]]) -> dict[tuple[str, Slice, date], date]:
    """The day that opened each alert of a slice, with the last day on which the slice was worse."""
    by_slice = defaultdict(list)
    for (org, day, key), (_, _, significant) in sorted(worse.items()):
        by_slice[org, key].append((day, significant))
    found = {}
    for (org, key), days in by_slice.items():
        opened, before = None, None
        for day, significant in days:
            if before and (day - before).days > WEEK:
                opened = None
            if significant and not opened:
                opened = day
            if opened:
                found[org, key, opened] = day
            before = day
    return found


def assert_same_days(rows: list[Any], expected: dict[tuple[str, date, Slice], tuple[float, float, bool]]) -> None:
    found = {(row.org_id, row.event_date, (row.device_type, row.network_type)): row for row in rows}
    assert found.keys() == expected.keys()
    for key, (chance, adjusted, significant) in expected.items():
        assert float(found[key].p_value) == pytest.approx(chance, rel=1e-6, abs=1e-9), key
        assert float(found[key].adjusted_p_value) == pytest.approx(adjusted, rel=1e-6, abs=1e-8), key
        assert found[key].is_significant == significant, key


def test_noise_opens_an_alert_in_few_weeks(answers, simulated):
    rows = [row for row in rows_of(answers.connection, "simulated_device_network_alerts") if row.org_id == "noise"]
    weeks = {(END_OF_SIMULATION - row.opened_at.date()).days // WEEK for row in rows}
    tested = {row.event_date for row in rows_of(answers.connection, "simulated_int_device_network_worse_days")}
    assert len(tested) > 500, "nothing was tested"
    assert len(weeks) <= 0.05 * NOISE_WEEKS


def test_half_the_conversion_of_a_slice_is_found(answers, simulated):
    rows = [row for row in rows_of(answers.connection, "simulated_device_network_alerts") if row.org_id != "noise"]
    drop = END_OF_SIMULATION - timedelta(days=WINDOW)
    of_slow = [row for row in rows if (row.device_type, row.network_type) == SLOW]
    assert len({row.org_id for row in of_slow if row.opened_at.date() > drop}) >= 0.9 * PLANTED_WORLDS
    assert len(rows) - len(of_slow) <= 0.05 * PLANTED_WORLDS * 2 * WINDOW / WEEK


def test_every_decision_of_the_simulation_is_that_of_a_plain_reading(answers, simulated):
    expected = worse_days(windows_of_simulation(simulated), defaultdict(lambda: date(2026, 6, 30)))
    assert len(expected) > 500
    assert_same_days(rows_of(answers.connection, "simulated_int_device_network_worse_days"), expected)
    alerts = {
        (row.org_id, (row.device_type, row.network_type), row.opened_at.date() - timedelta(days=1)): row
        for row in rows_of(answers.connection, "simulated_device_network_alerts")
    }
    assert {key: row.last_worse_date for key, row in alerts.items()} == openings(expected)
    for row in alerts.values():
        closed = row.last_worse_date + timedelta(days=WEEK + 1)
        assert (row.closed_at.date() if row.closed_at else None) == (closed if closed <= date(2026, 7, 1) else None)


def test_every_decision_of_the_events_is_that_of_a_plain_reading(answers):
    moment = datetime.fromisoformat(AS_OF)
    events = events_of_people(answers.connection, moment)
    # in the middle of 1 July in UTC it is that day everywhere
    expected = worse_days(windows_of_events(events), dict.fromkeys(events, date(2026, 6, 30)))
    assert_same_days(rows_of(answers.connection, "audience_intermediate.int_device_network_worse_days"), expected)
    alerts = rows_of(answers.connection, "audience.device_network_alerts")
    assert {(row.org_id, (row.device_type, row.network_type), row.last_worse_date) for row in alerts} == {
        (org, key, last) for (org, key, _), last in openings(expected).items()
    }


def test_the_function_tells_the_alert_that_was_open_at_the_end_of_the_range(answers):
    figures = "200, 2, 2000, 80, 0.01, 0.04, 0.001, 0.01, date '2026-05-20'"
    midnight = "timestamp '{}' at time zone 'Europe/Berlin'"
    with answers.connection.transaction(force_rollback=True):
        for opened, closed in (("2026-05-10", "2026-05-28"), ("2026-06-15", None)):
            answers.connection.execute(
                f"insert into audience.device_network_alerts values ('north_hall', 'mobile', 'wifi', {figures},"
                f" {midnight.format(opened)}, {midnight.format(closed) if closed else 'null'})"
            )
        told = {}
        for day in ("2026-05-08", "2026-05-09", "2026-05-26", "2026-05-27", "2026-06-13", "2026-06-14", "2026-06-30"):
            rows = answers.ask("get_audience_device_network", "north_hall", date(2026, 4, 1), date.fromisoformat(day))
            alerts = {(row["device_type"], row["network_type"]): row["alert_opened_at"] for row in rows}
            told[day] = alerts.pop(("mobile", "wifi"))
            assert not any(alerts.values()) and len(alerts) > 3
    # the moments in UTC: local midnight is at ten in the evening
    first, second = datetime(2026, 5, 9, 22, tzinfo=UTC), datetime(2026, 6, 14, 22, tzinfo=UTC)
    assert list(told.values()) == [None, first, first, None, None, second, second]

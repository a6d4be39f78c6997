"""Every query function against what a plain reading of the events says, and hot leads before a build against after it.

The expected answers are made in Python from `enriched_events`, one row per event: no mart and no visit is read for them.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from orchestration import database, dbt
from orchestration.build import build
from orchestration.load import load_files
from tests.projects import AS_OF, END, Questions, landed_sample
from tests.readings import MOMENT, ORGS, crowd, events_of_people, orders_of, rate, rounded, sessions_of, write

BUILT_FOR = MOMENT - timedelta(hours=44)  # what is received later lands after the first build
DRAWS = 100
KPIS = (
    "visitors", "sessions", "checkout_rate", "purchase_rate", "new_buyers", "returning_buyers", "mobile_conversion_rate",
    "desktop_conversion_rate",
)  # fmt: skip
WEIGHTS = {"ticket_cta": 3, "checkout_start": 4, "repeat_visitor": 1, "slow_network": -2, "past_purchaser": 3}
BANDS = {0: "awareness", 4: "nurture", 6: "retarget", 8: "contact_now"}


# What happened


def stragglers() -> list[dict[str, Any]]:
    """Devices with a built event and one that lands later, some in the same session and some in a second: 7 or 8 points."""
    rows = []
    for number in range(60):
        start = BUILT_FOR - timedelta(hours=9, seconds=number)
        moments = (start, start + timedelta(minutes=number - 10))
        for kind, occurred, received in zip(("checkout_start", "ticket_cta"), moments, (start, MOMENT), strict=True):
            row = {
                "event_id": f"{kind}{number}",
                "org_id": "north_hall",
                "event_type": kind,
                "anonymous_id": f"s{number}",
            }
            rows.append(
                row | {"occurred_at": occurred.isoformat(), "received_at": received.isoformat(), "properties": {}}
            )
    return rows


@dataclass
class Answers(Questions):
    """A project of which a part landed after its build. before: hot leads by their question, asked until the next build."""

    before: dict[tuple[Any, ...], list[dict[str, Any]]] | None = None
    live: list[dict[str, Any]] | None = None


def lead_questions() -> list[tuple[Any, ...]]:
    draw = random.Random(3)
    return [
        (draw.choice(list(ORGS)), draw.choice((1, 6, 24, 44, draw.randint(1, 720))), draw.choice((0, 1, 4, 7, 7, draw.randint(0, 10))))
        for _ in range(DRAWS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def answers(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    folder = tmp_path_factory.mktemp("functions")
    with database.connect(autocommit=True) as connection:
        project = Answers(connection)
        rows = [json.loads(row) for row in landed_sample(connection, folder, events=5_000, seed=7)]
        rows = [row for row in rows if row["event_id"]] + crowd(5) + stragglers()
        random.Random(1).shuffle(rows)
        late = [row for row in rows if datetime.fromisoformat(row["received_at"]) > BUILT_FOR]
        early = [row for row in rows if datetime.fromisoformat(row["received_at"]) <= BUILT_FOR]
        assert len(late) > 300 and len(early) > 4_000
        load_files([write(folder / "early.ndjson", early)])
        # ahead of its moment: built, but not counted in any fact yet
        build(as_of=(BUILT_FOR - timedelta(hours=6)).isoformat())
        load_files([write(folder / "late.ndjson", late)])
        corrected = connection.execute(
            "update analytics.events set event_type = 'checkout_start' where event_id in"
            " (select min(event_id) from analytics.events where event_type = 'page_view' and received_at > %s group by org_id)",
            [BUILT_FOR - timedelta(hours=12)],
        ).rowcount
        assert corrected == len(ORGS)
        project.before = {
            question: project.ask("get_high_intent_visitors", *question, p_as_of=MOMENT)
            for question in lead_questions()
        }
        build(as_of=AS_OF)
        yield project


# What a plain reading says


@pytest.fixture(scope="module")
def events(answers: Answers) -> dict[str, list[Any]]:
    """Counted events of people by org, in order."""
    return events_of_people(answers.connection, MOMENT)


class Overview:
    """The KPIs of one org over any days, counted from its events."""

    def __init__(self, events: list[Any]) -> None:
        self.first_date = min(event.event_date for event in events)
        self.visits = [(event.event_date, event.visitor_id) for event in events]
        self.checkouts = [
            (event.event_date, event.visitor_id) for event in events if event.event_type == "checkout_start"
        ]
        self.orders = [(order.event_date, order.visitor_id) for order in orders_of(events)]
        self.sessions = []
        for session in sessions_of(events):
            known = [event.device_type for event in session if event.device_type != "unknown"]
            bought = any(event.event_type == "purchase" for event in session)
            self.sessions.append((session[0].event_date, known[0] if known else "unknown", bought))

    def parts(self, first: date, last: date) -> dict[str, tuple[int, int | None]]:
        """Numerator and denominator of each KPI; counts have none."""
        visitors, checkouts, buyers = (
            {who for day, who in acts if first <= day <= last} for acts in (self.visits, self.checkouts, self.orders)
        )
        before = {who for day, who in self.orders if day < first}
        sessions = [session for session in self.sessions if first <= session[0] <= last]
        devices = {
            kind: (sum(bought for _, device, bought in sessions if device == kind), sum(device == kind for _, device, _ in sessions))
            for kind in ("mobile", "desktop")
        }  # fmt: skip
        found = (
            (len(visitors), None), (len(sessions), None), (len(checkouts), len(visitors)), (len(buyers), len(visitors)),
            (len(buyers - before), None), (len(buyers & before), None), devices["mobile"], devices["desktop"],
        )  # fmt: skip
        return dict(zip(KPIS, found, strict=True))

    def values(self, first: date, last: date) -> dict[str, Decimal | None]:
        return {
            kpi: Decimal(part) if whole is None else rate(part, whole)
            for kpi, (part, whole) in self.parts(first, last).items()
        }

    def own_weeks(self, first: date, last: date) -> dict[str, Decimal | None]:
        length = (last - first).days + 1
        size = min(length, 56)
        starts = [first - timedelta(days=size * number) for number in range(1, 56 // size + 1)]
        windows = [self.parts(start, start + timedelta(days=size - 1)) for start in starts if start >= self.first_date]
        found = {}
        for kpi in KPIS:
            parts, wholes = zip(*(window[kpi] for window in windows), strict=True) if windows else ((), ())
            if not windows or (kpi in COUNTS and length > 56):
                found[kpi] = None
            else:
                found[kpi] = rate(sum(parts), len(windows) if kpi in COUNTS else sum(wholes))
        return found


COUNTS = ("visitors", "sessions", "new_buyers", "returning_buyers")
SEEDS = "select org_id, kpi, value from audience_seeds.{}"


def setting(rows: list[tuple[str, str, Decimal]], org: str, kpi: str, days: int) -> Decimal | None:
    name = f"{kpi}_weekly" if kpi in COUNTS else kpi
    found = {owner: value for owner, of, value in rows if of == name}
    value = found.get(org, found.get("*"))
    return value if value is None else rounded(value * days / 7 if kpi in COUNTS else value)


def test_the_overview_is_what_the_events_say(answers, events):
    draw = random.Random(2)
    overviews = {org: Overview(rows) for org, rows in events.items()}
    targets, benchmarks = (
        answers.connection.execute(SEEDS.format(seed)).fetchall() for seed in ("kpi_targets", "benchmarks")
    )
    seen = set()
    for number in range(DRAWS):
        org = draw.choice(list(overviews))
        days = draw.choice((1, 1, 7, 28, 30, 56, 57, draw.randint(1, 150)))
        first = END - timedelta(days=draw.randint(-3, 130))
        last = first + timedelta(days=days - 1)
        compare = draw.choice(("previous_period", "previous_period", "previous_year", "none"))
        rows = answers.ask("get_audience_overview", org, first, last, compare)
        assert [row["kpi"] for row in rows] == list(KPIS)
        shift = timedelta(days={"previous_period": days, "previous_year": 364, "none": 0}[compare])
        overview = overviews[org]
        values, previous = overview.values(first, last), overview.values(first - shift, last - shift)
        own = overview.own_weeks(first, last)
        every = [first + timedelta(days=number) for number in range(days)]
        for row in rows:
            kpi, question = row["kpi"], (number, org, first, last, compare, row["kpi"])
            known = setting(benchmarks, org, kpi, days)
            assert row["unit"] == ("count" if kpi in COUNTS else "rate")
            assert row["value"] == values[kpi], question
            assert row["previous"] == (None if compare == "none" else previous[kpi]), question
            assert row["target"] == setting(targets, org, kpi, days), question
            assert row["benchmark"] == (own[kpi] if known is None else known), question
            basis = "benchmarks" if known is not None else "own weeks" if own[kpi] is not None else None
            assert row["benchmark_basis"] == basis, question
            series = [overview.values(day, day)[kpi] for day in every] if days <= 30 else None
            assert [date.fromisoformat(point["date"]) for point in row["series"]] == every
            if series is not None:
                given = [point["value"] for point in row["series"]]
                assert [value if value is None else Decimal(str(value)) for value in given] == series, question
            seen |= {(kpi, basis), (kpi, bool(row["value"])), (kpi, row["target"] is None)}
    for kpi in KPIS:
        assert {(kpi, True), (kpi, False), (kpi, "own weeks" if kpi in COUNTS else "benchmarks")} <= seen


def week_of(day: date, starts_on: int) -> date:
    return day - timedelta(days=(day.isoweekday() - starts_on) % 7)


def cohorts_of(events: list[Any], org: str, today: date) -> dict[tuple[date, int], tuple[int, ...]]:
    """Per cohort and week: eligible, returned, returned on or after, repurchased, repurchased on or after."""
    starts_on = ORGS[org]
    orders, active, again = orders_of(events), defaultdict(set), defaultdict(set)
    born: dict[str, date] = {}
    for event in events:
        active[event.visitor_id].add(week_of(event.event_date, starts_on))
    for order in orders:
        week = week_of(order.event_date, starts_on)
        active[order.visitor_id].add(week)
        if order.visitor_id in born:
            again[order.visitor_id].add(week)
        born.setdefault(order.visitor_id, week)
    found = {}
    for cohort in sorted(set(born.values())):
        members = [who for who, week in born.items() if week == cohort]
        for number in range((today - cohort).days // 7 + 1):
            week = cohort + timedelta(weeks=number)
            counts = [
                sum(any(test(at) for at in weeks[who]) for who in members)
                for weeks in (active, again)
                for test in (week.__eq__, week.__le__)
            ]
            found[cohort, number] = (len(members), *counts)
    return found


def test_cohorts_are_what_the_events_say(answers, events):
    zones = {"north_hall": 2, "harbor_live": -4, "nowhere": 0}  # hours, in summer
    draw, cells = random.Random(4), 0
    for number in range(DRAWS):
        org = draw.choice(list(ORGS))
        weeks = draw.choice((1, 2, 12, draw.randint(1, 30)))
        today = (MOMENT + timedelta(hours=zones[org])).date()
        this_week = week_of(today, ORGS[org])
        expected = {
            (cohort, age): counts
            for (cohort, age), counts in cohorts_of(events[org], org, today).items()
            if cohort > this_week - timedelta(weeks=weeks)
        }
        rows = answers.ask("get_audience_cohorts", org, weeks)
        names = ("eligible", "returned", "returned_on_or_after", "repurchased", "repurchased_on_or_after")
        given = {
            (row["cohort_week"], row["week_number"]): tuple(row[f"{name}_count"] for name in names) for row in rows
        }
        assert given == expected, (number, org, weeks)
        assert list(given) == sorted(given)
        for row in rows:
            for name in names[1:]:
                assert row[f"{name}_rate"] == rate(row[f"{name}_count"], row["eligible_count"])
            assert row["week_start_date"] == row["cohort_week"] + timedelta(weeks=row["week_number"])
            assert row["is_complete"] == (row["week_start_date"] < this_week)
        cells += len(rows)
    assert cells > 1_000


# Propensity


def score_of(points: Iterable[int]) -> int:
    return max(0, min(10, sum(points)))


def band_of(score: int) -> str:
    limits = sorted(BANDS)
    return BANDS[limits[bisect_right(limits, score) - 1]]


def test_a_score_is_the_clamped_sum_of_its_points(answers):
    draw = random.Random(6)
    for _ in range(DRAWS):
        cta, checkout, slow = (draw.random() < 0.5 for _ in range(3))
        sessions, orders = draw.choice((0, 1, 2, 9)), draw.choice((0, 1, 5))
        (row,) = answers.ask("calculate_propensity_score", cta, checkout, sessions, slow, orders)
        holds = (cta, checkout, sessions >= 2, slow, orders >= 1)
        points = [weight * held for weight, held in zip(WEIGHTS.values(), holds, strict=True)]
        score = score_of(points)
        assert list(row.values()) == [score, band_of(score), *points]


def test_a_score_needs_only_what_is_known(answers):
    (row,) = answers.ask("calculate_propensity_score", p_has_checkout=True, p_orders_count=2)
    assert (row["propensity_score"], row["propensity_band"]) == (7, "retarget")


def test_a_score_is_that_of_the_customers(answers):
    facts = answers.connection.execute(
        "select propensity_ticket_cta_points > 0, propensity_checkout_start_points > 0, sessions_count,"
        " propensity_slow_network_points < 0, orders_count, propensity_score, propensity_band"
        " from audience.audience_customers"
    ).fetchall()
    assert len({fact[5] for fact in facts}) >= 8
    for *arguments, score, band in facts:
        (row,) = answers.ask("calculate_propensity_score", *arguments)
        assert (row["propensity_score"], row["propensity_band"]) == (score, band)


# Hot leads


def lead_of(visitor: str, events: list[Any], sessions: list[list[Any]], slow: set[str], since: datetime) -> Any:
    """What a lead of one visitor would say, from all of the visitor's events; None for nobody of the last hours."""
    own = [event for event in events if event.visitor_id == visitor]
    if own[-1].occurred_at <= since:
        return None
    month = MOMENT - timedelta(days=30)
    visits = defaultdict(list)
    for number, session in enumerate(sessions):
        for event in session:
            if event.visitor_id == visitor:
                visits[number, event.event_date].append(event)
    recent = sorted(
        (visit for visit in visits.values() if visit[-1].occurred_at > month), key=lambda v: v[-1].occurred_at
    )
    networks = [event.network_type for visit in recent for event in visit if event.network_type != "unknown"]
    last_visits = [visit for visit in recent if any(event.network_type != "unknown" for event in visit)]
    if last_visits:
        networks = [event.network_type for event in last_visits[-1] if event.network_type != "unknown"]
    loads = [event.page_load_ms for visit in recent for event in visit if event.page_load_ms is not None]
    moments = {
        kind: max((event.occurred_at for event in own if event.event_type == kind and event.occurred_at > month), default=None)
        for kind in ("ticket_cta", "checkout_start")
    }  # fmt: skip
    orders = [order.occurred_at for order in orders_of(own)]
    holds = {
        "ticket_cta": moments["ticket_cta"] is not None,
        "checkout_start": moments["checkout_start"] is not None,
        "repeat_visitor": len({number for number, _ in visits}) >= 2,
        "slow_network": bool(networks and networks[-1] in slow) or bool(loads and sum(loads) / len(loads) > 3000),
        "past_purchaser": bool(orders),
    }
    intent = max((moment for moment in moments.values() if moment), default=since)
    active = [event for visit in visits.values() if visit[-1].occurred_at > since for event in visit]
    score = score_of(WEIGHTS[rule] for rule, held in holds.items() if held)
    checkout = moments["checkout_start"]
    return SimpleNamespace(
        bought_since=bool(orders) and max(orders) >= intent,
        row={
            "visitor_id": visitor,
            "propensity_band": band_of(score),
            "reasons": [rule for rule, held in holds.items() if held],
            "propensity_score": score,
            "event_views_count": sum(event.event_type == "event_view" for event in active),
            "ticket_ctas_count": sum(event.event_type == "ticket_cta" for event in active),
            "has_unfinished_checkout": checkout is not None and (not orders or checkout > max(orders)),
            "last_checkout_at": checkout,
            "last_active_at": own[-1].occurred_at,
        },
    )


def test_hot_leads_are_what_the_events_say(answers, events):
    slow = {
        name
        for (name,) in answers.connection.execute("select network_type from audience_seeds.network_types where is_slow")
    }
    opted_out = {
        (org, visitor)
        for org, visitor in answers.connection.execute(
            "select org_id, visitor_id from audience.audience_customers where is_opted_out"
        )
    }
    assert opted_out
    sessions = {org: sessions_of(rows) for org, rows in events.items()}
    leads: dict[tuple[str, datetime], list[Any]] = {}
    listed, bought_since = 0, 0
    for org, hours, least in lead_questions():
        since = MOMENT - timedelta(hours=hours)
        if (org, since) not in leads:
            visitors = {event.visitor_id for event in events[org] if event.occurred_at > since}
            every = [lead_of(visitor, events[org], sessions[org], slow, since) for visitor in visitors]
            leads[org, since] = [lead for lead in every if (org, lead.row["visitor_id"]) not in opted_out]
        enough = [lead for lead in leads[org, since] if lead.row["propensity_score"] >= least]
        bought_since += sum(lead.bought_since for lead in enough)
        expected = [lead.row for lead in enough if not lead.bought_since]
        given = answers.ask("get_high_intent_visitors", org, hours, least, p_as_of=MOMENT)
        order = [(-row["propensity_score"], -row["last_active_at"].timestamp(), row["visitor_id"]) for row in given]
        assert order == sorted(order)
        by_visitor = {row["visitor_id"]: row for row in expected}
        assert {row["visitor_id"]: row for row in given} == by_visitor, (org, hours, least)
        listed += len(given)
    assert min(listed, bought_since) > 100


def test_hot_leads_before_the_build_are_those_after_it(answers):
    for (org, hours, least), before in answers.before.items():
        after = answers.ask("get_high_intent_visitors", org, hours, least, p_as_of=MOMENT)
        assert before == after, (org, hours, least)
    assert sum(len(rows) for rows in answers.before.values()) > 300


def test_the_score_of_a_hot_lead_is_that_of_the_build(answers):
    batch = {
        (org, visitor): (score, band)
        for org, visitor, score, band in answers.connection.execute(
            "select org_id, visitor_id, propensity_score, propensity_band from audience.audience_customers"
        )
    }
    for (org, _, _), rows in answers.before.items():
        for row in rows:
            assert batch[org, row["visitor_id"]] == (row["propensity_score"], row["propensity_band"])


# Refusals, and the functions as objects of the database

REFUSED = [
    ("get_audience_overview", ("nobody", END, END), "There is no org 'nobody'"),
    ("get_audience_overview", (None, END, END), "There is no org null"),
    ("get_audience_overview", ("north_hall", END, END - timedelta(days=1)), "ends before it begins: give the earlier date"),
    ("get_audience_overview", ("north_hall", None, END), "The range from null to 2026-06-30 is open"),
    ("get_audience_overview", ("north_hall", "-infinity", END), "is open: give a first and a last local date"),
    ("get_audience_overview", ("north_hall", date(1999, 1, 1), END), "longer than 3660 days"),
    ("get_audience_overview", ("north_hall", END, END, "last_decade"), "There is no comparison 'last_decade': give previous_period"),
    ("get_audience_overview", ("north_hall", END, END, None), "There is no comparison null"),
    ("get_audience_acquisition", ("nobody", END, END), "There is no org 'nobody'"),
    ("get_audience_acquisition", ("north_hall", END, END - timedelta(days=1)), "ends before it begins: give the earlier date"),
    ("get_audience_acquisition", ("north_hall", END, None), "is open: give a first and a last local date"),
    ("get_audience_acquisition", ("north_hall", END, END, "last_click"), "There is no attribution 'last_click': give first_touch, last_touch"),
    ("get_audience_acquisition", ("north_hall", END, END, None), "There is no attribution null"),
    ("get_audience_device_network", ("nobody", END, END), "There is no org 'nobody'"),
    ("get_audience_device_network", (None, END, END), "There is no org null"),
    ("get_audience_device_network", ("north_hall", END, END - timedelta(days=1)), "ends before it begins: give the earlier date"),
    ("get_audience_device_network", ("north_hall", None, END), "The range from null to 2026-06-30 is open"),
    ("get_audience_device_network", ("north_hall", date(1999, 1, 1), END), "longer than 3660 days"),
    ("get_audience_paths", ("nobody", END, END), "There is no org 'nobody'"),
    ("get_audience_paths", (None, END, END), "There is no org null"),
    ("get_audience_paths", ("north_hall", END, END - timedelta(days=1)), "ends before it begins: give the earlier date"),
    ("get_audience_paths", ("north_hall", None, END), "The range from null to 2026-06-30 is open"),
    ("get_audience_paths", ("north_hall", date(1999, 1, 1), END), "longer than 3660 days"),
    ("get_audience_paths", ("north_hall", END, END, 0), "0 paths cannot be shown: give p_limit from 1 to 1000"),
    ("get_audience_paths", ("north_hall", END, END, 1001), "1001 paths cannot be shown"),
    ("get_audience_paths", ("north_hall", END, END, None), "null paths cannot be shown"),
    ("get_audience_cohorts", ("nobody", 4), "There is no org 'nobody'"),
    ("get_audience_cohorts", ("north_hall", 0), "0 weeks of cohorts cannot be shown: give p_weeks from 1 to 522"),
    ("get_audience_cohorts", ("north_hall", None), "null weeks of cohorts"),
    ("calculate_propensity_score", (True, None), "1 of the arguments are null"),
    ("calculate_propensity_score", (True, True, -1), "-1 sessions and 0 orders cannot be"),
    ("get_high_intent_visitors", ("nobody",), "There is no org 'nobody'"),
    ("get_high_intent_visitors", ("north_hall", 0), "The last 0 hours cannot be asked for: give p_hours from 1 to 720"),
    ("get_high_intent_visitors", ("north_hall", 24, 11), "No score is 11: give p_min_score from 0 to 10"),
    ("get_high_intent_visitors", ("north_hall", 24, 7, "2026-01-01+00"), "are not known any more: the last build was for"),
    ("get_high_intent_visitors", ("north_hall", 24, 7, "infinity"), "Give a later moment, or leave p_as_of out"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "sentence"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_cannot_be_answered_is_refused_with_a_sentence(answers, function, arguments, sentence):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
        answers.ask(function, *arguments)
    assert sentence in refused.value.diag.message_primary


FUNCTIONS = {
    "get_audience_overview", "get_audience_cohorts", "calculate_propensity_score", "get_high_intent_visitors",
}  # fmt: skip


def test_functions_are_described_stable_and_nobodys_but_the_owners(answers):
    rows = answers.connection.execute(
        "select proname, provolatile, prosecdef, proconfig, proacl::text, obj_description(oid, 'pg_proc')"
        " from pg_proc where pronamespace = 'audience'::regnamespace"
    ).fetchall()
    assert {name for name, *_ in rows} >= FUNCTIONS
    for name, volatility, as_owner, settings, rights, comment in rows:
        assert (volatility, as_owner) == ("s", name == "get_high_intent_visitors"), name
        assert "search_path=pg_catalog, pg_temp" in settings
        assert rights is not None and "{=" not in rights and ",=" not in rights, f"{name} is everybody's: {rights}"
        assert "Returns: " in comment


def test_an_org_with_data_and_no_settings_is_known(answers):
    assert answers.ask("get_audience_overview", "nowhere", END, END)[0]["target"] is None


def test_an_unchanged_function_is_left_alone_and_a_changed_one_keeps_its_callers(answers):
    connection = answers.connection
    state = "select oid, xmin::text from pg_proc where oid = 'audience.get_audience_cohorts'::regproc"
    connection.execute("create role cohort_reader")
    try:
        connection.execute("grant execute on function audience.get_audience_cohorts to cohort_reader")
        before = connection.execute(state).fetchone()
        build(as_of=AS_OF, select="resource_type:function")
        assert connection.execute(state).fetchone() == before
        # as another release would have left it: other arguments, another row type
        connection.execute("drop function audience.get_audience_cohorts")
        for arguments in ("text", "text, integer"):
            connection.execute(
                f"create function audience.get_audience_cohorts({arguments}) returns table (a integer) language sql as 'select 1'"
            )
        connection.execute("grant execute on function audience.get_audience_cohorts(text) to cohort_reader")
        connection.execute("delete from audience_state.model_state where model = 'function get_audience_cohorts'")
        build(as_of=AS_OF, select="resource_type:function")
        (count,) = connection.execute(
            "select count(*) from pg_proc where proname = 'get_audience_cohorts' and pronamespace = 'audience'::regnamespace"
        ).fetchone()
        assert count == 1
        assert connection.execute(
            "select has_function_privilege('cohort_reader', 'audience.get_audience_cohorts(text, integer)', 'execute')"
        ).fetchone() == (True,)
        assert answers.ask("get_audience_cohorts", "north_hall", 30)
    finally:
        connection.execute("drop owned by cohort_reader")
        connection.execute("drop role cohort_reader")


def test_dbt_run_leaves_functions_out_and_dbt_build_makes_them(answers):
    answers.connection.execute("drop function audience.calculate_propensity_score")
    assert dbt.run("run", "--select", "int_sessions").returncode == 0
    exists = "select to_regproc('audience.calculate_propensity_score') is not null"
    assert answers.connection.execute(exists).fetchone() == (False,)
    done = dbt.run("build", "--select", "calculate_propensity_score")
    assert done.returncode == 0, done.stdout
    assert answers.connection.execute(exists).fetchone() == (True,)

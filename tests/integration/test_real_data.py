"""Real event data: what is known of each set, and every mart against the landed rows, counted in another way.

The data are no part of this project: AUDIENCE_TEST_DATA names their folder. Without it these tests are skipped.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from orchestration import database
from orchestration.build import BuildReport, build
from orchestration.load import LoadReport, load_files
from orchestration.user_agents import parse_user_agent

FILES = ("cdnow_orders", "ecom_composite_events", "jaffle_orders")
AS_OF = datetime(2024, 8, 1, tzinfo=UTC)
JAFFLE = "org_id like 'jaffle%'"
ACTIVITIES = ("visit", "ticket_cta", "checkout_start", "purchase")
CHANNEL = ("source", "medium", "campaign")
DEVICE = ("device_type", "os", "browser", "network_type")
DIRECT = ("(direct)", "(none)", "(none)")
REFERRERS = {"www.google.com": ("google", "organic", "(none)")}
EVENT_TYPES = {"product_view": "event_view", "add_to_cart": "ticket_cta"}
EVENTS = """
select
    org_id, event_id, event_type, occurred_at, anonymous_id, user_id, user_agent,
    substring(referrer from '^https?://([^/]+)'),
    properties ->> 'utm_source', properties ->> 'utm_medium', properties ->> 'utm_campaign',
    properties ->> 'network_type', properties ->> 'network_effective_type',
    properties ->> 'order_id', (properties ->> 'revenue')::numeric
from analytics.events
order by org_id, coalesce(anonymous_id, user_id), occurred_at, event_id collate "C"
"""

Key = tuple[str, ...]
Days = dict[date, set[str]]


@pytest.fixture(scope="module")
def built(
    audience_test_data: Path, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LoadReport, BuildReport]]:
    """The three files, loaded and built once."""
    folder = tmp_path_factory.mktemp("real_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
        patch.setenv("DBT_LOG_PATH", str(folder / "logs"))
        patch.delenv("AUDIENCE_SCHEMA", raising=False)
        loaded = load_files([audience_test_data / f"{name}.ndjson.gz" for name in FILES])
        yield loaded, build(as_of=AS_OF.isoformat())


@pytest.fixture(scope="module")
def connection(built: Any) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as opened:
        opened.execute("set search_path to audience")
        yield opened


class Event(NamedTuple):
    """A landed row as this file understands it."""

    org: str
    event_id: str
    kind: str
    at: datetime
    device: str
    anonymous_id: str | None
    user: str | None
    touch: Key | None
    agent: Key
    network: str | None
    order_id: str
    revenue: Decimal


@dataclass
class Person:
    """One visitor of one org."""

    events: int = 0
    sessions: list[datetime] = field(default_factory=list)
    orders: int = 0
    revenue: Decimal = Decimal()
    first_seen: datetime | None = None
    last_seen: datetime | None = None


class World:
    """Visitors, sessions and days, counted event by event."""

    def __init__(self, events: Iterable[Event]):
        self.by_device: dict[tuple[str, str], list[Event]] = defaultdict(list)
        for event in events:
            self.by_device[event.org, event.device].append(event)
        self.days: dict[tuple[str, Key, str], Days] = defaultdict(lambda: defaultdict(set))
        self.sessions: Counter[tuple[str, Key, date]] = Counter()
        self.people: dict[tuple[str, str], Person] = defaultdict(Person)
        self.revenue: Counter[str] = Counter()
        self.orders: Counter[str] = Counter()
        self._ordered: set[tuple[str, str, str]] = set()
        for events in self.by_device.values():
            owner = self._owner(events)
            for session in self._split(events):
                self._count(session, owner)

    @staticmethod
    def _owner(events: list[Event]) -> str | None:
        users = [event.user for event in events if event.anonymous_id and event.user]
        return users[0] if 0 < len(set(users)) <= 3 else None

    @staticmethod
    def _split(events: list[Event]) -> Iterator[list[Event]]:
        session: list[Event] = []
        for event in events:
            if session and (
                event.at - session[-1].at > timedelta(minutes=30) or event.at - session[0].at > timedelta(hours=24)
            ):
                yield session
                session = []
            session.append(event)
        yield session

    def _count(self, session: list[Event], owner: str | None) -> None:
        org, start = session[0].org, session[0].at
        source = next((event.touch for event in session if event.touch), DIRECT)
        agent = next((event.agent for event in session if event.agent[0] != "unknown"), ("unknown",) * 3)
        network = next((event.network for event in session if event.network), "unknown")
        slices: tuple[Key, ...] = ((), source, (*agent, network))
        joined: set[str] = set()
        for key in slices:
            self.sessions[org, key, start.date()] += 1
        for event in session:
            visitor = event.user or owner or event.anonymous_id
            assert visitor
            person = self.people[org, visitor]
            person.events += 1
            person.first_seen = min(person.first_seen or event.at, event.at)
            person.last_seen = max(person.last_seen or event.at, event.at)
            if visitor not in joined:
                joined.add(visitor)
                person.sessions.append(event.at)
            did = {"visit", event.kind}
            if event.kind == "purchase" and not self._order(event, visitor, person):
                did.remove("purchase")
            for key in slices:
                for activity in did:
                    self.days[org, key, activity][event.at.date()].add(visitor)

    def _order(self, event: Event, visitor: str, person: Person) -> bool:
        order = (event.org, event.order_id, visitor)
        if order in self._ordered:
            return False
        self._ordered.add(order)
        person.orders += 1
        person.revenue += event.revenue
        self.orders[event.org] += 1
        self.revenue[event.org] += event.revenue
        return True

    def distinct(self, org: str, key: Key, activity: str, first: date, last: date) -> int:
        days = self.days.get((org, key, activity), {})
        return len(set().union(*(visitors for day, visitors in days.items() if first <= day <= last)))

    def slices(self, width: int) -> list[tuple[str, Key]]:
        return sorted({(org, key) for org, key, _ in self.days if len(key) == width})

    def span(self, org: str) -> tuple[date, date]:
        days = self.days[org, (), "visit"]
        return min(days), max(days)


def network(connection_type: str | None, effective_type: str | None) -> str | None:
    return "wifi" if connection_type == "wifi" else effective_type or connection_type


@pytest.fixture(scope="module")
def world(connection: psycopg.Connection) -> World:
    agents = lru_cache(maxsize=None)(parse_user_agent)

    def people() -> Iterator[Event]:
        for row in connection.execute(EVENTS):
            org, event_id, kind, at, device, user, agent, host, *utm, wire, speed, order, paid = row
            parsed = agents(agent)
            if parsed.is_bot:
                continue
            yield Event(
                org, event_id, EVENT_TYPES.get(kind, kind), at, device or user, device, user,
                tuple(utm) if utm[0] else REFERRERS.get(host),
                (parsed.device_type, parsed.os, parsed.browser),
                network(wire, speed), order or event_id, paid or Decimal(),
            )  # fmt: skip

    return World(people())


def uniques(
    connection: psycopg.Connection, mart: str, where: dict[str, str], first: date, last: date
) -> dict[str, int]:
    """Distinct visitors of a range by activity, summed from a mart as its readers do."""
    conditions = [sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in where.items()]
    query = sql.SQL(
        "select activity, sum(visitors_count)::int from {mart}"
        " where {where} and event_date between {first} and {last} and previous_date < {first} group by activity"
    ).format(mart=sql.Identifier(mart), where=sql.SQL(" and ").join(conditions), first=first, last=last)
    return dict.fromkeys(ACTIVITIES, 0) | dict(connection.execute(query).fetchall())


def ranges(world: World, seed: int) -> Iterator[tuple[random.Random, date, date, str]]:
    """Endless random ranges of random orgs, from a day to all of it and beyond."""
    chance = random.Random(seed)
    orgs = sorted({org for org, _ in world.slices(0)})
    while True:
        org = chance.choice(orgs)
        first, last = world.span(org)
        moments = sorted(first + timedelta(chance.randint(-3, (last - first).days + 3)) for _ in range(2))
        yield chance, *moments, org


def one(connection: psycopg.Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def test_everything_is_taken_and_every_check_passes(built):
    loaded, report = built
    assert (loaded.received, loaded.accepted, loaded.rejected, loaded.duplicate) == (637_669, 637_669, 0, 0)
    assert not report.failed


def test_collectors_names_become_canonical(connection):
    mapped = connection.execute("select distinct source_event_type, event_type from enriched_events").fetchall()
    kept = {"page_view", "checkout_start", "purchase", "wishlist_add", "support_chat", "payment_error"}
    kept |= {"checkout_bug", "tweet"}
    assert dict(mapped) == EVENT_TYPES | {name: name for name in kept}
    assert len(mapped) == len(kept) + len(EVENT_TYPES)


TOTALS = """
select sum(orders_count)::int, sum(net_revenue_amount), count(*) filter (where orders_count > 0)
from audience_customers where {}
"""


def test_cdnow_orders_and_cohorts(connection):
    assert one(connection, TOTALS.format("org_id = 'cdnow'")) == (69_659, Decimal("2500315.63"), 23_570)
    cohorts = connection.execute(
        "select cohort_week::text, max(cohort_size), array_agg(repurchased_count::int order by week_number)"
        " from cohort_retention_weekly where org_id = 'cdnow' and week_number between 1 and 4"
        " group by cohort_week order by cohort_week limit 2"
    ).fetchall()
    assert cohorts == [("1996-12-30", 1102, [56, 72, 54, 48]), ("1997-01-06", 1662, [74, 105, 72, 82])]


def test_ecom_orders_buyers_and_sessions(connection):
    org = "org_id = 'ecom_composite'"
    assert one(connection, TOTALS.format(org)) == (2_962, Decimal("106028.27"), 2_099)
    buyers = connection.execute(
        f"select least(orders_count, 4)::int, count(*) from audience_customers where {org} and orders_count > 0"
        " group by 1"
    ).fetchall()
    assert dict(buyers) == {1: 1424, 2: 512, 3: 143, 4: 20}
    events = f"select count(distinct source_session_id), count(distinct user_id) from enriched_events where {org}"
    assert one(connection, events) == (24_069, 3_249)


def test_jaffle_orders_and_customers(connection):
    orders, revenue, _ = one(connection, TOTALS.format(JAFFLE))
    assert (orders, revenue) == (274_821, Decimal("3101152.47"))
    buyers = f"select count(distinct visitor_id) from audience_customers where {JAFFLE} and orders_count > 0"
    assert one(connection, buyers) == (1_801,)


@pytest.mark.parametrize(
    "mart", ["audience_overview_daily", "audience_by_channel_daily", "device_network_daily", "audience_customers"]
)
def test_revenue_and_orders_of_every_mart_are_those_of_the_events(connection, world, mart):
    found = connection.execute(
        "select org_id, sum(orders_count)::int, sum(gross_revenue_amount), sum(net_revenue_amount)"
        f" from {mart} group by 1"
    ).fetchall()
    expected = {org: (world.orders[org], world.revenue[org], world.revenue[org]) for org, _ in world.slices(0)}
    assert {org: tuple(figures) for org, *figures in found} == expected


def test_received_is_accepted_rejected_and_duplicate(connection):
    landed = Counter(dict(connection.execute("select org_id, count(*) from analytics.events group by 1").fetchall()))
    quality = connection.execute(
        "select org_id, sum(received_count)::int, sum(accepted_count + rejected_count + duplicate_count)::int"
        " from data_quality_daily group by 1"
    ).fetchall()
    assert {org: received for org, received, _ in quality} == landed
    assert {org: parts for org, _, parts in quality} == landed
    enriched = connection.execute("select org_id, count(*) from enriched_events group by 1").fetchall()
    assert dict(enriched) == landed


def test_distinct_visitors_add_up_over_any_range(connection, world):
    for _, (_, first, last, org) in zip(range(50), ranges(world, 1), strict=False):
        expected = {activity: world.distinct(org, (), activity, first, last) for activity in ACTIVITIES}
        found = uniques(connection, "audience_overview_uniques_daily", {"org_id": org}, first, last)
        assert found == expected, (org, first, last)


@pytest.mark.parametrize(
    ("columns", "mart", "totals"),
    [
        (CHANNEL, "audience_by_channel_uniques_daily", "audience_by_channel_daily"),
        (DEVICE, "device_network_uniques_daily", "device_network_daily"),
    ],
    ids=["channel", "device"],
)
def test_distinct_visitors_and_sessions_of_a_slice_add_up(connection, world, columns, mart, totals):
    everywhere = world.slices(len(columns))
    listed = sql.SQL("select distinct org_id, {} from {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(mart)
    )
    assert sorted((org, tuple(key)) for org, *key in connection.execute(listed)) == everywhere
    for _, (chance, _, _, _) in zip(range(20), ranges(world, 2), strict=False):
        org, key = chance.choice(everywhere)
        begin, end = world.span(org)
        first, last = sorted(begin + timedelta(chance.randint(0, (end - begin).days)) for _ in range(2))
        where = {"org_id": org} | dict(zip(columns, key, strict=True))
        expected = {activity: world.distinct(org, key, activity, first, last) for activity in ACTIVITIES}
        assert uniques(connection, mart, where, first, last) == expected, (where, first, last)
    sessions = connection.execute(
        sql.SQL("select org_id, {}, event_date, sessions_count from {} where sessions_count > 0").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(totals)
        )
    )
    found = {(org, tuple(key), day): count for org, *key, day, count in sessions}
    assert found == {key: count for key, count in world.sessions.items() if len(key[1]) == len(columns)}


def stage(person: Person) -> str:
    assert person.last_seen
    silent = AS_OF - person.last_seen
    recent = sum(AS_OF - joined < timedelta(days=30) for joined in person.sessions)
    if silent >= timedelta(days=180):
        return "churned"
    if silent >= timedelta(days=60):
        return "at_risk"
    if person.orders >= 4 or (person.orders and recent >= 10):
        return "champion"
    return ("prospect", "customer", "repeat_buyer", "repeat_buyer")[person.orders]


def test_every_customer_is_the_one_of_the_events(connection, world):
    found = connection.execute(
        "select org_id, visitor_id, events_count::int, sessions_count::int, orders_count::int, net_revenue_amount,"
        " first_seen_at, last_seen_at, lifecycle_stage from audience_customers"
    )
    customers = {(org, visitor): tuple(facts) for org, visitor, *facts in found}
    expected = {
        key: (p.events, len(p.sessions), p.orders, p.revenue, p.first_seen, p.last_seen, stage(p))
        for key, p in world.people.items()
    }
    assert customers.keys() == expected.keys()
    differing = [(key, customers[key], facts) for key, facts in expected.items() if customers[key] != facts]
    assert differing == []
    assert {facts[-1] for facts in expected.values()} >= {"churned", "at_risk", "prospect", "customer", "repeat_buyer"}

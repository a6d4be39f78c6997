"""Attribution and acquisition quality against a plain reading of the events in Python, and credit against net revenue.

The expected answers are made from `enriched_events`, one row per event: no mart, visit, order or touch is read for them.
With AUDIENCE_TEST_DATA the same is asked of real events.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from hashlib import md5
from math import sqrt
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from orchestration import database, dbt
from orchestration.build import build
from orchestration.load import load_files
from tests.histories import PLACES
from tests.projects import AS_OF, END, Questions, assert_exact
from tests.readings import MOMENT, ORGS, build_in_batches, rate, sessions_of

FUNCTION = "get_audience_acquisition"
ATTRIBUTIONS = ("first_touch", "last_touch", "last_non_direct", "linear")
WEIGHTS = {"purchase_rate": 40, "lifetime_value": 30, "average_order": 20, "ticket_cta_rate": 10}
PRIORS = {"purchase_rate": 200, "lifetime_value": 200, "average_order": 20, "ticket_cta_rate": 200}
CURRENCIES = {"north_hall": "EUR", "harbor_live": "USD", "nowhere": "USD", "ecom_composite": "USD"}
DIRECT = ("(direct)", "(none)", "(none)", "Direct")
UNATTRIBUTED = ("(unattributed)",) * 4
CENT, MILLIONTH = Decimal("0.01"), Decimal("0.000001")
EVENTS = """
select org_id, event_id, visitor_id, device_id, event_type, source, medium, campaign, channel, has_touch, order_reference,
    revenue_amount, currency, event_date, occurred_at, received_at
from audience.enriched_events
where is_person and occurred_at <= %s and org_id = any(%s)
order by occurred_at, event_id
"""

Source = tuple[str, str, str, str]


def journeys(seed: int) -> list[dict[str, Any]]:
    """People who come from many places over 200 days, on several devices, buy now and then and send some of it back."""
    draw = random.Random(seed)
    rows = []
    for number in range(1_600):
        org, person = draw.choice(list(ORGS)), draw.randrange(18)
        url, referrer = draw.choice(PLACES)
        kind = draw.choice(("page_view", "page_view", "page_view", "Get Tickets", "purchase", "refund"))
        occurred = MOMENT - timedelta(days=draw.choice((1, 30, 90, 200)) * draw.random())
        row = {
            "event_id": f"j{number:04}", "org_id": org, "event_type": kind, "occurred_at": occurred.isoformat(),
            "received_at": (occurred + timedelta(seconds=draw.choice((1, 1, 40 * 3600)))).isoformat(),
            "anonymous_id": draw.choice((f"j{person}", f"j{person}", f"k{person}", None)),
            "user_id": draw.choice((None, None, f"p{person}")), "url": url, "referrer": referrer,
            "properties": {"dnt": "1"} if draw.random() < 0.03 else {},
        }  # fmt: skip
        if kind in ("purchase", "refund"):
            row["properties"] |= {
                "order_id": f"{org}{draw.randrange(150)}",
                "revenue": draw.choice(("10", "0.01", 99.99, 7, None)),
                "currency": draw.choice((None, None, "EUR", "USD", "GBP")),
            }
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """The sample, a crowd and journeys, shuffled into two batches with a build after each."""
    with database.connect(autocommit=True) as opened:
        build_in_batches(
            opened, tmp_path_factory.mktemp("acquisition"), 6_000, [MOMENT - timedelta(days=3), MOMENT], journeys(3)
        )
        yield opened


# What a plain reading says


@dataclass(frozen=True)
class Touch:
    """A session that a visitor took part in, from that visitor's side."""

    started_at: datetime
    session_id: str
    source: Source
    has_touch: bool
    day: date


@dataclass
class Order:
    """An order, or what was refunded without one: number is 0 then."""

    event: Any
    number: int
    net: Decimal


def split(whole: Decimal, parts: Counter[Source], step: Decimal) -> dict[Source, Decimal]:
    """Whole steps for each source by its parts, sources in the order of their names; together the whole."""
    shares, so_far, given = {}, 0, Decimal(0)
    for source in sorted(parts):
        so_far += parts[source]
        up_to = (whole * so_far / parts.total()).quantize(step, ROUND_HALF_UP)
        shares[source], given = up_to - given, up_to
    return shares


class Org:
    """One org's events, read again for every question."""

    def __init__(self, name: str, events: list[Any], fx_rates: list[Any]) -> None:
        self.name, self.fx_rates = name, fx_rates
        self.days = sorted({event.event_date for event in events})
        self.touches: dict[str, list[Touch]] = defaultdict(list)
        self.acts: dict[tuple[Source, str], set[tuple[date, str]]] = defaultdict(set)
        self.sessions: Counter[tuple[Source, date]] = Counter()
        self.own: dict[str, Touch] = {}
        for session in sessions_of([event for event in events if event.device_id]):
            self._take(session)
        for touches in self.touches.values():
            touches.sort(key=lambda touch: (touch.started_at, touch.session_id))
        self.orders = list(self._orders([event for event in events if event.order_reference]))
        for order in self.orders:
            if order.number and order.event.visitor_id:
                own = self.own[order.event.event_id]
                self.acts[own.source, "purchase"].add((order.event.event_date, order.event.visitor_id))

    def _take(self, session: list[Any]) -> None:
        first = session[0]
        told = next((event for event in session if event.has_touch), None)
        source = (told.source, told.medium, told.campaign, told.channel) if told else DIRECT
        session_id = md5(f"({','.join(map(quoted, (first.org_id, first.device_id, first.event_id)))})".encode())
        self.sessions[source, first.event_date] += 1
        for visitor in {event.visitor_id for event in session}:
            own = [event for event in session if event.visitor_id == visitor]
            touch = Touch(first.occurred_at, session_id.hexdigest(), source, told is not None, own[0].event_date)
            self.touches[visitor].append(touch)
            for event in own:
                self.own[event.event_id] = touch
                for activity in {"visit", event.event_type} & {"visit", "ticket_cta", "checkout_start"}:
                    self.acts[source, activity].add((event.event_date, visitor))

    def _amount(self, event: Any) -> Decimal | None:
        """In the org's currency; None for a refund that says nothing."""
        own = CURRENCIES[self.name]
        if event.revenue_amount is None:
            return None if event.event_type == "refund" else Decimal(0)
        if (event.currency or own) == own:
            return event.revenue_amount.quantize(CENT, ROUND_HALF_UP)
        valid = [fx for fx in self.fx_rates if (fx.currency, fx.to_currency) == (event.currency, own)]
        latest = max((fx for fx in valid if fx.valid_from <= event.event_date), key=lambda fx: fx.valid_from)
        return (event.revenue_amount * latest.rate).quantize(CENT, ROUND_HALF_UP)

    def _orders(self, events: list[Any]) -> Iterator[Order]:
        buyers: dict[str, set[str | None]] = defaultdict(set)
        for event in events:
            if event.event_type == "purchase":
                buyers[event.order_reference].add(event.visitor_id)
        lines: dict[tuple[str, str | None], list[Any]] = defaultdict(list)
        for event in events:
            of = buyers[event.order_reference]
            is_of_the_buyer = event.event_type == "refund" and len(of) == 1
            lines[event.order_reference, next(iter(of)) if is_of_the_buyer else event.visitor_id].append(event)
        for (_, visitor), group in lines.items():
            group.sort(key=lambda e: (e.event_type == "refund", e.received_at, e.occurred_at, e.event_id))
            event, refunds = group[0], [self._amount(line) for line in group if line.event_type == "refund"]
            is_order = event.event_type == "purchase"
            gross = self._amount(event) if is_order else Decimal(0)
            back = gross if is_order and None in refunds else sum(filter(None, refunds), Decimal(0))
            assert event.visitor_id == visitor
            yield Order(event, int(is_order), gross - back)

    def credit(self, order: Order, attribution: str) -> dict[Source, tuple[Decimal, Decimal]]:
        """Orders and net revenue by source."""
        at, visitor = order.event.occurred_at, order.event.visitor_id
        if visitor is None:
            return {UNATTRIBUTED: (Decimal(order.number), order.net)}
        own, touches = self.own[order.event.event_id], [t for t in self.touches[visitor] if t.started_at <= at]
        if attribution == "linear":
            parts = Counter(touch.source for touch in touches if touch.started_at >= at - timedelta(days=90))
            orders, nets = split(Decimal(order.number), parts, MILLIONTH), split(order.net, parts, CENT)
            return {source: (orders[source], nets[source]) for source in parts}
        source = touches[0].source if attribution == "first_touch" else own.source
        if attribution == "last_non_direct" and not own.has_touch:
            told = [touch for touch in touches if touch.has_touch]
            if told and told[-1].started_at >= own.started_at - timedelta(days=30):
                source = told[-1].source
        return {source: (Decimal(order.number), order.net)}

    def rows(self, first: date, last: date, attribution: str) -> dict[Source, dict[str, Any]]:
        facts: dict[Source, Facts] = defaultdict(Facts)
        for (source, activity), acts in self.acts.items():
            facts[source].people[activity] = len({who for day, who in acts if first <= day <= last})
        for (source, day), count in self.sessions.items():
            facts[source].sessions += count if first <= day <= last else 0
        for order in self.orders:
            if first <= order.event.event_date <= last:
                for source, (number, net) in self.credit(order, attribution).items():
                    facts[source].orders += number
                    facts[source].net += net
        brought = {who: touches[0] for who, touches in self.touches.items() if first <= touches[0].day <= last}
        for touch in brought.values():
            facts[touch.source].new_visitors += 1
        for order in self.orders:
            if order.event.visitor_id in brought:
                facts[brought[order.event.visitor_id].source].lifetime += order.net
        facts = {source: fact for source, fact in facts.items() if fact.is_any}
        means = {}
        for component in WEIGHTS:
            totals, sizes = (
                zip(*(fact.components()[component] for fact in facts.values()), strict=True) if facts else ((), ())
            )
            means[component] = Fraction(sum(totals)) / Fraction(sum(sizes)) if sum(sizes) else None
        return {source: fact.row(means) for source, fact in facts.items()}


@dataclass
class Facts:
    """What a source has in a range."""

    people: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    new_visitors: int = 0
    orders: Decimal = Decimal(0)
    net: Decimal = Decimal(0)
    lifetime: Decimal = Decimal(0)

    @property
    def is_any(self) -> bool:
        return any((*self.people.values(), self.sessions, self.new_visitors, self.orders, self.net, self.lifetime))

    def components(self) -> dict[str, tuple[Decimal, Decimal]]:
        visits, buyers, clickers = (Decimal(self.people[name]) for name in ("visit", "purchase", "ticket_cta"))
        return {
            "purchase_rate": (buyers, visits),
            "lifetime_value": (self.lifetime, Decimal(self.new_visitors)),
            "average_order": (self.net, self.orders),
            "ticket_cta_rate": (clickers, visits),
        }

    def row(self, means: dict[str, Fraction | None]) -> dict[str, Any]:
        visits, buyers = self.people["visit"], self.people["purchase"]
        points: dict[str, Fraction] = {}
        for component, (total, size) in self.components().items():
            mean, prior = means[component], PRIORS[component]
            if visits and mean and mean > 0:
                shrunk = (Fraction(total) + prior * mean) / (Fraction(size) + prior)
                points[component] = min(Fraction(100), max(Fraction(0), 50 * shrunk / mean))
        weight = sum(WEIGHTS[component] for component in points)
        score = sum(points[component] * WEIGHTS[component] for component in points) / weight if weight else None
        return {
            "visitors_count": visits,
            "sessions_count": self.sessions,
            "buyers_count": buyers,
            "new_visitors_count": self.new_visitors,
            "orders_count": self.orders,
            "net_revenue_amount": self.net,
            "average_order_amount": (self.net / self.orders).quantize(CENT, ROUND_HALF_UP) if self.orders else None,
            "lifetime_value_amount": (self.lifetime / self.new_visitors).quantize(CENT, ROUND_HALF_UP)
            if self.new_visitors
            else None,
            "ticket_cta_rate": rate(self.people["ticket_cta"], visits),
            "checkout_rate": rate(self.people["checkout_start"], visits),
            "purchase_rate": rate(buyers, visits),
            "interval": wilson(buyers, visits),
            "score": score,
            "points": points,
        }


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    if not trials:
        return None
    share, spread = successes / trials, 1.96**2 / trials
    middle, half = share + spread / 2, 1.96 * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def quoted(text: str) -> str:
    """A text in a record, as PostgreSQL writes it."""
    return f'"{text}"' if any(mark in text for mark in ' ,()"\\') else text


def read(connection: psycopg.Connection, names: list[str]) -> dict[str, Org]:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        fx_rates = cursor.execute("select * from audience_seeds.fx_rates").fetchall()
        events = cursor.execute(EVENTS, [MOMENT, names]).fetchall()
    found = {name: [event for event in events if event.org_id == name] for name in names}
    return {name: Org(name, rows, fx_rates) for name, rows in found.items()}


@pytest.fixture(scope="module")
def orgs(connection: psycopg.Connection) -> dict[str, Org]:
    return read(connection, list(ORGS))


def assert_answers(connection: psycopg.Connection, orgs: dict[str, Org], draws: int, seed: int) -> Counter[str]:
    """Asks of random orgs, ranges and attributions; returns how often what was seen."""
    draw, seen = random.Random(seed), Counter()
    for number in range(draws):
        org, attribution = draw.choice(list(orgs.values())), draw.choice(ATTRIBUTIONS)
        begin, end = org.days[0], org.days[-1]
        first, last = sorted(begin + timedelta(draw.randint(-3, (end - begin).days + 3)) for _ in range(2))
        if draw.random() < 0.15:
            first, last = begin, end
        expected = org.rows(first, last, attribution)
        given = Questions(connection).ask(FUNCTION, org.name, first, last, attribution)
        question = (number, org.name, first, last, attribution)
        assert given == sorted(
            given,
            key=lambda row: (-row["net_revenue_amount"], -row["visitors_count"], row["source"], row["medium"], row["campaign"]),
        ), question  # fmt: skip
        by_source = {(row["source"], row["medium"], row["campaign"], row["channel"]): row for row in given}
        assert by_source.keys() == expected.keys(), question
        for source, wanted in expected.items():
            row = by_source[source]
            interval, score, points = wanted.pop("interval"), wanted.pop("score"), wanted.pop("points")
            assert {name: row[name] for name in wanted} == wanted, (question, source)
            if interval is None:
                assert (row["purchase_rate_low"], row["purchase_rate_high"]) == (None, None)
            else:
                low, high = float(row["purchase_rate_low"]), float(row["purchase_rate_high"])
                assert (low, high) == pytest.approx(interval, abs=1e-6), (question, source)
            for component in WEIGHTS:
                assert_rounded(row[f"{component}_points"], points.get(component), (question, source, component))
            assert_rounded(row["quality_score"], score, (question, source))
            assert row["quality_band"] == band(row["quality_score"])
            seen[str(row["quality_band"])] += 1
            seen[source[3]] += 1
            seen["divided"] += wanted["orders_count"] % 1 != 0
            seen["negative"] += wanted["net_revenue_amount"] < 0
        seen[attribution] += 1
    return seen


def assert_rounded(given: Decimal | None, exact: Fraction | None, question: Any) -> None:
    """Rounded to a tenth; what lies in the middle may go either way."""
    assert (given is None) == (exact is None), question
    assert given is None or abs(Fraction(given) - exact) <= Fraction(1, 20) + Fraction(1, 10**9), question


def band(score: Decimal | None) -> str | None:
    return None if score is None else "high" if score >= 67 else "low" if score < 40 else "medium"


def test_acquisition_is_what_the_events_say(connection, orgs):
    seen = assert_answers(connection, orgs, 160, 1)
    assert min(seen[name] for name in ("high", "medium", "low", "None", "divided", "negative", *ATTRIBUTIONS)) > 10
    assert {"Direct", "Organic Search", "Paid Search", "Email", "(unattributed)"} <= seen.keys()


def assert_conserved(connection: psycopg.Connection, orgs: dict[str, Org]) -> None:
    """Of every org, day and attribution: the credit in the mart is the net revenue of the day's orders."""
    for org in orgs.values():
        orders, nets = Counter(), Counter()
        for order in org.orders:
            orders[order.event.event_date] += order.number
            nets[order.event.event_date] += order.net
        for attribution in ATTRIBUTIONS:
            found = connection.execute(
                f"select event_date, sum({attribution}_orders_count), sum({attribution}_net_revenue_amount)"
                " from audience.audience_acquisition_daily where org_id = %s group by event_date",
                [org.name],
            ).fetchall()
            assert {day: (count, net) for day, count, net in found if count or net} == {
                day: (orders[day], nets[day]) for day in orders if orders[day] or nets[day]
            }, (org.name, attribution)


def test_credit_of_every_day_is_its_net_revenue(connection, orgs):
    assert_conserved(connection, orgs)
    for org in orgs.values():
        total = sum(order.net for order in org.orders)
        for attribution in ATTRIBUTIONS:
            rows = Questions(connection).ask(FUNCTION, org.name, org.days[0], org.days[-1], attribution)
            assert sum(row["net_revenue_amount"] for row in rows) == total
            assert sum(row["orders_count"] for row in rows) == sum(order.number for order in org.orders)


def test_last_touch_is_what_the_channels_show(connection):
    differing = """
    select org_id, source, medium, campaign, channel, event_date
    from audience.audience_by_channel_daily full join audience.audience_acquisition_daily
        using (org_id, source, medium, campaign, channel, event_date)
    where coalesce(orders_count, 0) <> coalesce(last_touch_orders_count, 0)
        or coalesce(net_revenue_amount, 0) <> coalesce(last_touch_net_revenue_amount, 0)
    """
    assert connection.execute(differing).fetchall() == []


def test_new_visitors_and_their_revenue_are_those_of_the_customers(connection):
    customers = """
    select org_id, first_touch_source, first_touch_medium, first_touch_campaign, first_touch_channel, count(*), sum(net_revenue_amount)
    from audience.audience_customers group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4
    """
    daily = """
    select org_id, source, medium, campaign, channel, sum(new_visitors_count), sum(new_visitors_net_revenue_amount)
    from audience.audience_acquisition_daily group by 1, 2, 3, 4, 5 having sum(new_visitors_count) > 0 order by 1, 2, 3, 4
    """
    found = connection.execute(daily).fetchall()
    assert found == connection.execute(customers).fetchall() and len(found) > 20


def test_the_attribution_may_be_left_out(connection):
    whole = ("north_hall", date(2026, 1, 1), END)
    ask = Questions(connection).ask
    assert ask(FUNCTION, *whole) == ask(FUNCTION, *whole, p_attribution="last_non_direct")
    assert ask(FUNCTION, *whole) != ask(FUNCTION, *whole, p_attribution="last_touch")


# The rules by themselves, of columns a, b, c and d: what each gives for some rows of them

RULES = {
    "wilson_bound('a', 'b', '-')": [([(0, 10)], "0"), ([(1, 10)], "0.017876"), ([(10, 10)], "0.722460"), ([(0, 0)], None)],
    "wilson_bound('a', 'b', '+')": [([(0, 10)], "0.277540"), ([(1, 10)], "0.404156"), ([(10, 10)], "1"), ([(0, 0)], None)],
    # as much of the mean beside it as the prior says
    "shrunk_mean('a', 'b', 'c', 'd')": [([(20, 10, 1, 10)], "1.5"), ([(0, 0, 3, 20)], "3"), ([(-10, 10, 1, 10)], "0")],
    # 50 at the mean, 100 from twice the mean on, 0 below nothing; without a positive mean there are none
    "quality_points('a', 'b', 'c', 'd')": [
        ([(10, 10, 1, 10)], "50"), ([(0, 0, 1, 10)], "50"), ([(30, 10, 1, 10)], "100"), ([(90, 10, 1, 10)], "100"),
        ([(-50, 10, 1, 10)], "0"), ([(5, 10, 0, 10)], None), ([(5, 10, -1, 10)], None), ([(5, 10, None, 10)], None),
    ],
    # what has no points leaves its weight to the others
    "quality_score('a', 'b')": [
        ([(100, 40), (50, 10)], "90"), ([(100, 40), (50, 10), (None, 50)], "90"), ([(None, 40)], None), ([(80, 0)], None),
    ],
    "quality_band('a')": [([(67,)], "high"), ([(66.9,)], "medium"), ([(40,)], "medium"), ([(39.9,)], "low"), ([(None,)], None)],
    # the second of three equal parts gets the cent that is left over, also when it is taken back
    "credit_share('a', 'b', 'c', 'd', 2)": [
        ([(10, 1, 1, 3)], "3.33"), ([(10, 1, 2, 3)], "3.34"), ([(-10, 1, 2, 3)], "-3.34"), ([(10, 3, 3, 3)], "10"), ([(None, 1, 1, 2)], None),
    ],
    "is_explained_by_earlier_touch('a > 0', \"timestamptz '2026-03-31' + b * interval '1 second'\", \"timestamptz '2026-03-01'\")": [
        ([(0, 0)], "true"), ([(0, 1)], "false"), ([(1, 0)], "false"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled_rules(connection: psycopg.Connection) -> dict[str, str]:
    """Each rule as SQL."""
    marks = "".join(f"/* rule */ {{{{ {rule} }}}}" for rule in RULES)
    done = dbt.run("--quiet", "compile", "--inline", marks)
    assert done.returncode == 0, done.stdout
    return dict(zip(RULES, done.stdout.split("/* rule */")[1:], strict=True))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.split("'")[0])
def test_a_rule_at_its_limits(connection, compiled_rules, rule):
    for rows, wanted in RULES[rule]:
        values = ", ".join(f"({', '.join('null' if v is None else str(v) for v in row)})" for row in rows)
        typed = ", ".join(f"cast({name} as numeric) as {name}" for name in "abcd"[: len(rows[0])])
        names = ", ".join("abcd"[: len(rows[0])])
        (given,) = connection.execute(
            f"select cast({compiled_rules[rule]} as text) from (select {typed} from (values {values}) as given ({names})) as rows"
        ).fetchone()
        is_number = wanted is not None and wanted.lstrip("-")[0].isdigit()
        assert (given if not is_number else Decimal(given)) == (wanted if not is_number else Decimal(wanted)), rows


def test_every_table_is_exact_after_increments(connection):
    assert_exact()


def test_on_real_events(connection, audience_test_data: Path):
    load_files([audience_test_data / "ecom_composite_events.ndjson.gz"])
    build(as_of=AS_OF)
    orgs = read(connection, ["ecom_composite"])
    assert (len(orgs["ecom_composite"].orders), sum(order.net for order in orgs["ecom_composite"].orders)) == (
        2_962,
        Decimal("106028.27"),
    )
    assert_conserved(connection, orgs)
    assert_answers(connection, orgs, 100, 2)

"""Random histories of raw events, and how they arrive: hypothesis strategies, with small pools so that things collide.

Few devices, users, order ids and moments: most histories have shared devices, repeated deliveries, ties, orders of two
visitors and sessions that meet. Values lie on the edges of the rules (exactly 30 minutes, midnight, the limit of days).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

ORGS = ("north_hall", "north_hall", "north_hall", "harbor_live", "harbor_live", "nowhere")
USERS = ("u1", "u2", "u3", "u4", "u5")
DEVICES = ("d1", "d1", "d2", "u1")  # a device may be named as a user is
AGENTS = (
    None,
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "something else",
)

# Around these, days, weeks and clocks change: a Sunday night in Berlin and a Saturday night in New York (where weeks
# start on different days in the orgs seed), and the four nights in which one of the two clocks is put on or back.
ANCHORS = tuple(
    datetime.fromisoformat(text)
    for text in (
        "2026-06-07T21:50:00Z",
        "2026-06-07T03:50:00Z",
        "2026-03-28T22:50:00Z",
        "2026-03-29T00:50:00Z",
        "2025-10-26T00:50:00Z",
        "2026-03-08T06:50:00Z",
        "2025-11-02T05:50:00Z",
    )
)
DAYS = (0, 0, 0, 0, 1, 2, 6, 7, 28, 29, 30, 31, 59, 60, 61, 179, 180, 181, -1, -7, -30, -400)
SECONDS = (0, 0, 599, 600, 1800, 1801, 3600, 7200, 43200)
GAPS = (0, 1, 60, 1799, 1800, 1800, 1801, 7200)
# Days and seconds from an event to its receipt, within the tolerated clock error of a day.
DELAYS = ((0, 1), (0, 1), (0, 1), (0, -1), (0, 3600), (-1, 0), (1, 0), (1, 1), (3, 0), (40, 0), (400, 0))

EVENT_TYPES = ("page_view", "page_view", "Get Tickets", "checkout_start", "product_view", "scroll")
PROPERTIES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"utm_source": "newsletter", "utm_medium": "email", "utm_campaign": "June"},
    {"utm_campaign": "june"},
    {"gclid": "click1"},
    {"page_load_ms": 1200, "effective_type": "4g"},
    {"page_load_ms": "9000", "network_type": "3g"},
    {"device_type": "tablet", "connection_type": "wifi"},
    {"consent": "granted"},
    {"consent": "denied"},
    {"dnt": "1"},
    {"gpc": True},
    {"email": " A@example.org ", "name": "A"},
    {"email": "b@example.org", "phone": "+49 1"},
    {"internal": "true"},
)
PLACES = (
    (None, None),
    (None, None),
    ("https://northhall.example/e/1", None),
    ("https://northhall.example/e/1?utm_source=Face+Book&utm_medium=cpc", "https://l.facebook.com/"),
    ("https://harborlive.example/?gclid=abc", "https://www.google.com/"),
    ("https://northhall.example/e/2", "https://www.google.com/"),
    ("https://northhall.example/e/2", "https://www.northhall.example/e/1"),
    ("https://harborlive.example/e/2", "https://blog.example.net/a"),
    ("https://northhall.example/paid", "https://www.paypal.com/"),
)
STATEMENTS = ("denied", "granted", "denied", "GRANTED ", "no such state")
ORDER_IDS = ("o1", "o1", "o2", None)
REVENUES = ("10", 25.5, "25.50", 0, None)
CURRENCIES = (None, None, "EUR", "usd", "CHF", "JPY")  # the last has no rate
# Rows that cannot be used, each for another reason, by what is wrong with them.
UNUSABLE: tuple[dict[str, Any], ...] = (
    {"org_id": None},
    {"event_type": " "},
    {"occurred_at": None},
    {"properties": ["a list"]},
    {"properties": {"revenue": "-5"}},
    {"properties": {"revenue": "1,000"}},
    {"anonymous_id": "x" * 300},
)


@dataclass(frozen=True)
class Row:
    """One delivery, with the columns that a collector writes."""

    event_id: str | None
    org_id: str | None
    event_type: str
    occurred_at: datetime | None
    received_at: datetime
    anonymous_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    url: str | None = None
    referrer: str | None = None
    user_agent: str | None = None
    properties: Any = None

    def columns(self) -> dict[str, Any]:
        return {**asdict(self), "properties": json.dumps(self.properties or {})}

    def __str__(self) -> str:
        known = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        return ", ".join(f"{name} {clock(value)}" for name, value in known.items())


def clock(value: Any) -> str:
    return value.isoformat(" ").replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


@dataclass(frozen=True)
class Land:
    """Inserts rows, by their numbers: new ones, repeated ones and those that were deleted before."""

    rows: tuple[int, ...]


@dataclass(frozen=True)
class LandSlowly(Land):
    """Inserts rows in a transaction that is open while the build runs, and is committed after it."""


@dataclass(frozen=True)
class ErasePerson:
    org_id: str
    person: str


@dataclass(frozen=True)
class EraseRows:
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Correct:
    """Updates one column of a landed row."""

    row: int
    column: str
    value: Any


@dataclass(frozen=True)
class ParseAnew:
    """A newer parser judges a user agent differently."""

    user_agent: str


@dataclass(frozen=True)
class LandUnreadable:
    """A row of a file that could not become an event."""

    org_id: str | None
    received_at: datetime


@dataclass(frozen=True)
class Truncate:
    """Empties the landing table."""


Action = Land | LandSlowly | ErasePerson | EraseRows | Correct | ParseAnew | LandUnreadable | Truncate


@dataclass(frozen=True)
class Step:
    """What happens to the landing tables, and then one build."""

    as_of: datetime
    actions: tuple[Action, ...]
    in_one_transaction: bool
    parses_user_agents: bool

    @property
    def is_slow(self) -> bool:
        return any(isinstance(action, LandSlowly) for action in self.actions)

    def __str__(self) -> str:
        what = [f"  {action}" for action in self.actions] or ["  nothing lands"]
        how = ["  (in one transaction)"] if self.in_one_transaction else []
        parsed = "" if self.parses_user_agents else ", user agents are not parsed"
        return "\n".join([*what, *how, f"  build as of {clock(self.as_of)}{parsed}"])


@dataclass(frozen=True, repr=False)
class History:
    """Rows, and the steps in which they arrive, change and go."""

    rows: tuple[Row, ...]
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        rows = "".join(f"\n{number:3} {row}" for number, row in enumerate(self.rows))
        steps = "".join(f"\nstep {number}\n{step}" for number, step in enumerate(self.steps))
        return f"a history of {len(self.rows)} rows{rows}{steps}\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis, which would print the fields of a dataclass one by one."""
        printer.text(repr(self))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Histories of 1 to about 100 deliveries that arrive in 2 to 4 steps."""
    anchor = draw(st.sampled_from(ANCHORS))
    episodes = [draw(_episodes(anchor)) for _ in range(draw(st.integers(4, 12)))]
    rows = _named([row for episode in episodes for row in episode])
    assume(rows)
    rows += [draw(_repeated(rows)) for _ in range(draw(st.sampled_from((0, 1, 2, 5))))]
    count = draw(st.sampled_from((2, 3, 3, 4)))
    batch_of = [draw(st.integers(0, count - 1)) for _ in rows]
    steps = []
    for number in range(count):
        batch = [index for index in range(len(rows)) if batch_of[index] == number]
        steps.append(draw(_steps(rows, batch, is_first=number == 0, is_last=number == count - 1)))
    return History(tuple(rows), tuple(steps))


def _named(rows: list[Row]) -> list[Row]:
    """Gives ids that do not follow the time, and are the same in several orgs; a few rows stay without."""
    ids: dict[str | None, int] = {}
    named = []
    for row in rows:
        number = ids[row.org_id] = ids.get(row.org_id, 0) + 1
        named.append(row if row.event_id == "" else replace(row, event_id=f"e{number * 37 % 101:02}"))
    return named


# What people do


@st.composite
def _episodes(draw: st.DrawFn, anchor: datetime) -> list[Row]:
    """The rows of one thing that happens."""
    start = anchor + timedelta(days=draw(st.sampled_from(DAYS)), seconds=draw(st.sampled_from(SECONDS)))
    kinds = (_nothing, _visit, _visit, _visit, _login, _order, _order, _order_of_two, _statement, _statement, _signals,
             _shared_device, _marathon, _regular, _unusable)  # fmt: skip
    base = Row(
        event_id=None,
        org_id=draw(st.sampled_from(ORGS)),
        event_type="page_view",
        occurred_at=start,
        received_at=start,
        anonymous_id=draw(st.sampled_from(DEVICES)),
        user_agent=draw(st.sampled_from(AGENTS)),
    )
    return draw(st.sampled_from(kinds))(draw, base)


def _at(draw: st.DrawFn, row: Row, moment: datetime, **changes: Any) -> Row:
    """The row at another moment, received some time after it."""
    days, seconds = draw(st.sampled_from(DELAYS))
    return replace(row, occurred_at=moment, received_at=moment + timedelta(days=days, seconds=seconds), **changes)


def _nothing(draw: st.DrawFn, base: Row) -> list[Row]:
    """For a failing history to become smaller."""
    return []


def _visit(draw: st.DrawFn, base: Row) -> list[Row]:
    moment, user = base.occurred_at, draw(st.sampled_from((None, None, "u1", "u2")))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        url, referrer = draw(st.sampled_from(PLACES))
        event_type, properties = draw(st.sampled_from(EVENT_TYPES)), draw(st.sampled_from(PROPERTIES))
        is_named = draw(st.integers(0, 19)) < 19
        rows.append(
            _at(draw, base, moment, event_id=None if is_named else "", event_type=event_type, properties=properties,
                url=url, referrer=referrer, user_id=user)
        )  # fmt: skip
        moment += timedelta(seconds=draw(st.sampled_from(GAPS)))
        user = draw(st.sampled_from((user, user, user, None, "u1", "u3")))
    return rows


def _login(draw: st.DrawFn, base: Row) -> list[Row]:
    return [_at(draw, base, base.occurred_at, event_type="login", user_id=draw(st.sampled_from(USERS)))]


def _shared_device(draw: st.DrawFn, base: Row) -> list[Row]:
    """A device that identifies as 3 to 5 users: 3 are few enough."""
    rows = []
    for number, user in enumerate(USERS[: draw(st.integers(3, 5))]):
        moment = base.occurred_at + timedelta(minutes=40 * number)
        rows.append(_at(draw, base, moment, event_type="identify", user_id=user))
    return rows


def _order(draw: st.DrawFn, base: Row, order_id: str | None = "draw") -> list[Row]:
    """A purchase, perhaps sent twice, and refunds by the buyer, the shop's system or a user without a device."""
    properties = {
        "order_id": draw(st.sampled_from(ORDER_IDS)) if order_id == "draw" else order_id,
        "revenue": draw(st.sampled_from(REVENUES)),
        "currency": draw(st.sampled_from(CURRENCIES)),
    }
    user = draw(st.sampled_from((None, None, "u1", "u2")))
    device = draw(st.sampled_from((base.anonymous_id, base.anonymous_id, None)))
    buyer = replace(base, anonymous_id=device, user_id=user)
    rows = [_at(draw, buyer, base.occurred_at, event_type="purchase", properties=properties)]
    for _ in range(draw(st.sampled_from((0, 0, 1)))):
        later = base.occurred_at + timedelta(seconds=draw(st.sampled_from(GAPS)))
        again = {**properties, "revenue": draw(st.sampled_from(REVENUES))}
        rows.append(_at(draw, buyer, later, event_type="order_completed", properties=again))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        moment = base.occurred_at + timedelta(days=draw(st.sampled_from((0, 1, 7, -1))), minutes=5)
        device, user = draw(st.sampled_from(((base.anonymous_id, None), (None, None), (None, "shop"), (None, "u1"))))
        refund = {**properties, "revenue": draw(st.sampled_from(("5", None, "25.50")))}
        sender = replace(base, anonymous_id=device, user_id=user)
        rows.append(_at(draw, sender, moment, event_type="refund", properties=refund))
    return rows


def _order_of_two(draw: st.DrawFn, base: Row) -> list[Row]:
    """The same order id from two devices."""
    other = replace(base, anonymous_id=draw(st.sampled_from(DEVICES)))
    return [*_order(draw, base, "o1"), *_order(draw, other, "o1")]


def _statement(draw: st.DrawFn, base: Row) -> list[Row]:
    """Statements of consent, by a device, by a user or by both, with an event after each."""
    device, user = draw(st.sampled_from(((base.anonymous_id, None), (None, "u1"), (base.anonymous_id, "u1"))))
    moment, rows = base.occurred_at, []
    for _ in range(draw(st.integers(1, 3))):
        state = {"consent": draw(st.sampled_from(STATEMENTS))}
        sender = replace(base, anonymous_id=device, user_id=user)
        rows.append(_at(draw, sender, moment, event_type="consent", properties=state))
        moment += timedelta(seconds=draw(st.sampled_from(GAPS)))
        rows.append(_at(draw, replace(base, user_id=draw(st.sampled_from((None, "u1")))), moment))
        moment += timedelta(days=draw(st.sampled_from((0, 0, 1, 30))))
    return rows


def _signals(draw: st.DrawFn, base: Row) -> list[Row]:
    """Events that each carry a signal of their own, of nobody in particular too."""
    rows = []
    for number in range(draw(st.integers(1, 3))):
        device, user = draw(st.sampled_from(((base.anonymous_id, None), (None, None), ("", "u2"), (None, "u2"))))
        moment = base.occurred_at + timedelta(minutes=10 * number)
        sender = replace(base, anonymous_id=device, user_id=user)
        rows.append(_at(draw, sender, moment, properties=draw(st.sampled_from(PROPERTIES[6:]))))
    return rows


def _marathon(draw: st.DrawFn, base: Row) -> list[Row]:
    """A device that never sleeps: a chain without a long gap that is longer than one session may be."""
    count = draw(st.sampled_from((13, 25, 26)))
    rows, moment = [], base.occurred_at
    delay = timedelta(seconds=draw(st.sampled_from((1, 86400, 864000))))
    for number in range(count):
        user = "u1" if number == count - 1 and draw(st.booleans()) else None
        rows.append(replace(base, occurred_at=moment, received_at=moment + delay, user_id=user))
        moment += timedelta(seconds=1800)
        if number % 2:  # half of the steps in between are filled by one event more, in a session of 24 hours or more
            rows.append(replace(base, occurred_at=moment, received_at=moment + delay, event_type="scroll"))
            moment += timedelta(seconds=1800)
        else:
            moment += timedelta(seconds=draw(st.sampled_from((0, 0, 0, 1))))
    return rows


def _regular(draw: st.DrawFn, base: Row) -> list[Row]:
    """Somebody who comes often enough to be a champion, and buys now and then."""
    rows = []
    days = draw(st.sampled_from((1, 2, 3)))
    for number in range(draw(st.integers(9, 12))):
        moment = base.occurred_at + timedelta(days=days * number)
        is_order = number in (4, 8) and draw(st.booleans())
        properties = {"order_id": f"r{number}", "revenue": 10} if is_order else None
        rows.append(_at(draw, base, moment, event_type="purchase" if is_order else "page_view", properties=properties))
    return rows


def _unusable(draw: st.DrawFn, base: Row) -> list[Row]:
    """A row that cannot be used, and perhaps the same corrected, under the same id."""
    return [replace(base, **draw(st.sampled_from(UNUSABLE))), *([base] if draw(st.booleans()) else [])]


@st.composite
def _repeated(draw: st.DrawFn, rows: list[Row]) -> Row:
    """A further delivery: received at another time or the same one, with the same content or another."""
    row = draw(st.sampled_from(rows))
    received = row.received_at + timedelta(seconds=draw(st.sampled_from((0, 0, -3600, 1, 3600, 864000))))
    return replace(row, received_at=received, **dict(draw(st.sampled_from(((), *_changes(row))))))


def _changes(row: Row) -> list[tuple[tuple[str, Any], ...]]:
    """Other contents of a column, for deliveries and corrections."""
    moved = [
        (("occurred_at", row.occurred_at + timedelta(seconds=seconds)),)
        for seconds in (-7200, 1, 1801, -86400, 2592000)
        if row.occurred_at
    ]
    others = [
        ("event_type", "page_view"), ("event_type", "purchase"), ("event_type", "consent"), ("event_type", "refund"),
        ("anonymous_id", "d2"), ("anonymous_id", None), ("user_id", "u2"), ("user_id", "u4"), ("user_id", None),
        ("user_agent", AGENTS[1]), ("user_agent", AGENTS[3]), ("referrer", "https://www.google.com/"),
        ("properties", {}), ("properties", {"consent": "denied"}), ("properties", {"email": "c@example.org"}),
        ("properties", {"order_id": "o1", "revenue": "7"}), ("properties", {"revenue": "-1"}),
        ("properties", {"utm_source": "other"}),
    ]  # fmt: skip
    return [*moved, *((change,) for change in others)]


# How it arrives


@st.composite
def _steps(draw: st.DrawFn, rows: list[Row], batch: list[int], is_first: bool, is_last: bool) -> Step:
    order = draw(st.integers(0, 3))
    batch = sorted(batch, key=lambda index: md5(f"{order} {index}".encode()).hexdigest() if order else f"{index:03}")
    actions: list[Action] = []
    if not is_first:
        actions += [draw(_interventions(rows)) for _ in range(draw(st.sampled_from((0, 1, 1, 2, 3))))]
    is_slow = bool(batch) and not is_last and draw(st.integers(0, 7)) == 7
    if batch:
        actions.append(LandSlowly(tuple(batch)) if is_slow else Land(tuple(batch)))
    return Step(
        as_of=draw(_moments(rows)),
        actions=tuple(actions),
        in_one_transaction=not is_slow and draw(st.booleans()),
        parses_user_agents=draw(st.integers(0, 4)) < 4,
    )


@st.composite
def _interventions(draw: st.DrawFn, rows: list[Row]) -> Action:
    numbers = st.integers(0, len(rows) - 1)
    kind = draw(st.sampled_from(
        ("rows", "rows", "person", "person", "correct", "correct", "correct", "again", "again", "parser", "unreadable",
         "truncate")
    ))  # fmt: skip
    match kind:
        case "rows":
            return EraseRows(tuple(draw(st.lists(numbers, min_size=1, max_size=4, unique=True))))
        case "person":
            return ErasePerson(draw(st.sampled_from(ORGS)), draw(st.sampled_from((*USERS, *DEVICES))))
        case "correct":
            row = draw(numbers)
            other_key = draw(st.sampled_from(((("org_id", "harbor_live"),), (("event_id", "e37"),))))
            ((column, value),) = draw(st.sampled_from((*_changes(rows[row]), *_receipts(rows[row]), other_key)))
            return Correct(row, column, value)
        case "again":
            return Land(tuple(draw(st.lists(numbers, min_size=1, max_size=4, unique=True))))
        case "parser":
            return ParseAnew(draw(st.sampled_from([agent for agent in AGENTS if agent])))
        case "unreadable":
            row = draw(st.sampled_from(rows))
            return LandUnreadable(draw(st.sampled_from((row.org_id, None))), row.received_at)
        case _:
            return Truncate()


def _receipts(row: Row) -> list[tuple[tuple[str, Any], ...]]:
    """Other times of receipt: on another day, before the event, or so early that the row is rejected."""
    return [
        (("received_at", row.received_at + timedelta(seconds=seconds)),) for seconds in (-90000, -3600, 3600, 864000)
    ]


@st.composite
def _moments(draw: st.DrawFn, rows: list[Row]) -> datetime:
    """Moments to build for: at, just before or some days after an event, so that limits of days are met exactly."""
    known = sorted(row.occurred_at for row in rows if row.occurred_at) or [ANCHORS[0]]
    place = draw(st.sampled_from((1.0, 1.0, 0.9, 0.5, 0.0)))
    days = draw(st.sampled_from((0, 0, 1, 1, 2, 7, 30, 31, 60, 61, 180, 181, 400)))
    seconds = draw(st.sampled_from((0, 0, 1, -1, 1800, 86400)))
    return known[int(place * (len(known) - 1))].astimezone(UTC) + timedelta(days=days, seconds=seconds)

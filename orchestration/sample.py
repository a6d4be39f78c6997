"""Seeded sample events: two organisers, four months, in the files a collector would hand over.

People own devices, devices have sessions, sessions have events. Each level is a set of equally long numpy
arrays that point at the level above by index, and text is made only while a file is written, so the memory
held is a few dozen bytes per event. Times are int64 milliseconds since 1970 in UTC unless named local.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import csv, parquet

SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
DAYS = 122
DAY_FILES = 7
MIN_EVENTS = 1_000
BAD_ROWS = 12
REPEATED = 0.005
LATE = 0.01
CHUNK = 50_000
NO_ORG, NO_TYPE, FAR_FUTURE, NEGATIVE = 1, 2, 3, 4
COLUMNS = [
    "event_id",
    "org_id",
    "event_type",
    "occurred_at",
    "received_at",
    "anonymous_id",
    "user_id",
    "session_id",
    "url",
    "referrer",
    "user_agent",
    "properties",
]
TEXT = pa.schema([(name, pa.string()) for name in COLUMNS])
INSTANT = pa.timestamp("ms", "UTC")


class Org(NamedTuple):
    """A tenant. `foreign` is what it also sells in, with units per unit of its own currency;
    `weekdays` is the share of sessions kept from Monday to Sunday; products are (name, price)."""

    org_id: str
    zone: str
    site: str
    currency: str
    foreign: tuple[tuple[str, float], ...]
    order_prefix: str
    phone: str
    weekdays: tuple[float, ...]
    products: tuple[tuple[str, float], ...]


class Channel(NamedTuple):
    """Where a session comes from. `utm` is source, medium and campaign; `later` is the share among returning
    sessions, `first` among the others."""

    host: str
    utm: str
    click_id: str
    first: float
    later: float
    quality: float
    utm_in_url: bool = True

    def query(self) -> str:
        """What the landing page's URL carries; a click id's value is still to be appended."""
        pairs = zip(UTM, self.utm.split() if self.utm_in_url else (), strict=False)
        parts = [f"{key}={value}" for key, value in pairs] + [f"{self.click_id}="] * bool(self.click_id)
        return "?" + "&".join(parts) if parts else ""

    def properties(self) -> tuple[str | None, ...]:
        """The utm values that the collector sends itself."""
        return (None, None, None) if self.utm_in_url else tuple(self.utm.replace("+", " ").split(" ", 2))

    def referrer(self, org: Org) -> str | None:
        if self.host == "self":
            return f"{org.site}/"
        return f"https://{self.host}/" if self.host else None


class Device(NamedTuple):
    user_agent: str | None
    share: float
    quality: float
    tells_network: bool = False
    is_desktop: bool = False


UTM = ("utm_source", "utm_medium", "utm_campaign")
ORGS = (
    Org(
        "north_hall",
        "Europe/Berlin",
        "https://www.northhall.example",
        "EUR",
        (("GBP", 0.85), ("USD", 1.1)),
        "NH",
        "+49 30 23125 {:03d}",
        (0.75, 0.70, 0.75, 0.85, 1.0, 0.95, 0.80),
        (
            ("Chamber Nights: Winterreise", 42.0),
            ("Anouk Brandt Live", 58.5),
            ("Jazz im Foyer", 24.0),
            ("Berlin Synth Marathon", 36.9),
            ("Orchestra of the North", 79.0),
            ("Tag der offenen Tür", 0.0),
        ),
    ),
    Org(
        "harbor_live",
        "America/New_York",
        "https://harborlive.example",
        "USD",
        (("GBP", 0.78), ("EUR", 0.91)),
        "HL",
        "+1 202 555 01{:02d}",
        (0.65, 0.65, 0.70, 0.85, 1.0, 1.0, 0.90),
        (
            ("Harbor Sounds Festival: Weekend Pass", 189.0),
            ("Harbor Sounds Festival: Saturday", 95.0),
            ("Pier Comedy Night", 35.0),
            ("Lighthouse Sessions", 49.5),
            ("Community Day", 0.0),
        ),
    ),
)
PRODUCT_SHARE = (0.30, 0.24, 0.18, 0.14, 0.08, 0.06)
PRODUCT_NAMES = [[name for name, _ in (o.products * 2)[:6]] for o in ORGS]
CHANNELS = (
    Channel("", "", "", 0.17, 0.40, 1.2),
    Channel("www.google.com", "", "", 0.21, 0.16, 1.2),
    Channel("www.google.com", "", "gclid", 0.08, 0.03, 1.3),
    Channel("www.google.com", "google CPC brand", "", 0.05, 0.05, 1.6),
    Channel("www.bing.com", "", "", 0.03, 0.02, 1.1),
    Channel("www.bing.com", "bing cpc generic", "msclkid", 0.02, 0.01, 0.9),
    Channel("l.instagram.com", "", "", 0.08, 0.04, 0.6),
    Channel("l.instagram.com", "Instagram paid_social summer+reels", "", 0.10, 0.02, 0.4, False),
    Channel("l.facebook.com", "", "fbclid", 0.05, 0.03, 0.7),
    Channel("l.facebook.com", "fb paid_social lookalike%20q2", "fbclid", 0.07, 0.02, 0.55),
    Channel("www.tiktok.com", "tiktok paid_social teaser", "ttclid", 0.05, 0.01, 0.25),
    Channel("", "newsletter email weekly_digest", "", 0.02, 0.10, 1.8),
    Channel("", "newsletter email last_tickets", "", 0.01, 0.05, 2.4, False),
    Channel("www.cityguide.example", "", "", 0.03, 0.01, 1.0),
    Channel("deals.example", "dealhub affiliate spring", "", 0.02, 0.01, 1.4),
    Channel("self", "", "", 0.01, 0.04, 1.1),
)
CHROME = "Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 {}Safari/537.36{}"
SAFARI = "Mozilla/5.0 ({}) AppleWebKit/605.1.15 (KHTML, like Gecko) {}"
IPHONE, IPAD = "iPhone; CPU iPhone OS 18_5 like Mac OS X", "iPad; CPU OS 17_7 like Mac OS X"
WINDOWS = "Windows NT 10.0; Win64; x64"
DEVICES = (
    Device(SAFARI.format(IPHONE, "Version/18.5 Mobile/15E148 Safari/604.1"), 0.27, 0.9),
    Device(CHROME.format("Linux; Android 10; K", "Mobile ", ""), 0.22, 0.75, True),
    Device(CHROME.format("Linux; Android 14; SM-S921B", "Mobile ", ""), 0.07, 0.75, True),
    Device(
        SAFARI.format(IPHONE, "Mobile/15E148 Instagram 382.0.0.33.86 (iPhone15,2; iOS 18_5; en_US)"),
        0.05,
        0.3,
    ),
    Device(SAFARI.format(IPAD, "Version/17.7 Mobile/15E148 Safari/604.1"), 0.04, 0.95),
    Device(CHROME.format("Linux; Android 13; SM-X200", "", ""), 0.03, 0.7, True),
    Device(CHROME.format(WINDOWS, "", ""), 0.15, 1.5, True, True),
    Device(CHROME.format(WINDOWS, "", " Edg/137.0.0.0"), 0.05, 1.4, True, True),
    Device(
        SAFARI.format("Macintosh; Intel Mac OS X 10_15_7", "Version/18.5 Safari/605.1.15"),
        0.08,
        1.6,
        False,
        True,
    ),
    Device("Mozilla/5.0 (X11; Linux x86_64; rv:139.0) Gecko/20100101 Firefox/139.0", 0.03, 1.2, False, True),
    Device(None, 0.01, 1.0),
    Device("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", 0, 0),
    Device("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", 0, 0),
    Device("Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)", 0, 0),
)
ROBOTS = (11, 12, 13)
SPEEDS = ("4g", "3g", "2g", "slow-2g")
SPEED_SHARE = (0.80, 0.14, 0.04, 0.02)
SPEED_QUALITY = np.array([1.0, 0.6, 0.35, 0.2])
SPEED_LOAD_MS = np.array([900, 2_800, 6_000, 9_500])
LINKS = ("wifi", "cellular", "ethernet")
HOURS = (2, 1, 1, 1, 1, 1, 2, 4, 5, 5, 5, 6, 8, 7, 6, 6, 6, 7, 9, 11, 13, 12, 8, 4)
VIEWS, INTENTS = ("event_view", "product_view"), ("ticket_cta", "add_to_cart")
PATH = [
    "page_view",
    "consent",
    "search",
    "page_view",
    "event_view",
    "page_view",
    "event_view",
    "page_view",
    "identify",
    "ticket_cta",
    "event_view",
    "checkout_start",
    "purchase",
    "purchase",
    "page_view",
    "refund",
]
ALIASES = dict((VIEWS, INTENTS))
EXTRA_VIEWS = (6, 10)  # positions in PATH where another product is looked at
IDENTIFY, REFUND = PATH.index("identify"), PATH.index("refund")
CONSENTS = ("allow_all", "deny_all", "withdrawn")
PAGES = ("/", "/calendar", "/visit", "/news", "/newsletter")
PAGE_OF = {
    "search": "/search",
    "checkout_start": "/checkout",
    "purchase": "/checkout/complete",
    "identify": "/account",
    "refund": "/account/orders",
}
SEARCHES = ("jazz", "weekend", "family tickets", "parking")
FIRST_NAMES = ("Anna", "Jonas", "Léa", "Mateo", "Zoë", "Noah", "Grace", "Omar", "Yuki", "Jürgen", "Sofia")
LAST_NAMES = ("Berg", "Núñez", "O'Brien", "Schmidt", "Rossi", "Kim", "Novak", "Silva", "Weber")


@dataclass(frozen=True)
class SampleFile:
    path: Path
    rows: int


@dataclass
class People:
    """One entry per person; robots and staff are people too."""

    org: np.ndarray
    visits: np.ndarray
    robot: np.ndarray
    internal: np.ndarray
    signal: np.ndarray  # 0 none, 1 dnt, 2 gpc
    account: np.ndarray
    affinity: np.ndarray
    channel: np.ndarray
    speed: np.ndarray


@dataclass
class Sessions:
    """One entry per session, ordered by person and start. `device` indexes both `kind` (an entry of DEVICES)
    and `anonymous`; `link` is -1 where unknown; `does` is the path walked, (sessions, PATH)."""

    people: People
    person: np.ndarray
    org: np.ndarray
    start: np.ndarray
    device: np.ndarray
    kind: np.ndarray
    anonymous: np.ndarray
    channel: np.ndarray
    speed: np.ndarray
    speed_known: np.ndarray
    link: np.ndarray
    logged_in: np.ndarray
    identifies: np.ndarray
    does: np.ndarray
    consent: np.ndarray
    product: np.ndarray
    currency: np.ndarray  # 0 the org's own, 1 and 2 foreign, 3 not said
    revenue: np.ndarray
    refunded: np.ndarray
    token: np.ndarray


@dataclass
class Events:
    """One entry per row of the files; `slot` indexes PATH, `key` is the (rows, 2) uint64 event id."""

    session: np.ndarray
    slot: np.ndarray
    landing: np.ndarray
    occurred: np.ndarray
    received: np.ndarray
    load_ms: np.ndarray
    key: np.ndarray
    fault: np.ndarray

    def take(self, rows: np.ndarray) -> "Events":
        return Events(**{name: values[rows] for name, values in vars(self).items()})


def write_sample(
    out: Path,
    events: int = 60_000,
    seed: int = 7,
    end: date = date(2026, 6, 30),
    progress: Callable[[int], None] | None = None,
) -> list[SampleFile]:
    """Write `events` rows that arrived in the 122 days up to and including `end` (UTC) into `out`.

    One file per month of arrival and one per day for the last 7 days; the first month is CSV, the second
    Parquet, the rest gzip newline-JSON. `progress` gets the number of rows written since its last call.
    """
    if events < MIN_EVENTS:
        raise ValueError(f"a sample needs at least {MIN_EVENTS} events, not {events}")
    sessions, rows = _generate(events, seed, end)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (label, first, stop) in enumerate(_periods(rows.received, end)):
        suffix, write = WRITERS[min(number, len(WRITERS) - 1)]
        path = out / f"events-{label}{suffix}"
        partial = path.with_name(f".{path.name}.part")
        write(partial, _chunks(sessions, rows, first, stop, progress))
        partial.replace(path)
        files.append(SampleFile(path, stop - first))
    return files


def _generate(events: int, seed: int, end: date) -> tuple[Sessions, Events]:
    """Exactly `events` rows in order of arrival, and the sessions they belong to."""
    repeats = round(events * REPEATED)
    wanted = events - repeats - BAD_ROWS
    people_count = events // 4
    while True:
        rng = np.random.default_rng(seed)
        people = _people(rng, people_count)
        sessions = _sessions(rng, people, end)
        rows = _events(rng, sessions, end)
        if len(rows.session) >= wanted:
            break
        people_count += people_count // 4
    rows = _with_faults(rng, rows.take(np.arange(wanted)), repeats, _midnight(end + timedelta(days=1)))
    return sessions, rows.take(np.argsort(rows.received, kind="stable"))


def _people(rng: np.random.Generator, count: int) -> People:
    visits = np.minimum(rng.zipf(2.0, count), 70)
    robot = rng.random(count) < 0.02
    channel = np.where(robot, 0, _pick(rng, [c.first for c in CHANNELS], count))
    return People(
        org=(rng.random(count) < 0.35).astype(int),
        visits=visits,
        robot=robot,
        internal=~robot & (rng.random(count) < 0.003),
        signal=_pick(rng, (0.99, 0.005, 0.005), count),
        account=~robot & (rng.random(count) < 0.06 + 0.03 * np.minimum(visits, 15)),
        affinity=rng.lognormal(-0.6, 1.25, count),
        channel=channel,
        speed=_pick(rng, SPEED_SHARE, count),
    )


def _sessions(rng: np.random.Generator, people: People, end: date) -> Sessions:
    person, start = _visits(rng, people, end)
    count = len(person)
    org = people.org[person]
    first = _groups(person)[1] == 0
    device, kind, shared = _devices(rng, people, person)
    desktop = np.array([d.is_desktop for d in DEVICES])[kind[device]]
    usual = rng.random(count) < np.where(desktop, 0.5, 0.7)
    speed = np.where(usual, people.speed[person], _pick(rng, SPEED_SHARE, count))
    speed[desktop & ~usual] = 0
    tells = np.array([d.tells_network for d in DEVICES])[kind[device]]
    speed_known = tells & (rng.random(count) < 0.9)
    link = np.where(desktop, _pick(rng, (0.6, 0.0, 0.4), count), _pick(rng, (0.55, 0.45), count))
    channel = np.where(first, people.channel[person], _pick(rng, [c.later for c in CHANNELS], count))
    channel[people.robot[person]] = 0

    logged_in, identifies = _logins(rng, people, person, device, shared)
    quality = np.array([c.quality for c in CHANNELS])
    intent = people.affinity[person] * np.sqrt(quality[channel] * quality[people.channel[person]])
    intent *= SPEED_QUALITY[speed] * np.array([d.quality for d in DEVICES])[kind[device]]
    intent *= np.where(first, 0.8, 1.2) * ~people.robot[person]

    prices = np.array([[p for _, p in o.products] + [0.0] * (6 - len(o.products)) for o in ORGS])
    product = _pick(rng, PRODUCT_SHARE, count) % np.array([len(o.products) for o in ORGS])[org]
    currency = _pick(rng, (0.92, 0.03, 0.02, 0.03), count)
    rates = np.array([[1.0, o.foreign[0][1], o.foreign[1][1], 1.0] for o in ORGS])
    price = np.round(prices[org, product] * rates[org, currency], 2)
    tickets = 1 + _pick(rng, (0.3, 0.5, 0.1, 0.1), count)
    returned = np.where(rng.random(count) < 0.6, tickets, 1)
    does = _walk(rng, intent, first, people.robot[person], SPEED_QUALITY[speed], identifies, price > 0)
    consent = np.where(first, _pick(rng, (0.82, 0.18), count), _pick(rng, (0.5, 0.0, 0.5), count))
    return Sessions(
        people=people,
        person=person,
        org=org,
        start=start,
        device=device,
        kind=kind,
        anonymous=rng.integers(0, 2**63, len(kind)),
        channel=channel,
        speed=speed,
        speed_known=speed_known,
        link=np.where(tells, link, -1),
        logged_in=logged_in,
        identifies=identifies,
        does=does,
        consent=consent,
        product=product,
        currency=currency,
        revenue=np.round(price * tickets, 2),
        refunded=np.round(price * returned, 2),
        token=rng.integers(0, 2**63, count),
    )


def _visits(rng: np.random.Generator, people: People, end: date) -> tuple[np.ndarray, np.ndarray]:
    """(person, start) of every session: days to weeks apart, in a local daily and weekly rhythm."""
    person = np.repeat(np.arange(len(people.visits)), people.visits)
    gap_days = rng.lognormal(np.log(7.0), 0.9, len(person)) / (1 + people.visits / 10)[person]
    since = rng.uniform(-60, DAYS, len(people.visits))[person]
    day = np.floor(since + _running(gap_days, person)).astype(int)
    clock = (_pick(rng, HOURS, len(person)) + rng.random(len(person))) * HOUR
    first_day = end - timedelta(days=DAYS - 1)
    keep_share = np.array([o.weekdays for o in ORGS])[people.org[person], (first_day.weekday() + day) % 7]
    kept = (day >= 0) & (day < DAYS) & (rng.random(len(person)) < keep_share)
    person, day, clock = person[kept], day[kept], clock[kept]
    start = _local_midnights(first_day)[people.org[person], day] + clock.astype(np.int64)
    order = np.lexsort((start, person))
    person, start = person[order], start[order]
    spaced = np.diff(start, prepend=0) > 3 * HOUR
    spaced |= np.diff(person, prepend=-1) > 0
    return person[spaced], start[spaced]


def _devices(rng: np.random.Generator, people: People, person: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The device of each session, the kind of each device, and which sessions are on a shared one.

    Devices are numbered: one per person, then a second one per person, then those in a foyer that
    eight account holders of one organiser use now and then.
    """
    count = len(people.org)
    foyers = 2 + count // 8_000
    kind = _pick(rng, [d.share for d in DEVICES], 2 * count + foyers)
    robots = np.flatnonzero(people.robot)
    kind[robots] = rng.choice(ROBOTS, len(robots))
    second = np.where(people.account & (rng.random(count) < 0.25), count + np.arange(count), np.arange(count))
    regular = people.account & (np.bincount(person, minlength=count) >= 3)
    for foyer in range(foyers):
        members = np.flatnonzero(regular & (people.org == foyer % 2))[foyer // 2 * 8 :][:8]
        second[members] = 2 * count + foyer
    device = np.where(rng.random(len(person)) < 0.45, second[person], person)
    return device, kind, device >= 2 * count


def _logins(
    rng: np.random.Generator, people: People, person: np.ndarray, device: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per session: whether the person is logged in, and whether this is their first login on the device.

    An account is opened on a random visit, so most have an anonymous history; later visits are now and then
    anonymous again, but never on a shared device.
    """
    count = len(person)
    visits = np.bincount(person, minlength=len(people.org))
    opened = np.floor(rng.random(len(visits)) * visits * 0.8)[person]
    ordinal = _groups(person)[1]
    remembered = (ordinal == opened) | (ordinal > opened) & (rng.random(count) < 0.85)
    logged_in = people.account[person] & (remembered | shared)
    pair = np.where(logged_in, person * (device.max() + 1) + device, -1)
    pairs, rows = np.unique(pair, return_index=True)
    identifies = np.zeros(count, bool)
    identifies[rows[pairs >= 0]] = True
    return logged_in, identifies


def _walk(
    rng: np.random.Generator,
    intent: np.ndarray,
    first: np.ndarray,
    robot: np.ndarray,
    patience: np.ndarray,
    identifies: np.ndarray,
    can_refund: np.ndarray,
) -> np.ndarray:
    """Which steps of PATH each session takes, (sessions, PATH) booleans.

    `intent` is 1 for the average person on an average visit and 0 for robots, `patience` 0 to 1.
    Who left a checkout open is likelier to buy in the next session, which is what makes a lead hot.
    """
    count = len(intent)
    tempted, decided, paid, entry = rng.random((4, count))

    def draw(share: float | np.ndarray) -> np.ndarray:
        return rng.random(count) < share

    def funnel(wish: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clicked = viewed & (tempted < np.minimum(0.068 * wish, 0.9))
        started = clicked & (decided < np.minimum(0.38 + 0.08 * wish, 0.9))
        return clicked, started, started & (paid < np.minimum(0.3 + 0.12 * wish, 0.85))

    home = entry < 0.9
    stays = draw(0.5 + 0.25 * patience) | robot
    viewed = stays & draw(0.65) | ~home
    _, started, bought = funnel(intent)
    abandoned = np.roll(started & ~bought, 1) & ~first
    clicked, started, bought = funnel(np.where(abandoned, intent * 3 + 1, intent))
    steps = (
        home,
        home & ~robot & draw(np.where(first, 0.06, 0.005)),
        home & stays & draw(0.06),
        stays & draw(0.6),
        viewed,
        stays & draw(0.5),
        viewed & draw(0.4),
        stays & draw(0.35),
        identifies,
        clicked,
        clicked & draw(0.15),
        started,
        bought,
        bought & draw(0.01),
        bought & draw(0.3),
        bought & can_refund & draw(0.04),
    )
    return np.column_stack(steps)


def _events(rng: np.random.Generator, sessions: Sessions, end: date) -> Events:
    """The events of all sessions, in their order, that arrive before the end of the last day."""
    session, slot = np.nonzero(sessions.does)
    count = len(session)
    pause = rng.lognormal(np.log(40), 1.0, count) * SECOND
    pause[rng.random(count) < 0.006] += rng.uniform(0.5, 1.5) * HOUR
    refund = slot == REFUND
    pause[refund] = rng.uniform(1, 20, refund.sum()) * DAY
    occurred = sessions.start[session] + _running(pause, session).astype(np.int64)
    late = rng.random(count) < LATE
    delay = np.where(late, rng.uniform(0.5, 5, count) * DAY, rng.exponential(2, count) * SECOND)
    load_ms = SPEED_LOAD_MS[sessions.speed[session]] * rng.lognormal(0, 0.45, count)
    rows = Events(
        session=session,
        slot=slot,
        landing=np.diff(session, prepend=-1) > 0,
        occurred=occurred,
        received=occurred + delay.astype(np.int64),
        load_ms=load_ms.astype(int),
        key=rng.integers(0, 2**64, (count, 2), dtype=np.uint64),
        fault=np.zeros(count, int),
    )
    first, stop = _midnight(end - timedelta(days=DAYS - 1)), _midnight(end + timedelta(days=1))
    return rows.take(np.flatnonzero((rows.received >= first) & (rows.received < stop)))


def _with_faults(rng: np.random.Generator, rows: Events, repeats: int, stop: int) -> Events:
    """The rows, then `repeats` second deliveries within a day, then BAD_ROWS that must be rejected."""
    count = len(rows.session)
    again = rng.choice(np.flatnonzero(rows.received < stop - DAY), repeats, replace=False)
    bad = np.linspace(0, count - 1, BAD_ROWS).astype(int)
    rows = rows.take(np.concatenate((np.arange(count), again, bad)))
    rows.received[count : count + repeats] += rng.integers(SECOND, DAY, repeats)
    rows.fault[-BAD_ROWS:] = np.resize((NO_ORG, NO_TYPE, FAR_FUTURE, NEGATIVE), BAD_ROWS)
    rows.key[-BAD_ROWS:, 0] += np.uint64(1)
    rows.occurred[rows.fault == FAR_FUTURE] = _midnight(date(2090, 1, 1))
    return rows


def _chunks(
    sessions: Sessions, rows: Events, first: int, stop: int, progress: Callable[[int], None] | None
) -> Iterator[dict[str, list]]:
    """The columns of the event contract for rows first..stop, CHUNK rows at a time."""
    for begin in range(first, stop, CHUNK):
        part = rows.take(np.arange(begin, min(begin + CHUNK, stop)))
        yield _columns(sessions, part)
        if progress:
            progress(len(part.session))


def _columns(s: Sessions, e: Events) -> dict[str, list]:
    """One list per column of the event contract; times as ISO 8601, properties as JSON, all text."""
    session = e.session
    org, channel, token = s.org[session], s.channel[session], s.token[session]
    step = _lookup(PATH)[e.slot]
    for name, alias in ALIASES.items():
        step[(token % 12 == 0) & (step == name)] = alias
    step[e.fault == NEGATIVE] = "purchase"
    seen_user = s.logged_in[session] & (~s.identifies[session] | (e.slot >= IDENTIFY))
    properties = _properties(s, e, step)
    step[e.fault == NO_TYPE] = None

    site = _lookup([o.site for o in ORGS])[org]
    click = e.landing & (_lookup([c.click_id for c in CHANNELS])[channel] != "")
    query = np.where(e.landing, _lookup([c.query() for c in CHANNELS])[channel], "")
    query[click] += _hex(token[click])
    referrer = _lookup([[c.referrer(o) for c in CHANNELS] for o in ORGS])[org, channel]
    referrer = np.where(e.landing, referrer, site + "/")
    paid = (step == "purchase") & (token % 5 < 3)
    referrer[paid] = _lookup(("https://checkout.stripe.com/", "https://www.paypal.com/"))[token[paid] % 2]
    return {
        "event_id": _hex(e.key).tolist(),
        "org_id": np.where(e.fault == NO_ORG, None, _lookup([o.org_id for o in ORGS])[org]).tolist(),
        "event_type": step.tolist(),
        "occurred_at": _iso(e.occurred),
        "received_at": _iso(e.received),
        "anonymous_id": _hex(s.anonymous[s.device[session]]).tolist(),
        "user_id": _where(seen_user, [f"user-{p:06d}" for p in s.person[session[seen_user]]]).tolist(),
        "session_id": _hex(token ^ (e.slot == REFUND)).tolist(),
        "url": (site + _paths(s, e, step) + query).tolist(),
        "referrer": referrer.tolist(),
        "user_agent": _lookup([d.user_agent for d in DEVICES])[s.kind[s.device[session]]].tolist(),
        "properties": properties,
    }


def _paths(s: Sessions, e: Events, step: np.ndarray) -> np.ndarray:
    """The path of each event's page."""
    pages = _lookup(PAGES)[np.where(e.landing, 0, s.token[e.session] % 5 + e.slot) % len(PAGES)]
    products = _lookup(
        [
            ["/events/" + "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()) for name in names]
            for names in PRODUCT_NAMES
        ]
    )[s.org[e.session], _viewed(s, e)]
    path = np.where(np.isin(step, (*VIEWS, *INTENTS)), products, pages)
    for name, fixed in PAGE_OF.items():
        path[step == name] = fixed
    return path


def _properties(s: Sessions, e: Events, step: np.ndarray) -> list[str]:
    """The JSON object of each event, without the keys it has no value for."""
    session, person = e.session, s.person[e.session]
    order, refund = step == "purchase", step == "refund"
    contact = np.isin(step, ("identify", "checkout_start", "purchase"))
    named = contact & (step != "checkout_start")
    selling = np.isin(step, (*VIEWS, *INTENTS, "checkout_start", "purchase", "refund"))
    tags = _lookup([c.properties() for c in CHANNELS])[s.channel[session]]
    speed = s.speed_known[session]
    link = s.link[session]
    money = order | refund
    revenue = np.where(refund, s.refunded[session], s.revenue[session])
    revenue[e.fault == NEGATIVE] = -25.0
    currency = _lookup([(o.currency, o.foreign[0][0], o.foreign[1][0], None) for o in ORGS])
    loads = np.isin(step, ("page_view", *VIEWS)) & (e.key[:, 0] % 10 > 0)
    buyer, who = person[contact], person[named]
    columns = {
        **dict(zip(UTM, tags.T, strict=True)),
        "network_type": _lookup((*LINKS, None))[link],
        "effective_type": np.where(speed, _lookup(SPEEDS)[s.speed[session]], None),
        "page_load_ms": _where(loads, e.load_ms[loads]),
        "search_term": _where(step == "search", _lookup(SEARCHES)[s.token[session[step == "search"]] % 4]),
        "product": np.where(selling, _lookup(PRODUCT_NAMES)[s.org[session], _viewed(s, e)], None),
        "order_id": _where(money, [f"{ORGS[s.org[i]].order_prefix}-{100_000 + i}" for i in session[money]]),
        "revenue": _where(money, revenue[money]),
        "currency": np.where(money, currency[s.org[session], s.currency[session]], None),
        "email": _where(contact, [f"guest{p}@example.{'org' if p % 4 else 'com'}" for p in buyer]),
        "first_name": _where(named, _lookup(FIRST_NAMES)[who % len(FIRST_NAMES)]),
        "last_name": _where(named, _lookup(LAST_NAMES)[who % len(LAST_NAMES)]),
        "phone": _where(
            named, [ORGS[o].phone.format(p % 100) for o, p in zip(s.org[session[named]], who, strict=True)]
        ),
        "consent": np.where(step == "consent", _lookup(CONSENTS)[s.consent[session]], None),
        "dnt": np.where(s.people.signal[person] == 1, True, None),
        "gpc": np.where(s.people.signal[person] == 2, True, None),
        "internal": np.where(s.people.internal[person], True, None),
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    names = tuple(columns)
    return [orjson.dumps({n: v for n, v in zip(names, row, strict=True) if v is not None}).decode() for row in rows]


def _viewed(s: Sessions, e: Events) -> np.ndarray:
    """Index of the product of each event: what the session may buy, or another one on its extra views."""
    products = np.array([len(o.products) for o in ORGS])[s.org[e.session]]
    return (s.product[e.session] + np.isin(e.slot, EXTRA_VIEWS)) % products


def _periods(received: np.ndarray, end: date) -> Iterator[tuple[str, int, int]]:
    """(label, first row, row after the last) of each file: months, then single days at the end."""
    days = [end - timedelta(days=back) for back in reversed(range(DAYS))]
    labels = [day.strftime("%Y-%m" if n < DAYS - DAY_FILES else "%Y-%m-%d") for n, day in enumerate(days)]
    edges = np.searchsorted(received, [*map(_midnight, days), _midnight(end + timedelta(days=1))])
    for label in dict.fromkeys(labels):
        first, last = labels.index(label), len(labels) - labels[::-1].index(label)
        yield label, int(edges[first]), int(edges[last])


def _write_ndjson(path: Path, chunks: Iterable[dict]) -> None:
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        for columns in chunks:
            columns["properties"] = map(orjson.Fragment, columns["properties"])
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            file.write(b"".join([orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]))


def _write_csv(path: Path, chunks: Iterable[dict]) -> None:
    with csv.CSVWriter(path, TEXT) as writer:
        for columns in chunks:
            writer.write_table(pa.table(columns, TEXT))


def _write_parquet(path: Path, chunks: Iterable[dict]) -> None:
    typed = pa.schema([f.with_type(INSTANT) if f.name.endswith("_at") else f for f in TEXT])
    with parquet.ParquetWriter(path, typed, compression="zstd") as writer:
        for columns in chunks:
            writer.write_table(pa.table(columns, TEXT).cast(typed))


WRITERS = ((".csv", _write_csv), (".parquet", _write_parquet), (".ndjson.gz", _write_ndjson))


def _pick(rng: np.random.Generator, shares: Iterable[float], count: int) -> np.ndarray:
    """`count` indexes into `shares`, which need not sum to 1."""
    weights = np.array(list(shares), float)
    return rng.choice(len(weights), count, p=weights / weights.sum())


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row that opens the group, position in the group) of each row of an array sorted by group."""
    rows = np.arange(len(keys))
    opening = np.maximum.accumulate(np.where(np.diff(keys, prepend=-1) != 0, rows, 0))
    return opening, rows - opening


def _running(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Sum of `values` within the group up to each row; a group's first value counts as 0."""
    total = np.cumsum(values)
    return total - total[_groups(keys)[0]]


def _midnight(day: date) -> int:
    return int(np.datetime64(day, "ms").astype(np.int64))


def _local_midnights(first: date) -> np.ndarray:
    """UTC time of noon less twelve hours, (organisers, DAYS)."""
    days = [datetime.combine(first + timedelta(days=n), time(12)) for n in range(DAYS)]
    return np.array(
        [[int(d.replace(tzinfo=ZoneInfo(o.zone)).timestamp()) * SECOND - 12 * HOUR for d in days] for o in ORGS]
    )


def _lookup(values: Iterable) -> np.ndarray:
    """An object array to index with codes, so that None stays None."""
    return np.array(list(values), dtype=object)


def _iso(times: np.ndarray) -> list[str]:
    return np.datetime_as_string(times.astype("M8[ms]"), timezone="UTC").tolist()


def _hex(keys: np.ndarray) -> np.ndarray:
    """16 hexadecimal digits per 64 bits of each row."""
    keys = np.ascontiguousarray(keys)
    width = 2 * keys.itemsize * (keys.shape[1] if keys.ndim == 2 else 1)
    return np.frombuffer(keys.tobytes().hex().encode(), dtype=f"S{width}").astype(str).astype(object)


def _where(mask: np.ndarray, values: Iterable) -> np.ndarray:
    """An object array with `values` where the mask is true, in order, and None elsewhere."""
    out = np.full(len(mask), None, dtype=object)
    out[mask] = values.astype(object) if isinstance(values, np.ndarray) else values
    return out

"""What tests of the marts and functions share: events of people that collide, and a plain reading of events in Python."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from orchestration.build import build
from orchestration.load import load_files
from tests.histories import AGENTS, EVENT_TYPES, PLACES, PROPERTIES, USERS
from tests.projects import AS_OF, landed_sample

MOMENT = datetime.fromisoformat(AS_OF)
ORGS = {"north_hall": 1, "harbor_live": 7, "nowhere": 1}  # with the ISO day on which weeks start

EVENTS = """
select org_id, event_id, visitor_id, device_id, event_type, device_type, network_type, page_load_ms, order_reference,
    event_date, occurred_at, received_at
from audience.enriched_events
where is_person and device_id is not null and occurred_at <= %s
order by occurred_at, event_id
"""


def crowd(seed: int) -> list[dict[str, Any]]:
    """Events of a few devices and users that collide: shared devices, repeats, late rows, robots, staff, opted-out people."""
    draw = random.Random(seed)
    rows = []
    for number in range(1_500):
        org, device = draw.choice(list(ORGS)), f"d{draw.randrange(60)}"
        ago = timedelta(seconds=draw.choice((draw.uniform(0, 44 * 3600), draw.uniform(0, 60 * 86400))))
        url, referrer = draw.choice(PLACES)
        properties = dict(draw.choice(PROPERTIES)) if draw.random() < 0.4 else {}
        kind = draw.choice((*EVENT_TYPES, "ticket_cta", "checkout_start", "purchase", "consent"))
        occurred = MOMENT - ago
        received = occurred + timedelta(seconds=draw.choice((1, 1, 1, 3600, 40 * 3600)))
        if kind == "purchase":
            properties |= {"order_id": draw.choice((f"o{draw.randrange(40)}", None)), "revenue": "10"}
        if kind == "consent" or "consent" in properties:
            # a statement that lands after events it speaks of have been built is another matter
            received = occurred
            properties |= {"consent": draw.choice(("granted", "granted", "denied"))}
        user = draw.choice((None, None, None, None, f"u{int(device[1:]) // 3}", draw.choice(USERS)))
        row = {
            "event_id": f"c{number:04}", "org_id": org, "event_type": kind, "occurred_at": occurred.isoformat(),
            "received_at": received.isoformat(), "anonymous_id": draw.choice((device, device, device, None)), "user_id": user,
            "url": url, "referrer": referrer, "user_agent": draw.choice((*AGENTS[:3], AGENTS[1], AGENTS[3])), "properties": properties,
        }  # fmt: skip
        rows.append(row)
        if draw.random() < 0.05:
            again = received + timedelta(seconds=draw.choice((5, 40 * 3600)))
            rows.append({**row, "received_at": again.isoformat()})
    return rows


def build_in_batches(
    connection: psycopg.Connection, folder: Path, events: int, moments: Sequence[datetime], *more: list[dict[str, Any]]
) -> None:
    """The sample, a crowd and more rows, shuffled into as many batches as there are moments, with a build for each after its batch."""
    rows = [json.loads(row) for row in landed_sample(connection, folder, events, seed=7)]
    rows = [row for row in rows if row["event_id"]] + crowd(5) + [row for part in more for row in part]
    random.Random(1).shuffle(rows)
    for number, moment in enumerate(moments):
        load_files([write(folder / f"{number}.ndjson", rows[number :: len(moments)])])
        build(as_of=moment.isoformat())


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def events_of_people(connection: psycopg.Connection, moment: datetime) -> dict[str, list[Any]]:
    """Counted events of people up to a moment, by org and in order."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        rows = cursor.execute(EVENTS, [moment]).fetchall()
    found = defaultdict(list)
    for row in rows:
        found[row.org_id].append(row)
    return dict(found)


def sessions_of(events: list[Any]) -> list[list[Any]]:
    """The events of each session, by device: at most 30 minutes apart, at most 24 hours in all."""
    by_device = defaultdict(list)
    for event in events:
        by_device[event.device_id].append(event)
    sessions = []
    for trail in by_device.values():
        for event in trail:
            here = sessions[-1] if sessions and sessions[-1][0].device_id == event.device_id else None
            gap = event.occurred_at - here[-1].occurred_at if here else timedelta.max
            if gap > timedelta(minutes=30) or event.occurred_at - here[0].occurred_at > timedelta(hours=24):
                sessions.append([])
            sessions[-1].append(event)
    return sessions


def slice_of(session: list[Any]) -> tuple[str, str]:
    """Device type and network of a session: the first known ones."""
    device = next((event.device_type for event in session if event.device_type != "unknown"), "unknown")
    return device, next((event.network_type for event in session if event.network_type != "unknown"), "unknown")


def orders_of(events: list[Any]) -> list[Any]:
    """The first received purchase of each order and visitor."""
    first = {}
    for event in sorted(events, key=lambda event: (event.received_at, event.occurred_at, event.event_id)):
        if event.event_type == "purchase":
            first.setdefault((event.visitor_id, event.order_reference), event)
    return sorted(first.values(), key=lambda event: event.occurred_at)


def rate(numerator: int, denominator: int) -> Decimal | None:
    return rounded(Decimal(numerator) / denominator) if denominator else None


def rounded(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.000001"), ROUND_HALF_UP)

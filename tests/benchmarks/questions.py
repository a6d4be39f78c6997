"""How long the query functions and reads of marts take: the 95th percentile of warm calls, over 30 days and over everything."""

from __future__ import annotations

import random
import time
from datetime import date, timedelta

import psycopg

CALLS = 50
RANGE = timedelta(days=30)
RANGED = ("get_audience_overview", "get_audience_acquisition", "get_audience_device_network", "get_audience_paths")
FUNCTIONS = {
    **{name: f"select * from audience.{name}(%(org)s, %(first)s, %(last)s)" for name in RANGED},
    "get_audience_cohorts": "select * from audience.get_audience_cohorts(%(org)s, 12)",
    "get_high_intent_visitors": "select * from audience.get_high_intent_visitors(%(org)s, p_as_of => %(moment)s)",
}
MARTS = (
    "audience_overview_daily", "audience_by_channel_daily", "device_network_daily", "audience_acquisition_daily", "audience_paths",
    "lifecycle_transitions",
)  # fmt: skip
READS = {
    mart: f"select * from audience.{mart} where org_id = %(org)s and event_date between %(first)s and %(last)s"
    for mart in MARTS
}
READS["propensity_calibration"] = (
    "select * from audience.propensity_calibration where org_id = %(org)s and score_date between %(first)s and %(last)s"
)
DAYS = "select org_id, min(event_date), max(event_date) from audience.audience_overview_daily group by org_id order by org_id"
MOMENT = "select as_of from audience_state.model_state where model = 'audience_customers'"


def ask(connection: psycopg.Connection) -> dict[str, float]:
    """Milliseconds by function and mart. Marts are read over 30 days; every other call of a function asks for everything."""
    orgs = connection.execute(DAYS).fetchall()
    (moment,) = connection.execute(MOMENT).fetchone()
    draw = random.Random(5)
    asked = [_question(draw, orgs, moment) for _ in range(CALLS)]
    whole = [question | {"first": question["start"]} for question in asked]
    found = {name: _slowest(connection, query, asked[::2] + whole[1::2]) for name, query in FUNCTIONS.items()}
    return found | {name: _slowest(connection, query, asked) for name, query in READS.items()}


def _question(draw: random.Random, orgs: list[tuple[str, date, date]], moment: object) -> dict:
    org, start, end = draw.choice(orgs)
    last = end - timedelta(days=draw.randrange(max(1, (end - start - RANGE).days)))
    return {"org": org, "start": start, "first": last - RANGE + timedelta(days=1), "last": last, "moment": moment}


def _slowest(connection: psycopg.Connection, query: str, questions: list[dict]) -> float:
    """The 95th percentile by nearest rank, after a first call of each that does not count."""
    seconds = []
    for warm in (False, True):
        for question in questions:
            started = time.perf_counter()
            connection.execute(query, question).fetchall()
            if warm:
                seconds.append(time.perf_counter() - started)
    return sorted(seconds)[-(len(seconds) * 5 // 100) - 1] * 1000

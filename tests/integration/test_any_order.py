"""Any order, any batches, same answer: after each build of any history, every table is what a full refresh gives.

Histories are random, see tests/histories.py. A few run by default, beside those that once failed. A long run:

    AUDIENCE_SCHEDULES=200 .venv/bin/python -m pytest -x tests/integration/test_any_order.py

A failure prints the smallest failing history that hypothesis found in five minutes, the step after which tables differ,
and rows of these. The number in the name of the test is its seed: AUDIENCE_SCHEDULES=1 AUDIENCE_FIRST_SCHEDULE=<number>
runs it again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from psycopg import sql

from orchestration import database
from orchestration.load import parse_new_user_agents
from tests import states
from tests.histories import (
    AGENTS,
    Action,
    Correct,
    ErasePerson,
    EraseRows,
    History,
    Land,
    LandSlowly,
    LandUnreadable,
    ParseAnew,
    Row,
    Step,
    Truncate,
    histories,
)

SCHEDULES = int(os.environ.get("AUDIENCE_SCHEDULES") or 4)
# processes that share the tests have to draw the same
RUN = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
FIRST = int(os.environ.get("AUDIENCE_FIRST_SCHEDULE") or RUN.randrange(10**9))
LANDING = ("events", "events_removed", "rejected_rows", "user_agents", "runner_state")

# Kept of the state of an empty build, and put back before each history.
RESET = """
do $$
declare
    filled record;
    is_filled boolean;
begin
    for filled in
        select schemaname, relname, quote_ident(schemaname) || '.' || quote_ident(relname) as name
        from pg_stat_user_tables
        where schemaname ~ '^(audience|fresh)(_|$)' and schemaname !~ '_(state|seeds)$'
    loop
        execute format('select exists (select from %s)', filled.name) into is_filled;
        if is_filled then
            execute format('truncate %s', filled.name);
        end if;
    end loop;
end $$
"""


@dataclass
class Landing:
    """The landing table, with which of its rows came from which row of a history."""

    rows: tuple[Row, ...]
    ids: dict[int, list[int]] = field(default_factory=dict)

    def act(self, connection: psycopg.Connection, action: Action) -> None:
        match action:
            case Land(rows):
                for number in rows:
                    self._insert(connection, number)
            case ErasePerson(org_id, person):
                connection.execute(
                    "delete from analytics.events where org_id = %s and (anonymous_id = %s or user_id = %s)",
                    [org_id, person, person],
                )
            case EraseRows(rows):
                ids = [landing_id for number in rows for landing_id in self.ids.get(number, [])]
                connection.execute("delete from analytics.events where landing_id = any(%s)", [ids])
            case Correct(row, column, value):
                value = replace(self.rows[row], **{column: value}).columns()[column]
                connection.execute(
                    sql.SQL("update analytics.events set {} = %s where landing_id = any(%s)").format(
                        sql.Identifier(column)
                    ),
                    [value, self.ids.get(row, [])],
                )
            case ParseAnew(user_agent):
                connection.execute(
                    "update analytics.user_agents set is_bot = not is_bot, device_type = 'tablet', is_reparsed = true,"
                    " landed_xid = pg_current_xact_id() where user_agent = %s",
                    [user_agent],
                )
            case LandUnreadable(org_id, received_at):
                connection.execute(
                    "insert into analytics.rejected_rows (rejection_id, org_id, rejection_reason, raw_row, received_at)"
                    " values (gen_random_uuid()::text, %s, 'invalid_json', '{', %s)",
                    [org_id, received_at],
                )
            case Truncate():
                connection.execute("truncate analytics.events")

    def _insert(self, connection: psycopg.Connection, number: int) -> None:
        columns = self.rows[number].columns()
        landed = connection.execute(
            sql.SQL("insert into analytics.events ({}) values ({}) returning landing_id").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
            ),
            list(columns.values()),
        ).fetchone()
        self.ids.setdefault(number, []).append(landed[0])


@dataclass(repr=False)
class World:
    """A database with two targets: one built step by step, the other always anew."""

    connection: psycopg.Connection
    slow_connection: psycopg.Connection
    incremental: states.Builder
    full: states.Builder

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("the database of this module")

    def start(self) -> None:
        """Empties the landing tables and both targets, as after a build of nothing."""
        self.slow_connection.rollback()
        for name in LANDING:
            self.connection.execute(f"truncate analytics.{name}")
        self.connection.execute("truncate analytics.events_removed")  # the note on the truncated events
        self.connection.execute(RESET)
        for schema in ("audience", "fresh"):
            self.connection.execute(
                f"update {schema}_state.model_state as current set as_of = kept.as_of, positions = kept.positions"
                f" from {schema}_state.kept as kept where kept.model = current.model"
            )

    def keep(self) -> None:
        for schema in ("audience", "fresh"):
            self.connection.execute(f"create table {schema}_state.kept as select * from {schema}_state.model_state")

    def take(self, step: Step, landing: Landing) -> None:
        """Does what the step says, up to its build."""
        if step.in_one_transaction:
            with self.connection.transaction():
                for action in step.actions:
                    landing.act(self.connection, action)
        else:
            for action in step.actions:
                is_slow = isinstance(action, LandSlowly)
                landing.act(self.slow_connection if is_slow else self.connection, action)
        if step.parses_user_agents:
            with self.connection.transaction():
                parse_new_user_agents(self.connection)
        self.incremental.run(step.as_of.isoformat())
        self.slow_connection.commit()

    def go_on(self, number: int, action: Any, moment: str, landing: Landing) -> None:
        """One action of a story, a build of the moment, and the comparison."""
        step = Step(datetime.fromisoformat(moment), (action,), in_one_transaction=False, parses_user_agents=True)
        self.take(step, landing)
        self.assert_equals_a_full_refresh(number, step)

    def assert_equals_a_full_refresh(self, number: int, step: Step) -> None:
        self.full.run(step.as_of.isoformat(), "--full-refresh")
        found = states.differences(self.connection, "audience", "fresh")
        assert not found, f"after step {number} the increment differs from a full refresh\n" + "\n".join(found)

    def assert_empty(self) -> None:
        """Nothing is left in any table but what is said of rows of files that could not become an event."""
        left = {name for name, count in states.row_counts(self.connection, "audience").items() if count}
        if self.connection.execute("select 1 from analytics.rejected_rows").fetchone():
            left -= {"data_quality_daily"}
        assert not left, "rows are left after everything was deleted"


@pytest.fixture(scope="module")
def world(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("any_order")
    with database.connect(autocommit=True) as connection, database.connect() as slow_connection:
        # Hundreds of builds of a few rows each: nothing that is lost in a crash is missed.
        connection.execute(f'alter database "{module_database}" set synchronous_commit = off')
        builders = [states.Builder(schema, folder, connection) for schema in ("audience", "fresh")]
        opened = World(connection, slow_connection, *builders)
        opened.keep()
        yield opened


# A seed a test, because hypothesis would spend most of a few examples on variations of the first one.
@pytest.mark.parametrize("number", range(FIRST, FIRST + SCHEDULES))
def test_every_step_equals_a_full_refresh(world: World, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=1,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(history=histories())
    def holds(history: History) -> None:
        check(world, history)

    holds()


def check(world: World, history: History) -> None:
    """Takes every step of a history and compares; in the end everything is deleted, and nothing may be left."""
    world.start()
    landing = Landing(history.rows)
    for number, step in enumerate(history.steps):
        world.take(step, landing)
        # A build takes no row that is younger than a transaction still open: only the next one has everything.
        if not step.is_slow:
            world.assert_equals_a_full_refresh(number, step)
    world.connection.execute("delete from analytics.events")
    world.incremental.run(history.steps[-1].as_of.isoformat())
    world.assert_empty()


def at(text: str, **columns: Any) -> Row:
    moment = datetime.fromisoformat(text)
    columns = {"event_type": "page_view", "anonymous_id": "d1", **columns}
    return Row(event_id=text, org_id="north_hall", occurred_at=moment, received_at=moment, **columns)


def steps(*actions: Action) -> tuple[Step, ...]:
    """A build after each action, for a moment after all of them."""
    moment = datetime.fromisoformat("2026-06-10T00:00:00Z")
    return tuple(Step(moment, (action,), in_one_transaction=False, parses_user_agents=True) for action in actions)


# What once failed, as small as it gets.
FOUND = {
    "the last event of a traffic source leaves": History(
        (at("2026-06-01T10:00:00Z"),),
        steps(Land((0,)), EraseRows((0,))),
    ),
    "contact details are corrected in a row": History(
        (at("2026-06-01T10:00:00Z", properties={"email": "a@example.org"}),),
        steps(Land((0,)), Correct(0, "properties", {"email": "b@example.org"})),
    ),
    "contact details are taken out of a row": History(
        (at("2026-06-01T10:00:00Z", properties={"email": "a@example.org"}),),
        steps(Land((0,)), Correct(0, "properties", {})),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_histories(world: World, name: str) -> None:
    check(world, FOUND[name])


def test_an_alert_opens_closes_and_leaves_with_what_lands(world: World) -> None:
    """At the thresholds of these builds: of two visitors one buys, and the other's device and network convert worse."""
    desktop, phone = AGENTS[1:3]
    rows = (
        at("2026-06-01T10:00:00Z", event_type="purchase", properties={"order_id": "o1"}, user_agent=phone),
        at("2026-06-01T11:00:00Z", anonymous_id="d2", user_agent=desktop),
        at("2026-06-01T11:10:00Z", anonymous_id="d2", event_type="purchase", properties={"order_id": "o2"}, user_agent=desktop),
        at("2026-06-05T11:00:00Z", anonymous_id="d1", user_id="u1", user_agent=desktop),
    )  # fmt: skip
    # what happens, the moment of the build after it, and how many alerts are then open and closed
    story = (
        (Land((0, 1)), "2026-06-01T21:59:00Z", (0, 0)),  # the day is not over in Berlin
        (Land((0,)), "2026-06-01T22:00:00Z", (1, 0)),
        (Land((0,)), "2026-06-16T21:59:59Z", (1, 0)),
        (Land((0,)), "2026-06-16T22:00:00Z", (0, 1)),
        (Land((0,)), "2026-06-10T00:00:00Z", (1, 0)),
        (Land((0,)), "2026-06-20T00:00:00Z", (0, 1)),
        (Land((2,)), "2026-06-20T00:00:00Z", (0, 0)),
        (EraseRows((2,)), "2026-06-20T00:00:00Z", (0, 1)),
        (Land((3,)), "2026-06-20T00:00:00Z", (0, 1)),  # a login: the buyer was there too
        (EraseRows((3,)), "2026-06-01T12:00:00Z", (0, 0)),
    )
    world.start()
    landing = Landing(rows)
    for number, (action, moment, expected) in enumerate(story):
        world.go_on(number, action, moment, landing)
        found = world.connection.execute(
            "select count(*) filter (where closed_at is null), count(closed_at) from audience.device_network_alerts"
        ).fetchone()
        assert found == expected, (number, moment)


def test_a_score_and_what_came_of_it_follow_what_lands(world: World) -> None:
    """Of the first of June in Berlin: when its week is over, when somebody turns out to have been another, and back."""
    rows = (
        at("2026-05-27T10:00:00Z"),
        at("2026-05-28T10:00:00Z", event_type="Get Tickets"),
        at("2026-06-02T10:00:00Z", event_type="purchase", properties={"order_id": "o1"}),
        at("2026-05-29T10:00:00Z", anonymous_id="d2", user_id="u1", event_type="checkout_start"),
        at("2026-06-10T10:00:00Z", user_id="u1"),
        at("2026-05-26T10:00:00Z", anonymous_id="d3"),
    )
    # what happens, the moment of the build after it, and of the date: visitors and buyers by score
    story = (
        (Land((0, 1)), "2026-06-07T21:59:59Z", {}),
        (Land((5,)), "2026-06-07T22:00:00Z", {4: (1, 0), 0: (1, 0)}),
        (Land((2,)), "2026-06-07T22:00:00Z", {4: (1, 1), 0: (1, 0)}),
        (Land((3,)), "2026-06-08T00:00:00Z", {4: (2, 1), 0: (1, 0)}),
        (Land((4,)), "2026-06-20T00:00:00Z", {8: (1, 1), 0: (1, 0)}),  # a login: both were the same
        (Correct(0, "event_type", "checkout_start"), "2026-06-21T00:00:00Z", {8: (1, 1), 0: (1, 0)}),
        (EraseRows((4,)), "2026-06-21T00:00:00Z", {8: (1, 1), 4: (1, 0), 0: (1, 0)}),
        (EraseRows((2,)), "2026-06-07T22:00:00Z", {8: (1, 0), 4: (1, 0), 0: (1, 0)}),
        (Land((5,)), "2026-06-07T21:59:59Z", {}),
        (Land((2,)), "2026-07-20T00:00:00Z", {8: (1, 1), 4: (1, 0), 0: (1, 0)}),
    )
    world.start()
    landing = Landing(rows)
    for number, (action, moment, expected) in enumerate(story):
        world.go_on(number, action, moment, landing)
        found = world.connection.execute(
            "select propensity_score, visitors_count, buyers_count from audience.propensity_calibration"
            " where score_date = '2026-06-01'"
        ).fetchall()
        assert {score: tuple(counts) for score, *counts in found} == expected, (number, moment)

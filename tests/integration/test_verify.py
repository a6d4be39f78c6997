"""`audience verify`: exact after builds, and whatever is changed by hand is found and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import psycopg
import pytest

from orchestration import database
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.load import load_files
from orchestration.verify import VerifyReport, verify
from tests.projects import AS_OF, RARE, audience, shuffled_sample

EARLIER = "2026-06-26T02:00:00+00:00"
ORG, DAY = "north_hall", date(2026, 6, 12)
ON_THE_DAY = f"org_id = '{ORG}' and event_date = '{DAY}'"
INTERMEDIATE = "audience_intermediate"

# What is done to a table by hand, and the column that tells: None for a row that is missing or too much.
TAMPERED = {
    "a cell of a sum": (
        "audience.audience_overview_daily",
        f"update {{}} set sessions_count = sessions_count + 1 where {ON_THE_DAY}",
        "sessions_count",
    ),
    "a null cell": (
        f"{INTERMEDIATE}.int_events_enriched",
        f"update {{}} set os = null where event_id in (select min(event_id) from {{}} where {ON_THE_DAY} and device_id is not null)",
        "os",
    ),
    "a deleted event": (
        f"{INTERMEDIATE}.int_events_enriched",
        f"delete from {{}} where event_id in (select min(event_id) from {{}} where {ON_THE_DAY} and is_person)",
        None,
    ),
    "a deleted visit": (
        f"{INTERMEDIATE}.int_visits",
        f"delete from {{}} where session_id in (select min(session_id) from {{}} where {ON_THE_DAY})",
        None,
    ),
    "a deleted order": (
        f"{INTERMEDIATE}.int_orders",
        f"delete from {{}} where order_key in (select min(order_key) from {{}} where org_id = '{ORG}' and order_date = '{DAY}')",
        None,
    ),
    "an emptied day": ("audience.device_network_daily", f"delete from {{}} where {ON_THE_DAY}", None),
    "a row too much in a sum": (
        "audience.audience_by_channel_daily",
        f"insert into {{}} (org_id, source, medium, campaign, channel, event_date) values ('{ORG}', 'x', 'x', 'x', 'x', '{DAY}')",
        None,
    ),
    "a customer too much": (
        "audience.audience_customers",
        f"insert into {{}} (org_id, visitor_id, propensity_band, first_seen_at) values ('{ORG}', 'nobody', 'awareness', '{DAY} 12:00+00')",
        None,
    ),
    "a customer's score": (
        "audience.audience_customers",
        # with points that make the score, as a check of the table demands
        "update {} set propensity_score = propensity_score + 1, propensity_ticket_cta_points = propensity_score + 1"
        " - propensity_checkout_start_points - propensity_repeat_visitor_points - propensity_slow_network_points"
        " - propensity_past_purchaser_points where visitor_id in"
        f" (select min(visitor_id) from {INTERMEDIATE}.int_visits where {ON_THE_DAY})",
        "propensity_score",
    ),
    "a count of receipts": (
        "audience.data_quality_daily",
        f"update {{}} set late_count = late_count + 1 where org_id = '{ORG}' and received_date = '{DAY}'",
        "late_count",
    ),
    "a table without days": (
        f"{INTERMEDIATE}.int_channels",
        f"update {{}} set channel = 'Billboards' where org_id = '{ORG}' and source = '(direct)'",
        "channel",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """A database with the sample landed in two batches, each followed by a build."""
    first, second = shuffled_sample(tmp_path_factory.mktemp("verify"), files=2)
    for batch, moment in ((first, EARLIER), (second, AS_OF)):
        load_files([batch])
        build(as_of=moment)
    with database.connect(autocommit=True) as opened:
        yield opened


@contextmanager
def tampered(connection: psycopg.Connection, table: str, statement: str) -> Iterator[None]:
    """A table changed by hand, and put back at the end."""
    connection.execute(f"create temporary table kept as table {table}")
    try:
        assert connection.execute(statement.replace("{}", table)).rowcount > 0
        yield
    finally:
        connection.execute(f"delete from {table}")
        connection.execute(f"insert into {table} table kept")
        connection.execute("drop table kept")


def check() -> VerifyReport:
    return verify(orgs=[ORG], days=[DAY])


def test_every_org_and_day_is_exact_after_increments(connection):
    report = verify(everything=True)
    assert report.differences == [] and report.waiting == 0
    assert not [table for table in report.tables if table.all_wait]
    stored = connection.execute("select count(*) from audience.audience_customers").fetchone()
    assert {table.table: table.rows for table in report.tables}["audience_customers"] == stored[0] > 100
    assert {table.table for table in report.tables if not table.rows} == RARE


def test_a_sample_is_exact_and_comes_again_with_its_seed(connection):
    # of three orgs: the third is (missing), of rejected rows without one
    report = verify(org_count=3, day_count=2)
    assert report.differences == [] and report.rows > 100
    assert {"north_hall", "harbor_live"} < set(report.sample.orgs)
    assert len([day for org_id, day in report.sample.days if org_id == ORG]) == 2
    again = verify(org_count=3, day_count=2, seed=report.sample.seed)
    assert (again.sample, again.tables) == (report.sample, report.tables)


def test_the_sample_reaches_every_kind_of_row(connection):
    report = verify(orgs=[ORG], day_count=20, seed=1)
    assert {table.table for table in report.tables if not table.rows} == RARE, "nothing to compare"
    assert report.differences == []


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_changed_by_hand_is_found(connection, case):
    table, statement, column = TAMPERED[case]
    with tampered(connection, table, statement):
        report = check()
    first = report.differences[0]
    assert (first.table, first.column) == (table.split(".")[1], column)
    assert first.key["org_id"] == ORG
    assert first.stored != first.recomputed
    assert check().differing == 0


def test_an_org_lost_from_every_mart_is_found(connection):
    lost = [f"audience.{name}" for name in ("audience_overview_daily", "data_quality_daily", "audience_customers")]
    with connection.transaction():
        for number, table in enumerate(lost):
            connection.execute(f"create temporary table kept_{number} as select * from {table} where org_id = '{ORG}'")
            connection.execute(f"delete from {table} where org_id = '{ORG}'")
    try:
        report = verify(org_count=10, day_count=2)
        assert ORG in report.sample.orgs
        found = {(found.table, found.column) for found in report.differences if found.key["org_id"] == ORG}
        assert ("audience_overview_daily", None) in found or ("data_quality_daily", None) in found
    finally:
        with connection.transaction():
            for number, table in enumerate(lost):
                connection.execute(f"insert into {table} table kept_{number}")
                connection.execute(f"drop table kept_{number}")


def test_the_command_names_table_key_and_cells_and_exits_with_1(connection):
    table, statement, _ = TAMPERED["a cell of a sum"]
    with tampered(connection, table, statement):
        result = audience("verify", "--org", ORG, "--day", str(DAY))
        as_json = audience("verify", "--org", ORG, "--day", str(DAY), "--json")
    assert (result.returncode, as_json.returncode) == (1, 1)
    found = json.loads(as_json.stdout)
    (difference,) = found["differences"]
    assert (found["exact"], found["differing"]) == (False, 1)
    assert difference["table"] == "audience_overview_daily"
    assert difference["key"] == {"org_id": ORG, "event_date": str(DAY)}
    assert int(difference["stored"]) == int(difference["recomputed"]) + 1
    line = (
        f"audience_overview_daily (org_id {ORG}, event_date {DAY}) sessions_count:"
        f" stored {difference['stored']}, recomputed {difference['recomputed']}"
    )
    assert line in result.stdout
    assert "Differences: 1." in result.stdout and "exact" not in result.stdout
    assert "1 cells or rows differ" in result.stderr


def test_the_command_says_exact_and_what_it_checked(connection):
    result = audience("verify", "--orgs", "1", "--days", "2", "--seed", "5")
    assert result.returncode == 0, result.stderr
    assert "exact: " in result.stdout and "--seed 5" in result.stdout
    found = json.loads(audience("verify", "--all", "--json").stdout)
    assert found["exact"] and found["sample"]["days"] is None


def test_personal_data_is_not_printed(connection):
    table = "audience_contacts.customer_contacts"
    statement = f"update {{}} set email = 'ada@secret.example' where org_id = '{ORG}' and email is not null"
    with tampered(connection, table, statement):
        report = verify(everything=True)
    assert {found.table for found in report.differences} == {"customer_contacts"}
    assert {(found.column, found.stored) for found in report.differences} == {("email", "(not shown)")}


def test_only_the_first_differences_are_listed_and_all_are_counted(connection):
    with tampered(connection, "audience.audience_customers", "update {} set events_count = events_count + 1"):
        report = verify(everything=True)
    assert len(report.differences) == 20
    assert report.differing == {table.table: table.rows for table in report.tables}["audience_customers"]


def test_what_landed_since_the_build_waits_and_is_no_difference(connection):
    visitor, moment = connection.execute(
        f"select anonymous_id, occurred_at from {INTERMEDIATE}.int_events_enriched"
        f" where {ON_THE_DAY} and anonymous_id is not null order by event_id limit 1"
    ).fetchone()
    connection.execute(
        "insert into analytics.events (org_id, event_id, event_type, occurred_at, received_at, anonymous_id)"
        " values (%s, 'late', 'page_view', %s, %s, %s)",
        [ORG, moment, moment, visitor],
    )
    try:
        report = check()
        assert report.differing == 0
        waiting = {table.table: table.waiting for table in report.tables if table.waiting}
        assert waiting["int_events_enriched"] == 1 and waiting["data_quality_daily"] == 1
        assert "keys wait for the next build" in audience("verify", "--all").stdout
    finally:
        connection.execute("delete from analytics.events where event_id = 'late'")
    # the deletion is followed by the next build, too
    assert check().waiting and check().differing == 0
    connection.execute("delete from analytics.events_removed where event_id = 'late'")
    assert check().waiting == 0


def test_a_half_finished_build_waits_and_is_no_difference(connection):
    """As after a build that was killed behind int_visits: what reads its changes has not consumed them."""
    table, changes = f"{INTERMEDIATE}.int_visits", f"{INTERMEDIATE}.int_visits__changes"
    names = ", ".join(column.name for column in connection.execute(f"select * from {table} limit 0").description)
    change = "update {} set page_views_count = page_views_count + 1 where session_id in (select min(session_id) from {} where "
    with tampered(connection, table, f"{change} {ON_THE_DAY})"):
        connection.execute(
            f"insert into {changes} ({names}, weight)"
            f" select {names}, -1 from (table kept except table {table}) as old"
            f" union all select {names}, 1 from (table {table} except table kept) as new"
        )
        report = check()
        connection.execute(f"truncate {changes}")
    waiting = {table.table: table.waiting for table in report.tables if table.waiting}
    assert {"audience_overview_daily", "int_visitor_days", "audience_customers"} <= set(waiting)
    assert {found.table for found in report.differences} == {"int_visits"}


def test_a_changed_rule_waits_with_all_that_it_decides(connection):
    state = (
        "update audience_state.model_state set fingerprint = reverse(fingerprint) where model = 'seed channel_rules'"
    )
    connection.execute(state)
    try:
        tables = {table.table: table for table in check().tables}
    finally:
        connection.execute(state)
    assert tables["int_channels"].all_wait == "channel_rules changed since"
    assert tables["int_events_enriched"].all_wait is None and tables["int_events_enriched"].rows


def test_a_build_beside_it_neither_waits_nor_disturbs(connection):
    table, statement, _ = TAMPERED["a deleted visit"]

    def write(done: int, total: int, name: str) -> None:
        if done == 0:
            connection.execute("set lock_timeout = '1s'")
            connection.execute(statement.replace("{}", table))

    connection.execute(f"create temporary table before as table {table}")
    try:
        assert verify(orgs=[ORG], days=[DAY], progress=write).differing == 0
        assert check().differing
    finally:
        connection.execute(f"delete from {table}; insert into {table} table before; drop table before")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--org", "nowhere"), "No event of org nowhere has landed: give one of "),
        (("--day", "12.6."), "--day '12.6.' is not a day"),
        (("--all", "--seed", "1"), "--all checks every org and day: leave out"),
    ],
)
def test_bad_input_is_refused(connection, arguments, sentence):
    result = audience("verify", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert sentence in result.stderr


def test_nothing_built_is_refused(database):
    with pytest.raises(UserError, match="Nothing was built in schema audience yet: run audience build"):
        verify()


def test_definitions_of_an_older_release_are_recorded_by_a_build_of_nothing_new(connection):
    connection.execute(
        "update audience_state.model_state set definition = null, declared = null where model = 'int_visits'"
    )
    with pytest.raises(UserError, match="No definition is recorded of int_visits: run audience build"):
        verify()
    report = build(as_of=AS_OF)
    assert not report.changed
    assert check().differing == 0

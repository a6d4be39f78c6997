"""The pure parts of verify: reading a recorded definition, narrowing it, the order of tables."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from orchestration.recorded_models import Model, in_dependency_order, narrowed
from orchestration.verify_sample import KEYS

PROJECT = Path(__file__).resolve().parents[2]
MOMENT = "cast('2026-07-01 12:00:00+00' as timestamptz)"
SCOPED = """
/* scope org_id, device_id
select org_id, device_id from @changes int_events schema_a@ as events
union all
select org_id, device_id from @landed "db"."landing"."events"@ as landed where occurred_at between @previous as of@ and @as of@
scope */
/* audit nothing is lost
select 1 where true @ in scope (org_id) @
audit */
select * from "db"."schema_a"."int_events"
where true /* in scope (org_id, device_id) */ and true /* in scope days (received_at) received_date */
    and occurred_at <= current_timestamp /* as of */
"""
SUMMED = 'select sum(weight) from (select *, 1 as weight from "db"."schema_a"."int_visits") /* delta int_visits schema_a */ as visits'

RECOUNTED = """
/* scope org_id, visitor_id since score_date
select org_id, visitor_id, event_date as since from @changes int_visits schema_a@ as visits
scope */
select org_id, count(distinct visitor_id) as visitors_count
from "db"."schema_a"."int_visits" /* then and now int_visits schema_a (org_id, visitor_id) */ as visits
join "db"."schema_a"."int_orders" /* then and now int_orders schema_a (org_id, visitor_id) */ as orders using (org_id, visitor_id)
/* since (org_id, visitor_id) event_date */ group by org_id
"""


def model(name: str, sql: str = "select 1", add: bool = False) -> Model:
    return Model(
        name, "schema_a", sql, unique_key=["org_id"], add=add, rules=[], as_of="2026-07-01 12:00:00+00", built_at=None,
        positions={"int_events": 7, "int_visits": 9, '"db"."landing"."events"': 5},
    )  # fmt: skip


def test_the_body_is_the_definition_at_the_moment_of_the_last_build():
    body = model("m", SCOPED).body
    assert "scope org_id" not in body and "audit" not in body
    assert f"occurred_at <= {MOMENT}" in body
    assert "true /* in scope (org_id, device_id) */" in body


def test_narrowed_reads_only_touched_keys_and_the_days_around_the_sampled_ones():
    sql = narrowed(
        model("m", SCOPED).body, "org_id, device_id", [date(2026, 6, 30), date(2026, 5, 2), date(2026, 5, 2)]
    )
    assert "where (org_id, device_id) in (select org_id, device_id from touched)" in sql
    assert (
        "(received_at >= '2026-05-01' and received_at < '2026-05-04'"
        " or received_at >= '2026-06-29' and received_at < '2026-07-02')"
    ) in sql
    assert "in scope" not in sql


def test_unconsumed_keys_are_those_after_what_the_model_recorded():
    query = model("m", SCOPED).unconsumed()
    assert '(select * from "schema_a"."int_events__changes" where change_id > 7) as events' in query
    assert """(select * from "db"."landing"."events" where landed_xid >= cast('5' as xid8)) as landed""" in query
    assert f"between {MOMENT} and {MOMENT}" in query
    assert "@" not in query


def test_unconsumed_sums_are_those_of_the_changes():
    found = model("m", SUMMED, add=True)
    assert found.feeds == {("int_visits", "schema_a")}
    assert found.unconsumed() == (
        'select sum(weight) from (select * from "schema_a"."int_visits__changes" where change_id > 9) as visits'
    )


def test_the_scope_of_a_sum_is_of_what_it_sums_up():
    found = model("m", RECOUNTED, add=True)
    assert found.key_columns == ["org_id"] and found.scope_keys == "org_id, visitor_id"
    assert found.feeds == {("int_visits", "schema_a"), ("int_orders", "schema_a")}
    assert "change_id > 9) as visits" in found.unconsumed()
    assert found.body.strip() == RECOUNTED.split("scope */")[1].strip()


def test_a_table_without_scope_and_sums_is_recomputed_as_a_whole():
    assert model("m").unconsumed() is None


def test_tables_come_after_those_that_they_read():
    models = [
        model("a_mart", 'select * from "db"."schema_a"."int_visits"'),
        model("int_visits", 'select * from "db"."schema_a"."int_events" join "db"."schema_a"."int_visits"'),
        model("int_events"),
    ]
    assert [found.name for found in in_dependency_order(models)] == ["int_events", "int_visits", "a_mart"]


def test_every_scope_has_a_sample():
    texts = [file.read_text() for file in (PROJECT / "models").rglob("*.sql")]
    scopes = set(re.findall(r"call scope\('([^']+)'\)", "\n".join(texts)))
    assert scopes == set(KEYS)

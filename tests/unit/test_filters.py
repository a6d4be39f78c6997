"""Filters without a database: what is valid, what is refused and how, and the SQL that comes out."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from orchestration.errors import UserError
from orchestration.filters import OPERATORS, Behaviour, compile_filter, describe, parse_filter
from orchestration.people import KINDS, read_catalog
from tests.filters import FIELDS, HOSTILE, LIMITS, group, rule


def compiled(*rules: dict[str, Any], **more: Any) -> tuple[str, list[Any]]:
    """The SQL of a filter without the parts that every column has, and its values in order."""
    found = compile_filter(group(*rules, **more), FIELDS, LIMITS)
    text = (
        re.sub(r'\(([^\s()]+) collate "C"\)', r"\1", found.condition.as_string())
        .replace('"people".', "")
        .replace('"', "")
    )
    return text, list(found.parameters.values())


NUMBER, TEXT = "cast(%(value_0)s as bigint)", "cast(%(value_0)s as text)"
TWO = "cast(%(value_0)s as bigint) and cast(%(value_1)s as bigint)"
SQL = {
    "=": (rule("orders_count", "=", 2), f"orders_count = {NUMBER}", [2]),
    "!=": (rule("orders_count", "!=", "2"), f"orders_count <> {NUMBER}", [2]),
    "<": (rule("orders_count", "<", 2.5), "orders_count < cast(%(value_0)s as numeric)", [Decimal("2.5")]),
    "<=": (rule("orders_count", "<=", " -2.50 "), "orders_count <= cast(%(value_0)s as numeric)", [Decimal("-2.50")]),
    ">": (rule("orders_count", ">", 0), f"orders_count > {NUMBER}", [0]),
    ">=": (rule("orders_count", ">=", 1), f"orders_count >= {NUMBER}", [1]),
    "contains": (rule("consent_state", "contains", "a%"), f"strpos(consent_state, {TEXT}) > 0", ["a%"]),
    "beginsWith": (rule("consent_state", "beginsWith", "a"), f"starts_with(consent_state, {TEXT})", ["a"]),
    "endsWith": (rule("consent_state", "endsWith", "l"), f"right(consent_state, length({TEXT})) = {TEXT}", ["l"]),
    "doesNotContain": (rule("consent_state", "doesNotContain", "a"), f"strpos(consent_state, {TEXT}) = 0", ["a"]),
    "doesNotBeginWith": (rule("consent_state", "doesNotBeginWith", "a"), f"not starts_with(consent_state, {TEXT})", ["a"]),
    "doesNotEndWith": (rule("consent_state", "doesNotEndWith", "l"), f"right(consent_state, length({TEXT})) <> {TEXT}", ["l"]),
    "null": (rule("consent_state", "null"), "consent_state is null", []),
    "notNull": (rule("consent_state", "notNull", "whatever"), "consent_state is not null", []),
    "in": (rule("consent_state", "in", "a, b\\,c,"), f"consent_state in ({TEXT}, {TEXT.replace('0', '1')})", ["a", "b,c"]),
    "notIn": (rule("consent_state", "notIn", ["a"]), f"consent_state not in ({TEXT})", ["a"]),
    "between": (rule("orders_count", "between", [10, "9"]), f"orders_count between {TWO}", [9, 10]),
    "notBetween": (rule("orders_count", "notBetween", "1,2"), f"orders_count not between {TWO}", [1, 2]),
}  # fmt: skip


def test_each_operator_is_tried():
    assert SQL.keys() == OPERATORS.keys()


@pytest.mark.parametrize("operator", SQL)
def test_an_operator_becomes_sql_with_bound_values(operator):
    given, text, values = SQL[operator]
    assert compiled(given) == (f"({text})", values)


def test_groups_nest_and_are_negated():
    inner = group(rule("orders_count", "null"), rule("orders_count", ">", 1), combinator="or", **{"not": True})
    text, _ = compiled(rule("is_consented", "=", True), inner)
    assert (
        text
        == f"(is_consented = cast(%(value_0)s as boolean) and not (orders_count is null or orders_count > {NUMBER.replace('0', '1')}))"
    )


def test_no_rules_at_all_list_everybody():
    assert compiled() == ("(true)", [])


def test_a_time_without_offset_is_utc_and_a_date_its_first_instant():
    _, values = compiled(rule("last_seen_at", "in", ["2026-06-30", "2026-06-30T02:00", "2026-06-30T02:00:00+02:00"]))
    assert values == [
        datetime(2026, 6, 30, tzinfo=UTC),
        datetime(2026, 6, 30, 2, tzinfo=UTC),
        datetime(2026, 6, 30, tzinfo=UTC),
    ]


def test_fields_of_one_kind_can_be_compared():
    given = rule("last_seen_at", "between", ["first_order_at", "last_seen_at"], valueSource="field")
    assert compiled(given) == ("(last_seen_at between first_order_at and last_seen_at)", [])


def test_a_count_of_events_is_joined_once():
    found = compile_filter(
        group(rule("events.page_view.count_7d", ">", 3), rule("events.page_view.count_7d", "<", "events.refund.count_30d", valueSource="field")),
        FIELDS, LIMITS,
    )  # fmt: skip
    assert found.behaviours == [Behaviour("page_view", 7), Behaviour("refund", 30)]
    assert found.parts[0].condition.as_string() == f'coalesce("page_view_7d"."events_count", 0) > {NUMBER}'


def test_what_is_of_the_screen_alone_is_not_kept():
    screen = {"id": "a", "path": [0], "disabled": False}
    given = rule("orders_count", "=", 1, valueSource="value", **screen)
    found = compile_filter(group(given, group(given, **{"not": False}), **screen), FIELDS, LIMITS)
    clean = rule("orders_count", "=", 1)
    assert found.document == group(clean, group(clean))
    assert compile_filter(found.document, FIELDS, LIMITS).document == found.document


def test_a_filter_is_described_in_a_line():
    given = group(
        rule("a", "in", [1, 2]), group(rule("b", "null"), rule("c", "=", 0), combinator="or", **{"not": True})
    )
    assert describe(given) == "(a in 1, 2 and not (b null or c = 0))"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_filter_is_refused_with_a_sentence(name):
    with pytest.raises(UserError) as refusal:
        compile_filter(parse_filter(HOSTILE[name], LIMITS), FIELDS, LIMITS)
    sentence = str(refusal.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 500
    assert sentence.isascii() and ": " in sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            group(rule("orders_count", "=", 1), group(rule("order_count", "=", 1))),
            "rules[1].rules[0]: field 'order_count' is not known: did you mean orders_count.",
        ),
        (
            group(rule("orders_count", "=", "many")),
            "rules[0]: the value of orders_count must be a number of at most 18 digits, not 'many'.",
        ),
        (
            group(rule("orders_count", "=", None)),
            "rules[0]: orders_count is compared with null: use the operator null or notNull.",
        ),
        (
            group(rule("events.page_view.count_366d", "=", 1)),
            "rules[0]: events are counted over 1 to 365 days, not 366: give another count_<N>d.",
        ),
        (
            group(rule("is_consented", ">", True)),
            "rules[0]: operator '>' is not for a boolean, as is_consented is: use one of =, !=, null, notNull, in, notIn.",
        ),
        (
            {"combinator": "xor", "rules": []},
            "filter: combinator is 'xor': use 'and' or 'or', one for all rules of the group.",
        ),
    ],
)
def test_a_refusal_names_the_rule_and_what_to_do(given, sentence):
    with pytest.raises(UserError) as refusal:
        compile_filter(given, FIELDS, LIMITS)
    assert str(refusal.value) == sentence


def test_limits_are_inclusive():
    deepest = group(rule("orders_count", "=", 1))
    for _ in range(LIMITS.depth - 1):
        deepest = group(deepest)
    for given in (
        deepest,
        group(*[rule("orders_count", "=", 1)] * LIMITS.rules),
        group(rule("orders_count", "in", list(range(LIMITS.values)))),
        group(rule("consent_state", "=", "x" * LIMITS.characters)),
        group(rule(f"events.page_view.count_{LIMITS.days}d", "=", 1)),
        group(*[rule(f"events.page_view.count_{days}d", "=", 1) for days in range(1, LIMITS.behaviours + 1)]),
    ):
        compile_filter(given, FIELDS, LIMITS)


def test_the_project_declares_what_filters_may_name():
    catalog = read_catalog()
    assert catalog.limits == LIMITS
    assert {
        "lifecycle_stage",
        "propensity_score",
        "net_revenue_amount",
        "is_consented",
        "last_seen_at",
    } <= catalog.fields.columns.keys()
    assert not {"org_id", "visitor_id"} & catalog.fields.columns.keys()
    assert set(catalog.fields.columns.values()) == set(KINDS.values())
    assert {"page_view", "purchase", "refund", "consent"} <= catalog.fields.event_types
    assert catalog.visit_columns["ticket_cta"] == "ticket_ctas_count"
    assert set(filter(None, catalog.visit_columns)) <= catalog.fields.event_types

"""Filters for tests: hostile ones, random ones, and what a filter means, in plain Python."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from orchestration.filters import OPERATORS, Fields, Limits

LIMITS = Limits(bytes=65536, depth=8, rules=100, characters=500, values=1000, behaviours=5, days=365)
FIELDS = Fields(
    {"usual_device_type": "text", "consent_state": "text", "orders_count": "number", "average_order_amount": "number",
     "is_consented": "boolean", "last_seen_at": "time", "first_order_at": "time"},
    frozenset({"page_view", "ticket_cta", "refund"}),
)  # fmt: skip


def rule(field: Any, operator: Any, value: Any = None, **more: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value, **more}


def group(*rules: Any, combinator: Any = "and", **more: Any) -> dict[str, Any]:
    return {"combinator": combinator, "rules": list(rules), **more}


# What it means


def matches(node: Mapping[str, Any], row: Mapping[str, Any]) -> bool | None:
    """Whether a row of field values matches a valid filter; None: unknown, because of a null."""
    if "rules" in node:
        answers = [matches(child, row) for child in node["rules"]]
        decisive = node["combinator"] == "or"
        answer = decisive if decisive in answers else None if None in answers else not decisive
        return (not answer if answer is not None else None) if node.get("not") else answer
    found, operator = row[node["field"]], node["operator"]
    if operator in ("null", "notNull"):
        return (found is None) == (operator == "null")
    if found is None:
        return None
    values = _values(node, found, row)
    if operator in ("in", "notIn"):
        inside = _any(_compare("=", found, value) for value in values)
        return inside if operator == "in" or inside is None else not inside
    if operator in ("between", "notBetween"):
        low, high = values
        if node.get("valueSource") != "field" and not isinstance(found, str):
            low, high = sorted((low, high))
        inside = _all((_compare(">=", found, low), _compare("<=", found, high)))
        return inside if operator == "between" or inside is None else not inside
    return _compare(operator, found, values[0])


def _any(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return True if True in answers else None if None in answers else False


def _all(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def _values(node: Mapping[str, Any], found: Any, row: Mapping[str, Any]) -> list[Any]:
    given = node["value"]
    several = node["operator"] in ("in", "notIn", "between", "notBetween")
    given = ([part.strip() for part in given.split(",")] if isinstance(given, str) else given) if several else [given]
    if node.get("valueSource") == "field":
        return [row[name] for name in given]
    return [_typed(value, found) for value in given]


def _typed(value: Any, like: Any) -> Any:
    """A value of a rule, as one that can be compared with the row's."""
    if isinstance(like, Decimal | int) and not isinstance(like, bool):
        return Decimal(str(value))
    if isinstance(like, datetime):
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return value


def _compare(operator: str, one: Any, other: Any) -> bool | None:
    if other is None:
        return None
    if isinstance(one, str):
        one, other = one.encode(), other.encode()
    return {
        "=": lambda: one == other, "!=": lambda: one != other, "<": lambda: one < other, "<=": lambda: one <= other,
        ">": lambda: one > other, ">=": lambda: one >= other,
        "contains": lambda: other in one, "doesNotContain": lambda: other not in one,
        "beginsWith": lambda: one.startswith(other), "doesNotBeginWith": lambda: not one.startswith(other),
        "endsWith": lambda: one.endswith(other), "doesNotEndWith": lambda: not one.endswith(other),
    }[operator]()  # fmt: skip


# Random ones


def random_filter(
    draw: random.Random, kinds: Mapping[str, str], rows: list[dict[str, Any]], depth: int = 1
) -> dict[str, Any]:
    """A valid filter over fields of these kinds, whose values are mostly those of rows."""
    rules = [
        random_filter(draw, kinds, rows, depth + 1)
        if depth < 4 and draw.random() < 0.25
        else _random_rule(draw, kinds, rows)
        for _ in range(draw.choice((1, 1, 2, 2, 3, 4)))
    ]
    found = group(*rules, combinator=draw.choice(("and", "or")))
    return found | ({"not": draw.random() < 0.7} if draw.random() < 0.3 else {})


def _random_rule(draw: random.Random, kinds: Mapping[str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    field = draw.choice(list(kinds))
    kind = kinds[field]
    name = draw.choice([name for name, operator in OPERATORS.items() if kind in operator.kinds])
    count = {"none": 0, "one": 1, "two": 2, "many": draw.randrange(1, 5)}[OPERATORS[name].values]
    alike = [other for other in kinds if kinds[other] == kind]
    if count and draw.random() < 0.1:
        chosen = [draw.choice(alike) for _ in range(count)]
        return rule(field, name, chosen if OPERATORS[name].values != "one" else chosen[0], valueSource="field")
    values = [_random_value(draw, field, kind, rows, OPERATORS[name].kinds == ("text",)) for _ in range(count)]
    if OPERATORS[name].values not in ("two", "many"):
        return rule(field, name, *values)
    as_text = (
        draw.random() < 0.2
        and kind != "boolean"
        and all(str(value).strip() and "," not in str(value) for value in values)
    )
    return rule(field, name, ",".join(map(str, values)) if as_text else values)


def _random_value(draw: random.Random, field: str, kind: str, rows: list[dict[str, Any]], of_a_part: bool) -> Any:
    known = [row[field] for row in rows if row[field] is not None]
    value = (
        draw.choice(known)
        if known
        else {"text": "", "number": 0, "boolean": True, "time": datetime(2026, 6, 1, tzinfo=UTC)}[kind]
    )
    if kind == "number":
        value = value + draw.choice((0, 0, 0, 1, -1, Decimal("0.5")))
        as_number = int(value) if value == int(value) else float(value)
        return draw.choice((as_number, str(value)))
    if kind == "time":
        return draw.choice((value.isoformat(), value.date().isoformat(), value.replace(tzinfo=None).isoformat()))
    if kind == "text" and of_a_part:
        start, end = sorted(draw.randrange(len(value) + 1) for _ in range(2))
        return draw.choice((value[start:end], value[:end], value[start:], "%", "_", ""))
    return draw.choice((value, value, value.upper(), "", "' or true --")) if kind == "text" else value


# Hostile ones


def _nested(depth: int) -> dict[str, Any]:
    return group(_nested(depth - 1)) if depth else group(rule("orders_count", "=", 1))


_INJECTIONS = (
    "orders_count; drop table audience_customers", "orders_count\" = 1 or \"orders_count", "1=1) or (1=1", "people.visitor_id",
    "visitor_id", "org_id", "email", "pg_sleep(10)", "orders_count::text", "ORDERS_COUNT", " orders_count", "orders_count\0",
    "__class__", "{field}", "%(org_id)s", "events.page_view.count_30d) or true --", "events.purchased'.count_30d", "",
)  # fmt: skip
_ONE = ("orders_count", "=")
_DOCUMENTS: dict[str, Any] = {
    **{f"field {name!r}": group(rule(name, "=", 1)) for name in _INJECTIONS},
    "field of another type": group(rule(["orders_count"], "=", 1)),
    "operator with SQL": group(rule("orders_count", "= 1 or 1 =", 1)),
    "operator of another type": group(rule("orders_count", {"$gt": 0}, 1)),
    "operator is the builder's placeholder": group(rule("orders_count", "~", 1)),
    "combinator with SQL": group(rule(*_ONE, 1), combinator="or true or"),
    "combinator of another type": group(rule(*_ONE, 1), combinator=["and"]),
    "no combinator": {"rules": [rule(*_ONE, 1)]},
    "combinators between rules": {"rules": [rule(*_ONE, 1), "and", rule(*_ONE, 1)]},
    "not is text": group(rule(*_ONE, 1), **{"not": "false"}),
    "text for a number": group(rule(*_ONE, "1 or 1=1")),
    "number in another script": group(rule(*_ONE, "\u0661")),
    "infinite number": group(rule(*_ONE, "Infinity")),
    "number as text that is none": group(rule(*_ONE, "NaN")),
    "number of 4,000 digits": group(rule(*_ONE, int("9" * 4000))),
    "boolean for a number": group(rule(*_ONE, True)),
    "object for a number": group(rule(*_ONE, {"valueOf": 1})),
    "null for a number": group(rule(*_ONE, None)),
    "list for one number": group(rule(*_ONE, [1])),
    "text for a boolean": group(rule("is_consented", "=", "true")),
    "number for a boolean": group(rule("is_consented", "=", 1)),
    "order of booleans": group(rule("is_consented", ">", False)),
    "part of a number": group(rule("orders_count", "contains", "1")),
    "number for a text": group(rule("usual_device_type", "=", 5)),
    "text with NUL": group(rule("usual_device_type", "=", "a\0b")),
    "text with half a character": group(rule("usual_device_type", "=", "\ud800")),
    "long text": group(rule("usual_device_type", "=", "x" * 501)),
    "no time": group(rule("last_seen_at", ">", "now() - interval '1 day'")),
    "infinite time": group(rule("last_seen_at", "<", "infinity")),
    "time before Christ": group(rule("last_seen_at", ">", "4713-01-01 BC")),
    "time beyond the years": group(rule("last_seen_at", ">", "9999-12-31T23:59:59-23:59")),
    "number for a time": group(rule("last_seen_at", ">", 1_750_000_000)),
    "empty list": group(rule("orders_count", "in", [])),
    "list with null": group(rule("orders_count", "notIn", [1, None])),
    "long list": group(rule("orders_count", "in", list(range(1001)))),
    "one limit": group(rule("orders_count", "between", [1])),
    "three limits": group(rule("orders_count", "between", "1,2,3")),
    "value of another source": group(rule(*_ONE, "1", valueSource="sql")),
    "field compared with what is none": group(rule(*_ONE, "1; select 1", valueSource="field")),
    "field compared with one of another kind": group(rule(*_ONE, "last_seen_at", valueSource="field")),
    "event type that is none": group(rule("events.robbery.count_30d", "=", 1)),
    "no days": group(rule("events.page_view.count_0d", "=", 1)),
    "a thousand years": group(rule("events.page_view.count_365000d", "=", 1)),
    "many counts": group(*[rule(f"events.page_view.count_{days}d", ">", 0) for days in range(1, 8)]),
    "muted rule": group(rule(*_ONE, 1, muted=True)),
    "rule with SQL": group(rule(*_ONE, 1, sql="true")),
    "group without rules": group(group()),
    "group with SQL": group(rule(*_ONE, 1), where="true"),
    "rules is an object": {"combinator": "and", "rules": {"0": rule(*_ONE, 1)}},
    "rule is a text": group("orders_count = 1"),
    "rule is null": group(None),
    "deep": _nested(9),
    "many rules": group(*[rule(*_ONE, 1)] * 101),
    "a list": [rule(*_ONE, 1)],
    "a text": "true",
    "null": None,
}  # fmt: skip
HOSTILE: dict[str, str | bytes] = {
    **{name: json.dumps(document) for name, document in _DOCUMENTS.items()},
    "no JSON": "select 1",
    "nothing": "",
    "NaN": '{"combinator":"and","rules":[{"field":"orders_count","operator":"=","value":NaN}]}',
    "minus infinity": '{"combinator":"and","rules":[{"field":"orders_count","operator":">","value":-Infinity}]}',
    "beyond a double": '{"combinator":"and","rules":[{"field":"orders_count","operator":"=","value":1e999}]}',
    "number of 5,000 digits": '{"combinator":"and","rules":[{"field":"orders_count","operator":"=","value":%s}]}'
    % ("9" * 5000),
    "bomb of lists": "[" * 60_000,
    "bomb of groups": '{"combinator":"and","rules":[' * 2_000 + "]}" * 2_000,
    "10 MB": json.dumps(group(rule("usual_device_type", "=", "x" * 10_000_000))),
    "no UTF-8": b'{"combinator":"and","rules":[{"field":"usual_device_type","operator":"=","value":"\xff"}]}',
}

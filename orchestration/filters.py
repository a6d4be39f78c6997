"""Filters of segments: the JSON that react-querybuilder produces, validated and compiled to SQL.

Names come from an allow-list and values are bound, so nothing of a filter becomes SQL text. No database is needed.

Nulls are those of the SQL that react-querybuilder exports: a comparison with null is unknown, so is its opposite and the
`not` of it, and unknown is no match. Only the operators null and notNull see them. Texts are compared as they are
written: case counts, and % and _ mean themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NoReturn

from psycopg import sql

from orchestration.errors import UserError
from orchestration.moments import parse_moment

ALL_KINDS = ("text", "number", "boolean", "time")
ORDERED = ("text", "number", "time")
SQL_TYPES = {"text": "text", "number": "numeric", "boolean": "boolean", "time": "timestamptz"}
MEANINGS = {
    "text": "a text",
    "number": "a number of at most 18 digits",
    "boolean": "true or false",
    "time": "a date or time in ISO 8601, such as 2026-06-30 or 2026-06-30T02:00:00+02:00",
}


@dataclass(frozen=True)
class Operator:
    """sql: of {field} and {values}. values: how many, none, one, two or many. kinds: of fields that it can compare."""

    sql: str
    values: str
    kinds: tuple[str, ...]


OPERATORS = {
    "=": Operator("{field} = {values}", "one", ALL_KINDS),
    "!=": Operator("{field} <> {values}", "one", ALL_KINDS),
    "<": Operator("{field} < {values}", "one", ORDERED),
    "<=": Operator("{field} <= {values}", "one", ORDERED),
    ">": Operator("{field} > {values}", "one", ORDERED),
    ">=": Operator("{field} >= {values}", "one", ORDERED),
    "contains": Operator("strpos({field}, {values}) > 0", "one", ("text",)),
    "beginsWith": Operator("starts_with({field}, {values})", "one", ("text",)),
    "endsWith": Operator("right({field}, length({values})) = {values}", "one", ("text",)),
    "doesNotContain": Operator("strpos({field}, {values}) = 0", "one", ("text",)),
    "doesNotBeginWith": Operator("not starts_with({field}, {values})", "one", ("text",)),
    "doesNotEndWith": Operator("right({field}, length({values})) <> {values}", "one", ("text",)),
    "null": Operator("{field} is null", "none", ALL_KINDS),
    "notNull": Operator("{field} is not null", "none", ALL_KINDS),
    "in": Operator("{field} in ({values})", "many", ALL_KINDS),
    "notIn": Operator("{field} not in ({values})", "many", ALL_KINDS),
    "between": Operator("{field} between {values}", "two", ORDERED),
    "notBetween": Operator("{field} not between {values}", "two", ORDERED),
}
SEPARATORS = {"one": "", "two": " and ", "many": ", "}

# What react-querybuilder writes into a rule and a group; id, path and disabled are of its screen alone.
OF_THE_SCREEN = {"id", "path", "disabled"}
RULE_KEYS = {"field", "operator", "value", "valueSource"}
GROUP_KEYS = {"combinator", "not", "rules"}

BEHAVIOUR = re.compile(r"events\.(\w+)\.count_([0-9]{1,9})d", re.ASCII)
NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """How large a filter may be; the variables filter_max_* of dbt_project.yml."""

    bytes: int
    depth: int
    rules: int
    characters: int
    values: int
    behaviours: int
    days: int


@dataclass(frozen=True)
class Fields:
    """What filters may name: columns with their kind (text, number, boolean, time), and the event types that are counted."""

    columns: Mapping[str, str]
    event_types: frozenset[str] = frozenset()


@dataclass(frozen=True, order=True)
class Behaviour:
    """How many events of a type a person had in the days before as_of. alias: of the join that gives `events_count`."""

    event_type: str
    days: int

    @property
    def alias(self) -> str:
        return f"{self.event_type}_{self.days}d"


@dataclass(frozen=True)
class Part:
    """A rule or group right below the top of a filter."""

    path: str
    text: str
    condition: sql.Composable


@dataclass(frozen=True)
class Filter:
    """A valid filter. condition: true for members, over `people` and the joins of `behaviours`, with `parameters`.

    document: the JSON without what is of the screen alone.
    """

    document: dict[str, Any]
    condition: sql.Composable
    parts: list[Part]
    parameters: dict[str, Any]
    behaviours: list[Behaviour]


def parse_filter(text: str | bytes, limits: Limits) -> Any:
    """The JSON document of a filter. Raises UserError for what is too large or no JSON."""
    size = len(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    if size > limits.bytes:
        _refuse("filter", f"it is larger than {limits.bytes:,} bytes: use fewer rules or shorter lists")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error).split("\n")[0]
        _refuse("filter", f"no JSON ({reason}): give the document that react-querybuilder exports")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def compile_filter(document: Any, fields: Fields, limits: Limits, *, preserve_value_order: bool = False) -> Filter:
    """Validates a filter and compiles it.

    preserve_value_order: as react-querybuilder's option of that name; without it the smaller limit of `between` comes
    first, whichever way they are given. Raises UserError that names the rule by its path.
    """
    compiler = _Compiler(fields, limits, preserve_value_order)
    condition, clean, parts = compiler.group(document, "", 1)
    return Filter(clean, condition, parts, compiler.parameters, sorted(compiler.behaviours))


def describe(node: Mapping[str, Any]) -> str:
    """A rule or group of a filter's document in a line, for people."""
    if "rules" not in node:
        return " ".join(filter(None, (node["field"], node["operator"], _shown(node.get("value")))))
    inner = f" {node['combinator']} ".join(map(describe, node["rules"]))
    return f"not ({inner})" if node.get("not") else f"({inner})"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) or "''"


def _refuse(path: str, sentence: str) -> NoReturn:
    raise UserError(f"{path or 'filter'}: {sentence}.")


def _quoted(value: Any) -> str:
    """What was given, short enough for a sentence."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class _Compiler:
    """One walk over a document, which counts and binds as it goes."""

    fields: Fields
    limits: Limits
    preserve_value_order: bool
    rules: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    behaviours: set[Behaviour] = field(default_factory=set)

    def group(self, node: Any, path: str, depth: int) -> tuple[sql.Composable, dict[str, Any], list[Part]]:
        if depth > self.limits.depth:
            _refuse(
                path, f"groups are nested deeper than {self.limits.depth}: put rules of the same kind into one group"
            )
        self._check_keys(node, path, GROUP_KEYS, "a group")
        combinator, negated, rules = node.get("combinator"), node.get("not", False), node.get("rules")
        if not isinstance(rules, list):
            _refuse(path, f"rules is {_quoted(rules)}: give a list of rules and groups")
        if combinator not in ("and", "or"):
            _refuse(path, f"combinator is {_quoted(combinator)}: use 'and' or 'or', one for all rules of the group")
        if not isinstance(negated, bool):
            _refuse(path, f"not is {_quoted(negated)}: use true or false")
        if not rules and (depth > 1 or negated):
            _refuse(path, "it has no rules: add one, or remove it")
        parts, children = [], []
        for number, child in enumerate(rules):
            place = f"{path}.rules[{number}]" if path else f"rules[{number}]"
            if isinstance(child, dict) and "rules" in child:
                condition, clean, _ = self.group(child, place, depth + 1)
            else:
                condition, clean = self._rule(child, place)
            parts.append(Part(place, describe(clean), condition))
            children.append(clean)
        joined = sql.SQL(f" {combinator} ").join([part.condition for part in parts]) if parts else sql.SQL("true")
        condition = sql.SQL("not ({})" if negated else "({})").format(joined)
        return condition, {"combinator": combinator, **({"not": True} if negated else {}), "rules": children}, parts

    def _check_keys(self, node: Any, path: str, known: set[str], what: str) -> None:
        if not isinstance(node, dict):
            _refuse(path, f"it is {_quoted(node)}: give {what}, an object with {', '.join(sorted(known))}")
        unknown = {str(key) for key in node.keys() - known - OF_THE_SCREEN}
        if unknown:
            _refuse(path, f"{_quoted(min(unknown))} is nothing that {what} has: use {', '.join(sorted(known))}")

    def _rule(self, node: Any, path: str) -> tuple[sql.Composable, dict[str, Any]]:
        self.rules += 1
        if self.rules > self.limits.rules:
            _refuse(path, f"there are more than {self.limits.rules} rules: use a list with the operator 'in'")
        self._check_keys(node, path, RULE_KEYS, "a rule")
        name, operator_name = node.get("field"), node.get("operator")
        expression, kind = self._field(name, path)
        operator = OPERATORS.get(operator_name) if isinstance(operator_name, str) else None
        if operator is None:
            _refuse(path, f"operator {_quoted(operator_name)} is not known: use one of {', '.join(OPERATORS)}")
        if kind not in operator.kinds:
            usable = ", ".join(other for other in OPERATORS if kind in OPERATORS[other].kinds)
            _refuse(path, f"operator {operator_name!r} is not for a {kind}, as {name} is: use one of {usable}")
        clean = {"field": name, "operator": operator_name}
        if operator.values == "none":
            return sql.SQL(operator.sql).format(field=expression), clean
        source = node.get("valueSource", "value")
        if source not in ("value", "field"):
            _refuse(path, f"valueSource is {_quoted(source)}: use 'value' or 'field'")
        given = self._given(node.get("value"), operator, path)
        bound = [
            self._of_field(value, kind, path) if source == "field" else self._value(value, kind, name, path)
            for value in given
        ]
        if operator.values == "two" and source == "value" and kind != "text" and not self.preserve_value_order:
            bound.sort()
        operands = [value if isinstance(value, sql.Composable) else self._bind(value, kind) for value in bound]
        values = sql.SQL(SEPARATORS[operator.values]).join(operands)
        clean |= {"value": node["value"]} | ({"valueSource": "field"} if source == "field" else {})
        return sql.SQL(operator.sql).format(field=expression, values=values), clean

    def _field(self, name: Any, path: str) -> tuple[sql.Composable, str]:
        """The expression and kind of a field that a filter may name."""
        if isinstance(name, str):
            if name in self.fields.columns:
                kind = self.fields.columns[name]
                # one order of texts on every server
                return sql.SQL('({} collate "C")' if kind == "text" else "{}").format(
                    sql.Identifier("people", name)
                ), kind
            if found := BEHAVIOUR.fullmatch(name):
                return self._behaviour(*found.groups(), path), "number"
        close = get_close_matches(name, self.fields.columns, n=1) if isinstance(name, str) and len(name) < 100 else []
        hint = f"did you mean {close[0]}" if close else "docs/segments.md lists the fields"
        _refuse(path, f"field {_quoted(name)} is not known: {hint}")

    def _behaviour(self, event_type: str, days: str, path: str) -> sql.Composable:
        if event_type not in self.fields.event_types:
            known = ", ".join(sorted(self.fields.event_types))
            _refuse(path, f"event type {_quoted(event_type)} is not known: use one of {known}")
        if not 1 <= int(days) <= self.limits.days:
            _refuse(
                path, f"events are counted over 1 to {self.limits.days} days, not {int(days)}: give another count_<N>d"
            )
        behaviour = Behaviour(event_type, int(days))
        self.behaviours.add(behaviour)
        if len(self.behaviours) > self.limits.behaviours:
            _refuse(path, f"there are more than {self.limits.behaviours} different counts of events: use fewer")
        return sql.SQL("coalesce({}, 0)").format(sql.Identifier(behaviour.alias, "events_count"))

    def _given(self, value: Any, operator: Operator, path: str) -> list[Any]:
        """The values of a rule; of several, a text with commas is a list, as in react-querybuilder."""
        if operator.values == "one":
            return [value]
        if isinstance(value, str):
            value = [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", value) if part.strip()]
        if not isinstance(value, list) or not value:
            _refuse(path, f"value is {_quoted(value)}: give a list, or a text with commas between the values")
        if operator.values == "two" and len(value) != 2:
            _refuse(path, f"there are {len(value)} values: give two, the lower and the upper limit")
        if len(value) > self.limits.values:
            _refuse(path, f"there are {len(value):,} values: give at most {self.limits.values:,}")
        return value

    def _of_field(self, name: Any, kind: str, path: str) -> sql.Composable:
        expression, other = self._field(name, path)
        if other != kind:
            _refuse(path, f"{name} is a {other}, compared with a {kind}: compare fields of one kind")
        return expression

    def _value(self, value: Any, kind: str, name: str, path: str) -> str | bool | Decimal | datetime:
        if kind == "text" and isinstance(value, str) and len(value) > self.limits.characters:
            _refuse(path, f"the value of {name} has {len(value):,} characters: give at most {self.limits.characters:,}")
        try:
            return READERS[kind](value)
        except ValueError:
            if value is None:
                _refuse(path, f"{name} is compared with null: use the operator null or notNull")
            _refuse(path, f"the value of {name} must be {MEANINGS[kind]}, not {_quoted(value)}")

    def _bind(self, value: Any, kind: str) -> sql.Composable:
        name = f"value_{len(self.parameters)}"
        self.parameters[name] = value
        # whole numbers as such: most columns are, and need no conversion then
        type_ = "bigint" if kind == "number" and value == int(value) else SQL_TYPES[kind]
        return sql.SQL(f"cast({{}} as {type_})").format(sql.Placeholder(name))


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    value.encode()  # a lone surrogate is no text; its error is a ValueError
    return value


def _read_number(value: Any) -> Decimal:
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return Decimal(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 10**18:
        raise ValueError
    return Decimal(str(value))


def _read_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_time(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError
    return parse_moment(value.strip())


READERS = {"text": _read_text, "number": _read_number, "boolean": _read_boolean, "time": _read_time}

"""Maintained tables as their last build recorded them: the definition with its marks, and how far it has consumed what.

The marks are those of macros/mechanics/inputs.sql. What the materialization makes of them in an increment is made here for
keys of one's own choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from graphlib import TopologicalSorter

import psycopg
from psycopg.rows import dict_row

from orchestration.errors import UserError

SCOPE = re.compile(r"/\* scope (.+?)(?: since \S+)?\n(.*?)\nscope \*/", re.S)
MARKED = re.compile(r"/\* (scope|audit) .*?\n\1 \*/", re.S)
IN_SCOPE = re.compile(r"true /\* in scope (\(.*?\)) \*/")
IN_SCOPE_DAYS = re.compile(r"true /\* in scope days \((.*?)\) \S+ \*/")
CHANGES = re.compile(r"@changes (\S+) (\S+)@")
LANDED = re.compile(r"@landed ([^@]+)@")
THEN_AND_NOW = re.compile(r"/\* then and now (\S+) (\S+) ")
DELTA = re.compile(r"\(select \*, 1 as weight from \S+\) /\* delta (\S+) (\S+) \*/")


@dataclass(frozen=True)
class Model:
    """A maintained table as its last build recorded it.

    sql: its definition with its marks. add: it is a sum of changes. rules: name:version of the seeds, look-ups and views
    that it reads. positions: what it has consumed of each input. columns: names and types.
    """

    name: str
    schema: str
    sql: str
    unique_key: list[str]
    add: bool
    rules: list[str]
    positions: dict[str, int]
    as_of: str
    built_at: datetime | None
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> str:
        return f'"{self.schema}"."{self.name}"'

    @property
    def scope_keys(self) -> str:
        found = SCOPE.search(self.sql)
        return found.group(1) if found else ""

    @cached_property
    def body(self) -> str:
        """The definition, runnable: without its scope, at the moment of the last build."""
        return self._at_its_moment(MARKED.sub("", self.sql))

    @property
    def key_columns(self) -> list[str]:
        """By which its rows are touched: the keys of its scope, else its own. The keys of a sum's scope are of what it sums up."""
        return self.scope_keys.split(", ") if self.scope_keys and not self.add else self.unique_key

    @property
    def feeds(self) -> set[tuple[str, str]]:
        """Name and schema of each model whose changes it consumes."""
        return {*CHANGES.findall(self.sql), *DELTA.findall(self.sql), *THEN_AND_NOW.findall(self.sql)}

    def reads(self, name: str, schema: str) -> bool:
        """Whether its definition names the other model."""
        return f'"{schema}"."{name}"' in self.sql and name != self.name

    def unconsumed(self) -> str | None:
        """A query for the keys that the next build will touch, of a sum with a scope those of the scope; None when it
        recomputes the whole table anyway."""
        found = SCOPE.search(self.sql)
        if found:
            changes = CHANGES.sub(lambda mark: self.window(*mark.groups()), self._at_its_moment(found.group(2)))
            return LANDED.sub(lambda mark: self.landed(mark.group(1)), changes)
        return DELTA.sub(lambda mark: self.window(*mark.groups()), self.body) if self.add else None

    def window(self, name: str, schema: str) -> str:
        return f'(select * from "{schema}"."{name}__changes" where change_id > {self.positions.get(name, 0)})'

    def landed(self, table: str) -> str:
        return f"(select * from {table} where landed_xid >= cast('{self.positions.get(table, 0)}' as xid8))"

    def _at_its_moment(self, sql: str) -> str:
        moment = f"cast('{self.as_of}' as timestamptz)"
        for mark in ("current_timestamp /* as of */", "@as of@", "@previous as of@"):
            sql = sql.replace(mark, moment)
        return sql


def narrowed(sql: str, keys: str, days: Sequence[date]) -> str:
    """A definition for the keys in the table `touched`; keys that hold local days are among `days`."""
    ranges = " or ".join(
        # local days begin and end within a day of UTC's
        rf"\1 >= '{day - timedelta(days=1)}' and \1 < '{day + timedelta(days=2)}'" for day in sorted(set(days))
    )  # fmt: skip
    sql = IN_SCOPE.sub(rf"\1 in (select {keys} from touched)", sql)
    return IN_SCOPE_DAYS.sub(f"({ranges or 'false'})", sql)


def in_dependency_order(models: Sequence[Model]) -> list[Model]:
    """Each model after those that it reads."""
    by_name = {model.name: model for model in sorted(models, key=lambda model: model.name)}
    graph = {
        name: [other.name for other in by_name.values() if model.reads(other.name, other.schema)]
        for name, model in by_name.items()
    }
    return [by_name[name] for name in TopologicalSorter(graph).static_order()]


def current_rules(connection: psycopg.Connection, schema: str) -> set[str]:
    """What the rules of models would be recorded as now: 'name:version' of seeds, look-ups and views."""
    return {version for (version,) in connection.execute(_CURRENT_RULES.format(schema=schema))}


_CURRENT_RULES = """
select regexp_replace(model, '^seed ', '') || ':' || fingerprint from {schema}_state.model_state
union all
select viewname || ':' || md5(pg_get_viewdef(format('%I.%I', schemaname, viewname)::regclass)) from pg_views
where schemaname = '{schema}' or schemaname like replace('{schema}', '_', '\\_') || '\\_%'
"""


def recorded_models(connection: psycopg.Connection, schema: str) -> list[Model]:
    """Every maintained model with a recorded definition. Raises UserError when one has none."""
    state = f"{schema}_state.model_state"
    if "definition" not in [column.name for column in connection.execute(f"select * from {state} limit 0").description]:
        raise UserError("The tables were built by an older release: run audience build, then verify again.")
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"select model, definition, positions, as_of::text as as_of, built_at from {state} where model not like '% %'"
        ).fetchall()
    unknown = [row["model"] for row in rows if row["definition"] is None]
    if unknown:
        raise UserError(
            f"No definition is recorded of {', '.join(sorted(unknown))}: run audience build, then verify again. "
            f"What is no model any more leaves with: delete from {state} where model = '{min(unknown)}'."
        )
    return [
        Model(
            name=row["model"], **row["definition"], positions=row["positions"], as_of=row["as_of"],
            built_at=row["built_at"], columns=_columns(connection, row["definition"]["schema"], row["model"]),
        )
        for row in rows
    ]  # fmt: skip


def _columns(connection: psycopg.Connection, schema: str, table: str) -> dict[str, str]:
    """Names and types of a table's columns."""
    found = connection.execute(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = %s and table_name = %s order by ordinal_position",
        [schema, table],
    ).fetchall()
    if not found:
        raise UserError(f"The table {schema}.{table} is missing or not yours to read: run audience build.")
    return dict(found)

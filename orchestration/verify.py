"""The marts against the events, cell by cell: what a sample of orgs and days must say, computed anew and compared.

Every table is compared with its own definition, as recorded by the build that wrote it, run on the stored tables that it
reads; the first of them read the landing table. The sample of each table holds what the sampled cells of the tables after
it are made of, so when no step differs, the cells are what the events say. What no build has consumed yet is left out and
counted: it is late, not wrong.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg import sql

from orchestration import database
from orchestration.errors import UserError
from orchestration.recorded_models import Model, current_rules, in_dependency_order, narrowed, recorded_models
from orchestration.settings import project_variables, target_schema
from orchestration.verify_sample import KEYS, Chooser, Sample

LISTED = 20
CANNOT_READ = (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.FeatureNotSupported)


@dataclass(frozen=True)
class Difference:
    """A cell that differs, as text. column None: a whole row, which is missing (stored None) or extra (recomputed None)."""

    table: str
    key: dict[str, str]
    column: str | None
    stored: str | None
    recomputed: str | None


@dataclass(frozen=True)
class TableResult:
    """What was compared of a table. waiting: keys left out for the next build, which all_wait says of the whole table."""

    table: str
    keys: int = 0
    rows: int = 0
    differing: int = 0
    waiting: int = 0
    all_wait: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """Every maintained table in dependency order, and the first differences."""

    sample: Sample
    tables: list[TableResult]
    differences: list[Difference]
    seconds: float

    @property
    def differing(self) -> int:
        return sum(table.differing for table in self.tables)

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def waiting(self) -> int:
        return sum(table.waiting for table in self.tables)

    @property
    def waits(self) -> bool:
        """Whether anything was left out for the next build."""
        return any(table.waiting or table.all_wait for table in self.tables)


def verify(
    *,
    orgs: Sequence[str] = (),
    days: Sequence[date] = (),
    org_count: int = 3,
    day_count: int = 1,
    seed: int | None = None,
    everything: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> VerifyReport:
    """Compares a sample of every maintained table with its definition; changes nothing.

    orgs, days: what to check; where they are not given, org_count and day_count of them are chosen by the seed, which is
    a new one unless given. everything: every org and day instead. progress: called with (done, total, table).
    Raises UserError for an unknown org, when nothing was built yet and when everything waits for the next build.
    """
    started = time.monotonic()
    schema, variables = target_schema(), project_variables()
    with database.connect(autocommit=True) as connection:
        tables = _tables(connection, schema, variables["landing_schema"])
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.autocommit = False
        try:
            # Before the snapshot: changes that a build empties meanwhile would be missing from it.
            connection.execute(f"lock table {', '.join(tables)} in access share mode")
            models = in_dependency_order(recorded_models(connection, schema))
            sample = Sample(None)
            if not everything:
                chooser = Chooser(connection, schema, variables)
                seed = random.SystemRandom().randrange(10**6) if seed is None else seed
                sample = Sample(chooser.choose(orgs, days, org_count, day_count, seed), seed)
                chooser.gather(sample)
        except CANNOT_READ as error:
            raise _cannot_read(f"The tables of schema {schema} cannot be read", error) from error
        checker = _Checker(connection, schema, models, sample)
        results, differences = [], []
        for done, model in enumerate(models):
            if progress:
                progress(done, len(models), model.name)
            result, found = checker.check(model)
            results.append(result)
            differences += found
        connection.rollback()
    report = VerifyReport(sample, results, differences[:LISTED], time.monotonic() - started)
    if not report.rows and not report.differing and report.waits:
        raise UserError("Everything in the sample waits for the next build: run audience build, then verify again.")
    return report


def _cannot_read(what: str, error: psycopg.Error) -> UserError:
    return UserError(
        f"{what} ({str(error).splitlines()[0]}): run audience build, then verify again. "
        "It needs SELECT on every schema of the build and of the landing tables."
    )


def _tables(connection: psycopg.Connection, schema: str, landing: str) -> list[str]:
    """The tables that a check may read. Raises UserError when nothing was built yet."""
    found = connection.execute(
        "select format('%%I.%%I', schemaname, tablename) from pg_tables"
        " where schemaname in (%(landing)s, %(schema)s) or schemaname like replace(%(schema)s, '_', '\\_') || '\\_%%'",
        {"schema": schema, "landing": landing},
    ).fetchall()
    tables = [name for (name,) in found]
    if f"{schema}_state.model_state" not in tables or f"{schema}.audience_overview_daily" not in tables:
        raise UserError(f"Nothing was built in schema {schema} yet: run audience build, then verify again.")
    return tables


class _Checker:
    """Compares tables with their definitions."""

    def __init__(self, connection: psycopg.Connection, schema: str, models: Sequence[Model], sample: Sample) -> None:
        self.connection, self.schema, self.models, self.sample = connection, schema, models, sample
        self.rules = current_rules(connection, schema)

    def check(self, model: Model) -> tuple[TableResult, list[Difference]]:
        """One table against its definition, and its first differences. Raises UserError when the definition does not run."""
        try:
            with self.connection.transaction(force_rollback=True):
                reason = self._all_wait(model)
                if reason:
                    return TableResult(model.name, all_wait=reason), []
                return self._compare(model)
        except CANNOT_READ as error:
            raise _cannot_read(f"The recorded definition of {model.name} cannot be run", error) from error

    def _one(self, query: str) -> Any:
        return self.connection.execute(query).fetchone()[0]

    def _all_wait(self, model: Model) -> str | None:
        """Why the next build recomputes all of the table, or None; makes `waiting`, the keys that it recomputes anyway."""
        changed = sorted(rule.split(":")[0] for rule in set(model.rules) - self.rules)
        if changed:
            return f"{', '.join(changed)} changed since"
        for name, schema in sorted(model.feeds):
            window = model.window(name, schema)
            if self._one(f"select exists (select from {window} as changes where weight is null)"):
                return f"{name} was made anew since"
        keys, query = ", ".join(model.key_columns), model.unconsumed()
        if query is None:
            newer = [other.name for other in self.models
                     if model.reads(other.name, other.schema) and other.built_at > model.built_at]  # fmt: skip
            if newer:
                return f"{', '.join(newer)} changed since"
            query = f"select {keys} from {model.table} limit 0"
        elif model.add and model.scope_keys:
            if self._one(f"select exists (select from ({query}) as keys)"):
                return "what it sums up changed since"
            query = f"select {keys} from {model.table} limit 0"
        self.connection.execute(
            f"create temporary table waiting as select distinct {keys} from ({query}) as keys; analyze waiting"
        )
        if self._one(f"select exists (select from waiting where not row({keys}) is not null)"):
            return "everything is touched by what landed since"
        return None

    def _compare(self, model: Model) -> tuple[TableResult, list[Difference]]:
        keys = ", ".join(model.key_columns)
        body = model.body
        if self.sample.days is not None and model.scope_keys and not model.add:
            self._touch(model)
            body = narrowed(body, keys, [day for _, day in self.sample.days])
            of_stored, of_recomputed = f"({keys}) in (select * from touched)", "true"
            checked = "touched"
        else:
            same = _same(model.key_columns, "waiting", "checked")
            of_stored = of_recomputed = f"{self._in_sample(model)} and not exists (select from waiting where {same})"
            checked = f"(select {keys} from stored union select {keys} from recomputed) as keys"
        if model.add:
            # a sum of nothing is no row
            sums = [name for name in model.columns if name not in model.unique_key]
            body = f"select * from (\n{body}\n) as sums where {' <> 0 or '.join(sums)} <> 0"
        self.connection.execute(
            f"""
            create temporary table stored as select * from {model.table} as checked where {of_stored};
            create temporary table recomputed as select * from (\n{body}\n) as checked where {of_recomputed};
            analyze stored ({", ".join(model.unique_key)});
            analyze recomputed ({", ".join(model.unique_key)});
            create temporary table differing as {_differences(model)}
            """
        )
        key_count, stored, missing, differing, waiting = self.connection.execute(
            f"""
            select (select count(*) from {checked}), (select count(*) from stored),
                (select count(*) from differing where name is null and stored is null), (select count(*) from differing),
                (select count(*) from waiting)
            """
        ).fetchone()
        found = self.connection.execute(f"select * from differing order by key::text, name limit {LISTED}").fetchall()
        result = TableResult(model.name, key_count, stored + missing, differing, waiting)
        return result, [
            Difference(model.name, {name: key[name] for name in model.unique_key}, *cell) for key, *cell in found
        ]

    def _touch(self, model: Model) -> None:
        """Makes `touched`: the sampled keys of the model's scope, and those of its stored rows of the sampled days."""
        keys = model.scope_keys
        if keys not in KEYS:
            raise NotImplementedError(f"{model.name}: verify knows no sample of the keys ({keys})")
        dates = [name for name, type_ in model.columns.items() if type_ == "date"] or [
            name for name, type_ in model.columns.items() if type_.startswith("timestamp")
        ]
        on_day = " or ".join(
            f"(org_id, case when isfinite({name}) then cast({name} as date) end) in (select * from sampled)"
            for name in dates
        )
        query = KEYS[keys].format(
            enriched=f"{self.schema}_intermediate.int_events_enriched",
            orders=f"{self.schema}_intermediate.int_orders",
            staged=f"{self.schema}_staging.stg_events",
        )
        self.connection.execute(
            f"""
            create temporary table touched as {query};
            analyze touched;
            insert into touched
            select distinct {keys} from {model.table} as checked
            where ({on_day or "false"}) and not exists (select from touched where {_same(model.key_columns, "touched", "checked")});
            delete from touched using waiting where {_same(model.key_columns, "touched", "waiting")};
            analyze touched
            """
        )

    def _in_sample(self, model: Model) -> str:
        """The sampled rows of a table without a scope, as literals: so the planner can narrow what is summed.

        A table without days is checked for all of the org.
        """
        if self.sample.days is None:
            return "true"
        if "event_date" in model.columns:
            return f"(org_id, event_date) in ({self.sample.literals})"
        return f"org_id in ({', '.join(sql.quote(org_id) for org_id in self.sample.orgs)})"


def _same(keys: Sequence[str], one: str, other: str) -> str:
    return " and ".join(f"{one}.{key} = {other}.{key}" for key in keys)


def _differences(model: Model) -> str:
    """A query over `stored` and `recomputed`: (key, name, stored, recomputed) of each cell that differs; name null: a row."""
    key = model.unique_key[0]
    others = [name for name in model.columns if name not in model.unique_key]
    shows = not model.schema.endswith("_contacts")
    cells = "".join(
        f" union all select '{name}', {_text(f'stored.{name}', shows)}, {_text(f'recomputed.{name}', shows)}"
        f" where stored.{name} is distinct from recomputed.{name} and stored.{key} is not null and recomputed.{key} is not null"
        for name in others
    )
    names = [*model.unique_key, *others]
    return f"""
        select
            jsonb_build_object({", ".join(f"'{name}', coalesce(stored.{name}, recomputed.{name})::text" for name in model.unique_key)}) as key,
            cells.name, cells.stored, cells.recomputed
        from stored
        full join recomputed on {_same(model.unique_key, "stored", "recomputed")}
        cross join lateral (
            select null::text as name, 'a row' as stored, null::text as recomputed where recomputed.{key} is null
            union all select null, null, 'a row' where stored.{key} is null
            {cells}
        ) as cells
        where ({", ".join(f"stored.{name}" for name in names)}) is distinct from ({", ".join(f"recomputed.{name}" for name in names)})
    """


def _text(column: str, shows: bool) -> str:
    """A cell as text. Personal data is not shown, only that there is some."""
    return f"{column}::text" if shows else f"case when {column} is not null then '(not shown)' end"

"""The marts against the events, cell by cell: what a sample of orgs and days must say, computed anew and compared.

Every table is compared with its own definition, as recorded by the build that wrote it, run on the stored tables that it
reads; the first of them read the landing table. The sample of each table holds what the sampled cells of the tables after
it are made of, so when no step differs, the cells are what the events say. What no build has consumed yet is left out and
counted: it is late, not wrong.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from orchestration import database
from orchestration.build import target_schema
from orchestration.errors import UserError
from orchestration.settings import project_variables

LISTED = 20
# How far the sample follows people: over a device, a login or an order that they share with somebody who was active on
# a sampled day. A visitor's cells need the other devices of the visitor (1, 2), what these sent (3), and the consent
# statements of everybody who sent from them (4).
STEPS = 4

SCOPE = re.compile(r"/\* scope (.+?)\n(.*?)\nscope \*/", re.S)
MARKED = re.compile(r"/\* (scope|audit) .*?\n\1 \*/", re.S)
IN_SCOPE = re.compile(r"true /\* in scope (\(.*?\)) \*/")
IN_SCOPE_DAYS = re.compile(r"true /\* in scope days \((.*?)\) \S+ \*/")
CHANGES = re.compile(r"@changes (\S+) (\S+)@")
LANDED = re.compile(r"@landed ([^@]+)@")
DELTA = re.compile(r"\(select \*, 1 as weight from \S+\) /\* delta (\S+) (\S+) \*/")

# The sampled keys of each kind of scope, from the tables made by _gather.
KEYS = {
    "org_id, event_id": "select org_id, event_id from sampled_events",
    "org_id, device_id": "select org_id, id as device_id from sampled_people",
    "org_id, visitor_id": "select org_id, id as visitor_id from sampled_people",
    "org_id, sender_type, sender_id": "select org_id, sender_type, id as sender_id from sampled_people"
    " cross join (values ('device'), ('user')) as types (sender_type)",
    "org_id, order_reference": "select org_id, order_reference from {enriched} join sampled_events using (org_id, event_id)"
    " where order_reference is not null",
    "org_id, event_date": "select org_id, day as event_date from sampled",
    "org_id, received_date": "select org_id, day as received_date from sampled",
}


@dataclass(frozen=True)
class Sample:
    """The orgs and local days to check, and the seed that chose them. days None: everything."""

    days: tuple[tuple[str, date], ...] | None
    seed: int | None = None

    @property
    def orgs(self) -> list[str]:
        return sorted({org_id for org_id, _ in self.days or ()})


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


@dataclass(frozen=True)
class Model:
    """A maintained table as its last build recorded it. positions: what it has consumed of each input."""

    name: str
    schema: str
    sql: str
    unique_key: list[str]
    add: bool
    rules: list[str]
    positions: dict[str, int]
    as_of: str
    built_at: Any
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
    def waiting_keys(self) -> list[str]:
        return self.scope_keys.split(", ") if self.scope_keys else self.unique_key

    @property
    def feeds(self) -> set[tuple[str, str]]:
        """Name and schema of each model whose changes it consumes."""
        return {*CHANGES.findall(self.sql), *DELTA.findall(self.sql)}

    def reads(self, name: str, schema: str) -> bool:
        return f'"{schema}"."{name}"' in self.sql and name != self.name

    def unconsumed(self) -> str | None:
        """A query for the keys that the next build will touch; None when it recomputes the whole table anyway."""
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


def verify(
    *,
    orgs: Sequence[str] = (),
    days: Sequence[date] = (),
    org_count: int = 3,
    day_count: int = 5,
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
    schema, landing = target_schema(), project_variables()["landing_schema"]
    with database.connect(autocommit=True) as connection:
        tables = _tables(connection, schema, landing)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.autocommit = False
        # Before the snapshot: changes that a build empties meanwhile would be missing from it.
        connection.execute(f"lock table {', '.join(tables)} in access share mode")
        models = in_dependency_order(_models(connection, schema))
        if everything:
            sample = Sample(None)
        else:
            chooser = _Chooser(connection, schema, landing)
            seed = random.SystemRandom().randrange(10**6) if seed is None else seed
            sample = Sample(chooser.choose(orgs, days, org_count, day_count, seed), seed)
            chooser.gather(sample)
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
    if not report.rows and not report.differing and any(table.waiting or table.all_wait for table in results):
        raise UserError("Everything in the sample waits for the next build: run audience build, then verify again.")
    return report


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


def _models(connection: psycopg.Connection, schema: str) -> list[Model]:
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
            f"What is no model any more leaves with: delete from {state} where model = '{min(unknown)}'"
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


class _Chooser:
    """Chooses orgs and days, and gathers what their cells are made of into temporary tables."""

    def __init__(self, connection: psycopg.Connection, schema: str, landing: str) -> None:
        self.connection, self.schema = connection, schema
        zone = f"coalesce(orgs.time_zone, '{project_variables()['default_time_zone']}')"
        self.names = {
            "landing": f'"{landing}"',
            "schema": schema,
            "enriched": f"{schema}_intermediate.int_events_enriched",
            "orgs": f"{schema}_seeds.orgs",
            "org": "case when btrim(events.org_id) <> '' then events.org_id else '(missing)' end",
            "occurred_date": f"cast(events.occurred_at at time zone {zone} as date)",
            "received_date": f"cast(events.received_at at time zone {zone} as date)",
        }

    def _execute(self, query: str, **parameters: Any) -> psycopg.Cursor:
        return self.connection.execute(query.format(**self.names), parameters or None)

    def choose(
        self, orgs: Sequence[str], days: Sequence[date], org_count: int, day_count: int, seed: int
    ) -> tuple[tuple[str, date], ...]:
        """Orgs and their days with the given seed, among those that landed and those that the marts know."""
        known = [org_id for (org_id,) in self._execute(
            "select {org} from {landing}.events union select {org} from {landing}.rejected_rows as events"
            " union select org_id from {schema}.audience_overview_daily"
            " union select org_id from {schema}.data_quality_daily order by 1"
        )]  # fmt: skip
        unknown = sorted(set(orgs) - set(known))
        if unknown:
            raise UserError(
                f"No event of org {', '.join(unknown)} has landed: give one of {', '.join(known[:LISTED]) or 'none'}."
            )
        chooser = random.Random(seed)
        chosen = sorted(set(orgs)) or sorted(chooser.sample(known, min(org_count, len(known))))
        self._identify(chosen)
        found = self._execute(
            "select org_id, event_date from identities union select org_id, received_date from identities"
            " union select {org}, {received_date} from {landing}.events left join {orgs} as orgs using (org_id)"
            " where rejection_reason is not null"
            " union select org_id, event_date from {schema}.audience_overview_daily"
            " union select org_id, received_date from {schema}.data_quality_daily order by 1, 2"
        ).fetchall()
        pairs = []
        for org_id in chosen:
            its_days = [day for org, day in found if org == org_id]
            picked = days or chooser.sample(its_days, min(day_count, len(its_days)))
            pairs += [(org_id, day) for day in sorted(set(picked))]
        return tuple(pairs)

    def _identify(self, orgs: Sequence[str]) -> None:
        """Reads the landed events of the orgs once: who sent each, for which order, and on which days."""
        self._execute(
            """
            create temporary table identities as
            select
                events.landing_id,
                events.org_id,
                events.event_id,
                case when btrim(events.anonymous_id) <> '' then events.anonymous_id end as anonymous_id,
                case when btrim(events.user_id) <> '' then events.user_id end as user_id,
                nullif(btrim(events.properties ->> 'order_id'), '') as order_id,
                {occurred_date} as event_date,
                {received_date} as received_date,
                cast(null as integer) as step
            from {schema}_staging.stg_events as events
            left join {orgs} as orgs on orgs.org_id = events.org_id
            where events.org_id = any(%(orgs)s)
            """,
            orgs=list(orgs),
        )
        self._execute("analyze identities")

    def gather(self, sample: Sample) -> None:
        """Makes sampled (org_id, day), sampled_events (org_id, event_id) and sampled_people (org_id, id).

        People are devices and users alike: whoever sent an event of the sampled days, and whom these lead to.
        """
        self._execute("create temporary table sampled (org_id text, day date)")
        with self.connection.cursor() as cursor:
            cursor.executemany("insert into sampled values (%s, %s)", sample.days or ())
        self._execute(
            "create temporary table sampled_people (org_id text, id text, step integer);"
            " update identities set step = 0"
            " where (org_id, event_date) in (select * from sampled) or (org_id, received_date) in (select * from sampled)"
        )
        for step in range(STEPS):
            self._find_people(step)
            self._find_events(step)
        self._find_people(STEPS)
        # the last two: what is stored, but landed no more
        self._execute(
            """
            create temporary table sampled_events as
            select org_id, event_id from identities where step is not null
            union
            select org_id, event_id from {enriched}
            where (org_id, event_date) in (select * from sampled) or (org_id, received_date) in (select * from sampled)
            union
            select org_id, event_id from {enriched} where (org_id, device_id) in (select org_id, id from sampled_people);
            analyze sampled;
            analyze sampled_events
            """
        )

    def _find_people(self, step: int) -> None:
        """The people of the events found at the step."""
        self._execute(
            """
            insert into sampled_people
            select org_id, id, {step}
            from identities
            cross join lateral (values (anonymous_id), (user_id)) as ids (id)
            where step = {step} and id is not null
            except
            select org_id, id, {step} from sampled_people;
            analyze sampled_people
            """.replace("{step}", str(step))
        )

    def _find_events(self, step: int) -> None:
        """Events of the people found at the step, and of the same orders."""
        self._execute(
            """
            update identities set step = {step} + 1
            where step is null and landing_id in (
                select landing_id from identities
                join sampled_people as people on people.org_id = identities.org_id and people.id = identities.anonymous_id
                where people.step = {step}
                union all
                select landing_id from identities
                join sampled_people as people on people.org_id = identities.org_id and people.id = identities.user_id
                where people.step = {step}
                union all
                select others.landing_id from identities
                join identities as others on others.org_id = identities.org_id and others.order_id = identities.order_id
                where identities.step = {step}
            );
            analyze identities
            """.replace("{step}", str(step))
        )


class _Checker:
    """Compares tables with their definitions."""

    def __init__(self, connection: psycopg.Connection, schema: str, models: Sequence[Model], sample: Sample) -> None:
        self.connection, self.schema, self.models, self.sample = connection, schema, models, sample
        self.rules = {version for (version,) in connection.execute(_CURRENT_RULES.format(schema=schema))}

    def check(self, model: Model) -> tuple[TableResult, list[Difference]]:
        """One table against its definition, and its first differences. Raises UserError when the definition does not run."""
        try:
            with self.connection.transaction(force_rollback=True):
                reason = self._all_wait(model)
                if reason:
                    return TableResult(model.name, all_wait=reason), []
                return self._compare(model)
        except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.FeatureNotSupported) as error:
            raise UserError(
                f"The recorded definition of {model.name} cannot be run ({str(error).splitlines()[0]}): "
                "run audience build, then verify again; a reader needs SELECT on every schema of the build."
            ) from error

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
        keys, query = ", ".join(model.waiting_keys), model.unconsumed()
        if query is None:
            newer = [other.name for other in self.models
                     if model.reads(other.name, other.schema) and other.built_at > model.built_at]  # fmt: skip
            if newer:
                return f"{', '.join(newer)} changed since"
            query = f"select {keys} from {model.table} limit 0"
        self.connection.execute(
            f"create temporary table waiting as select distinct {keys} from ({query}) as keys; analyze waiting"
        )
        if self._one(f"select exists (select from waiting where not row({keys}) is not null)"):
            return "everything is touched by what landed since"
        return None

    def _compare(self, model: Model) -> tuple[TableResult, list[Difference]]:
        keys = ", ".join(model.waiting_keys)
        body = model.body
        if self.sample.days is not None and model.scope_keys:
            self._touch(model)
            body = narrowed(body, keys, [day for _, day in self.sample.days])
            of_stored, of_recomputed = f"({keys}) in (select * from touched)", "true"
            checked = "touched"
        else:
            same = " and ".join(f"waiting.{key} = checked.{key}" for key in model.waiting_keys)
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
            analyze stored;
            analyze recomputed;
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
        query = KEYS[keys].format(enriched=f"{self.schema}_intermediate.int_events_enriched")
        self.connection.execute(
            f"""
            create temporary table touched as
            ({query} union select {keys} from {model.table} where {on_day or "false"})
            except select * from waiting;
            analyze touched
            """
        )

    def _in_sample(self, model: Model) -> str:
        """The sampled rows of a table without a scope, as literals: so the planner can narrow what is summed.

        A table without days is checked for all of the org.
        """
        if self.sample.days is None:
            return "true"
        quote = sql.quote
        if "event_date" in model.columns:
            pairs = ", ".join(f"({quote(org_id)}, date {quote(str(day))})" for org_id, day in self.sample.days)
            return f"(org_id, event_date) in ({pairs})"
        return f"org_id in ({', '.join(quote(org_id) for org_id in self.sample.orgs)})"


# What a model's rules would be recorded as now: seeds and look-ups, and views.
_CURRENT_RULES = """
select regexp_replace(model, '^seed ', '') || ':' || fingerprint from {schema}_state.model_state
union all
select viewname || ':' || md5(pg_get_viewdef(format('%I.%I', schemaname, viewname)::regclass)) from pg_views
where schemaname = '{schema}' or schemaname like replace('{schema}', '_', '\\_') || '\\_%'
"""


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
        full join recomputed on {" and ".join(f"stored.{name} = recomputed.{name}" for name in model.unique_key)}
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

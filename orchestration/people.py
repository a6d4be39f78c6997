"""Whom a filter lists: the fields that filters may name, and one query that previews, memberships and exports share."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import yaml
from psycopg import sql

from orchestration.errors import UserError
from orchestration.filters import Behaviour, Fields, Filter, Limits, compile_filter
from orchestration.settings import project_dir, project_variables, target_schema

KINDS = {
    "text": "text",
    "bigint": "number",
    "integer": "number",
    "boolean": "boolean",
    "timestamp with time zone": "time",
}


@dataclass(frozen=True)
class Catalog:
    """What the project declares of filters. visit_columns: the column of int_visits that counts an event type."""

    fields: Fields
    visit_columns: Mapping[str, str]
    limits: Limits


def read_catalog() -> Catalog:
    """The columns with meta filterable, canonical event types and limits, as the project's files have them."""
    variables = project_variables()
    limits = Limits(
        bytes=variables["filter_max_bytes"],
        depth=variables["filter_max_depth"],
        rules=variables["filter_max_rules"],
        characters=variables["filter_max_characters"],
        values=variables["filter_max_values"],
        behaviours=variables["filter_max_behaviours"],
        days=variables["filter_max_days"],
    )
    customers = {
        name: column
        for name, column in _columns("marts/_marts.yml", "audience_customers")
        if column["meta"].get("filterable")
    }
    visits = {
        column["meta"].get("event_type"): name
        for name, column in _columns("intermediate/_intermediate.yml", "int_visits")
    }
    with (project_dir() / "seeds" / "event_taxonomy.csv").open(newline="") as file:
        event_types = frozenset(row["event_type"] for row in csv.DictReader(file))
    fields = Fields({name: _kind(column["data_type"]) for name, column in customers.items()}, event_types)
    return Catalog(fields, visits, limits)


def _columns(file: str, model: str) -> list[tuple[str, dict[str, Any]]]:
    """Names of a model's columns with what its YAML says of each, its meta included."""
    # the fast reader: these are the longest files of the project
    content = yaml.load((project_dir() / "models" / file).read_text(), Loader=yaml.CSafeLoader)
    found = next(node for node in content["models"] if node["name"] == model)["columns"]
    return [(column["name"], {**column, "meta": column.get("config", {}).get("meta", {})}) for column in found]


def _kind(data_type: str) -> str:
    return "number" if data_type.startswith("numeric") else KINDS[data_type]


@dataclass(frozen=True)
class Selection:
    """The people of an org whom a filter lists.

    source: the from-clause, in which they are `people`. eligible: whom a segment of the org may have at all, which the
    filter's condition narrows further. parameters: of all.
    """

    filter: Filter
    source: sql.Composable
    eligible: sql.Composable
    parameters: dict[str, Any]

    @property
    def members(self) -> sql.Composed:
        """The query of the members' visitor_id. Every list of a segment's people comes from here."""
        return sql.SQL("select people.visitor_id {} where {} and {}").format(
            self.source, self.eligible, self.filter.condition
        )


def customers_as_of(connection: psycopg.Connection) -> datetime:
    """The moment for which the customers were last built. Raises UserError before the first build."""
    schema = target_schema()
    found = connection.execute(
        sql.SQL("select {}()").format(sql.Identifier(f"{schema}_state", "customers_as_of"))
    ).fetchone()
    if found == (None,):
        raise UserError(f"Nothing was built in schema {schema} yet: run audience build, then run this again.")
    return found[0]


def select_people(document: Any, org_id: str, as_of: datetime, catalog: Catalog) -> Selection:
    """The people of an org whom a filter's document lists. Raises UserError for a filter that is not valid."""
    compiled = compile_filter(document, catalog.fields, catalog.limits)
    schema = target_schema()
    joins = [_count_of(behaviour, schema, catalog) for behaviour in compiled.behaviours]
    source = sql.SQL("from {customers} as people{joins}").format(
        customers=sql.Identifier(schema, "audience_customers"), joins=sql.SQL("").join(joins)
    )
    times = {f"since_{one.alias}": as_of - timedelta(days=one.days) for one in compiled.behaviours}
    types = {f"type_{one.alias}": one.event_type for one in compiled.behaviours}
    return Selection(
        compiled,
        source,
        _ELIGIBLE.format(left_alone=sql.Identifier(f"{schema}_state", "suppressed_visitors")),
        {"org_id": org_id, "as_of": as_of, **times, **types, **compiled.parameters},
    )


def _count_of(behaviour: Behaviour, schema: str, catalog: Catalog) -> sql.Composed:
    """The join that counts events: from the visits if they count the type, else from the events themselves."""
    column = catalog.visit_columns.get(behaviour.event_type)
    return sql.SQL(_BY_VISIT if column else _BY_EVENT).format(
        visits=sql.Identifier(f"{schema}_intermediate", "int_visits"),
        events=sql.Identifier(schema, "enriched_events"),
        alias=sql.Identifier(behaviour.alias),
        column=sql.Identifier(column or ""),
        since=sql.SQL("cast({} as timestamptz)").format(sql.Placeholder(f"since_{behaviour.alias}")),
        event_type=sql.Placeholder(f"type_{behaviour.alias}"),
    )


# Who said no is nobody's audience, whatever the filter says.
_ELIGIBLE = sql.SQL(
    "people.org_id = %(org_id)s and not people.is_opted_out and not exists (select from {left_alone} as left_alone"
    " where left_alone.org_id = people.org_id and left_alone.visitor_id = people.visitor_id and left_alone.purpose = 'all')"
)

# Visits that began in the window count as they are. Those few that were going on when it began count by their events.
# Their local day is that of its beginning, which a time zone puts at most a day off.
_BY_VISIT = """
left join (
    select visitor_id, sum(events_count) as events_count
    from (
        select visitor_id, cast({column} as integer) as events_count
        from {visits}
        where org_id = %(org_id)s and event_date >= cast({since} as date) - 1 and first_event_at > {since} and {column} > 0
        union all
        select visits.visitor_id, later.events_count
        from {visits} as visits
        cross join lateral (
            select cast(count(*) as integer) as events_count
            from {events} as events
            where events.org_id = visits.org_id and events.device_id = visits.device_id
                and events.occurred_at > {since} and events.occurred_at <= visits.last_event_at
                and events.visitor_id = visits.visitor_id and events.event_date = visits.event_date
                and events.event_type = {event_type} and events.is_person
        ) as later
        where visits.org_id = %(org_id)s and visits.event_date between cast({since} as date) - 1 and cast({since} as date) + 1
            and visits.first_event_at <= {since} and visits.last_event_at > {since} and visits.{column} > 0
    ) as counts
    group by visitor_id
) as {alias} on {alias}.visitor_id = people.visitor_id"""

_BY_EVENT = """
left join (
    select visitor_id, count(*) as events_count
    from {events}
    where org_id = %(org_id)s and event_type = {event_type} and is_person and device_id is not null
        and occurred_at > {since} and occurred_at <= %(as_of)s
    group by visitor_id
) as {alias} on {alias}.visitor_id = people.visitor_id"""

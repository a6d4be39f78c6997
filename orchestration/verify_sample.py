"""What a check of some orgs and days has to look at: the days, their events, and the people who are reached from there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg import sql

from orchestration.errors import UserError

LISTED = 20
# How far people are followed from those who sent an event of the sampled days: to the users and the other devices that
# they were on another day (1), to the devices of those (2), and to whose consent statements decide about these (3).
STEPS = 3

# The sampled keys of each kind of scope, from the tables that Chooser.gather makes.
KEYS = {
    "org_id, event_id": "select org_id, event_id from sampled_events",
    "org_id, event_id, landing_id": "select org_id, event_id, landing_id from {enriched} join sampled_events using (org_id, event_id)"
    " union select org_id, event_id, landing_id from {staged} join sampled_events using (org_id, event_id)",
    "org_id, device_id": "select org_id, id as device_id from sampled_people",
    "org_id, visitor_id": "select org_id, id as visitor_id from sampled_people",
    "org_id, sender_type, sender_id": "select org_id, sender_type, id as sender_id from sampled_people"
    " cross join (values ('device'), ('user')) as types (sender_type)",
    "org_id, order_reference": "select distinct org_id, order_reference from {enriched} join sampled_events using (org_id, event_id)"
    " where order_reference is not null",
    "org_id, order_key": "select distinct org_id, order_key from {orders} where (org_id, visitor_id) in (select org_id, id from sampled_people)"
    " or (org_id, order_reference) in (select org_id, order_reference from {enriched} join sampled_events using (org_id, event_id))",
    "org_id": "select distinct org_id from sampled",
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

    @property
    def literals(self) -> str:
        """The orgs and days as SQL."""
        return ", ".join(f"({sql.quote(org_id)}, date {sql.quote(str(day))})" for org_id, day in self.days or ())


class Chooser:
    """Chooses orgs and days, and gathers what their cells are made of into temporary tables."""

    def __init__(self, connection: psycopg.Connection, schema: str, variables: Mapping[str, Any]) -> None:
        self.connection = connection
        zone = f"coalesce(orgs.time_zone, '{variables['default_time_zone']}')"
        self.names = {
            "landing": f'"{variables["landing_schema"]}"',
            "marts": schema,
            "staging": f"{schema}_staging",
            "intermediate": f"{schema}_intermediate",
            "orgs": f"left join {schema}_seeds.orgs as orgs on orgs.org_id = events.org_id",
            "org": "case when btrim(events.org_id) <> '' then events.org_id else '(missing)' end",
            "occurred_date": f"cast(events.occurred_at at time zone {zone} as date)",
            "received_date": f"cast(events.received_at at time zone {zone} as date)",
        }

    def _execute(self, query: str, **names: Any) -> psycopg.Cursor:
        return self.connection.execute(query.format(**self.names, **names))

    def choose(
        self, orgs: Sequence[str], days: Sequence[date], org_count: int, day_count: int, seed: int
    ) -> tuple[tuple[str, date], ...]:
        """Orgs and their days with the given seed, among those that landed and those that the marts know."""
        found = self._execute(
            """
            select org_id, day
            from (
                select {org} as org_id, {received_date} as received_date,
                    case when rejection_reason is null then {occurred_date} end as occurred_date
                from {landing}.events as events
                {orgs}
                group by 1, 2, 3
            ) as landed
            cross join lateral (values (received_date), (occurred_date)) as days (day)
            where day is not null
            union select {org}, {received_date} from {landing}.rejected_rows as events {orgs}
            union select org_id, event_date from {marts}.audience_overview_daily
            union select org_id, received_date from {marts}.data_quality_daily
            order by 1, 2
            """
        ).fetchall()
        known: dict[str, list[date]] = {}
        for org_id, day in found:
            known.setdefault(org_id, []).append(day)
        if not known:
            raise UserError("Nothing has landed yet: run audience load and audience build, then verify again.")
        unknown = sorted(set(orgs) - known.keys())
        if unknown:
            raise UserError(
                f"No event of org {', '.join(unknown)} has landed: give one of {', '.join(list(known)[:LISTED])}."
            )
        chooser = random.Random(seed)
        chosen = sorted(set(orgs)) or sorted(chooser.sample(list(known), min(org_count, len(known))))
        return tuple(
            (org_id, day)
            for org_id in chosen
            for day in sorted(set(days) or chooser.sample(known[org_id], min(day_count, len(known[org_id]))))
        )

    def gather(self, sample: Sample) -> None:
        """Makes sampled (org_id, day), sampled_events (org_id, event_id) and sampled_people (org_id, id, step).

        The events are those of the sampled days, and all of everybody who sent one of them or is reached from there.
        People are devices and users alike.
        """
        pairs = sample.literals
        self._execute(
            """
            create temporary table sampled (org_id, day) as values {pairs};
            create temporary table day_events as
            select
                events.org_id,
                events.event_id,
                events.anonymous_id,
                events.user_id,
                nullif(btrim(events.properties ->> 'order_id'), '') as order_id
            from {staging}.stg_events as events
            {orgs}
            where (events.org_id, {occurred_date}) in ({pairs}) or (events.org_id, {received_date}) in ({pairs});
            create temporary table sampled_people as
            select distinct org_id, id, 0 as step
            from day_events
            cross join lateral (values (anonymous_id), (user_id)) as ids (id)
            where btrim(id) <> '';
            analyze sampled;
            analyze day_events;
            analyze sampled_people
            """,
            pairs=pairs,
        )
        for step in range(STEPS):
            self._follow_people(step)
        self._execute(
            """
            create temporary table sampled_orders as
            select org_id, order_id from day_events where order_id is not null
            union
            select orders.org_id, orders.order_id
            from sampled_people as people
            join {intermediate}.int_orders as orders on orders.org_id = people.org_id and orders.visitor_id = people.id
            where orders.order_id is not null;
            analyze sampled_orders;

            create temporary table sampled_events as
            select org_id, event_id from day_events
            union
            select events.org_id, events.event_id
            from {staging}.stg_events as events
            cross join lateral (values (events.anonymous_id), (events.user_id)) as ids (id)
            join sampled_people as people on people.org_id = events.org_id and people.id = ids.id
            union
            select events.org_id, events.event_id
            from {staging}.stg_events as events
            join sampled_orders as orders
                on orders.org_id = events.org_id and orders.order_id = btrim(events.properties ->> 'order_id')
            where events.properties ? 'order_id';
            analyze sampled_events;

            -- what is stored, but landed no more
            create temporary table left_events as
            select org_id, event_id from {intermediate}.int_events_enriched as events
            where (org_id, event_date) in ({pairs}) or (org_id, received_date) in ({pairs})
            union
            select events.org_id, events.event_id
            from sampled_people as people
            join {intermediate}.int_events_enriched as events on events.org_id = people.org_id and events.device_id = people.id;
            insert into sampled_events
            select org_id, event_id from left_events
            where not exists (
                select from sampled_events as known
                where known.org_id = left_events.org_id and known.event_id = left_events.event_id
            );
            analyze sampled_events
            """,
            pairs=pairs,
        )

    def _follow_people(self, step: int) -> None:
        """From the people of a step to the next: users of the same device, devices of the same user, senders for the same order."""
        self._execute(
            """
            insert into sampled_people
            select org_id, id, {step} + 1
            from (
                select visits.org_id, visits.visitor_id as id
                from sampled_people as people
                join {intermediate}.int_visits as visits on visits.org_id = people.org_id and visits.device_id = people.id
                where people.step = {step}
                union
                select visits.org_id, visits.device_id
                from sampled_people as people
                join {intermediate}.int_visits as visits on visits.org_id = people.org_id and visits.visitor_id = people.id
                where people.step = {step}
                union
                select events.org_id, ids.id
                from sampled_people as people
                join {intermediate}.int_orders as orders on orders.org_id = people.org_id and orders.visitor_id = people.id
                join {intermediate}.int_events_enriched as events
                    on events.org_id = orders.org_id and events.order_reference = orders.order_reference
                cross join lateral (values (events.anonymous_id), (events.user_id)) as ids (id)
                where people.step = {step} and ids.id is not null
            ) as reached
            where not exists (
                select from sampled_people as known where known.org_id = reached.org_id and known.id = reached.id
            );
            analyze sampled_people
            """,
            step=step,
        )

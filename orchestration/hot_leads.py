"""Hot leads, told once: who may be about to buy now, and was not alerted lately.

A lead is claimed, and that is committed, before the alert is posted: killed in between, it is not posted again. Only when
the receiver has surely not taken it, the claim is given back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from orchestration import alerts, database, dbt
from orchestration.errors import UserError
from orchestration.settings import project_variables, target_schema

# Orgs with anything in the marts, or that landed since they were built.
ORGS = """
select org_id from {overview}
union
select org_id from {events} where rejection_reason is null and landed_xid >= coalesce((
    select cast(positions ->> format('"%%s"."%%s"."events"', current_database(), cast(%(landing)s as text)) as xid8)
    from {model_state} where model = 'int_events_enriched'), '0')
order by 1
"""
CLAIM = """
with leads as materialized (
    select visitor_id, propensity_score
    from {leads}(p_org => %(org)s, p_hours => %(hours)s, p_min_score => %(min_score)s, p_as_of => %(as_of)s)
),
claimed as (
    insert into {alerts} (org_id, visitor_id, propensity_score, outcome, alerted_at)
    select %(org)s, visitor_id, propensity_score, 'claimed', %(as_of)s from leads
    on conflict do nothing
    returning visitor_id, propensity_score
)
select
    (select count(*) from leads),
    coalesce(array_agg(visitor_id order by propensity_score desc, visitor_id), '{{}}'),
    coalesce(array_agg(propensity_score order by propensity_score desc, visitor_id), '{{}}')
from claimed
"""
# What an id may be that others read: neither an e-mail address nor a phone number, and short.
_PLAIN_ID = re.compile(r"(?!\+?[\d\s().-]{7,}$)[\w.:-]{1,64}")


@dataclass(frozen=True)
class OrgLeads:
    """One org's leads: how many there are, and the visitor_id and score (0-10) of those who are alerted now."""

    org_id: str
    leads_count: int
    alerted: list[tuple[str, int]]


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot found. unsure_count: leads that an earlier one claimed, of whose alert nobody knows whether it arrived."""

    as_of: datetime
    orgs: list[OrgLeads] = field(default_factory=list)
    unsure_count: int = 0

    @property
    def leads_count(self) -> int:
        return sum(org.leads_count for org in self.orgs)

    @property
    def alerted_count(self) -> int:
        return sum(len(org.alerted) for org in self.orgs)


def alert_hot_leads(as_of: datetime | None = None) -> Snapshot:
    """Alerts every hot lead that was not alerted within hot_lead_repeat_hours, all in one message; reports whom.

    as_of: default now. Raises UserError while another snapshot runs or nothing was built, and what `alerts.send` raises.
    """
    state = f"{target_schema()}_state"
    dbt.ensure_table(f"{state}.hot_lead_alerts")
    with database.connect(autocommit=True, application_name="audience hot leads") as connection, _alone(connection):
        return _Leads(connection, as_of or datetime.now(UTC)).tell()


@contextmanager
def _alone(connection: psycopg.Connection) -> Iterator[None]:
    """Holds a lock on the connection: beside another snapshot one could not tell whose claims are left over."""
    key = f"audience hot leads {target_schema()}"
    if connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 42))", [key]).fetchone() != (True,):
        raise UserError("Another snapshot of hot leads is running: wait for it to end.")
    yield


class _Leads:
    """One snapshot."""

    def __init__(self, connection: psycopg.Connection, as_of: datetime) -> None:
        self.connection, self.as_of = connection, as_of
        self.variables = project_variables()
        schema, landing = target_schema(), self.variables["landing_schema"]
        self.names = {
            "overview": sql.Identifier(schema, "audience_overview_daily"),
            "leads": sql.Identifier(schema, "get_high_intent_visitors"),
            "model_state": sql.Identifier(f"{schema}_state", "model_state"),
            "alerts": sql.Identifier(f"{schema}_state", "hot_lead_alerts"),
            "events": sql.Identifier(landing, "events"),
            "refresh": sql.Identifier(f"{schema}_state", "refresh_suppressed_visitors"),
        }

    def tell(self) -> Snapshot:
        unsure = self._execute("update {alerts} set outcome = 'unsure' where outcome = 'claimed'").rowcount
        self._execute("delete from {alerts} where alerted_at <= %(as_of)s - make_interval(hours => %(repeat_hours)s)")
        # a dbt typed by hand leaves this to whoever reads
        self._execute("select {refresh}()")
        with self.connection.transaction():
            snapshot = Snapshot(self.as_of, [self._claim(org) for org in self._orgs()], unsure)
        if not snapshot.alerted_count and not unsure:
            return snapshot
        try:
            names_count = self.variables["hot_lead_names_count"]
            alerts.send("hot leads", message(snapshot, names_count), "hot-leads", logged=message(snapshot, 0))
        except alerts.AlertUnsure:
            self._execute("update {alerts} set outcome = 'unsure' where outcome = 'claimed'")
            raise
        except UserError:
            self._execute("delete from {alerts} where outcome = 'claimed'")
            raise
        self._execute("update {alerts} set outcome = 'posted' where outcome = 'claimed'")
        return snapshot

    def _orgs(self) -> list[str]:
        try:
            return [org for (org,) in self._execute(ORGS)]
        except psycopg.errors.UndefinedTable as error:
            raise UserError("There are no leads before the first build: run audience build.") from error

    def _claim(self, org: str) -> OrgLeads:
        try:
            count, visitors, scores = self._execute(CLAIM, org=org).fetchone()
        except psycopg.errors.UndefinedFunction as error:
            raise UserError("There are no leads before the first build: run audience build.") from error
        return OrgLeads(org, count, list(zip(visitors, scores, strict=True)))

    def _execute(self, query: str, **values: object) -> psycopg.Cursor:
        policy = {
            "hours": self.variables["hot_lead_hours"], "min_score": self.variables["hot_lead_min_score"],
            "repeat_hours": self.variables["hot_lead_repeat_hours"], "landing": self.variables["landing_schema"],
        }  # fmt: skip
        return self.connection.execute(
            sql.SQL(query).format(**self.names), {"as_of": self.as_of, **policy, **values}, prepare=False
        )


def message(snapshot: Snapshot, names_count: int) -> str:
    """The text of an alert: counts, and the ids of at most `names_count` people of each org that are plainly ids.

    With 0 it names nobody: the log of alerts outlives them.
    """
    lines = [f"Hot leads: {snapshot.alerted_count:,} new, {snapshot.leads_count:,} in all."]
    for org in snapshot.orgs:
        if org.alerted:
            named = [f"{visitor} ({score})" for visitor, score in org.alerted if _PLAIN_ID.fullmatch(visitor)]
            shown = named[:names_count]
            if others := len(org.alerted) - len(shown):
                shown.append(f"{others:,} {'more' if shown else 'new'}")
            lines.append(f"{org.org_id}: {', '.join(shown)}")
    if snapshot.unsure_count:
        lines.append(
            f"Whether an earlier alert of {snapshot.unsure_count:,} leads arrived is not known: "
            f"{target_schema()}_state.hot_lead_alerts has them as unsure."
        )
    return "\n".join(lines)

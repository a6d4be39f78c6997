"""What the marts say, in a screenful: the figures that `audience demo` ends with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

UNIQUES = """
select coalesce(sum(visitors_count), 0) as visitors
from {schema}.audience_overview_uniques_daily
where org_id = %(org)s and activity = %(activity)s
    and event_date between %(first)s and %(last)s and previous_date < %(first)s
"""

TOTALS = """
select
    coalesce(sum(sessions_count), 0) as sessions,
    coalesce(sum(orders_count), 0) as orders,
    coalesce(sum(net_revenue_amount), 0) as net_revenue,
    coalesce(sum(checkout_sessions_count)::numeric / nullif(sum(sessions_count), 0), 0) as checkout_rate
from {schema}.audience_overview_daily
where org_id = %(org)s and event_date between %(first)s and %(last)s
"""

CHANNELS = """
with uniques as (
    select source, medium, channel,
        sum(visitors_count) filter (where activity = 'visit') as visitors,
        sum(visitors_count) filter (where activity = 'purchase') as buyers
    from {schema}.audience_by_channel_uniques_daily
    where org_id = %(org)s and event_date between %(first)s and %(last)s and previous_date < %(first)s
    group by source, medium, channel
),
totals as (
    select source, medium, channel, sum(sessions_count) as sessions, sum(orders_count) as orders, sum(net_revenue_amount) as net_revenue
    from {schema}.audience_by_channel_daily
    where org_id = %(org)s and event_date between %(first)s and %(last)s
    group by source, medium, channel
)
select source, medium, channel, sessions, coalesce(visitors, 0) as visitors, coalesce(buyers, 0) as buyers, orders, net_revenue
from totals left join uniques using (source, medium, channel)
order by net_revenue desc, sessions desc limit 8
"""

DEVICES = """
select device_type, network_type, sum(sessions_count) as sessions, sum(purchase_sessions_count) as purchase_sessions,
    sum(purchase_sessions_count)::numeric / nullif(sum(sessions_count), 0) as purchase_rate,
    sum(page_load_total_ms)::numeric / nullif(sum(page_loads_count), 0) as mean_page_load_ms
from {schema}.device_network_daily
where org_id = %(org)s and event_date between %(first)s and %(last)s and device_type <> '(unattributed)'
group by device_type, network_type
order by sessions desc limit 8
"""

COHORTS = """
select cohort_week, week_number, cohort_size, returned_count, repurchased_count, is_complete
from {schema}.cohort_retention_weekly
where org_id = %(org)s and week_number <= 6
order by cohort_week, week_number
"""

STAGES = """
select lifecycle_stage as stage, count(*) as customers, sum(net_revenue_amount) as net_revenue
from {schema}.audience_customers where org_id = %(org)s group by 1 order by 2 desc
"""


@dataclass(frozen=True)
class Summary:
    """Figures of one org over a period (local days, both included) beside the equal period before it."""

    org_id: str
    first: date
    last: date
    kpis: dict[str, Any]
    previous_kpis: dict[str, Any]
    channels: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    cohorts: list[dict[str, Any]]
    stages: list[dict[str, Any]]


def orgs(connection: psycopg.Connection, schema: str) -> list[str]:
    """The orgs with any activity, the one with most events first."""
    query = f"select org_id from {schema}.audience_overview_daily group by org_id order by sum(events_count) desc"
    return [row[0] for row in connection.execute(query)]


def summarize(connection: psycopg.Connection, schema: str, org_id: str, last: date, days: int = 30) -> Summary:
    """Reads the marts of `schema` for the `days` local days up to `last`."""
    first = last - timedelta(days=days - 1)

    def rows(query: str, start: date, end: date, **more: Any) -> list[dict[str, Any]]:
        with connection.cursor(row_factory=dict_row) as cursor:
            values = {"org": org_id, "first": start, "last": end, **more}
            return cursor.execute(query.format(schema=schema), values).fetchall()

    def kpis(start: date, end: date) -> dict[str, Any]:
        found = rows(TOTALS, start, end)[0]
        found["visitors"] = rows(UNIQUES, start, end, activity="visit")[0]["visitors"]
        found["buyers"] = rows(UNIQUES, start, end, activity="purchase")[0]["visitors"]
        found["purchase_rate"] = found["buyers"] / found["visitors"] if found["visitors"] else 0
        return found

    return Summary(
        org_id=org_id,
        first=first,
        last=last,
        kpis=kpis(first, last),
        previous_kpis=kpis(first - timedelta(days=days), first - timedelta(days=1)),
        channels=rows(CHANNELS, first, last),
        devices=rows(DEVICES, first, last),
        cohorts=rows(COHORTS, first, last),
        stages=rows(STAGES, first, last),
    )

-- Grain: one row per org and session: a device's events without a gap of more than 30 minutes, at most 24 hours.
{{ config(materialized='view') }}
select
    org_id,
    session_id,
    min(device_id) as device_id,
    min(visitor_id) filter (where sessions_count = 1) as visitor_id,
    min(source) as source,
    min(medium) as medium,
    min(campaign) as campaign,
    min(device_type) as device_type,
    min(os) as os,
    min(browser) as browser,
    min(network_type) as network_type,
    sum(events_count) as events_count,
    sum(page_views_count) as page_views_count,
    sum(event_views_count) as event_views_count,
    sum(ticket_ctas_count) as ticket_ctas_count,
    sum(checkouts_count) as checkouts_count,
    sum(purchases_count) as purchases_count,
    bool_or(has_touch) as has_touch,
    min(event_date) as session_date,
    min(session_started_at) as started_at,
    max(session_ended_at) as ended_at
from {{ ref('int_visits') }}
group by org_id, session_id

-- Grain: one row per org, session, visitor and local day: what the visitor did in the session on that day.
-- Nearly always one row per session: more when it crosses midnight or two users share it.
{{ config(
    unique_key=['org_id', 'event_date', 'session_id', 'visitor_id'],
    changes='*',
    indexes=[
        {'columns': ['device_id']},
        {'columns': ['visitor_id']},
        {'columns': ['event_date', 'org_id']},
    ],
    checks={
        'visit_is_plausible': "events_count > 0 and sessions_count in (0, 1)",
        'visit_is_in_its_session': "session_started_at <= first_event_at and first_event_at <= last_event_at and last_event_at <= session_ended_at",
    },
) }}
{% call scope('org_id, device_id', since='session_started_at') %}
select
    changed.org_id,
    changed.device_id,
    -- sessions before the first changed event stay, but for the one that it may continue
    coalesce(max(sessions.session_started_at), changed.moment) as since
from (
    select org_id, device_id, min(moment) as moment
    from (
        select org_id, device_id, occurred_at as moment from {{ changes('int_events_enriched') }} as events
        union all
        select org_id, device_id, timestamptz '-infinity' from {{ changes('int_devices') }} as devices
        union all
        select org_id, device_id, occurred_at from {{ ref('int_events_enriched') }} as newly_past where {{ passed_since_previous('occurred_at') }}
    ) as moments
    where device_id is not null
    group by org_id, device_id
) as changed
left join {{ this }} as sessions
    on sessions.org_id = changed.org_id and sessions.device_id = changed.device_id and sessions.session_started_at <= changed.moment
    and sessions.session_ended_at >= changed.moment - interval '{{ var("session_timeout_seconds") }} seconds'
group by changed.org_id, changed.device_id, changed.moment
{% endcall %}
with visits as (
    select
        org_id,
        device_id,
        session_started_at,
        visitor_id,
        event_date,
        min(event_id) filter (where occurred_at = session_started_at) as started_by_event_id,
        max(source) filter (where is_first_touch) as touch_source,
        max(medium) filter (where is_first_touch) as touch_medium,
        max(campaign) filter (where is_first_touch) as touch_campaign,
        max(device_type) filter (where is_first_device) as device_type,
        max(os) filter (where is_first_device) as os,
        max(browser) filter (where is_first_device) as browser,
        max(network_type) filter (where is_first_network) as network_type,
        {{ last_known('network_type', "network_type <> 'unknown'") }} as last_network_type,
        {{ last_known('consent_state', 'consent_state is not null') }} as last_consent_state,
        count(*) as events_count,
        count(*) filter (where event_type = 'page_view') as page_views_count,
        count(*) filter (where event_type = 'event_view') as event_views_count,
        count(*) filter (where event_type = 'ticket_cta') as ticket_ctas_count,
        count(*) filter (where event_type = 'checkout_start') as checkouts_count,
        count(*) filter (where event_type = 'purchase') as purchases_count,
        count(page_load_ms) as page_loads_count,
        coalesce(sum(page_load_ms), 0) as page_load_total_ms,
        array_agg(page_load_ms order by occurred_at, event_id) filter (where page_load_ms is not null) as page_loads_ms,
        array_agg(event_type order by occurred_at, event_id) filter (where event_type in ({{ milestones() }})) as milestones,
        array_agg(occurred_at order by occurred_at, event_id) filter (where event_type in ({{ milestones() }})) as milestones_at,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at,
        max(occurred_at) filter (where consent_state is not null) as last_consent_at,
        max(occurred_at) filter (where event_type = 'ticket_cta') as last_ticket_cta_at,
        max(occurred_at) filter (where event_type = 'checkout_start') as last_checkout_at
    from {{ ref('int_session_events') }}
    group by device_id, org_id, session_started_at, visitor_id, event_date
),
sessions as (
    select
        *,
        min(started_by_event_id) over session as first_event_id,
        max(touch_source) over session as session_source,
        max(touch_medium) over session as session_medium,
        max(touch_campaign) over session as session_campaign,
        max(device_type) over session as session_device_type,
        max(os) over session as session_os,
        max(browser) over session as session_browser,
        max(network_type) over session as session_network_type,
        max(last_event_at) over session as session_ended_at,
        sum(ticket_ctas_count) over session as session_ticket_ctas,
        sum(checkouts_count) over session as session_checkouts,
        sum(purchases_count) over session as session_purchases
    from visits
    window session as (partition by device_id, org_id, session_started_at)
),
final as (
    select
        org_id,
        md5(cast(row(org_id, device_id, first_event_id) as text)) as session_id,
        visitor_id,
        device_id,
        coalesce(session_source, '(direct)') as source,
        coalesce(session_medium, '(none)') as medium,
        coalesce(session_campaign, '(none)') as campaign,
        coalesce(session_device_type, 'unknown') as device_type,
        coalesce(session_os, 'unknown') as os,
        coalesce(session_browser, 'unknown') as browser,
        coalesce(session_network_type, 'unknown') as network_type,
        last_network_type,
        last_consent_state,
        events_count,
        page_views_count,
        event_views_count,
        ticket_ctas_count,
        checkouts_count,
        purchases_count,
        page_loads_count,
        page_load_total_ms,
        page_loads_ms,
        milestones,
        milestones_at,
        cast(is_start as integer) as sessions_count,
        cast(is_start and session_ticket_ctas > 0 as integer) as ticket_cta_sessions_count,
        cast(is_start and session_checkouts > 0 as integer) as checkout_sessions_count,
        cast(is_start and session_purchases > 0 as integer) as purchase_sessions_count,
        session_source is not null as has_touch,
        event_date,
        session_started_at,
        session_ended_at,
        first_event_at,
        last_event_at,
        last_consent_at,
        last_ticket_cta_at,
        last_checkout_at
    from sessions
    cross join lateral (select coalesce(started_by_event_id = first_event_id, false) as is_start) as start
)
-- in the order of time: visits of the same day are read together, when a limit of days passes
select * from final order by event_date

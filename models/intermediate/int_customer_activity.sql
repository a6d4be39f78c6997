-- Grain: one row per org and visitor: what the visits say, ever and over the last days before as_of.
{{ config(materialized='ephemeral') }}
with visits as (
    select
        *,
        row_number() over in_order as visit_number,
        lag(session_id) over in_order is distinct from session_id as joins_session,
        count(*) over visitor as visits_count,
        max(session_started_at) over visitor as latest_session_at,
        max(last_consent_at) over visitor as own_consent_at,
        max(last_event_at) filter (where last_network_type is not null) over visitor as network_known_at
    from {{ ref('int_visits') }}
    where {{ in_scope('org_id, visitor_id') }}
    window
        visitor as (partition by visitor_id, org_id),
        in_order as (visitor order by session_started_at, session_id, event_date)
),
touches as (
    select
        *,
        max(visit_number) filter (
            where has_touch and session_started_at >= latest_session_at - interval '{{ var("last_non_direct_days") }} days'
        ) over (partition by visitor_id, org_id) as last_touch_number,
        last_event_at > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days' as is_recent
    from visits
),
activity as (
    select
        org_id,
        visitor_id,
        max(source) filter (where visit_number = 1) as first_touch_source,
        max(medium) filter (where visit_number = 1) as first_touch_medium,
        max(campaign) filter (where visit_number = 1) as first_touch_campaign,
        max(source) filter (where visit_number = visits_count) as last_touch_source,
        max(medium) filter (where visit_number = visits_count) as last_touch_medium,
        max(campaign) filter (where visit_number = visits_count) as last_touch_campaign,
        coalesce(max(source) filter (where visit_number = last_touch_number), '(direct)') as last_non_direct_source,
        coalesce(max(medium) filter (where visit_number = last_touch_number), '(none)') as last_non_direct_medium,
        coalesce(max(campaign) filter (where visit_number = last_touch_number), '(none)') as last_non_direct_campaign,
        mode() within group (order by nullif(device_type, 'unknown')) as usual_device_type,
        mode() within group (order by nullif(network_type, 'unknown')) as usual_network_type,
        max(last_network_type) filter (where last_event_at = network_known_at and is_recent) as recent_network_type,
        max(last_consent_state) filter (where last_consent_at = own_consent_at) as own_consent_state,
        max(own_consent_at) as own_consent_at,
        count(*) filter (where joins_session) as sessions_count,
        count(*) filter (where joins_session and first_event_at > {{ as_of() }} - interval '{{ var("champion_recent_days") }} days') as recent_sessions_count,
        cast(sum(events_count) as bigint) as events_count,
        sum(page_load_total_ms) filter (where is_recent) / nullif(sum(page_loads_count) filter (where is_recent), 0) as recent_page_load_ms,
        coalesce(max(last_ticket_cta_at) > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days', false) as has_recent_ticket_cta,
        coalesce(max(last_checkout_at) > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days', false) as has_recent_checkout,
        min(first_event_at) as first_seen_at,
        max(last_event_at) as last_seen_at
    from touches
    group by visitor_id, org_id
),
-- read again: with all that the steps above want of it, kept for both it would not fit into memory
senders as (
    select distinct org_id, visitor_id, 'device' as sender_type, device_id as sender_id
    from {{ ref('int_visits') }}
    where {{ in_scope('org_id, visitor_id') }}
    union all
    select org_id, visitor_id, 'user', visitor_id from activity
),
statements as (
    select
        senders.org_id,
        senders.visitor_id,
        (array_agg(consents.consent_state order by consents.valid_from desc, consents.sender_type))[1] as stated_consent_state,
        max(consents.valid_from) as stated_at
    from senders
    join {{ ref('int_consents') }} as consents
        on consents.org_id = senders.org_id and consents.sender_type = senders.sender_type and consents.sender_id = senders.sender_id
    where consents.valid_from <= {{ as_of() }}
    group by senders.org_id, senders.visitor_id
),
final as (
    select
        activity.*,
        case when stated_at >= own_consent_at or own_consent_at is null then stated_consent_state else own_consent_state end as consent_state
    from activity
    left join statements on statements.org_id = activity.org_id and statements.visitor_id = activity.visitor_id
)
select * from final

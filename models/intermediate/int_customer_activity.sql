-- Grain: one row per org and visitor: what the visits say, ever and over the last days before as_of.
{{ config(materialized='ephemeral') }}
with visits as (
    select * from {{ ref('int_visits') }} where {{ in_scope('org_id, visitor_id') }}
),
latest as (
    select
        *,
        max(session_started_at) over (partition by org_id, visitor_id) as latest_session_at,
        min(first_event_at) over (partition by org_id, visitor_id, session_id) as joined_session_at
    from visits
),
activity as (
    select
        org_id,
        visitor_id,
        (array_agg(array[source, medium, campaign] order by session_started_at, session_id))[1:1] as first_touch,
        (array_agg(array[source, medium, campaign] order by session_started_at desc, session_id desc))[1:1] as last_touch,
        (array_agg(array[source, medium, campaign] order by session_started_at desc, session_id desc) filter (
            where has_touch and session_started_at >= latest_session_at - interval '{{ var("last_non_direct_days") }} days'
        ))[1:1] as last_non_direct_touch,
        mode() within group (order by nullif(device_type, 'unknown')) as usual_device_type,
        mode() within group (order by nullif(network_type, 'unknown')) as usual_network_type,
        (array_agg(last_network_type order by last_event_at desc, session_id desc) filter (
            where last_network_type is not null and last_event_at > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days'
        ))[1] as recent_network_type,
        (array_agg(last_consent_state order by last_consent_at desc, session_id desc) filter (where last_consent_state is not null))[1] as own_consent_state,
        max(last_consent_at) as own_consent_at,
        count(distinct session_id) as sessions_count,
        count(distinct session_id) filter (where joined_session_at > {{ as_of() }} - interval '{{ var("champion_recent_days") }} days') as recent_sessions_count,
        cast(sum(events_count) as bigint) as events_count,
        sum(page_load_total_ms) filter (where last_event_at > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days')
            / nullif(sum(page_loads_count) filter (where last_event_at > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days'), 0) as recent_page_load_ms,
        coalesce(max(last_ticket_cta_at) > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days', false) as has_recent_ticket_cta,
        coalesce(max(last_checkout_at) > {{ as_of() }} - interval '{{ var("propensity_window_days") }} days', false) as has_recent_checkout,
        min(first_event_at) as first_seen_at,
        max(last_event_at) as last_seen_at
    from latest
    group by org_id, visitor_id
),
senders as (
    select distinct org_id, visitor_id, 'device' as sender_type, device_id as sender_id from visits
    union all
    select distinct org_id, visitor_id, 'user', visitor_id from visits
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

-- Grain: one row per org and event: the enriched event with its visitor and channel.
-- A view: a login re-labels its device's history, and a channel rule every event, without rewriting an event.
{{ config(materialized='view', schema=none) }}
with events as (
    select * from {{ ref('int_events_enriched') }}
),
devices as (
    select * from {{ ref('int_devices') }}
),
channels as (
    select * from {{ ref('int_channels') }}
),
final as (
    select
        events.org_id,
        events.event_id,
        {{ visitor_id('events', 'devices') }} as visitor_id,
        events.device_id,
        events.anonymous_id,
        events.user_id,
        events.source_session_id,
        events.order_id,
        events.order_reference,
        events.event_type,
        events.source_event_type,
        events.source,
        events.medium,
        events.campaign,
        channels.channel,
        events.utm_source,
        events.utm_medium,
        events.utm_campaign,
        events.click_id_type,
        events.click_id,
        events.referrer_host,
        events.device_type,
        events.os,
        events.browser,
        events.network_type,
        events.product,
        events.currency,
        events.consent_state,
        events.bot_reason,
        events.internal_reason,
        events.page_load_ms,
        events.revenue_amount,
        events.has_touch,
        events.is_bot,
        events.is_internal,
        events.is_person,
        events.is_opted_out,
        events.event_date,
        events.occurred_at,
        events.received_at
    from events
    left join devices on devices.org_id = events.org_id and devices.device_id = events.device_id
    left join channels
        on channels.org_id = events.org_id and channels.source = events.source
        and channels.medium = events.medium and channels.campaign = events.campaign
)
select * from final

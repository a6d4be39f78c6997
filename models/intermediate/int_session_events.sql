-- Grain: one row per org and event of a person on a device: its visitor and where its session starts.
{{ config(materialized='ephemeral') }}
with events as (
    select *
    from {{ ref('int_events_enriched') }}
    where {{ in_scope('org_id, device_id') }}
        and device_id is not null
        and is_person
        and occurred_at <= {{ as_of() }}
),
devices as (
    select * from {{ ref('int_devices') }}
),
starts as (
    select
        *,
        case
            when occurred_at - lag(occurred_at) over (partition by org_id, device_id order by occurred_at, event_id)
                <= interval '{{ var("session_timeout_seconds") }} seconds' then null
            else occurred_at
        end as starts_chain_at
    from events
),
chains as (
    select
        *,
        max(starts_chain_at) over (partition by org_id, device_id order by occurred_at, event_id) as chain_started_at
    from starts
),
final as (
    select
        chains.*,
        {{ visitor_id('chains', 'devices') }} as visitor_id,
        {{ session_started_at('chains') }} as session_started_at
    from chains
    left join devices on devices.org_id = chains.org_id and devices.device_id = chains.device_id
)
select * from final

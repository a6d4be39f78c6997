-- Grain: one row per org and event of a person on a device: its visitor, where its session starts, what it is the first to say in it.
{{ config(materialized='ephemeral') }}
with devices as (
    select * from {{ ref('int_devices') }}
),
-- The visitor is looked up before events are put in order: afterwards they would be sorted once more.
events as (
    select
        events.*,
        {{ visitor_id('events', 'devices') }} as visitor_id,
        case when has_touch then occurred_at end as touched_at,
        case when device_type <> 'unknown' then occurred_at end as device_known_at,
        case when network_type <> 'unknown' then occurred_at end as network_known_at
    from {{ ref('int_events_enriched') }} as events
    {{ since('events.org_id, events.device_id', 'events.occurred_at') }}
    left join devices on devices.org_id = events.org_id and devices.device_id = events.device_id
    where {{ in_scope('events.org_id, events.device_id') }}
        and events.device_id is not null
        and is_person
        and occurred_at <= {{ as_of() }}
),
sessions as (
    select
        *,
        ({{ var('landing_schema') }}.session_of(
            occurred_at, interval '{{ var("session_timeout_seconds") }} seconds', interval '{{ var("session_max_hours") }} hours'
        ) over (so_far rows unbounded preceding))[1] as session_started_at,
        max(touched_at) over before as touched_before_at,
        max(device_known_at) over before as device_known_before_at,
        max(network_known_at) over before as network_known_before_at
    from events
    window
        so_far as (partition by device_id, org_id order by occurred_at, event_id),
        before as (so_far rows between unbounded preceding and 1 preceding)
),
final as (
    select
        *,
        touched_at is not null and coalesce(touched_before_at < session_started_at, true) as is_first_touch,
        device_known_at is not null and coalesce(device_known_before_at < session_started_at, true) as is_first_device,
        network_known_at is not null and coalesce(network_known_before_at < session_started_at, true) as is_first_network
    from sessions
)
-- in the order they are in anyway, said so that grouping them by device needs no other sort
select * from final order by device_id, org_id

-- Grain: one row per org and event that carried contact details; nothing of opted-out people, robots or staff.
{{ config(
    unique_key=['org_id', 'landing_id'],
    changes=['org_id', 'device_id'],
    indexes=[{'columns': ['device_id']}],
) }}
{% call scope('org_id, event_id, landing_id') %}
select org_id, event_id, landing_id from {{ changes('int_events_enriched') }} as events where has_contact_details
union all
-- a correction of the details alone leaves the event as it was
select landed.org_id, landed.event_id, landed.landing_id
from ({{ landed_events() }}) as landed
left join {{ ref('int_events_enriched') }} as events on events.org_id = landed.org_id and events.landing_id = landed.landing_id
where events.has_contact_details or landed.event_id is null
{% endcall %}
with events as (
    select * from {{ ref('int_events_enriched') }} where has_contact_details and device_id is not null and is_person
),
deliveries as (
    select * from {{ ref('stg_events') }}
    where {{ in_scope('org_id, event_id, landing_id') }}
),
final as (
    select
        events.org_id,
        events.event_id,
        events.device_id,
        events.anonymous_id,
        events.user_id,
        nullif(lower(btrim(deliveries.properties ->> 'email')), '') as email,
        nullif(btrim(deliveries.properties ->> 'phone'), '') as phone,
        nullif(btrim(deliveries.properties ->> 'first_name'), '') as first_name,
        nullif(btrim(deliveries.properties ->> 'last_name'), '') as last_name,
        nullif(btrim(deliveries.properties ->> 'name'), '') as full_name,
        events.landing_id,
        events.occurred_at
    from events
    join deliveries
        on deliveries.org_id = events.org_id and deliveries.landing_id = events.landing_id
)
select * from final

-- Grain: one row per org and consent event: a statement that holds for its sender until the next one.
{{ config(
    unique_key=['org_id', 'event_id'],
    changes=['org_id', 'anonymous_id', 'user_id', 'occurred_at'],
) }}
{% call scope('org_id, event_id') %}
select org_id, event_id from ({{ landed_events() }}) as landed
{% endcall %}
with events as not materialized (
    select * from {{ ref('stg_events') }} where {{ in_scope('org_id, event_id') }}
),
candidates as (
    select distinct org_id, event_id
    from events
    where lower(btrim(event_type)) in (select source_event_type from {{ ref('event_taxonomy') }} where event_type = 'consent')
),
deliveries as (
    select
        events.*,
        row_number() over (partition by events.org_id, events.event_id order by {{ delivery_order('events') }}) as delivery_number
    from events
    join candidates on candidates.org_id = events.org_id and candidates.event_id = events.event_id
),
final as (
    select
        deliveries.org_id,
        deliveries.event_id,
        {{ identifier_or_null('deliveries.anonymous_id') }} as anonymous_id,
        {{ identifier_or_null('deliveries.user_id') }} as user_id,
        states.consent_state,
        states.is_opted_out,
        states.is_consented,
        deliveries.occurred_at
    from deliveries
    cross join {{ taxonomy_lookup() }}
    join {{ ref('consent_states') }} as states on states.consent_state = lower(btrim(deliveries.properties ->> 'consent'))
    where delivery_number = 1 and {{ canonical_event_type('deliveries') }} = 'consent'
)
select * from final

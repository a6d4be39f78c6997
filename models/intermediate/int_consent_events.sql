-- Grain: one row per org and consent event: a statement that holds for its sender until the next one.
{{ config(
    unique_key=['org_id', 'event_id'],
    changes=['org_id', 'anonymous_id', 'user_id', 'occurred_at'],
) }}
{% call scope('org_id, event_id') %}
select landed.org_id, landed.event_id
from ({{ landed_events() }}) as landed
left join {{ this }} as statements on statements.org_id = landed.org_id and statements.event_id = landed.event_id
-- another delivery of a statement, of whatever type, may count in its place
where landed.event_type is null or {{ is_consent('landed.event_type') }} or statements.event_id is not null
{% endcall %}
with deliveries as not materialized (
    select * from {{ ref('stg_events') }}
    where {{ in_scope('org_id, event_id') }}
        and {{ is_consent('event_type') }}
),
repeated as (
    select * from {{ ref('int_repeated_deliveries') }}
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
    left join repeated
        on repeated.landing_id = deliveries.landing_id and repeated.org_id = deliveries.org_id and repeated.event_id = deliveries.event_id
    where repeated.landing_id is null and {{ canonical_event_type('deliveries') }} = 'consent'
)
select * from final

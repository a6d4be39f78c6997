-- Grain: one row per org and event: the delivery that counts, with its canonical type and what url and properties say.
{{ config(materialized='ephemeral') }}
with deliveries as not materialized (
    select * from {{ ref('stg_events') }} where {{ in_scope('org_id, event_id, landing_id') }}
),
repeated as (
    select * from {{ ref('int_repeated_deliveries') }}
),
final as (
    select
        deliveries.landing_id,
        deliveries.event_id,
        deliveries.org_id,
        lower(btrim(deliveries.event_type)) as source_event_type,
        {{ canonical_event_type('deliveries') }} as event_type,
        {{ identifier_or_null('deliveries.anonymous_id') }} as anonymous_id,
        {{ identifier_or_null('deliveries.user_id') }} as user_id,
        {{ identifier_or_null('deliveries.session_id') }} as source_session_id,
        deliveries.url,
        deliveries.user_agent_id,
        deliveries.properties,
        {{ campaign_parameter('utm_source') }} as utm_source,
        {{ campaign_parameter('utm_medium') }} as utm_medium,
        {{ campaign_parameter('utm_campaign') }} as utm_campaign,
        {{ url_host('deliveries.url') }} as host,
        {{ url_host('deliveries.referrer') }} as referrer_host,
        orgs.own_domains,
        {{ local_date('deliveries.occurred_at', 'orgs.time_zone') }} as event_date,
        {{ local_date('deliveries.received_at', 'orgs.time_zone') }} as received_date,
        deliveries.occurred_at,
        deliveries.received_at
    from deliveries
    cross join {{ taxonomy_lookup() }}
    left join {{ ref('orgs') }} as orgs on orgs.org_id = deliveries.org_id
    left join repeated
        on repeated.landing_id = deliveries.landing_id and repeated.org_id = deliveries.org_id and repeated.event_id = deliveries.event_id
    where repeated.landing_id is null
    {{ computed_once() }}
)
select * from final

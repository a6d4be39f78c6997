-- One row per org and event: the delivery that counts, with its canonical type and the organisation's settings.
{{ config(materialized='ephemeral') }}
with deliveries as (
    select * from {{ ref('stg_events') }} where {{ in_scope('org_id, event_id') }}
),
taxonomy as (
    select * from {{ ref('event_taxonomy') }}
),
orgs as (
    select * from {{ ref('orgs') }}
),
final as (
    select
        deliveries.landing_id,
        deliveries.event_id,
        deliveries.org_id,
        lower(btrim(deliveries.event_type)) as source_event_type,
        coalesce(org_type.event_type, any_type.event_type, lower(btrim(deliveries.event_type))) as event_type,
        nullif(btrim(deliveries.anonymous_id), '') as anonymous_id,
        nullif(btrim(deliveries.user_id), '') as user_id,
        nullif(btrim(deliveries.session_id), '') as source_session_id,
        deliveries.url,
        md5(deliveries.user_agent) as user_agent_id,
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
    left join taxonomy as org_type on org_type.org_id = deliveries.org_id and org_type.source_event_type = lower(btrim(deliveries.event_type))
    left join taxonomy as any_type on any_type.org_id = '*' and any_type.source_event_type = lower(btrim(deliveries.event_type))
    left join orgs on orgs.org_id = deliveries.org_id
    where not exists (
        select from {{ ref('stg_events') }} as earlier
        where {{ is_counted_before('earlier', 'deliveries') }}
    )
)
select * from final

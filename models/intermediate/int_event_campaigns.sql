-- One row per org and event: where it came from. Campaign parameters, else a click id, else the referrer.
-- Own domains, payment providers and logins are never a source.
{{ config(materialized='ephemeral') }}
with events as (
    select
        *,
        case
            when referrer_host is null or {{ is_host_of('referrer_host', 'host') }} or {{ is_host_of('host', 'referrer_host') }} then null
            when exists (select from unnest(string_to_array(own_domains, ';')) as domain where {{ is_host_of('referrer_host', 'domain') }}) then null
            else referrer_host
        end as external_host,
        properties ?| (select array_agg(parameter) from {{ ref('click_ids') }})
            or (url like '%?%' and url ~* (select '[?&](' || string_agg(parameter, '|') || ')=' from {{ ref('click_ids') }})) as has_click_id
    from {{ ref('int_event_deliveries') }}
),
hosts as (
    select * from {{ ref('int_referrer_hosts') }}
),
aliases as (
    select * from {{ ref('utm_aliases') }}
),
found as (
    select
        events.*,
        coalesce(source_alias.value, {{ label('events.utm_source') }}) as label_source,
        coalesce(medium_alias.value, {{ label('events.utm_medium') }}) as label_medium,
        coalesce(campaign_alias.value, {{ label('events.utm_campaign') }}) as label_campaign,
        clicks.parameter as click_id_type,
        clicks.source as click_source,
        clicks.medium as click_medium,
        clicks.click_id,
        case when not coalesce(host.is_ignored, parent.is_ignored, grandparent.is_ignored, false) then external_host end as source_host,
        coalesce(host.source, parent.source, grandparent.source) as host_source,
        coalesce(host.medium, parent.medium, grandparent.medium) as host_medium
    from events
    left join aliases as source_alias on source_alias.field = 'source' and source_alias.alias = {{ label('events.utm_source') }}
    left join aliases as medium_alias on medium_alias.field = 'medium' and medium_alias.alias = {{ label('events.utm_medium') }}
    left join aliases as campaign_alias on campaign_alias.field = 'campaign' and campaign_alias.alias = {{ label('events.utm_campaign') }}
    left join hosts as host on host.host = events.external_host
    left join hosts as parent on parent.host = {{ parent_host('events.external_host') }}
    left join hosts as grandparent on grandparent.host = {{ parent_host(parent_host('events.external_host')) }}
    left join lateral (
        select
            parameter,
            source,
            medium,
            left(coalesce(properties ->> parameter, {{ var('landing_schema') }}.url_parameter(url, parameter)), {{ var('label_max_characters') }}) as click_id
        from {{ ref('click_ids') }}
        where events.has_click_id
            and (properties ->> parameter is not null or {{ var('landing_schema') }}.url_parameter(url, parameter) is not null)
        order by priority, parameter
        limit 1
    ) as clicks on true
),
final as (
    select
        *,
        coalesce(label_source, label_medium, label_campaign, click_source, source_host) is not null as has_touch,
        coalesce(label_source, click_source, host_source, {{ label('source_host') }}) as touch_source,
        coalesce(
            label_medium,
            click_medium,
            case when label_source is null and source_host is not null then coalesce(host_medium, 'referral') end
        ) as touch_medium
    from found
)
select * from final

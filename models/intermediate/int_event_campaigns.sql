-- Grain: one row per org and event: where it came from. Campaign parameters, else a click id, else the referrer.
-- Own domains, payment providers and logins are never a source.
{{ config(materialized='ephemeral') }}
with events as (
    select
        deliveries.*,
        {{ label('utm_source') }} as given_source,
        {{ label('utm_medium') }} as given_medium,
        {{ label('utm_campaign') }} as given_campaign,
        case
            when referrer_host is null or {{ is_host_of('referrer_host', 'host') }} or {{ is_host_of('host', 'referrer_host') }} then null
            when {{ is_host_of_any('referrer_host', 'own_domains') }} then null
            else referrer_host
        end as external_host,
        case
            when properties ?| click_parameters
                or (url like '%?%' and url ~* click_pattern)
                then {{ var('landing_schema') }}.first_parameter(properties, url, click_parameters)
        end as click
    from {{ ref('int_event_deliveries') }} as deliveries
    cross join (
        select array_agg(parameter order by priority, parameter) as click_parameters, '[?&](' || string_agg(parameter, '|') || ')=' as click_pattern
        from {{ ref('click_ids') }}
    ) as click_rules
    {{ computed_once() }}
),
found as (
    select
        events.*,
        coalesce(source_aliases ->> given_source, given_source) as label_source,
        coalesce(medium_aliases ->> given_medium, given_medium) as label_medium,
        coalesce(campaign_aliases ->> given_campaign, given_campaign) as label_campaign,
        click_sources -> click[1] as click_source,
        case
            when external_host is not null then coalesce(
                hosts -> external_host,
                hosts -> {{ parent_host('external_host') }},
                hosts -> {{ parent_host(parent_host('external_host')) }},
                jsonb_build_object('source', {{ label('external_host') }}, 'medium', 'referral')
            )
        end as known_referrer
    from events
    cross join {{ lookup('source_aliases', ref('utm_aliases'), 'alias', 'value', "field = 'source'") }}
    cross join {{ lookup('medium_aliases', ref('utm_aliases'), 'alias', 'value', "field = 'medium'") }}
    cross join {{ lookup('campaign_aliases', ref('utm_aliases'), 'alias', 'value', "field = 'campaign'") }}
    cross join {{ lookup('click_sources', ref('click_ids'), 'parameter', "jsonb_build_object('source', source, 'medium', medium)") }}
    cross join {{ lookup('hosts', ref('int_referrer_hosts'), 'host', "jsonb_build_object('source', source, 'medium', medium, 'is_ignored', is_ignored)") }}
    {{ computed_once() }}
),
judged as (
    select
        *,
        case when coalesce(known_referrer ->> 'is_ignored', '') <> 'true' then known_referrer end as referrer
    from found
),
final as (
    select
        *,
        coalesce(label_source, label_medium, label_campaign) is not null or click is not null or referrer is not null as has_touch,
        coalesce(label_source, click_source ->> 'source', referrer ->> 'source') as touch_source,
        coalesce(label_medium, click_source ->> 'medium', case when label_source is null then referrer ->> 'medium' end) as touch_medium,
        click[1] as click_id_type,
        left(click[2], {{ var('label_max_characters') }}) as click_id
    from judged
)
select * from final

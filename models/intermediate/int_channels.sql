-- Grain: one row per org, source, medium and campaign: the channel of the first rule that matches.
-- A look-up: a row's channel depends on the rules only, so models that join it are recomputed when the rules change.
{{ config(unique_key=['org_id', 'source', 'medium', 'campaign'], lookup=true) }}
with traffic_sources as (
    select org_id, source, medium, campaign from {{ ref('int_traffic_sources') }}
),
rules as (
    select * from {{ ref('channel_rules') }}
),
categories as (
    select * from {{ ref('source_categories') }}
),
categorized as (
    select
        traffic_sources.org_id,
        traffic_sources.source,
        traffic_sources.medium,
        traffic_sources.campaign,
        categories.category as source_category
    from traffic_sources
    left join categories on categories.source = traffic_sources.source
),
-- An empty condition always holds. A missing medium is the text (none), which is how a rule asks for it.
matches as (
    select
        categorized.org_id,
        categorized.source,
        categorized.medium,
        categorized.campaign,
        rules.channel,
        row_number() over (
            partition by categorized.org_id, categorized.source, categorized.medium, categorized.campaign
            order by rules.priority, case when rules.org_id = '*' then 1 else 0 end, rules.channel
        ) as place
    from categorized
    inner join rules
        on rules.org_id in ('*', categorized.org_id)
        and coalesce(rules.source_category, '') in ('', categorized.source_category)
        and (rules.source_pattern is null or regexp_like(categorized.source, rules.source_pattern, 'i'))
        and (rules.medium_pattern is null or regexp_like(categorized.medium, rules.medium_pattern, 'i'))
        and (rules.campaign_pattern is null or regexp_like(categorized.campaign, rules.campaign_pattern, 'i'))
),
final as (
    select
        traffic_sources.org_id,
        traffic_sources.source,
        traffic_sources.medium,
        traffic_sources.campaign,
        coalesce(matches.channel, 'Unassigned') as channel
    from traffic_sources
    left join matches
        on matches.org_id = traffic_sources.org_id
        and matches.source = traffic_sources.source
        and matches.medium = traffic_sources.medium
        and matches.campaign = traffic_sources.campaign
        and matches.place = 1
)
select * from final

{# The channel of each traffic source (org, source, medium, campaign) in a relation: that of the first rule that matches.
   An empty condition always holds. A missing medium is the text (none), which is how a rule asks for it. #}
{% macro channels_of(relation) -%}
select
        traffic_sources.org_id,
        traffic_sources.source,
        traffic_sources.medium,
        traffic_sources.campaign,
        coalesce(matching.channel, 'Unassigned') as channel
    from (select distinct org_id, source, medium, campaign from {{ relation }}) as traffic_sources
    left join {{ ref('source_categories') }} as categories on categories.source = traffic_sources.source
    left join lateral (
        select rules.channel
        from {{ ref('channel_rules') }} as rules
        where rules.org_id in ('*', traffic_sources.org_id)
            and coalesce(rules.source_category, '') in ('', categories.category)
            and (rules.source_pattern is null or regexp_like(traffic_sources.source, rules.source_pattern, 'i'))
            and (rules.medium_pattern is null or regexp_like(traffic_sources.medium, rules.medium_pattern, 'i'))
            and (rules.campaign_pattern is null or regexp_like(traffic_sources.campaign, rules.campaign_pattern, 'i'))
        order by rules.priority, case when rules.org_id = '*' then 1 else 0 end, rules.channel
        limit 1
    ) as matching on true
{%- endmacro %}

-- Returns: one row per source, medium and campaign, the highest net revenue first.
begin
    {{ refuse_unknown_org() }}
    {{ refuse_impossible_range() }}
    {{ refuse_unless("p_attribution in ('first_touch', 'last_touch', 'last_non_direct', 'linear')",
        "There is no attribution %s: give first_touch, last_touch, last_non_direct or linear.", "coalesce(quote_literal(p_attribution), 'null')") }}

    return query
    with people as (
        select source, medium, campaign, channel, activity, sum(visitors_count) as people_count
        from {{ ref('audience_by_channel_uniques_daily') }}
        where org_id = p_org and event_date between p_from and p_to and previous_date < p_from
        group by source, medium, campaign, channel, activity
    ),
    sessions as (
        select source, medium, campaign, channel, sum(sessions_count) as sessions
        from {{ ref('audience_by_channel_daily') }}
        where org_id = p_org and event_date between p_from and p_to
        group by source, medium, campaign, channel
    ),
    credits as (
        select
            source, medium, campaign, channel,
            {%- for column in ['first_touch_orders_count', 'last_touch_orders_count', 'last_non_direct_orders_count', 'linear_orders_count',
                'first_touch_net_revenue_amount', 'last_touch_net_revenue_amount', 'last_non_direct_net_revenue_amount', 'linear_net_revenue_amount',
                'new_visitors_count', 'new_visitors_net_revenue_amount'] %}
            sum({{ column }}) as {{ column }}{{ ',' if not loop.last }}
            {%- endfor %}
        from {{ ref('audience_acquisition_daily') }}
        where org_id = p_org and event_date between p_from and p_to
        group by source, medium, campaign, channel
    ),
    facts (source, medium, campaign, channel, fact, value) as (
        select source, medium, campaign, channel, activity, people_count from people
        union all
        select source, medium, campaign, channel, 'session', sessions from sessions
        union all
        select source, medium, campaign, channel, measures.fact, measures.value
        from credits
        {{ attributions() }}
        cross join lateral (values
            ('order', orders_count),
            ('revenue', net_revenue_amount),
            ('new_visitor', new_visitors_count),
            ('lifetime_revenue', new_visitors_net_revenue_amount)
        ) as measures (fact, value)
        where attribution = p_attribution
    ),
    sources as (
        select
            source, medium, campaign, channel,
            {%- for fact in ['visit', 'ticket_cta', 'checkout_start', 'purchase', 'session', 'order', 'revenue', 'new_visitor', 'lifetime_revenue'] %}
            coalesce(sum(value) filter (where fact = '{{ fact }}'), 0) as {{ fact }}s{{ ',' if not loop.last }}
            {%- endfor %}
        from facts
        group by source, medium, campaign, channel
        -- what only another attribution credits
        having bool_or(value <> 0)
    ),
    means as (
        select
            *,
            sum(ticket_ctas) over () / nullif(sum(visits) over (), 0) as mean_ticket_cta_rate,
            sum(purchases) over () / nullif(sum(visits) over (), 0) as mean_purchase_rate,
            sum(revenues) over () / nullif(sum(orders) over (), 0) as mean_order,
            sum(lifetime_revenues) over () / nullif(sum(new_visitors) over (), 0) as mean_lifetime_value
        from sources
    ),
    components as (
        select
            source, medium, campaign, channel, component, points, coalesce(weights.weight, 0) as weight
        from means
        cross join lateral (values
            ('purchase_rate', {{ quality_points('purchases', 'visits', 'mean_purchase_rate', var('quality_prior_visitors')) }}),
            ('lifetime_value', {{ quality_points('lifetime_revenues', 'new_visitors', 'mean_lifetime_value', var('quality_prior_visitors')) }}),
            ('average_order', {{ quality_points('revenues', 'orders', 'mean_order', var('quality_prior_orders')) }}),
            ('ticket_cta_rate', {{ quality_points('ticket_ctas', 'visits', 'mean_ticket_cta_rate', var('quality_prior_visitors')) }})
        ) as compared (component, points)
        left join {{ ref('quality_weights') }} as weights using (component)
        where visits > 0
    ),
    quality as (
        select
            source, medium, campaign, channel,
            {{ quality_score('points', 'weight') }} as score,
            {%- for component in ['purchase_rate', 'lifetime_value', 'average_order', 'ticket_cta_rate'] %}
            round(max(points) filter (where component = '{{ component }}'), 1) as {{ component }}_points{{ ',' if not loop.last }}
            {%- endfor %}
        from components
        group by source, medium, campaign, channel
    ),
    final as (
        select
            source,
            medium,
            campaign,
            channel,
            {{ quality_band('quality.score') }} as quality_band,
            cast(visits as bigint) as visitors_count,
            cast(sessions as bigint) as sessions_count,
            cast(purchases as bigint) as buyers_count,
            cast(new_visitors as bigint) as new_visitors_count,
            trim_scale(orders) as orders_count,
            revenues as net_revenue_amount,
            round(revenues / nullif(orders, 0), 2) as average_order_amount,
            round(lifetime_revenues / nullif(new_visitors, 0), 2) as lifetime_value_amount,
            round(ticket_ctas / nullif(visits, 0), 6) as ticket_cta_rate,
            round(checkout_starts / nullif(visits, 0), 6) as checkout_rate,
            round(purchases / nullif(visits, 0), 6) as purchase_rate,
            {{ wilson_bound('purchases', 'visits', '-') }} as purchase_rate_low,
            {{ wilson_bound('purchases', 'visits', '+') }} as purchase_rate_high,
            quality.score as quality_score,
            quality.purchase_rate_points,
            quality.lifetime_value_points,
            quality.average_order_points,
            quality.ticket_cta_rate_points
        from means
        left join quality using (source, medium, campaign, channel)
        order by revenues desc, visits desc, source, medium, campaign
    )
    select * from final;
end

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
            sum(first_touch_orders_count) as first_touch_orders_count,
            sum(last_touch_orders_count) as last_touch_orders_count,
            sum(last_non_direct_orders_count) as last_non_direct_orders_count,
            sum(linear_orders_count) as linear_orders_count,
            sum(first_touch_net_revenue_amount) as first_touch_net_revenue_amount,
            sum(last_touch_net_revenue_amount) as last_touch_net_revenue_amount,
            sum(last_non_direct_net_revenue_amount) as last_non_direct_net_revenue_amount,
            sum(linear_net_revenue_amount) as linear_net_revenue_amount,
            sum(new_visitors_count) as new_visitors_count,
            sum(new_visitors_net_revenue_amount) as new_visitors_net_revenue_amount
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
            coalesce(sum(value) filter (where fact = 'visit'), 0) as visits,
            coalesce(sum(value) filter (where fact = 'ticket_cta'), 0) as ticket_ctas,
            coalesce(sum(value) filter (where fact = 'checkout_start'), 0) as checkout_starts,
            coalesce(sum(value) filter (where fact = 'purchase'), 0) as purchases,
            coalesce(sum(value) filter (where fact = 'session'), 0) as sessions,
            coalesce(sum(value) filter (where fact = 'order'), 0) as orders,
            coalesce(sum(value) filter (where fact = 'revenue'), 0) as revenues,
            coalesce(sum(value) filter (where fact = 'new_visitor'), 0) as new_visitors,
            coalesce(sum(value) filter (where fact = 'lifetime_revenue'), 0) as lifetime_revenues
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
            round(max(points) filter (where component = 'purchase_rate'), 1) as purchase_rate_points,
            round(max(points) filter (where component = 'lifetime_value'), 1) as lifetime_value_points,
            round(max(points) filter (where component = 'average_order'), 1) as average_order_points,
            round(max(points) filter (where component = 'ticket_cta_rate'), 1) as ticket_cta_rate_points
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

-- Grain: one row per org, local day, source, medium, campaign and channel: orders and net revenue credited to it by each attribution, and who came from there first.
-- An attribution is a column, not a row: whatever is added up over rows counts an order once. Every figure adds up.
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign', 'channel', 'event_date'],
    add=true,
    indexes=[{'columns': ['org_id', 'event_date']}],
    checks={
        'no_count_is_negative': "least(new_visitors_count, first_touch_orders_count, last_touch_orders_count, last_non_direct_orders_count, linear_orders_count) >= 0",
    },
) }}
with credits as (
    select * from {{ delta('int_order_credits') }} as credits
),
new_visitors as (
    select org_id, source, medium, campaign, event_date, weight from {{ delta('int_visitor_days') }} as days where is_first_touch
),
combined as (
    select
        org_id, source, medium, campaign, order_date as event_date,
        0 as new_visitors_count,
        0 as new_visitors_net_revenue_amount,
        case when is_first_touch then weight * orders_count end as first_touch_orders_count,
        case when is_last_touch then weight * orders_count end as last_touch_orders_count,
        case when is_last_non_direct then weight * orders_count end as last_non_direct_orders_count,
        weight * linear_orders_count as linear_orders_count,
        case when is_first_touch then weight * net_revenue_amount end as first_touch_net_revenue_amount,
        case when is_last_touch then weight * net_revenue_amount end as last_touch_net_revenue_amount,
        case when is_last_non_direct then weight * net_revenue_amount end as last_non_direct_net_revenue_amount,
        weight * linear_net_revenue_amount as linear_net_revenue_amount
    from credits
    union all
    select org_id, source, medium, campaign, first_touch_date, 0, weight * net_revenue_amount, 0, 0, 0, 0, 0, 0, 0, 0
    from credits
    where first_touch_date is not null
    union all
    select org_id, source, medium, campaign, event_date, weight, 0, 0, 0, 0, 0, 0, 0, 0, 0
    from new_visitors
),
sums as (
    select
        org_id,
        source,
        medium,
        campaign,
        {{ total('new_visitors_count') }},
        {{ total('first_touch_orders_count') }},
        {{ total('last_touch_orders_count') }},
        {{ total('last_non_direct_orders_count') }},
        cast(coalesce(sum(linear_orders_count), 0) as numeric(18, 6)) as linear_orders_count,
        {{ total_amount('first_touch_net_revenue_amount') }},
        {{ total_amount('last_touch_net_revenue_amount') }},
        {{ total_amount('last_non_direct_net_revenue_amount') }},
        {{ total_amount('linear_net_revenue_amount') }},
        {{ total_amount('new_visitors_net_revenue_amount') }},
        event_date
    from combined
    group by org_id, source, medium, campaign, event_date
),
channels as (
    {{ channels_of('sums') }}
),
final as (
    select
        org_id,
        source,
        medium,
        campaign,
        channels.channel,
        sums.new_visitors_count,
        sums.first_touch_orders_count,
        sums.last_touch_orders_count,
        sums.last_non_direct_orders_count,
        sums.linear_orders_count,
        sums.first_touch_net_revenue_amount,
        sums.last_touch_net_revenue_amount,
        sums.last_non_direct_net_revenue_amount,
        sums.linear_net_revenue_amount,
        sums.new_visitors_net_revenue_amount,
        sums.event_date
    from sums
    join channels using (org_id, source, medium, campaign)
)
select * from final
-- what is read together lies together
order by event_date, org_id

-- Whatever the attribution, the credit of an org's day is its orders and, to the cent, its net revenue.
{{ config(meta={'dagster': {'ref': {'name': 'audience_acquisition_daily'}}}) }}
with both_sides as (
    select
        org_id, event_date,
        first_touch_orders_count, last_touch_orders_count, last_non_direct_orders_count, linear_orders_count,
        first_touch_net_revenue_amount, last_touch_net_revenue_amount, last_non_direct_net_revenue_amount, linear_net_revenue_amount
    from {{ ref('audience_acquisition_daily') }}
    union all
    select
        org_id, event_date, -orders_count, -orders_count, -orders_count, -orders_count,
        -net_revenue_amount, -net_revenue_amount, -net_revenue_amount, -net_revenue_amount
    from {{ ref('audience_overview_daily') }}
)
select org_id, event_date, attribution, sum(orders_count) as orders_count, sum(net_revenue_amount) as net_revenue_amount
from both_sides
{{ attributions() }}
group by org_id, event_date, attribution
having sum(orders_count) <> 0 or sum(net_revenue_amount) <> 0

-- Grain: one row per org, order and traffic source with a part in the order by any attribution: which part.
{{ config(
    unique_key=['org_id', 'order_key', 'source', 'medium', 'campaign'],
    changes=['org_id', 'source', 'medium', 'campaign', 'orders_count', 'net_revenue_amount', 'linear_orders_count',
        'linear_net_revenue_amount', 'is_first_touch', 'is_last_touch', 'is_last_non_direct', 'order_date', 'first_touch_date'],
    checks={
        'part_is_not_above_the_whole': "linear_orders_count between 0 and orders_count",
    },
) }}
{% call audit('credit is that of the order') %}
select org_id, order_key
from (
    select
        org_id, order_key, linear_orders_count, linear_net_revenue_amount,
        cast(is_first_touch as integer) as first_touches, cast(is_last_touch as integer) as last_touches,
        cast(is_last_non_direct as integer) as last_non_direct_touches
    from {{ this }}
    where {{ in_scope('org_id, order_key') }}
    union all
    select org_id, order_key, -orders_count, -net_revenue_amount, -1, -1, -1
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, order_key') }}
) as both_sides
group by org_id, order_key
having sum(linear_orders_count) <> 0 or coalesce(sum(linear_net_revenue_amount), 0) <> 0
    or sum(first_touches) <> 0 or sum(last_touches) <> 0 or sum(last_non_direct_touches) <> 0
{% endcall %}
{% call scope('org_id, order_key') %}
select org_id, order_key from {{ changes('int_orders') }} as orders
union all
-- a session is a touch of the orders since its start
select orders.org_id, orders.order_key
from (select org_id, visitor_id, min(session_started_at) as started_at from {{ changes('int_visits') }} as visits group by org_id, visitor_id) as changed
join {{ ref('int_orders') }} as orders
    on orders.org_id = changed.org_id and orders.visitor_id = changed.visitor_id and orders.ordered_at >= changed.started_at
{% endcall %}
with orders as (
    select * from {{ ref('int_orders') }} where {{ in_scope('org_id, order_key') }}
),
own_sessions as (
    select org_id, visitor_id, session_id, event_date, has_touch, session_started_at
    from {{ ref('int_visits') }}
),
touches as (
    select
        orders.*,
        touches.source as touch_source,
        touches.medium as touch_medium,
        touches.campaign as touch_campaign,
        touches.touches_count,
        touches.is_first_touch,
        touches.first_touch_date,
        (touches.source, touches.medium, touches.campaign) = (orders.source, orders.medium, orders.campaign) as is_last_touch,
        touches.last_touch_number = max(touches.last_touch_number) over entire as is_latest_with_touch,
        {{ is_explained_by_earlier_touch('own_sessions.has_touch', 'own_sessions.session_started_at', 'max(touches.last_touch_at) over entire') }} as is_explained,
        sum(touches.touches_count) over entire as order_touches_count,
        sum(touches.touches_count) over (entire order by touches.source, touches.medium, touches.campaign) as touches_so_far_count
    from {{ ref('int_order_touches') }} as touches
    join orders using (org_id, order_key)
    left join own_sessions
        on own_sessions.org_id = orders.org_id and own_sessions.visitor_id = orders.visitor_id
        and own_sessions.session_id = orders.session_id and own_sessions.event_date = orders.order_date
    window entire as (partition by orders.org_id, orders.order_key)
),
final as (
    select
        org_id,
        order_key,
        touch_source as source,
        touch_medium as medium,
        touch_campaign as campaign,
        orders_count,
        net_revenue_amount,
        cast({{ credit_share('orders_count', 'touches_count', 'touches_so_far_count', 'order_touches_count', 6) }} as numeric(18, 6)) as linear_orders_count,
        cast({{ credit_share('net_revenue_amount', 'touches_count', 'touches_so_far_count', 'order_touches_count', 2) }} as numeric(18, 2)) as linear_net_revenue_amount,
        is_first_touch,
        is_last_touch,
        case when is_explained then coalesce(is_latest_with_touch, false) else is_last_touch end as is_last_non_direct,
        order_date,
        first_touch_date
    from touches
    where touches_count > 0 or is_first_touch or (is_explained and is_latest_with_touch)
)
select * from final

-- Grain: one row per org, buyer and local week with activity since the first purchase: the week's number in the buyer's cohort.
{{ config(
    unique_key=['org_id', 'visitor_id', 'week_number'],
    changes=['org_id', 'cohort_week', 'week_number', 'has_repurchased', 'is_last_return', 'is_last_repurchase'],
) }}
{% call scope('org_id, visitor_id') %}
{{ changed_visitors() }}
{% endcall %}
with orgs as (
    select * from {{ ref('orgs') }}
),
orders as (
    select
        orders.org_id,
        orders.visitor_id,
        {{ week_start('orders.order_date', 'orgs') }} as week_start,
        row_number() over (partition by orders.visitor_id, orders.org_id order by orders.ordered_at, orders.order_key) as order_number
    from {{ ref('int_orders') }} as orders
    left join orgs on orgs.org_id = orders.org_id
    where {{ in_scope('orders.org_id, orders.visitor_id') }} and orders.visitor_id is not null and orders.orders_count = 1
),
cohorts as (
    select org_id, visitor_id, week_start as cohort_week from orders where order_number = 1
),
activity as (
    select days.org_id, days.visitor_id, {{ week_start('days.event_date', 'orgs') }} as week_start, 0 as repurchases_count
    from {{ ref('int_visitor_days') }} as days
    left join orgs on orgs.org_id = days.org_id
    where {{ in_scope('days.org_id, days.visitor_id') }}
    union all
    select org_id, visitor_id, week_start, cast(order_number > 1 as integer) from orders
),
weeks as (
    select
        cohorts.org_id,
        cohorts.visitor_id,
        cohorts.cohort_week,
        (activity.week_start - cohorts.cohort_week) / 7 as week_number,
        sum(activity.repurchases_count) > 0 as has_repurchased
    from cohorts
    join activity
        on activity.org_id = cohorts.org_id and activity.visitor_id = cohorts.visitor_id and activity.week_start >= cohorts.cohort_week
    group by cohorts.org_id, cohorts.visitor_id, cohorts.cohort_week, activity.week_start
),
final as (
    select
        org_id,
        visitor_id,
        cohort_week,
        week_number,
        has_repurchased,
        week_number = max(week_number) over buyer as is_last_return,
        coalesce(week_number = max(week_number) filter (where has_repurchased) over buyer, false) as is_last_repurchase
    from weeks
    window buyer as (partition by visitor_id, org_id)
)
select * from final

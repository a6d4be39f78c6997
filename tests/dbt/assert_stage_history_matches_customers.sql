-- The stage that a visitor has not left is the stage in audience_customers; every visitor has exactly one.
-- Compared when both were built for the same moment: a build of one of them alone may be of another.
{{ config(meta={'dagster': {'ref': {'name': 'customer_lifecycle_history'}}}) }}
with current_stages as (
    select org_id, visitor_id, min(lifecycle_stage) as lifecycle_stage, count(*) as rows_count
    from {{ ref('customer_lifecycle_history') }}
    where left_at is null
    group by org_id, visitor_id
),
customers as (
    select org_id, visitor_id, lifecycle_stage from {{ ref('audience_customers') }}
),
final as (
    select
        coalesce(customers.org_id, current_stages.org_id) as org_id,
        coalesce(customers.visitor_id, current_stages.visitor_id) as visitor_id,
        customers.lifecycle_stage as customer_stage,
        current_stages.lifecycle_stage as history_stage,
        current_stages.rows_count
    from customers
    full join current_stages on current_stages.org_id = customers.org_id and current_stages.visitor_id = customers.visitor_id
    where (
        customers.lifecycle_stage is distinct from current_stages.lifecycle_stage
        or current_stages.rows_count is distinct from 1
    )
    and (
        select count(distinct as_of) = 1
        from {{ state_schema() }}.model_state
        where model in ('audience_customers', 'customer_lifecycle_history')
    )
)
select * from final

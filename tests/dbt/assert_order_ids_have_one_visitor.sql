-- An order id that several visitors sent is one order for each of them: revenue is counted several times.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'data_quality_orders'}}}) }}
select org_id, order_reference, count(*) as orders_count, sum(gross_revenue_amount) as gross_revenue_amount
from {{ ref('int_orders') }}
where orders_count = 1
group by org_id, order_reference
having count(*) > 1

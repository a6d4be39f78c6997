-- An order id that several visitors sent is one order for each of them: revenue is counted several times.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'data_quality_orders'}}}) }}
select *
from {{ ref('data_quality_orders') }}
where finding like 'same order id%'

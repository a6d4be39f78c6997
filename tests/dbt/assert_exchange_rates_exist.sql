-- Every amount could be converted: a missing rate leaves it null, never 1. Add the rate to the seed fx_rates.
-- Reads the finding, not int_orders: a failed test of int_orders would skip every mart for one order.
{{ config(severity='error', meta={'dagster': {'ref': {'name': 'data_quality_orders'}}}) }}
select *
from {{ ref('data_quality_orders') }}
where finding like 'no exchange rate%'

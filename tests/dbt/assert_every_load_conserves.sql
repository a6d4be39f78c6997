-- Every row of every loaded file was accepted, rejected or a duplicate. The table checks the sum, this also the parts.
{{ config(meta={'dagster': {'ref': {'name': 'data_quality_daily'}}}) }}
select *
from {{ source('landing', 'loads') }}
where received_count <> accepted_count + rejected_count + duplicate_count
    or least(received_count, accepted_count, rejected_count, duplicate_count) < 0

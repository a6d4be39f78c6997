-- Every row that landed was accepted, rejected or a duplicate; what is said of accepted rows is said of no others.
{{ config(meta={'dagster': {'ref': {'name': 'data_quality_daily'}}}) }}
select *
from {{ ref('data_quality_daily') }}
where received_count <> accepted_count + rejected_count + duplicate_count
    or greatest(late_count, robot_count, internal_count, opted_out_count, without_visitor_count) > accepted_count

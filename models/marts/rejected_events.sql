-- Grain: one row per delivery that could not be used, with the reason and the raw row.
{{ config(materialized='view', schema='contacts', contract={'enforced': false}, grants={'select': []}) }}
select
    rejection_id,
    org_id,
    rejection_reason,
    raw_row,
    file_name,
    line_number,
    received_at
from {{ source('landing', 'rejected_rows') }}
union all
select
    cast(landing_id as text),
    org_id,
    {{ landed_rejection_reason() }},
    cast(to_jsonb(events) as text),
    null,
    null,
    received_at
from {{ source('landing', 'events') }} as events
where {{ landed_rejection_reason() }} is not null

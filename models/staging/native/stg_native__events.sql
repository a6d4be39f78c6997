-- Grain: one row per usable delivery of an event: the event contract, from the landing table.
select
    landing_id,
    event_id,
    org_id,
    event_type,
    anonymous_id,
    user_id,
    session_id,
    url,
    referrer,
    user_agent,
    properties,
    occurred_at,
    received_at
from {{ source('landing', 'events') }}
where rejection_reason is null and not {{ is_too_large('properties') }}

-- Grain: one row per usable delivery of an event: the event contract, from the landing table; and older ones, of which it is kept
-- what models read. A condition within one of the two, or the two as a CTE, would keep the planner from looking up touched keys by index.
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
    received_at,
    user_agent_id,
    content_md5
from (
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
        received_at,
        md5(user_agent) as user_agent_id,
        cast(null as text) as content_md5,
        rejection_reason is null and not {{ is_too_large('properties') }} as is_usable
    from {{ source('landing', 'events') }}
    union all
    select
        landing_id,
        event_id,
        org_id,
        event_type,
        anonymous_id,
        user_id,
        session_id,
        -- so that the host read from it is this one, whatever it begins with
        'https://www.' || host as url,
        'https://www.' || referrer_host as referrer,
        cast(null as text) as user_agent,
        properties,
        occurred_at,
        received_at,
        user_agent_id,
        content_md5,
        true as is_usable
    from {{ source('landing', 'retained_events') }}
) as deliveries
where is_usable

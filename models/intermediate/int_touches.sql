-- Grain: one row per org, visitor and session: where the visitor came from that time.
{{ config(materialized='view') }}
select
    visits.org_id,
    visits.visitor_id,
    visits.session_id,
    visits.source,
    visits.medium,
    visits.campaign,
    channels.channel,
    visits.has_touch,
    visits.session_started_at as touched_at
from (
    select distinct org_id, visitor_id, session_id, source, medium, campaign, has_touch, session_started_at
    from {{ ref('int_visits') }}
) as visits
left join {{ ref('int_channels') }} as channels
    on channels.org_id = visits.org_id and channels.source = visits.source
    and channels.medium = visits.medium and channels.campaign = visits.campaign

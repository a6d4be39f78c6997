-- Grain: one row per org and visitor who gave contact details: the latest of each.
{{ config(unique_key=['org_id', 'visitor_id'], indexes=[{'columns': ['md5(email)'], 'where': 'email is not null'}]) }}
{% call scope('org_id, visitor_id') %}
-- visits of devices that gave contact details, or had: the others give none to anybody
select visits.org_id, visits.visitor_id
from (select distinct org_id, device_id, visitor_id from {{ changes('int_visits') }} as changed) as visits
where exists (select from {{ ref('contact_events') }} as events where events.org_id = visits.org_id and events.device_id = visits.device_id)
    or (visits.org_id, visits.device_id) in (select org_id, device_id from {{ changes('contact_events') }} as changed_events)
union all
select visits.org_id, visits.visitor_id
from (select distinct org_id, device_id from {{ changes('contact_events') }} as events) as changed
join {{ ref('int_visits') }} as visits on visits.org_id = changed.org_id and visits.device_id = changed.device_id
{% endcall %}
with visitor_devices as (
    select distinct org_id, device_id from {{ ref('int_visits') }} where {{ in_scope('org_id, visitor_id') }}
),
devices as (
    select * from {{ ref('int_devices') }}
),
details as (
    select events.*, {{ visitor_id('events', 'devices') }} as visitor_id
    from visitor_devices
    join {{ ref('contact_events') }} as events
        on events.org_id = visitor_devices.org_id and events.device_id = visitor_devices.device_id
    left join devices on devices.org_id = events.org_id and devices.device_id = events.device_id
    where events.occurred_at <= {{ as_of() }}
    {{ computed_once() }}
),
final as (
    select
        org_id,
        visitor_id,
        {{ last_known('email', 'email is not null') }} as email,
        {{ last_known('phone', 'phone is not null') }} as phone,
        {{ last_known('first_name', 'first_name is not null') }} as first_name,
        {{ last_known('last_name', 'last_name is not null') }} as last_name,
        {{ last_known('full_name', 'full_name is not null') }} as full_name,
        max(occurred_at) as updated_at
    from details
    where {{ in_scope('org_id, visitor_id') }}
    group by org_id, visitor_id
)
select * from final

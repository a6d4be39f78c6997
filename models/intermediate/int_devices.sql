-- Grain: one row per org and device that ever identified: the user it stands for.
-- A device maps to the first user it identified as; one that identified as too many users is shared and maps to nobody.
{{ config(
    unique_key=['org_id', 'device_id'],
    changes=['org_id', 'device_id'],
    indexes=[{'columns': ['org_id', 'user_id']}],
) }}
{% call scope('org_id, device_id') %}
select logins.org_id, logins.device_id
from (
    select org_id, device_id, user_id, occurred_at, weight from {{ changes('int_events_enriched') }} as changed
    union all
    select org_id, device_id, user_id, occurred_at, case when occurred_at <= {{ as_of() }} then 1 else -1 end
    from {{ ref('int_events_enriched') }} as newly_past
    where {{ passed_since_previous('occurred_at') }}
) as logins
left join {{ this }} as devices on devices.org_id = logins.org_id and devices.device_id = logins.device_id
where logins.device_id is not null and logins.user_id is not null
    -- one more login of a device's only user changes nothing
    and (logins.weight > 0 and logins.occurred_at >= devices.identified_at and devices.users_count = 1 and devices.user_id = logins.user_id) is not true
{% endcall %}
with logins as (
    select
        org_id,
        device_id,
        user_id,
        occurred_at,
        row_number() over (partition by device_id, org_id order by occurred_at, event_id) as login_number
    from {{ ref('int_events_enriched') }}
    where {{ in_scope('org_id, device_id') }}
        and anonymous_id is not null
        and user_id is not null
        and is_person
        and occurred_at <= {{ as_of() }}
),
devices as (
    select
        org_id,
        device_id,
        count(distinct user_id) as users_count,
        max(user_id) filter (where login_number = 1) as first_user_id,
        min(occurred_at) as identified_at
    from logins
    group by org_id, device_id
),
final as (
    select
        org_id,
        device_id,
        case when users_count <= {{ var('shared_device_max_users') }} then first_user_id end as user_id,
        users_count,
        users_count > {{ var('shared_device_max_users') }} as is_shared,
        identified_at
    from devices
)
select * from final

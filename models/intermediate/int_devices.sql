-- Grain: one row per org and device that ever identified: the user it stands for.
-- A device maps to the first user it identified as; one that identified as too many users is shared and maps to nobody.
{{ config(
    unique_key=['org_id', 'device_id'],
    changes=['org_id', 'device_id'],
    indexes=[{'columns': ['org_id', 'user_id']}],
) }}
{% call scope('org_id, device_id') %}
select org_id, device_id from {{ changes('int_events_enriched') }} as logins where device_id is not null and user_id is not null
union all
select org_id, device_id from {{ ref('int_events_enriched') }} as newly_past
where device_id is not null and user_id is not null and {{ passed_since_previous('occurred_at') }}
{% endcall %}
with logins as (
    select
        org_id,
        device_id,
        user_id,
        occurred_at,
        row_number() over (partition by org_id, device_id order by occurred_at, event_id) as login_number
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

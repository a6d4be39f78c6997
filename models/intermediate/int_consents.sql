-- Grain: one row per org, sender (device or user) and moment from which a consent statement holds, until the next one.
{{ config(unique_key=['org_id', 'sender_type', 'sender_id', 'valid_from']) }}
{% call scope('org_id, sender_type, sender_id') %}
select org_id, 'device' as sender_type, anonymous_id as sender_id from {{ changes('int_consent_events') }} as of_devices where anonymous_id is not null
union all
select org_id, 'user', user_id from {{ changes('int_consent_events') }} as of_users where user_id is not null
{% endcall %}
with statements as (
    select org_id, 'device' as sender_type, anonymous_id as sender_id, consent_state, is_opted_out, is_consented, occurred_at, event_id
    from {{ ref('int_consent_events') }}
    where anonymous_id is not null and {{ in_scope("org_id, 'device', anonymous_id") }}
    union all
    select org_id, 'user', user_id, consent_state, is_opted_out, is_consented, occurred_at, event_id
    from {{ ref('int_consent_events') }}
    where user_id is not null and {{ in_scope("org_id, 'user', user_id") }}
),
final as (
    select
        org_id,
        sender_type,
        sender_id,
        consent_state,
        is_opted_out,
        is_consented,
        occurred_at as valid_from,
        lead(occurred_at, 1, 'infinity') over (partition by org_id, sender_type, sender_id order by occurred_at, event_id) as valid_to
    from statements
)
select * from final where valid_from < valid_to

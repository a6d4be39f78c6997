-- One row per org and consent event: a statement that holds for its sender until the next one.
{{ config(
    unique_key=['org_id', 'event_id'],
    changes=['org_id', 'anonymous_id', 'user_id'],
) }}
{% call scope('org_id, event_id') %}
select org_id, event_id from {{ landed('events') }} as landed where rejection_reason is null
union all
select org_id, event_id from {{ landed('events_removed') }} as removed
{% endcall %}
with events as (
    select * from {{ ref('stg_events') }} where {{ in_scope('org_id, event_id') }}
),
taxonomy as (
    select * from {{ ref('event_taxonomy') }}
),
states as (
    select * from {{ ref('consent_states') }}
),
statements as (
    select
        events.*,
        lower(btrim(events.properties ->> 'consent')) as consent_state
    from events
    left join taxonomy as org_type on org_type.org_id = events.org_id and org_type.source_event_type = lower(btrim(events.event_type))
    left join taxonomy as any_type on any_type.org_id = '*' and any_type.source_event_type = lower(btrim(events.event_type))
    where coalesce(org_type.event_type, any_type.event_type) = 'consent'
),
final as (
    select
        statements.org_id,
        statements.event_id,
        nullif(btrim(statements.anonymous_id), '') as anonymous_id,
        nullif(btrim(statements.user_id), '') as user_id,
        statements.consent_state,
        coalesce(states.is_opted_out, false) as is_opted_out,
        coalesce(states.is_consented, false) as is_consented,
        statements.occurred_at
    from statements
    left join states on states.consent_state = statements.consent_state
    where statements.consent_state is not null
        and not exists (
            select from {{ ref('stg_events') }} as earlier
            where {{ is_counted_before('earlier', 'statements') }}
        )
)
select * from final

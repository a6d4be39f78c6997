-- One row per org and event: the device and network it was sent from, and whether a robot, staff or an opted-out person sent it.
-- Privacy is resolved as of the event: its own signal, else the sender's latest statement before it.
{{ config(materialized='ephemeral') }}
with events as (
    select
        *,
        {{ is_true("properties ->> 'dnt'") }} or {{ is_true("properties ->> 'gpc'") }} as is_do_not_track,
        lower(btrim(properties ->> 'consent')) as own_consent_state,
        lower(coalesce(properties ->> 'network_type', properties ->> 'connection_type')) as connection_type,
        lower(coalesce(properties ->> 'effective_type', properties ->> 'network_effective_type', properties ->> 'effectiveType')) as effective_type,
        properties ?| (select array_agg(distinct substr(field, 12)) from {{ ref('internal_traffic') }} where field like 'properties.%')
            or host ~* (select string_agg(pattern, '|') from {{ ref('internal_traffic') }} where field = 'host') as may_be_internal
    from {{ ref('int_event_campaigns') }}
),
agents as (
    select * from {{ source('landing', 'user_agents') }}
),
networks as (
    select * from {{ ref('network_types') }}
),
consents as (
    select * from {{ ref('int_consents') }}
),
final as (
    select
        events.*,
        coalesce(nullif(agents.device_type, 'unknown'), nullif(lower(btrim(properties ->> 'device_type')), ''), 'unknown') as device_type,
        coalesce(nullif(agents.os, 'unknown'), nullif(btrim(properties ->> 'os'), ''), 'unknown') as os,
        coalesce(nullif(agents.browser, 'unknown'), nullif(btrim(properties ->> 'browser'), ''), 'unknown') as browser,
        case
            when coalesce(connection.yields_to_effective_type, true) then coalesce(effective.network_type, connection.network_type, 'unknown')
            else connection.network_type
        end as network_type,
        case when agents.user_agent_id is null then events.user_agent_id end as pending_user_agent_id,
        coalesce(agents.is_bot, false) as is_bot,
        agents.bot_reason,
        internal.reason as internal_reason,
        coalesce(own.consent_state, latest.consent_state) as consent_state,
        is_do_not_track or coalesce(own.is_opted_out, latest.is_opted_out, false) as is_opted_out
    from events
    left join agents on agents.user_agent_id = events.user_agent_id
    left join networks as connection on connection.raw_type = events.connection_type
    left join networks as effective on effective.raw_type = events.effective_type
    left join {{ ref('consent_states') }} as own on own.consent_state = events.own_consent_state
    left join consents as of_device
        on of_device.org_id = events.org_id and of_device.sender_type = 'device' and of_device.sender_id = events.anonymous_id
        and events.occurred_at >= of_device.valid_from and events.occurred_at < of_device.valid_to
    left join consents as of_user
        on of_user.org_id = events.org_id and of_user.sender_type = 'user' and of_user.sender_id = events.user_id
        and events.occurred_at >= of_user.valid_from and events.occurred_at < of_user.valid_to
    left join lateral (
        select
            case when of_device.valid_from > of_user.valid_from or of_user.valid_from is null then of_device.consent_state else of_user.consent_state end as consent_state,
            case when of_device.valid_from > of_user.valid_from or of_user.valid_from is null then of_device.is_opted_out else of_user.is_opted_out end as is_opted_out
    ) as latest on true
    left join lateral (
        select min(reason) as reason
        from {{ ref('internal_traffic') }} as rules
        where events.may_be_internal
            and rules.org_id in ('*', events.org_id)
            and case when rules.field = 'host' then events.host else events.properties ->> substr(rules.field, 12) end ~* rules.pattern
    ) as internal on true
)
select * from final

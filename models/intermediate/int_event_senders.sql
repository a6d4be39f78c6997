-- Grain: one row per org and event: the device and network it was sent from, and whether a robot, staff or an opted-out person sent it.
-- Privacy is resolved as of the event: its own signal, else the sender's latest statement before it.
{{ config(materialized='ephemeral') }}
with events as (
    select
        campaigns.*,
        {{ is_do_not_track() }} as is_do_not_track,
        lower(btrim(properties ->> 'consent')) as own_consent_state,
        {{ connection_type() }} as connection_type,
        {{ effective_type() }} as effective_type,
        case
            when properties ?| internal_properties
                or coalesce(cast(common_hosts ->> host as boolean), host ~* internal_hosts)
                then {{ var('landing_schema') }}.internal_traffic_reason(campaigns.org_id, host, properties, internal_rules)
        end as internal_reason
    from {{ ref('int_event_campaigns') }} as campaigns
    cross join (
        select
            jsonb_agg(jsonb_build_object('org_id', org_id, 'field', field, 'pattern', pattern, 'reason', reason)) as internal_rules,
            array_agg(distinct substr(field, 12)) filter (where field like 'properties.%') as internal_properties,
            string_agg(pattern, '|') filter (where field = 'host') as internal_hosts
        from {{ ref('internal_traffic') }}
    ) as internal_lookup
    cross join {{ common_hosts_lookup() }}
    {{ computed_once() }}
),
agents as (
    select * from {{ source('landing', 'user_agents') }}
),
consents as not materialized (
    select * from {{ ref('int_consents') }}
),
final as (
    select
        events.*,
        coalesce(nullif(agents.device_type, 'unknown'), {{ label("properties ->> 'device_type'") }}, 'unknown') as device_type,
        coalesce(nullif(agents.os, 'unknown'), nullif(left(btrim(properties ->> 'os'), 50), ''), 'unknown') as os,
        coalesce(nullif(agents.browser, 'unknown'), nullif(left(btrim(properties ->> 'browser'), 50), ''), 'unknown') as browser,
        {{ network_type() }} as network_type,
        case when agents.user_agent_id is null then events.user_agent_id end as pending_user_agent_id,
        coalesce(agents.is_bot, false) as is_bot,
        agents.bot_reason,
        case when opt_outs ? own_consent_state then own_consent_state else latest.consent_state end as consent_state,
        is_do_not_track or coalesce(cast(opt_outs ->> own_consent_state as boolean), latest.is_opted_out, false) as is_opted_out
    from events
    cross join {{ lookup('networks', ref('network_types'), 'raw_type', 'network_type') }}
    cross join {{ lookup('decisive_networks', ref('network_types'), 'raw_type', 'network_type', 'not yields_to_effective_type') }}
    cross join {{ lookup('opt_outs', ref('consent_states'), 'consent_state', 'is_opted_out') }}
    left join agents on agents.user_agent_id = events.user_agent_id
    left join consents as of_device
        on of_device.org_id = events.org_id and of_device.sender_type = 'device' and of_device.sender_id = events.anonymous_id
        and events.occurred_at >= of_device.valid_from and events.occurred_at < of_device.valid_to
    left join consents as of_user
        on of_user.org_id = events.org_id and of_user.sender_type = 'user' and of_user.sender_id = events.user_id
        and events.occurred_at >= of_user.valid_from and events.occurred_at < of_user.valid_to
    {{ later_statement('of_device', 'of_user') }}
)
select * from final

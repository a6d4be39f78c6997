-- Grain: one row per org and event: deliveries reduced to one, with campaign, device, network and privacy resolved.
-- Keyed by the delivery that counts: a day's rows lie together in the index, where events' ids would be all over it.
{{ config(
    unique_key=['org_id', 'landing_id'],
    changes=['org_id', 'event_id', 'landing_id', 'device_id', 'user_id', 'order_reference', 'source', 'medium', 'campaign', 'has_contact_details', 'event_date', 'received_date', 'occurred_at'],
    indexes=[
        {'columns': ['device_id', 'occurred_at'], 'where': 'device_id is not null'},
        {'columns': ['device_id'], 'where': 'order_reference is not null'},
        {'columns': ['occurred_at']},
        {'columns': ['org_id', 'received_date']},
        {'columns': ['org_id', 'event_date'], 'where': 'device_id is null'},
        {'columns': ['org_id', 'order_reference'], 'where': 'order_reference is not null'},
        {'columns': ['pending_user_agent_id'], 'where': 'pending_user_agent_id is not null'},
    ],
) }}
{% call audit('an event counts once') %}
select org_id, event_id
from {{ this }} as events
where {{ in_scope('org_id, event_id, landing_id') }}
    and {{ event_number('events') }} in (
        select {{ event_number('events') }} as event_number from {{ this }} as events
        where {{ in_scope('org_id, event_id, landing_id') }} group by event_number having count(*) > 1
    )
group by org_id, event_id
having count(*) > 1
{% endcall %}
{% call scope('org_id, event_id, landing_id') %}
select org_id, event_id, landing_id from ({{ landed_events() }}) as landed
union all
-- another delivery of the same event counts now, or no more
select org_id, event_id, landing_id from {{ changes('int_repeated_deliveries') }} as deliveries
union all
{{ events_after_changed_statement('anonymous_id') }}
union all
{{ events_after_changed_statement('user_id') }}
union all
select enriched.org_id, enriched.event_id, enriched.landing_id
from {{ landed('user_agents') }} as agents
join {{ this }} as enriched on enriched.pending_user_agent_id = agents.user_agent_id
union all
select null, null, null from {{ landed('user_agents') }} as agents where agents.is_reparsed
{% endcall %}
select
    org_id,
    event_id,
    case when not is_opted_out then coalesce(anonymous_id, user_id) end as device_id,
    case when not is_opted_out then anonymous_id end as anonymous_id,
    case when not is_opted_out then user_id end as user_id,
    case when not is_opted_out then source_session_id end as source_session_id,
    case when event_type in ('purchase', 'refund') and not is_opted_out then nullif(btrim(properties ->> 'order_id'), '') end as order_id,
    case
        when event_type in ('purchase', 'refund') then {{ order_reference('event_id') }}
    end as order_reference,
    event_type,
    source_event_type,
    case when is_opted_out then '(unattributed)' when has_touch then coalesce(touch_source, '(not set)') else '(direct)' end as source,
    case when is_opted_out then '(unattributed)' when has_touch then coalesce(touch_medium, '(none)') else '(none)' end as medium,
    case when is_opted_out then '(unattributed)' when has_touch then coalesce(label_campaign, '(none)') else '(none)' end as campaign,
    left(utm_source, {{ var('label_max_characters') }}) as utm_source,
    left(utm_medium, {{ var('label_max_characters') }}) as utm_medium,
    left(utm_campaign, {{ var('label_max_characters') }}) as utm_campaign,
    click_id_type,
    case when not is_opted_out then click_id end as click_id,
    external_host as referrer_host,
    device_type,
    os,
    browser,
    network_type,
    left(properties ->> 'product', {{ var('label_max_characters') }}) as product,
    case when event_type in ('purchase', 'refund') then upper(nullif(btrim(properties ->> 'currency'), '')) end as currency,
    consent_state,
    bot_reason,
    internal_reason,
    pending_user_agent_id,
    landing_id,
    {{ page_load_ms() }} as page_load_ms,
    case when event_type in ('purchase', 'refund') then {{ number_or_null('revenue') }} end as revenue_amount,
    {{ has_contact_details() }} as has_contact_details,
    has_touch,
    is_bot,
    internal_reason is not null as is_internal,
    not is_bot and internal_reason is null as is_person,
    is_opted_out,
    event_date,
    received_date,
    occurred_at,
    received_at
from {{ ref('int_event_senders') }}

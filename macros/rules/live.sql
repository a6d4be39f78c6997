{# Live answers: what landed since the last build beside what it built. Steps of a query, to be put between its CTEs.
   They ask for the variables of get_high_intent_visitors: p_org, p_as_of, v_rows (places of landed rows), v_removed
   (events that left), v_devices and v_starts (whose visits are computed here, and from when on), v_visitors (who is asked
   for, and may have become other than the last build has them), v_settled (who is too, and is what it made of them but for
   the days that passed), v_time_zone; and for the look-ups taxonomy, networks, decisive_networks and opt_outs: as variables, because a plan
   that expects few rows would make them anew for each. #}


{# What the last build has not read: rows of one org as they landed, and which transaction has to be looked at first. #}
{% macro unread_position() -%}
(select cast(positions ->> '{{ source("landing", "events") }}' as xid8) from {{ state_schema() }}.model_state where model = 'int_events_enriched')
{%- endmacro %}

{% macro change_position(consumer, model_name) -%}
(select cast(positions ->> '{{ model_name }}' as bigint) from {{ state_schema() }}.model_state where model = '{{ consumer }}')
{%- endmacro %}


{# events: the counted events of v_devices, each from its v_starts on, as a build would have them now. Landed rows are
   judged as int_event_senders does; what was built stays as built, unless it was corrected or removed, or an earlier
   delivery landed since. #}
{% macro live_events() -%}
built as materialized (
        select events.*
        from unnest(v_devices, v_starts) as touched (device_id, start_at)
        join {{ ref('int_events_enriched') }} as events
            on events.org_id = p_org and events.device_id = touched.device_id
            and events.occurred_at >= touched.start_at and events.occurred_at <= p_as_of
    ),
    arrived as materialized (
        select
            events.*,
            {{ canonical_event_type('events') }} as canonical_type,
            {{ identifier_or_null('events.anonymous_id') }} as given_anonymous_id,
            {{ identifier_or_null('events.user_id') }} as given_user_id
        from {{ source('landing', 'events') }} as events
        where events.ctid = any(v_rows)
    ),
    repeats as (
        select landing_id, row_number() over (partition by event_id order by {{ delivery_order('arrived') }}) as delivery_number
        from arrived
        where event_id in (select event_id from arrived group by event_id having count(*) > 1)
    ),
    landed as materialized (
        select
            event_id, landing_id, url, properties, occurred_at, received_at,
            canonical_type as event_type,
            given_anonymous_id as anonymous_id,
            given_user_id as user_id,
            md5(user_agent) as user_agent_id,
            {{ url_host('url') }} as host,
            lower(btrim(properties ->> 'consent')) as own_consent_state
        from arrived
        where landing_id not in (select landing_id from repeats where delivery_number > 1)
            and not exists (
                select from built
                where built.event_id = arrived.event_id and built.landing_id <> arrived.landing_id and built.received_at <= arrived.received_at
            )
    ),
    said as (
        select landed.*, states.consent_state, states.is_opted_out
        from landed
        join {{ ref('consent_states') }} as states on states.consent_state = own_consent_state
        where event_type = 'consent'
    ),
    statements as materialized (
        select *, lead(valid_from, 1, 'infinity') over (partition by sender_type, sender_id order by valid_from, event_id) as valid_to
        from (
            select 'device' as sender_type, anonymous_id as sender_id, consent_state, is_opted_out, occurred_at as valid_from, event_id
            from said where anonymous_id is not null
            union all
            select 'user', user_id, consent_state, is_opted_out, occurred_at, event_id from said where user_id is not null
            union all
            select consents.sender_type, consents.sender_id, consents.consent_state, consents.is_opted_out, consents.valid_from, ''
            from (
                select 'device' as sender_type, unnest(v_devices) as sender_id
                union
                select 'device', device_id from kept_visits where visitor_id = any(v_visitors)
                union
                select 'user', unnest(v_visitors)
                union
                select 'user', user_id from landed where user_id is not null
            ) as senders
            join {{ ref('int_consents') }} as consents
                on consents.org_id = p_org and consents.sender_type = senders.sender_type and consents.sender_id = senders.sender_id
        ) as known
    ),
    internal_hosts as (
        select host, host ~* patterns as is_internal
        from (select distinct host from landed where host is not null) as hosts
        cross join (select string_agg(pattern, '|') as patterns from {{ ref('internal_traffic') }} where field = 'host') as rules
    ),
    live as materialized (
        select
            landed.event_id,
            coalesce(landed.anonymous_id, landed.user_id) as device_id,
            landed.anonymous_id,
            landed.user_id,
            landed.event_type,
            {{ order_reference('landed.event_id') }} as order_reference,
            {{ network_type() }} as network_type,
            case when opt_outs ? own_consent_state then own_consent_state else latest.consent_state end as consent_state,
            {{ page_load_ms() }} as page_load_ms,
            cast(landed.occurred_at at time zone v_time_zone as date) as event_date,
            landed.occurred_at,
            landed.received_at,
            not coalesce(agents.is_bot, false)
                and case
                    when properties ?| internal_properties or coalesce(internal_hosts.is_internal, false)
                        then {{ var('landing_schema') }}.internal_traffic_reason(p_org, landed.host, properties, internal_rules) is null
                    else true
                end
                and not ({{ is_do_not_track() }}
                    or coalesce(cast(opt_outs ->> own_consent_state as boolean), latest.is_opted_out, false)) as is_counted
        from landed
        cross join lateral (
            select
                {{ connection_type() }} as connection_type,
                {{ effective_type() }} as effective_type
        ) as networks_given
        cross join (
            select
                jsonb_agg(jsonb_build_object('org_id', org_id, 'field', field, 'pattern', pattern, 'reason', reason)) as internal_rules,
                array_agg(distinct substr(field, 12)) filter (where field like 'properties.%') as internal_properties
            from {{ ref('internal_traffic') }}
        ) as rules
        left join internal_hosts on internal_hosts.host = landed.host
        left join {{ source('landing', 'user_agents') }} as agents on agents.user_agent_id = landed.user_agent_id
        left join statements as of_device
            on of_device.sender_type = 'device' and of_device.sender_id = landed.anonymous_id
            and landed.occurred_at >= of_device.valid_from and landed.occurred_at < of_device.valid_to
        left join statements as of_user
            on of_user.sender_type = 'user' and of_user.sender_id = landed.user_id
            and landed.occurred_at >= of_user.valid_from and landed.occurred_at < of_user.valid_to
        {{ later_statement('of_device', 'of_user') }}
    ),
    events as materialized (
        select event_id, device_id, anonymous_id, user_id, event_type, order_reference, network_type, consent_state, page_load_ms, event_date, occurred_at, received_at
        from live
        where is_counted
        union all
        select event_id, device_id, anonymous_id, user_id, event_type, order_reference, network_type, consent_state, page_load_ms, event_date, occurred_at, received_at
        from built
        where is_person
            and event_id not in (select event_id from live)
            and event_id <> all(v_removed)
    )
{%- endmacro %}


{# visits: of `events` by the rules of int_devices, int_session_events and int_visits, and the built ones of the
   visitors' other devices; orders: when and by whom something was bought. #}
{% macro live_visits() -%}
logins as (
        select touched.device_id, devices.user_id
        from unnest(v_devices, v_starts) as touched (device_id, start_at)
        join {{ ref('int_devices') }} as devices on devices.org_id = p_org and devices.device_id = touched.device_id
        where isfinite(touched.start_at)
        union all
        select
            device_id,
            case when count(distinct user_id) <= {{ var('shared_device_max_users') }} then (array_agg(user_id order by occurred_at, event_id))[1] end as user_id
        from events
        where anonymous_id is not null and user_id is not null
            and device_id in (select device_id from unnest(v_devices, v_starts) as touched (device_id, start_at) where not isfinite(start_at))
        group by device_id
    ),
    identified as (
        select
            events.*,
            {{ visitor_id('events', 'logins') }} as visitor_id,
            ({{ var('landing_schema') }}.session_of(
                occurred_at, interval '{{ var("session_timeout_seconds") }} seconds', interval '{{ var("session_max_hours") }} hours'
            ) over (partition by events.device_id order by occurred_at, event_id rows unbounded preceding))[1] as session_started_at
        from events
        left join logins on logins.device_id = events.device_id
    ),
    in_sessions as (
        select
            *,
            min(event_id) filter (where occurred_at = session_started_at) over (partition by device_id, session_started_at) as first_event_id,
            row_number() over (partition by visitor_id, order_reference, event_type order by received_at, occurred_at, event_id) as order_place
        from identified
    ),
    visits as (
        select
            visitor_id,
            device_id,
            md5(cast(row(p_org, device_id, first_event_id) as text)) as session_id,
            {{ last_known('network_type', "network_type <> 'unknown'") }} as last_network_type,
            {{ last_known('consent_state', 'consent_state is not null') }} as last_consent_state,
            count(*) filter (where event_type = 'event_view') as event_views_count,
            count(*) filter (where event_type = 'ticket_cta') as ticket_ctas_count,
            count(page_load_ms) as page_loads_count,
            coalesce(sum(page_load_ms), 0) as page_load_total_ms,
            max(occurred_at) as last_event_at,
            max(occurred_at) filter (where consent_state is not null) as last_consent_at,
            max(occurred_at) filter (where event_type = 'ticket_cta') as last_ticket_cta_at,
            max(occurred_at) filter (where event_type = 'checkout_start') as last_checkout_at
        from in_sessions
        where visitor_id = any(v_visitors)
        group by device_id, first_event_id, visitor_id, event_date
        union all
        select * from kept_visits
    ),
    kept_orders as (
        select visitor_id, order_reference, ordered_at
        from {{ ref('int_orders') }}
        where org_id = p_org and visitor_id = any(v_visitors) and orders_count = 1
            and session_id in (select session_id from kept_visits)
    ),
    orders as (
        select visitor_id, ordered_at from kept_orders
        union all
        select visitor_id, occurred_at
        from in_sessions
        where event_type = 'purchase' and order_place = 1
            and not exists (
                select from kept_orders
                where kept_orders.visitor_id = in_sessions.visitor_id and kept_orders.order_reference = in_sessions.order_reference
            )
    )
{%- endmacro %}


{# Has anything of the org landed that no build has read? #}
{% macro has_landed() -%}
exists (select from {{ source('landing', 'events') }} where org_id = p_org and landed_xid >= {{ unread_position() }} and rejection_reason is null)
{%- endmacro %}


{# One row per event of the org that int_visits has not seen: landed since; built, but ahead of its moment; or built by a
   run that has not come to it yet. place: where the row landed. #}
{% macro unread_acts() -%}
select
            events.ctid as place,
            coalesce({{ identifier_or_null('events.anonymous_id') }}, {{ identifier_or_null('events.user_id') }}) as device_id,
            {{ identifier_or_null('events.user_id') }} as user_id,
            {{ canonical_event_type('events') }} as event_type,
            {{ identifier_or_null('events.anonymous_id') }} is not null as has_device,
            events.occurred_at
        from {{ source('landing', 'events') }} as events
        where landed_xid >= v_unread and org_id = p_org and occurred_at <= p_as_of
            and received_at > p_as_of - make_interval(hours => greatest(p_hours, {{ var('live_read_hours') }}))
            and rejection_reason is null and not {{ is_too_large('properties') }}
        union all
        select null, device_id, user_id, event_type, anonymous_id is not null, occurred_at
        from {{ ref('int_events_enriched') }}
        where org_id = p_org and occurred_at > v_built_for and occurred_at <= p_as_of
        union all
        -- what went may have been the login that the device's history hangs on
        select null, changed.device_id, changed.user_id, events.event_type, true, case when weight > 0 then changed.occurred_at else '-infinity' end
        from {{ changes_of(ref('int_events_enriched')) }} as changed
        left join {{ ref('int_events_enriched') }} as events on events.org_id = changed.org_id and events.landing_id = changed.landing_id
        where changed.org_id = p_org and changed.change_id > {{ change_position('int_visits', 'int_events_enriched') }}
        union all
        select null, events.device_id, events.user_id, null, false, events.occurred_at
        from {{ source('landing', 'events_removed') }} as removed
        join {{ ref('int_events_enriched') }} as events on events.org_id = removed.org_id and events.landing_id = removed.landing_id
        where removed.landed_xid >= v_unread and removed.org_id = p_org
{%- endmacro %}


{# From when on the visits of a device are computed: the start of the earliest session that its acts may change. A session
   that ended longer before them than a session waits is what it was. Another login may change every one. #}
{% macro starts_of_devices() -%}
touched as (
        select
            acts.device_id,
            case
                when bool_or(acts.has_device and acts.user_id is not null and acts.user_id is distinct from mapped.user_id) then timestamptz '-infinity'
                else min(acts.occurred_at)
            end as first_at
        from acts
        left join {{ ref('int_devices') }} as mapped on mapped.org_id = p_org and mapped.device_id = acts.device_id
        where acts.device_id in (select device_id from links where visitor_id in (select visitor_id from candidates))
        group by acts.device_id
    ),
    starts as (
        select touched.device_id, least(touched.first_at, min(visits.session_started_at)) as start_at
        from touched
        left join {{ ref('int_visits') }} as visits
            on visits.org_id = p_org and visits.device_id = touched.device_id and isfinite(touched.first_at)
            -- a session lasts a day at most, and a local day begins within a day of UTC's
            and visits.event_date >= cast(touched.first_at as date) - 2 - {{ (var('session_max_hours') / 24) | round(0, 'ceil') | int }}
            and visits.session_ended_at >= touched.first_at - interval '{{ var("session_timeout_seconds") }} seconds'
        group by touched.device_id, touched.first_at
    )
{%- endmacro %}


{# links: each device of `acts` with every visitor that its events may be; reachable: visitors whose rules, each at its
   best, could give the score. A login may make a device's history somebody else's, so all of its visitors' count. #}
{% macro reachable_visitors() -%}
devices as (
        select
            device_id,
            bool_or(event_type = 'ticket_cta') as has_ticket_cta,
            bool_or(event_type = 'checkout_start') as has_checkout,
            bool_or(event_type = 'purchase') as has_order
        from acts
        where device_id is not null
        group by device_id
    ),
    links as materialized (
        select device_id, device_id as visitor_id from devices
        union
        select device_id, user_id from acts where device_id is not null and user_id is not null
        union
        select devices.device_id, mapped.user_id
        from devices
        join {{ ref('int_devices') }} as mapped on mapped.org_id = p_org and mapped.device_id = devices.device_id
        where mapped.user_id is not null
        union
        select devices.device_id, visits.visitor_id
        from devices
        join {{ ref('int_devices') }} as mapped on mapped.org_id = p_org and mapped.device_id = devices.device_id and mapped.users_count > 1
        join {{ ref('int_visits') }} as visits on visits.org_id = p_org and visits.device_id = devices.device_id
    ),
    histories as (
        select
            links.device_id,
            bool_or(propensity_ticket_cta_points <> 0) as has_ticket_cta,
            bool_or(propensity_checkout_start_points <> 0) as has_checkout,
            bool_or(orders_count > 0) as has_order
        from links
        left join {{ ref('audience_customers') }} as customers on customers.org_id = p_org and customers.visitor_id = links.visitor_id
        group by links.device_id
    ),
    possible as (
        select
            links.visitor_id,
            bool_or(devices.has_ticket_cta or histories.has_ticket_cta) as has_ticket_cta,
            bool_or(devices.has_checkout or histories.has_checkout) as has_checkout,
            bool_or(devices.has_order or histories.has_order) as has_order
        from links
        join devices on devices.device_id = links.device_id
        join histories on histories.device_id = links.device_id
        group by links.visitor_id
    ),
    reachable as (
        select visitor_id
        from possible
        cross join weights
        where p_min_score <= greatest(repeat_visitor, 0) + greatest(slow_network, 0)
            + case when has_ticket_cta then greatest(ticket_cta, 0) else 0 end
            + case when has_checkout then greatest(checkout_start, 0) else 0 end
            + case when has_order then greatest(past_purchaser, 0) else 0 end
    )
{%- endmacro %}


{# scored: one row per visitor of `visits`, with the facts that int_customer_activity and audience_customers score, as of
   p_as_of, and whether the latest statement is an opt-out. #}
{% macro live_scores() -%}
{%- set recent -%}last_event_at > p_as_of - interval '{{ var("propensity_window_days") }} days'{%- endset -%}
activity as (
        select
            visitor_id,
            count(distinct session_id) as sessions_count,
            (array_agg(last_network_type order by last_event_at desc, session_id desc) filter (where last_network_type is not null and {{ recent }}))[1] as recent_network_type,
            sum(page_load_total_ms) filter (where {{ recent }}) / nullif(sum(page_loads_count) filter (where {{ recent }}), 0) as recent_page_load_ms,
            (array_agg(last_consent_state order by last_consent_at desc, session_id desc) filter (where last_consent_state is not null))[1] as own_consent_state,
            max(last_consent_at) as own_consent_at,
            cast(coalesce(sum(event_views_count) filter (where last_event_at > v_since), 0) as bigint) as event_views_count,
            cast(coalesce(sum(ticket_ctas_count) filter (where last_event_at > v_since), 0) as bigint) as ticket_ctas_count,
            max(last_ticket_cta_at) filter (where last_ticket_cta_at > p_as_of - interval '{{ var("propensity_window_days") }} days') as last_ticket_cta_at,
            max(last_checkout_at) filter (where last_checkout_at > p_as_of - interval '{{ var("propensity_window_days") }} days') as last_checkout_at,
            max(last_event_at) as last_active_at
        from visits
        group by visitor_id
    ),
    purchases as (
        select visitor_id, count(*) as orders_count, max(ordered_at) as last_ordered_at from orders group by visitor_id
    ),
    stated as (
        select
            senders.visitor_id,
            (array_agg(statements.consent_state order by statements.valid_from desc, statements.sender_type))[1] as consent_state,
            max(statements.valid_from) as stated_at
        from (
            select distinct visitor_id, 'device' as sender_type, device_id as sender_id from visits where visitor_id = any(v_visitors)
            union all
            select visitor_id, 'user', visitor_id from unnest(v_visitors) as visitors (visitor_id)
        ) as senders
        join statements on statements.sender_type = senders.sender_type and statements.sender_id = senders.sender_id
        where statements.valid_from <= p_as_of
        group by senders.visitor_id
    ),
    facts as (
        select
            activity.visitor_id,
            coalesce(settled.sessions_count, activity.sessions_count) as sessions_count,
            coalesce(settled.orders_count, purchases.orders_count, 0) as orders_count,
            coalesce(settled.last_order_at, purchases.last_ordered_at) as last_ordered_at,
            event_views_count,
            ticket_ctas_count,
            last_ticket_cta_at,
            last_checkout_at,
            last_active_at,
            slow_networks.network_type is not null or coalesce(recent_page_load_ms > {{ var('slow_page_load_ms') }}, false) as is_slow,
            coalesce(states.is_opted_out, false) as is_opted_out
        from activity
        left join purchases on purchases.visitor_id = activity.visitor_id
        left join stated on stated.visitor_id = activity.visitor_id
        left join settled on settled.visitor_id = activity.visitor_id
        left join {{ ref('consent_states') }} as states
            on states.consent_state = case
                when settled.visitor_id is not null then settled.consent_state
                when stated_at >= own_consent_at or own_consent_at is null then stated.consent_state
                else own_consent_state
            end
        left join (select distinct network_type from {{ ref('network_types') }} where is_slow) as slow_networks
            on slow_networks.network_type = activity.recent_network_type
    ),
    scored as (
        select
            facts.*,
            {{ propensity_points('weights', 'last_ticket_cta_at is not null', 'last_checkout_at is not null', 'sessions_count', 'is_slow', 'orders_count') }}
        from facts
        cross join weights
    )
{%- endmacro %}


{# The look-ups as variables, and the events that left the landing table since the last build. #}
{% macro live_lookups() -%}
select found.taxonomy into taxonomy from (select * from {{ taxonomy_lookup() }}) as found;
    select found.networks into networks
    from (select * from {{ lookup('networks', ref('network_types'), 'raw_type', 'network_type') }}) as found;
    select found.decisive_networks into decisive_networks
    from (select * from {{ lookup('decisive_networks', ref('network_types'), 'raw_type', 'network_type', 'not yields_to_effective_type') }}) as found;
    select found.opt_outs into opt_outs
    from (select * from {{ lookup('opt_outs', ref('consent_states'), 'consent_state', 'is_opted_out') }}) as found;
    v_removed := array(
        select removed.event_id
        from {{ source('landing', 'events_removed') }} as removed
        where removed.landed_xid >= v_unread and removed.org_id = p_org and not exists (
            select from {{ source('landing', 'events') }} as events
            where events.event_id = removed.event_id and events.org_id = p_org and events.rejection_reason is null
        )
    );
{%- endmacro %}

{# The order of an event's deliveries: the first counts. The earliest received; ties by content, never by arrival, and first by
   content that stays when personal data is removed. content: it, where it is known without the row as it came. #}
{% macro delivery_order(event, content='null') -%}
{{ event }}.received_at,
            coalesce({{ content }}, {{ var('landing_schema') }}.delivery_content({{ event }}.event_type, {{ event }}.occurred_at, {{ event }}.anonymous_id, {{ event }}.user_id, {{ event }}.session_id, {{ event }}.url, {{ event }}.referrer, {{ event }}.user_agent, {{ event }}.properties)),
            md5(cast({{ event }}.properties as text)),
            {{ event }}.landing_id
{%- endmacro %}


{# A number that deliveries of the same event share. #}
{% macro event_number(event) -%}
hashtextextended({{ event }}.org_id || ' ' || {{ event }}.event_id, 0)
{%- endmacro %}


{# Text that says yes, as collectors write it. #}
{% macro is_true(text) -%}
coalesce(lower({{ text }}) in ('true', '1', 'yes', 'on', 't', 'y'), false)
{%- endmacro %}


{# A number of 0 or more among the properties, also one that came as text; anything else is null. #}
{% macro number_or_null(key) -%}
case jsonb_typeof(properties -> '{{ key }}')
            when 'number' then case when cast(properties -> '{{ key }}' as numeric) >= 0 then cast(properties -> '{{ key }}' as numeric) end
            when 'string' then case when properties ->> '{{ key }}' ~ '^\s*\+?[0-9]{1,11}(\.[0-9]*)?\s*$' then cast(properties ->> '{{ key }}' as numeric) end
        end
{%- endmacro %}


{# A campaign label: trimmed, lower-cased, cut; empty is null. #}
{% macro label(text) -%}
nullif(left(lower(btrim({{ text }})), {{ var('label_max_characters') }}), '')
{%- endmacro %}


{# A campaign parameter: from the properties, else from the url's query. #}
{% macro campaign_parameter(name) -%}
coalesce(nullif(properties ->> '{{ name }}', ''), case when url like '%{{ name }}=%' then {{ var('landing_schema') }}.url_parameter(url, '{{ name }}') end)
{%- endmacro %}


{# The host of a url without port, credentials and leading www; null when there is none. #}
{% macro url_host(url) -%}
nullif(split_part(split_part(split_part(split_part(split_part(split_part(replace(lower({{ url }}), '://www.', '://'), '://', 2), '/', 1), '?', 1), '#', 1), '@', -1), ':', 1), '')
{%- endmacro %}

{# The parent domain of a host, or null at two labels. #}
{% macro parent_host(host) -%}
case when {{ host }} like '%.%.%' then substr({{ host }}, strpos({{ host }}, '.') + 1) end
{%- endmacro %}

{# Is `host` the domain, or below it? #}
{% macro is_host_of(host, domain) -%}
({{ host }} = {{ domain }} or {{ host }} like '%.' || {{ domain }})
{%- endmacro %}


{# The same for any of the domains, given as text with semicolons between them. #}
{% macro is_host_of_any(host, domains) -%}
'.' || {{ host }} like any (string_to_array('%.' || replace({{ domains }}, ';', ';%.'), ';'))
{%- endmacro %}


{# The calendar day of a moment in the organisation's time zone. #}
{% macro local_date(moment, time_zone) -%}
cast({{ moment }} at time zone coalesce({{ time_zone }}, '{{ var("default_time_zone") }}') as date)
{%- endmacro %}


{# The moment at which a local day was over. #}
{% macro day_ended_at(day, time_zone) -%}
(cast({{ day }} + 1 as timestamp) at time zone coalesce({{ time_zone }}, '{{ var("default_time_zone") }}'))
{%- endmacro %}


{# A small seed as one row with one JSON object, to be cross joined: a look-up whose size the planner cannot misjudge,
   and that parallel workers may do (a correlated subquery keeps a plan serial). #}
{% macro lookup(name, relation, key, value, where='true') -%}
(select coalesce(jsonb_object_agg({{ key }}, {{ value }}), '{}') as {{ name }} from {{ relation }} where {{ where }}) as {{ name }}_lookup
{%- endmacro %}


{# Hosts that the last pages of the landing table show, and whether a rule of internal_traffic matches each: most events
   are spared the match, which is as dear as all else together. What these pages miss is matched itself. #}
{% macro common_hosts_lookup() -%}
(
        select coalesce(jsonb_object_agg(hosts.host, hosts.host ~* rules.pattern) filter (where hosts.host is not null), '{}') as common_hosts
        from (
            select distinct {{ url_host('url') }} as host
            from {{ var('landing_schema') }}.events
            where ctid = any(array(
                select cast(format('(%s,%s)', page, line) as tid)
                from (select pg_relation_size('{{ var('landing_schema') }}.events') / cast(current_setting('block_size') as integer) as pages) as size
                cross join generate_series(greatest(0, pages - 500), pages - 1) as page
                cross join generate_series(1, 8) as line
            ))
        ) as hosts
        cross join (select string_agg(pattern, '|') as pattern from {{ ref('internal_traffic') }} where field = 'host') as rules
    ) as common_hosts_lookup
{%- endmacro %}


{# Of an event's properties: its own refusal; whether it says who somebody is; the connection and the network as given, and as one, by the look-ups
   decisive_networks and networks beside them; a plausible page load. The batch and the live answers read the same. #}
{% macro is_do_not_track() -%}
{{ is_true("properties ->> 'dnt'") }} or {{ is_true("properties ->> 'gpc'") }}
{%- endmacro %}

{# The properties that say who somebody is. #}
{% macro personal_properties() -%}
array['email', 'phone', 'first_name', 'last_name', 'name']
{%- endmacro %}

{% macro has_contact_details() -%}
properties ?| {{ personal_properties() }}
{%- endmacro %}

{% macro connection_type() -%}
lower(btrim(coalesce(properties ->> 'network_type', properties ->> 'connection_type')))
{%- endmacro %}

{% macro effective_type() -%}
lower(btrim(coalesce(properties ->> 'effective_type', properties ->> 'network_effective_type', properties ->> 'effectiveType')))
{%- endmacro %}

{% macro network_type() -%}
coalesce(decisive_networks ->> connection_type, networks ->> effective_type, networks ->> connection_type, 'unknown')
{%- endmacro %}

{% macro page_load_ms() -%}
case
        when properties ? 'page_load_ms' and {{ number_or_null('page_load_ms') }} <= {{ var('page_load_max_ms') }}
            then cast({{ number_or_null('page_load_ms') }} as integer)
    end
{%- endmacro %}

{# Of a purchase or refund: events of the same order share it; without an order id an event is its own order. #}
{% macro order_reference(event_id) -%}
md5(coalesce('order ' || nullif(btrim(properties ->> 'order_id'), ''), 'event ' || {{ event_id }}))
{%- endmacro %}


{# latest: of what the device and the user said, what was said later. #}
{% macro later_statement(device, user) -%}
left join lateral (
        select
            case when {{ device }}.valid_from > {{ user }}.valid_from or {{ user }}.valid_from is null then {{ device }}.consent_state else {{ user }}.consent_state end as consent_state,
            case when {{ device }}.valid_from > {{ user }}.valid_from or {{ user }}.valid_from is null then {{ device }}.is_opted_out else {{ user }}.is_opted_out end as is_opted_out
    ) as latest on true
{%- endmacro %}


{# Ends a step: what it computes is computed once, although later steps use it several times; and a look-up of touched
   keys by a computed column stays behind it, where the planner knows how many rows there are. #}
{% macro computed_once() -%}offset '0'{%- endmacro %}


{# An event's canonical type: the org's own row of the taxonomy, else everybody's; types that it does not list are kept.
   Beside it: cross join taxonomy_lookup(). #}
{% macro canonical_event_type(event) -%}
coalesce(
            taxonomy ->> ({{ event }}.org_id || ' ' || lower(btrim({{ event }}.event_type))),
            taxonomy ->> ('* ' || lower(btrim({{ event }}.event_type))),
            lower(btrim({{ event }}.event_type))
        )
{%- endmacro %}

{% macro taxonomy_lookup() -%}
{{ lookup('taxonomy', ref('event_taxonomy'), "org_id || ' ' || source_event_type", 'event_type') }}
{%- endmacro %}


{# May a collector's type, by the taxonomy of some org, be a consent statement? #}
{% macro is_consent(event_type) -%}
lower(btrim({{ event_type }})) in (select source_event_type from {{ ref('event_taxonomy') }} where event_type = 'consent')
{%- endmacro %}


{# An identifier as given; blank is missing. #}
{% macro identifier_or_null(text) -%}
case when btrim({{ text }}) <> '' then {{ text }} end
{%- endmacro %}


{# Org, event, landing row, type and time of receipt of what landed or left, of every collector: the second line that an
   adapter adds. What left has no type. A row without an event stands for everything. rows: landed, inside scope(), since the model's last build; or unread. #}
{% macro landed_events(rows=none) -%}
{%- set rows = rows or landed -%}
select org_id, event_id, landing_id, event_type, received_at from {{ rows('events') }} as native where rejection_reason is null
union all
select org_id, event_id, landing_id, event_type, received_at from {{ rows('retained_events') }} as retained
union all
select org_id, event_id, landing_id, null, received_at from {{ rows('events_removed') }} as removed
where (org_id is not null and landing_id is not null) or event_id is null
{%- endmacro %}


{# Inside audit(): rows of a landing table that are not among the events yet. #}
{% macro unread(table, source_name='landing') -%}
(select * from {{ source(source_name, table) }} where landed_xid >= {{ consumed('int_events_enriched', table, source_name) }})
{%- endmacro %}


{# Inside scope(): deliveries of later events of a sender whose consent statements changed. A statement speaks of later events, and
   those were received after it was made, but for the tolerated clock error: the landing table is read from there. #}
{% macro events_after_changed_statement(sender) -%}
select events.org_id, events.event_id, events.landing_id
from {{ changes('int_consent_events') }} as statements
join {{ ref('stg_events') }} as events
    on events.org_id = statements.org_id and events.{{ sender }} = statements.{{ sender }} and events.occurred_at >= statements.occurred_at
where events.received_at >= (
    select min(occurred_at) - interval '{{ var("future_tolerance_hours") }} hours' from {{ changes('int_consent_events') }} as earliest
)
{%- endmacro %}

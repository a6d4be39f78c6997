{# True when `earlier` is the delivery that counts rather than `later`: the earliest received of an event's
   deliveries; ties by content, never by arrival. #}
{% macro is_counted_before(earlier, later) -%}
{{ earlier }}.org_id = {{ later }}.org_id
        and {{ earlier }}.event_id = {{ later }}.event_id
        and {{ earlier }}.landing_id <> {{ later }}.landing_id
        and ({{ earlier }}.received_at < {{ later }}.received_at
            or ({{ earlier }}.received_at = {{ later }}.received_at
                and ({{ event_content(earlier) }}, {{ earlier }}.landing_id) < ({{ event_content(later) }}, {{ later }}.landing_id)))
{%- endmacro %}

{% macro event_content(event) -%}
md5(cast(row({{ event }}.event_type, {{ event }}.occurred_at, {{ event }}.anonymous_id, {{ event }}.user_id, {{ event }}.session_id, {{ event }}.url, {{ event }}.referrer, {{ event }}.user_agent, {{ event }}.properties) as text))
{%- endmacro %}


{# Text that says yes, as collectors write it. #}
{% macro is_true(text) -%}
coalesce(lower({{ text }}) in ('true', '1', 'yes', 'on', 't', 'y'), false)
{%- endmacro %}


{# A number that may have come as text; anything else is null. #}
{% macro number_or_null(text) -%}
case when {{ text }} ~ '^\s*\+?[0-9]{1,13}(\.[0-9]*)?\s*$' then cast({{ text }} as numeric) end
{%- endmacro %}


{# A campaign label: trimmed, lower-cased, cut; empty is null. #}
{% macro label(text) -%}
nullif(left(lower(btrim({{ text }})), {{ var('label_max_characters') }}), '')
{%- endmacro %}


{# A campaign parameter: from the properties, else from the url's query. #}
{% macro campaign_parameter(name) -%}
coalesce(properties ->> '{{ name }}', case when url like '%{{ name }}=%' then {{ var('landing_schema') }}.url_parameter(url, '{{ name }}') end)
{%- endmacro %}


{# The host of a url without port, credentials and leading www; null when there is none. #}
{% macro url_host(url) -%}
nullif(split_part(split_part(split_part(split_part(split_part(replace(lower({{ url }}), '://www.', '://'), '://', 2), '/', 1), '?', 1), '#', 1), ':', 1), '')
{%- endmacro %}

{# The parent domain of a host, or null at two labels. #}
{% macro parent_host(host) -%}
case when {{ host }} like '%.%.%' then substr({{ host }}, strpos({{ host }}, '.') + 1) end
{%- endmacro %}

{# Is `host` the domain, or below it? #}
{% macro is_host_of(host, domain) -%}
({{ host }} = {{ domain }} or {{ host }} like '%.' || {{ domain }})
{%- endmacro %}


{# The calendar day of a moment in the organisation's time zone. #}
{% macro local_date(moment, time_zone) -%}
cast({{ moment }} at time zone coalesce({{ time_zone }}, '{{ var("default_time_zone") }}') as date)
{%- endmacro %}

{# The channel of a traffic source; what has no session has no channel. #}
{% macro channel_or_unattributed(channel) -%}
coalesce({{ channel }}.channel, '(unattributed)')
{%- endmacro %}

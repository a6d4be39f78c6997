{# Where the session of an event starts, given where its chain of events without a long gap starts.
   A chain longer than the cap is cut: each further session starts at the first event past the cap of the one before. #}
{% macro session_started_at(event) -%}
case
    when {{ event }}.occurred_at - {{ event }}.chain_started_at <= interval '{{ var("session_max_hours") }} hours' then {{ event }}.chain_started_at
    else (
        with recursive cuts (cut_at) as (
            select {{ event }}.chain_started_at
            union all
            select (
                select min(later.occurred_at)
                from {{ ref('int_events_enriched') }} as later
                where later.org_id = {{ event }}.org_id and later.device_id = {{ event }}.device_id and later.is_person
                    and later.occurred_at > cuts.cut_at + interval '{{ var("session_max_hours") }} hours'
            )
            from cuts
            where cuts.cut_at <= {{ event }}.occurred_at
        )
        select max(cut_at) from cuts where cut_at <= {{ event }}.occurred_at
    )
end
{%- endmacro %}

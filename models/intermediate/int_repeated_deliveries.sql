-- Grain: one row per delivery that does not count, because the same event was delivered before it.
{{ config(
    unique_key=['org_id', 'event_id', 'landing_id'],
    changes=['org_id', 'event_id', 'landing_id'],
    indexes=[{'columns': ['received_at']}],
) }}
{% call scope('org_id, event_id') %}
select org_id, event_id from ({{ landed_events() }}) as landed
{% endcall %}
with deliveries as not materialized (
    select * from {{ ref('stg_events') }} where {{ in_scope('org_id, event_id') }}
),
-- by a number: counted in a third of the time that two texts take; events that share one by chance are told apart below
repeated as (
    select {{ event_number('deliveries') }} as event_number from deliveries group by event_number having count(*) > 1
),
ranked as (
    select
        deliveries.org_id,
        deliveries.event_id,
        deliveries.landing_id,
        deliveries.received_at,
        row_number() over (partition by deliveries.org_id, deliveries.event_id order by {{ delivery_order('deliveries', 'deliveries.content_md5') }}) as delivery_number
    from deliveries
    join repeated on repeated.event_number = {{ event_number('deliveries') }}
),
final as (
    select org_id, event_id, landing_id, received_at from ranked where delivery_number > 1
)
select * from final

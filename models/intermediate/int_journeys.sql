-- Grain: one row per org, visitor and journey: the steps that a visitor took up to a purchase, or until a week without any activity.
-- Journeys with neither a milestone nor a purchase are left out.
{{ config(
    unique_key=['org_id', 'visitor_id', 'journey_number'],
    changes=['org_id', 'steps', 'previous_dates', 'purchased_after_seconds', 'is_purchased', 'event_date'],
    checks={
        'steps_have_previous_days': "cardinality(steps) > 0 and cardinality(steps) = cardinality(previous_dates) and event_date > all(previous_dates)",
        'time_is_that_of_a_purchase': "purchased_after_seconds is null or is_purchased and purchased_after_seconds >= 0",
    },
) }}
{% call audit('every order ends one journey') %}
select org_id, visitor_id
from (
    select org_id, visitor_id, cast(is_purchased as integer) as orders_count
    from {{ this }} as journeys
    where {{ in_scope('org_id, visitor_id') }}
    union all
    select org_id, visitor_id, -orders_count
    from {{ ref('int_orders') }} as orders
    where {{ in_scope('org_id, visitor_id') }} and visitor_id is not null
) as both_sides
group by org_id, visitor_id
having sum(orders_count) <> 0
{% endcall %}
{% call scope('org_id, visitor_id') %}
{{ changed_visitors() }}
{% endcall %}
with visits as (
    select org_id, visitor_id, milestones, milestones_at, first_event_at, last_event_at, event_date
    from {{ ref('int_visits') }}
    where {{ in_scope('org_id, visitor_id') }}
),
orders as (
    select org_id, visitor_id, ordered_at, order_date
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, visitor_id') }} and visitor_id is not null and orders_count = 1
),
travellers as (
    select org_id, visitor_id from visits where milestones is not null
    union
    select org_id, visitor_id from orders
),
acts as (
    select org_id, visitor_id, null as step, first_event_at as acted_at, last_event_at as active_until, event_date
    from visits
    join travellers using (org_id, visitor_id)
    union all
    select org_id, visitor_id, step, acted_at, acted_at, event_date
    from visits
    cross join unnest(milestones, milestones_at) as reached (step, acted_at)
    union all
    select org_id, visitor_id, 'purchase', ordered_at, ordered_at, order_date
    from orders
),
placed as (
    select *, {{ place_in_moment('step') }} as place from acts
),
-- acts of one kind and moment may stand in either order: what is counted up to them is the same
counted as (
    select
        *,
        acted_at > max(active_until) over before + interval '{{ var("journey_idle_days") }} days' as is_after_idle_days,
        count(*) filter (where step = 'purchase') over before as purchases_before
    from placed
    window before as (partition by visitor_id, org_id order by acted_at, place rows between unbounded preceding and 1 preceding)
),
numbered as (
    select
        *,
        purchases_before + count(*) filter (where is_after_idle_days) over (partition by visitor_id, org_id order by acted_at, place) as number
    from counted
),
-- a milestone directly repeated is one step
steps as (
    select
        *,
        step <> 'purchase' and (step, number) is distinct from (lag(step) over so_far, lag(number) over so_far) as is_step
    from numbered
    where step is not null
    window so_far as (partition by visitor_id, org_id order by acted_at, place)
),
journeys as (
    select
        org_id,
        visitor_id,
        cast(row_number() over (partition by visitor_id, org_id order by number) as integer) as journey_number,
        count(*) over (partition by visitor_id, org_id) as journeys_count,
        array_agg(step order by acted_at, place) filter (where is_step) as steps,
        extract(epoch from max(acted_at) filter (where step = 'purchase') - min(acted_at) filter (where is_step)) as purchased_after,
        bool_or(step = 'purchase') as is_purchased,
        min(event_date) as event_date
    from steps
    group by visitor_id, org_id, number
),
cut as (
    select
        *,
        case
            when steps is null then array['(none)']
            when cardinality(steps) > {{ var('path_max_steps') }} then steps[1:{{ var('path_max_steps') }}] || text '...'
            else steps
        end as kept_steps
    from journeys
),
begun_alike as (
    select
        org_id,
        visitor_id,
        journey_number,
        steps_count,
        {{ previous_date('true', 'so_far') }} as previous_date
    from cut
    cross join generate_series(1, cardinality(kept_steps)) as prefixes (steps_count)
    where journeys_count > 1
    window so_far as (partition by visitor_id, org_id, kept_steps[1:steps_count] order by journey_number)
),
previous as (
    select org_id, visitor_id, journey_number, array_agg(previous_date order by steps_count) as previous_dates
    from begun_alike
    group by org_id, visitor_id, journey_number
),
final as (
    select
        org_id,
        visitor_id,
        cut.journey_number,
        cut.kept_steps as steps,
        coalesce(previous.previous_dates, array_fill(date '0001-01-01', array[cardinality(cut.kept_steps)])) as previous_dates,
        cast(cut.purchased_after as integer) as purchased_after_seconds,
        cut.is_purchased,
        cut.event_date
    from cut
    left join previous using (org_id, visitor_id, journey_number)
)
select * from final

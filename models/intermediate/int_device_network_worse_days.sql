-- Grain: one row per org, local day, device type and network that converted worse than the rest of the org in the window that ends on the day.
-- The day is over. One-sided two-proportion z-test against all other slices; significant is what also holds after the
-- correction (Holm) for how many slices are tested and how often a week is looked at, and is worth telling.
{{ config(
    unique_key=['org_id', 'event_date', 'device_type', 'network_type'],
    changes=['org_id'],
    checks={
        'it_is_worse': "purchase_rate <= reference_purchase_rate and p_value <= adjusted_p_value",
    },
) }}
{% call scope('org_id, event_date') %}
select org_id, event_date from {{ changes('int_device_network_windows') }} as windows
union all
select windows.org_id, windows.event_date
from {{ ref('int_device_network_windows') }} as windows
left join {{ ref('orgs') }} as orgs on orgs.org_id = windows.org_id
where windows.event_date between cast(least({{ previous_as_of() }}, {{ as_of() }}) as date) - 2
        and cast(greatest({{ previous_as_of() }}, {{ as_of() }}) as date) + 1
    and {{ passed_since_previous(day_ended_at('windows.event_date', 'orgs.time_zone')) }}
{% endcall %}
with windows as (
    select windows.*
    from {{ ref('int_device_network_windows') }} as windows
    left join {{ ref('orgs') }} as orgs on orgs.org_id = windows.org_id
    where {{ in_scope('windows.org_id, windows.event_date') }} and {{ day_ended_at('windows.event_date', 'orgs.time_zone') }} <= {{ as_of() }}
),
beside_the_rest as (
    select
        *,
        sum(visitors_count) over day - visitors_count as reference_visitors_count,
        sum(buyers_count) over day - buyers_count as reference_buyers_count,
        sum(buyers_count) over day / sum(visitors_count) over day as overall_rate
    from windows
    window day as (partition by org_id, event_date)
),
compared as (
    select
        *,
        cast(buyers_count as numeric) / visitors_count as purchase_rate,
        reference_buyers_count / reference_visitors_count as reference_purchase_rate
    from beside_the_rest
    where least(visitors_count, reference_visitors_count) >= {{ var('alert_min_visitors') }}
        and visitors_count * overall_rate >= {{ var('alert_min_expected_buyers') }}
),
tested as (
    select
        *,
        {{ normal_tail('(reference_purchase_rate - purchase_rate) / nullif(sqrt(overall_rate * (1 - overall_rate) * (1.0 / visitors_count + 1.0 / reference_visitors_count)), 0)') }} as tail
    from compared
),
ranked as (
    select
        *,
        coalesce(tail, 1) as chance,
        count(*) over (partition by org_id, event_date) + 1
            - row_number() over (partition by org_id, event_date order by tail nulls last, device_type, network_type) as tests_left
    from tested
),
corrected as (
    select
        *,
        least(1, max(chance * tests_left * {{ var('alert_looks_per_week') }}) over (partition by org_id, event_date order by tests_left desc)) as adjusted
    from ranked
),
final as (
    select
        org_id,
        device_type,
        network_type,
        visitors_count,
        buyers_count,
        cast(reference_visitors_count as bigint) as reference_visitors_count,
        cast(reference_buyers_count as bigint) as reference_buyers_count,
        round(purchase_rate, 6) as purchase_rate,
        round(reference_purchase_rate, 6) as reference_purchase_rate,
        round(cast(chance as numeric), 9) as p_value,
        round(cast(adjusted as numeric), 9) as adjusted_p_value,
        adjusted <= {{ var('alert_max_false_per_week') }}
            and purchase_rate <= (1 - {{ var('alert_min_relative_drop') }}) * reference_purchase_rate as is_significant,
        event_date
    from corrected
    where purchase_rate < reference_purchase_rate and chance <= {{ var('alert_stays_open_p_value') }}
)
select * from final

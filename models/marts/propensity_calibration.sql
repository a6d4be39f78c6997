-- Grain: one row per org, past date and propensity score: how many of the visitors with that score bought in the days after.
{{ config(
    unique_key=['org_id', 'score_date', 'propensity_score'],
    checks={
        'rates_are_plausible': "purchase_rate between purchase_rate_low and purchase_rate_high and lift >= 0",
    },
) }}
{% call scope('org_id') %}
select org_id from {{ changes('int_propensity_outcomes') }} as outcomes
{% endcall %}
with outcomes as (
    select
        *,
        sum(visitors_count) over on_date as org_visitors_count,
        sum(buyers_count) over on_date as org_buyers_count
    from {{ ref('int_propensity_outcomes') }}
    where {{ in_scope('org_id') }}
    window on_date as (partition by org_id, score_date)
),
final as (
    select
        outcomes.org_id,
        bands.band as propensity_band,
        outcomes.propensity_score,
        outcomes.visitors_count,
        outcomes.buyers_count,
        round(cast(buyers_count as numeric) / visitors_count, 6) as purchase_rate,
        {{ wilson_bound('buyers_count', 'visitors_count', '-') }} as purchase_rate_low,
        {{ wilson_bound('buyers_count', 'visitors_count', '+') }} as purchase_rate_high,
        round(org_buyers_count / org_visitors_count, 6) as org_purchase_rate,
        round(buyers_count * org_visitors_count / nullif(visitors_count * org_buyers_count, 0), 6) as lift,
        outcomes.score_date
    from outcomes
    left join {{ ref('propensity_bands') }} as bands on outcomes.propensity_score between bands.min_score and bands.max_score
)
select * from final

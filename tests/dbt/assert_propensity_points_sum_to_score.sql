-- The points of the rules sum to the score before the clamp; the band is the one of the score.
{{ config(meta={'dagster': {'ref': {'name': 'audience_customers'}}}) }}
with customers as (
    select
        *,
        propensity_ticket_cta_points + propensity_checkout_start_points + propensity_repeat_visitor_points
            + propensity_slow_network_points + propensity_past_purchaser_points as points
    from {{ ref('audience_customers') }}
),
final as (
    select customers.org_id, customers.visitor_id, customers.points, customers.propensity_score, customers.propensity_band
    from customers
    left join {{ ref('propensity_bands') }} as bands on customers.propensity_score between bands.min_score and bands.max_score
    where customers.propensity_score <> greatest(0, least({{ var('propensity_max_score') }}, customers.points))
        or bands.band is null
        or customers.propensity_band is distinct from bands.band
)
select * from final

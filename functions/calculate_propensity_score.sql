-- Returns: one row: the score, its band and the points of each rule.
begin
    {{ refuse_unless("num_nulls(p_has_ticket_cta, p_has_checkout, p_sessions_count, p_is_slow, p_orders_count) = 0",
        "A score of what is unknown cannot be told: %s of the arguments are null. Give a value or leave the argument out.",
        "num_nulls(p_has_ticket_cta, p_has_checkout, p_sessions_count, p_is_slow, p_orders_count)") }}
    {{ refuse_unless("p_sessions_count >= 0 and p_orders_count >= 0",
        "%s sessions and %s orders cannot be: give counts of 0 or more.", "p_sessions_count, p_orders_count") }}

    return query
    with weights as (
        {{ propensity_weights_row() }}
    ),
    points as (
        select {{ propensity_points('weights', 'p_has_ticket_cta', 'p_has_checkout', 'p_sessions_count', 'p_is_slow', 'p_orders_count') }}
        from weights
    ),
    final as (
        select
            scores.score as propensity_score,
            bands.band as propensity_band,
            propensity_ticket_cta_points,
            propensity_checkout_start_points,
            propensity_repeat_visitor_points,
            propensity_slow_network_points,
            propensity_past_purchaser_points
        from points
        cross join lateral (select {{ propensity_score('points.') }} as score) as scores
        left join {{ ref('propensity_bands') }} as bands on scores.score between bands.min_score and bands.max_score
    )
    select * from final;
end

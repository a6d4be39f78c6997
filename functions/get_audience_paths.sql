-- Returns: one row per path that journeys of the range begin with, the most journeys first.
declare
    v_first_week date;
    v_after_weeks date;
begin
    {{ refuse_unknown_org() }}
    {{ refuse_impossible_range() }}
    {{ refuse_unless("p_limit between 1 and " ~ var('path_max_rows'),
        "%s paths cannot be shown: give p_limit from 1 to " ~ var('path_max_rows') ~ ".", "coalesce(cast(p_limit as text), 'null')") }}
    -- the whole weeks of the range; without any, all of its days lie before or after none
    select {{ week_start('(p_from + 6)', 'orgs') }}, {{ week_start('(p_to + 1)', 'orgs') }}
    into v_first_week, v_after_weeks
    from (select p_org as org_id) as org left join {{ ref('orgs') }} as orgs using (org_id);

    return query
    with whole as (
        select audience_paths.path, sum(audience_paths.journeys_count) as journeys, sum(audience_paths.purchases_count) as purchases
        from {{ ref('audience_paths') }}
        where org_id = p_org and event_date between p_from and p_to
        group by audience_paths.path
    ),
    -- every path with those that it begins with, itself included
    prefixes as materialized (
        select whole.path, {{ path_of('steps[1:prefix_length]') }} as prefix, {{ steps_count('steps[1:prefix_length]') }} as prefix_steps, journeys, purchases
        from whole
        cross join string_to_array(whole.path, ' > ') as split (steps)
        cross join generate_series(1, cardinality(steps)) as lengths (prefix_length)
    ),
    asked as materialized (
        select
            prefix,
            prefix_steps,
            cast(sum(journeys) as bigint) as journeys,
            cast(sum(purchases) as bigint) as purchases,
            cast(coalesce(sum(journeys) filter (where prefixes.path = prefix), 0) as bigint) as ended_journeys,
            cast(coalesce(sum(purchases) filter (where prefixes.path = prefix), 0) as bigint) as ended_purchases
        from prefixes
        group by prefix, prefix_steps
        order by journeys desc, prefix
        limit p_limit
    ),
    people as (
        select prefix, cast(sum(visitors_count) as bigint) as visitors
        from asked
        join {{ ref('audience_paths_uniques_daily') }} as uniques on uniques.path = prefix
        where org_id = p_org and event_date between p_from and p_to and previous_date < p_from
        group by prefix
    ),
    times as (
        {{ counts_of_range(ref('audience_paths_times_daily'), ref('audience_paths_times_weekly'), 'counts.path, purchased_after_from_seconds, purchases_count') }}
    ),
    buckets as (
        select prefix, purchased_after_from_seconds as from_value, sum(purchases_count) as bucket_count
        from (select times.path, purchased_after_from_seconds, sum(purchases_count) as purchases_count from times group by times.path, purchased_after_from_seconds) as summed
        join prefixes on prefixes.path = summed.path
        where prefix in (select prefix from asked)
        group by prefix, purchased_after_from_seconds
    ),
    percentiles as (
        select prefix, {{ bucket_percentile('0.5') }} as median_seconds, {{ bucket_percentile('0.9') }} as p90_seconds
        from (select *, {{ bucket_ranks('prefix') }} from buckets) as ranked
        join {{ ref('histogram_buckets') }} using (from_value)
        group by prefix
    ),
    final as (
        select
            prefix,
            prefix_steps,
            visitors,
            journeys,
            purchases,
            ended_journeys,
            ended_purchases,
            round(cast(purchases as numeric) / journeys, 6) as conversion_rate,
            round(median_seconds / 60.0, 1) as median_minutes,
            round(p90_seconds / 60.0, 1) as p90_minutes
        from asked
        left join people using (prefix)
        left join percentiles using (prefix)
    )
    select * from final order by journeys desc, prefix;
end

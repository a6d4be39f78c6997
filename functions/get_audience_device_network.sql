-- Returns: one row per device type and network with visitors in the range, and before them one of all together.
declare
    v_first_week date;
    v_after_weeks date;
    v_ended_at timestamptz;
begin
    {{ refuse_unknown_org() }}
    {{ refuse_impossible_range() }}
    -- the whole weeks of the range; without any, all of its days lie before or after none
    select {{ week_start('(p_from + 6)', 'orgs') }}, {{ week_start('(p_to + 1)', 'orgs') }}, {{ day_ended_at('p_to', 'orgs.time_zone') }}
    into v_first_week, v_after_weeks, v_ended_at
    from (select p_org as org_id) as org left join {{ ref('orgs') }} as orgs using (org_id);

    return query
    -- summed by activity first: a sum for each activity over all rows would take twice as long
    with acts as (
        select '(all)' as device_type, '(all)' as network_type, activity, sum(visitors_count) as visitors_count
        from {{ ref('audience_overview_uniques_daily') }}
        where org_id = p_org and event_date between p_from and p_to and previous_date < p_from
        group by activity
        union all
        select device_type, network_type, activity, sum(visitors_count)
        from {{ ref('device_type_network_uniques_daily') }}
        where org_id = p_org and event_date between p_from and p_to and previous_date < p_from and activity <> 'ticket_cta'
        group by device_type, network_type, activity
    ),
    people as (
        select
            device_type,
            network_type,
            sum(visitors_count) filter (where activity = 'visit') as visitors,
            sum(visitors_count) filter (where activity = 'checkout_start') as checkout_visitors,
            sum(visitors_count) filter (where activity = 'purchase') as buyers
        from acts
        group by device_type, network_type
    ),
    sessions as (
        select
            coalesce(device_type, '(all)') as device_type,
            coalesce(network_type, '(all)') as network_type,
            {{ total('sessions_count') }},
            {{ total('page_loads_count') }},
            {{ total('page_load_total_ms') }}
        from {{ ref('device_network_daily') }}
        where org_id = p_org and event_date between p_from and p_to
        group by grouping sets ((device_type, network_type), ())
    ),
    loads as (
        {{ counts_of_range(ref('device_network_page_loads_daily'), ref('device_network_page_loads_weekly'), 'counts.device_type, counts.network_type, page_load_from_ms, page_loads_count') }}
    ),
    slices as (
        select device_type, network_type, page_load_from_ms as from_value, sum(page_loads_count) as bucket_count
        from loads
        group by device_type, network_type, page_load_from_ms
    ),
    buckets as (
        select device_type, network_type, from_value, bucket_count from slices
        union all
        select '(all)', '(all)', from_value, sum(bucket_count) from slices group by from_value
    ),
    page_loads as (
        select device_type, network_type, {{ bucket_percentile('0.75') }} as page_load_p75_ms
        from (select *, {{ bucket_ranks('device_type, network_type') }} from buckets) as ranked
        join {{ ref('histogram_buckets') }} using (from_value)
        group by device_type, network_type
    ),
    open_alerts as (
        select device_type, network_type, opened_at
        from {{ ref('device_network_alerts') }}
        where org_id = p_org and opened_at <= v_ended_at and (closed_at is null or closed_at > v_ended_at)
    ),
    final as (
        select
            device_type,
            network_type,
            cast(coalesce(visitors, 0) as bigint) as visitors_count,
            cast(coalesce(checkout_visitors, 0) as bigint) as checkout_visitors_count,
            cast(coalesce(buyers, 0) as bigint) as buyers_count,
            sessions_count,
            page_loads_count,
            page_load_p75_ms,
            round(cast(page_load_total_ms as numeric) / nullif(page_loads_count, 0), 1) as page_load_mean_ms,
            round(coalesce(checkout_visitors, 0) / nullif(visitors, 0), 6) as checkout_rate,
            round(coalesce(buyers, 0) / nullif(visitors, 0), 6) as purchase_rate,
            opened_at as alert_opened_at
        from sessions
        left join people using (device_type, network_type)
        left join page_loads using (device_type, network_type)
        left join open_alerts using (device_type, network_type)
        where visitors > 0 or device_type = '(all)'
    )
    select * from final order by device_type <> '(all)', visitors_count desc, device_type, network_type;
end

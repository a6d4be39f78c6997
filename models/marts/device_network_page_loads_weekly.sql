-- Grain: one row per org, local week, device type, network and bucket of page load times: how many page loads took that long.
-- The weeks of device_network_page_loads_daily, so that a long range reads a seventh of its rows.
{{ config(
    unique_key=['org_id', 'week_start_date', 'device_type', 'network_type', 'page_load_from_ms'],
    add=true,
    checks=checks_of_page_loads(),
) }}
{{ page_load_counts('week_start_date', week_start('visits.event_date', 'orgs')) }}

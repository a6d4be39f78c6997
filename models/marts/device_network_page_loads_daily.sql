-- Grain: one row per org, local day, device type, network and bucket of page load times: how many page loads took that long.
-- A page load has the device and the network of its session. The buckets are those of the seed histogram_buckets.
{{ config(
    unique_key=['org_id', 'event_date', 'device_type', 'network_type', 'page_load_from_ms'],
    add=true,
    checks=checks_of_page_loads(),
) }}
{{ page_load_counts('event_date', 'visits.event_date') }}

-- Grain: one row per referrer host: the medium and source it stands for, or that it is never a source.
{{ config(materialized='view') }}
select host, medium, source, false as is_ignored from {{ ref('referrers') }}
where host not in (select host from {{ ref('ignored_referrers') }})
union all
select host, null, null, true from {{ ref('ignored_referrers') }}

-- Grain: one row per usable delivery of an event, of every collector: the one shape that everything downstream reads.
-- A further collector is one adapter folder and one line here.
select * from {{ ref('stg_native__events') }}

{# Exports that every night makes: which night had which, so that none is made twice. More: docs/exports.md #}
{% macro standing_exports_ddl() %}
{%- set state = state_schema() -%}
{%- set log = state ~ '.segment_export_log' -%}
create table if not exists {{ state }}.standing_export_nights (
    org_id text not null,
    export_name text not null,
    night date not null,
    export_id uuid not null,
    primary key (org_id, export_name, night)
);
comment on table {{ state }}.standing_export_nights is 'One row per org, standing export and night: the export of it in segment_export_log.';
comment on column {{ state }}.standing_export_nights.export_id is 'Of the last attempt; another follows one that was refused or failed, and no other.';

-- Asks for a standing export of a night, as request_segment_export does, in one transaction with the row of the night: what was
-- asked for is known, wherever the process is killed. Refused when the night has one that was not refused and did not fail.
create or replace function {{ state }}.request_standing_export(
    p_export text, p_night date, p_org text, p_segment text, p_purpose text, p_include_pii boolean, p_columns text[], p_format text, p_destination text,
    p_is_delta boolean, p_refusal text
) returns {{ log }}
language plpgsql set search_path = pg_catalog, pg_temp as $standing$
declare
    entry {{ log }};
begin
    perform pg_advisory_xact_lock(hashtextextended(format('audience standing export {{ state }} %s %s', p_org, p_export), 42));
    select last.* into entry
    from {{ state }}.standing_export_nights as nights
    join {{ log }} as last using (export_id)
    where nights.org_id = p_org and nights.export_name = p_export and nights.night = p_night
    order by last.log_number desc limit 1;
    if entry.outcome not in ('refused', 'failed') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('Standing export %L of org %L was made for %s: see export %s.', p_export, p_org, p_night, entry.export_id);
    end if;
    entry := {{ state }}.request_segment_export(p_org, p_segment, p_purpose, p_include_pii, p_columns, p_format, p_destination, p_is_delta, false, p_refusal);
    insert into {{ state }}.standing_export_nights values (p_org, p_export, p_night, entry.export_id)
    on conflict (org_id, export_name, night) do update set export_id = excluded.export_id;
    return entry;
end $standing$;
revoke all on function {{ state }}.request_standing_export(text, date, text, text, text, boolean, text[], text, text, boolean, text) from public;
{% endmacro %}

{# Identifiers that are recognised again without being kept: keyed hashes, for tombstones and suppressions. #}

{% macro privacy_ddl() %}
{%- set landing = var('landing_schema') -%}
-- The key, as the two pads of an HMAC. Its owner reads it alone. Lost, nobody who was erased or left alone is recognised:
-- keep it with the backups, and leave it out of dumps that are handed on.
create table if not exists {{ landing }}.privacy_key (
    is_only boolean primary key default true constraint one_key check (is_only),
    inner_pad bytea not null,
    outer_pad bytea not null
);
do $key$
declare
    -- core has no random bytes: four ids have 488 random bits
    key constant bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
    inner_pad bytea := decode(repeat('36', 64), 'hex');
    outer_pad bytea := decode(repeat('5c', 64), 'hex');
begin
    for place in 0 .. 31 loop
        inner_pad := set_byte(inner_pad, place, get_byte(inner_pad, place) # get_byte(key, place));
        outer_pad := set_byte(outer_pad, place, get_byte(outer_pad, place) # get_byte(key, place));
    end loop;
    insert into {{ landing }}.privacy_key (inner_pad, outer_pad) values (inner_pad, outer_pad) on conflict do nothing;
end $key$;

-- HMAC-SHA256 in hexadecimal of an identifier of one org; null of null and of what is blank. kind: id (of a user or a
-- device), email or phone. The length of org_id stands before it, so that no two different ones give one text.
create or replace function {{ landing }}.keyed_hash(inner_pad bytea, outer_pad bytea, org_id text, kind text, value text) returns text
language sql stable parallel safe as $hash$
    select encode(sha256(outer_pad || sha256(inner_pad || convert_to(kind || ':' || octet_length(org_id) || ':' || org_id || ':' || nullif(case kind
        when 'email' then lower(btrim(value))
        when 'phone' then ltrim(regexp_replace(value, '\D', '', 'g'), '0')
        else value
    end, ''), 'UTF8'))), 'hex')
$hash$;
{% endmacro %}


{# The keyed hash of an identifier, in a query that reads the key: ... cross join {{ privacy_key() }} as key. #}
{% macro keyed_hash(org_id, kind, value) -%}
{{ var('landing_schema') }}.keyed_hash(key.inner_pad, key.outer_pad, {{ org_id }}, {{ kind }}, {{ value }})
{%- endmacro %}

{# limit, so that the planner expects one row. #}
{% macro privacy_key() %}(select inner_pad, outer_pad from {{ var('landing_schema') }}.privacy_key limit 1){% endmacro %}

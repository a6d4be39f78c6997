{# The erasure of a person, or of an event: what is removed at once, and what keeps it out. What is computed from events goes with
   the next build. Who that is: subjects.sql. More: docs/privacy.md #}

{# Who is not to come back: keyed hashes, for every target that is built from the landing tables. #}
{% macro tombstones_ddl() %}
{%- set landing = var('landing_schema') -%}
create table if not exists {{ landing }}.tombstones (
    org_id text not null,
    identifier_kind text not null constraint known_identifier_kind check (identifier_kind in ('id', 'email', 'phone', 'event')),
    identifier_hash text not null,
    erased_at timestamptz not null,
    primary key (org_id, identifier_hash)
);

-- Rows of an erased person or event leave in the statement that brings them: copies that are sent again, and events that
-- are late. What happened after the erasure stays, but for what could not be used anyway. How many left is added to the
-- setting audience.erased_rows of the transaction, for the loader's count.
create or replace function {{ landing }}.keep_erased_out() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $out$
declare
    landing_ids bigint[];
    event_ids text[];
begin
    with orgs as materialized (
        select org_id, bool_or(identifier_kind = 'event') as has_events from {{ landing }}.tombstones group by org_id
    ),
    identifiers as materialized (
        -- a device's rows without a user: those of its other users stay
        select landed.landing_id, landed.occurred_at, landed.rejection_reason, orgs.org_id, identifiers.kind, identifiers.value
        from landed
        -- of a row without an org the identifiers of every org are looked for: it is of no use
        join orgs on landed.org_id = orgs.org_id or coalesce(btrim(landed.org_id), '') = ''
        cross join lateral (values
            ('id', coalesce({{ identifier_or_null('landed.user_id') }}, {{ identifier_or_null('landed.anonymous_id') }})),
            ('email', landed.properties ->> 'email'), ('phone', landed.properties ->> 'phone'), ('event', case when orgs.has_events then landed.event_id end)
        ) as identifiers (kind, value)
        where identifiers.value is not null
    ),
    erased as (
        select found.org_id, found.kind, found.value, tombstones.erased_at
        from (select distinct org_id, kind, value from identifiers) as found
        cross join {{ privacy_key() }} as key
        join {{ landing }}.tombstones as tombstones
            on tombstones.org_id = found.org_id and tombstones.identifier_kind = found.kind
            and tombstones.identifier_hash = {{ keyed_hash('found.org_id', 'found.kind', 'found.value') }}
    )
    select array_agg(landed.landing_id), array_agg(coalesce(nullif(btrim(landed.event_id), ''), {{ landing }}.event_id_of(
        landed.org_id, landed.event_type, landed.occurred_at, landed.anonymous_id, landed.user_id, landed.session_id, landed.url, landed.referrer, landed.user_agent, landed.properties)))
    into landing_ids, event_ids
    from landed
    where landing_id in (
        select identifiers.landing_id from identifiers join erased using (org_id, kind, value)
        where identifiers.rejection_reason is not null or identifiers.occurred_at <= erased.erased_at
    );
    if landing_ids is not null then
        -- the id of the event is what there is an index of
        delete from {{ landing }}.events using unnest(landing_ids, event_ids) as erased (landing_id, event_id)
        where events.event_id = erased.event_id and events.landing_id = erased.landing_id;
        perform set_config('audience.erased_rows', cast(cardinality(landing_ids) + cast(coalesce(nullif(current_setting('audience.erased_rows', true), ''), '0') as bigint) as text), true);
    end if;
    return null;
end $out$;
revoke all on function {{ landing }}.keep_erased_out() from public;

create or replace function {{ landing }}.json_or_null(content text) returns jsonb
language plpgsql immutable strict parallel restricted as $json$
begin
    return cast(content as jsonb);
exception when others then
    return null;
end $json$;

-- Which of the texts are an identifier of somebody who was erased; an org of null is every org. For rows of files that became no event.
create or replace function {{ landing }}.erased_texts(org_ids text[], texts text[]) returns setof bigint
language sql stable set search_path = pg_catalog, pg_temp as $texts$
    select distinct found.place
    from unnest(org_ids, texts) with ordinality as found (org_id, value, place)
    join (select distinct org_id from {{ landing }}.tombstones) as orgs on orgs.org_id = found.org_id or coalesce(btrim(found.org_id), '') = ''
    cross join (values ('id'), ('email'), ('phone'), ('event')) as kinds (kind)
    cross join {{ privacy_key() }} as key
    join {{ landing }}.tombstones as tombstones
        on tombstones.org_id = orgs.org_id and tombstones.identifier_kind = kinds.kind
        and tombstones.identifier_hash = {{ keyed_hash('orgs.org_id', 'kinds.kind', 'found.value') }}
$texts$;
revoke all on function {{ landing }}.erased_texts(text[], text[]) from public;

-- Made by the first erasure, and again where a release made it anew: without one it would cost every writer for nothing.
-- After events_finish, by which an event without an id got one.
create or replace function {{ landing }}.ensure_erased_stay_out() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $ensure$
begin
    if exists (select from {{ landing }}.tombstones) and not exists (select from pg_trigger where tgrelid = '{{ landing }}.events'::regclass and tgname = 'events_forgotten') then
        create trigger events_forgotten after insert on {{ landing }}.events
        referencing new table as landed for each statement execute function {{ landing }}.keep_erased_out();
    end if;
end $ensure$;
revoke all on function {{ landing }}.ensure_erased_stay_out() from public;
select {{ landing }}.ensure_erased_stay_out();
{% endmacro %}


{% macro erasure_ddl() %}
{%- set state = state_schema() -%}
{%- set landing = var('landing_schema') -%}
-- Who was a member, was alerted or written to, or is in a list that is kept for the next delta. There a hash stands in, by which
-- whoever has the list can tell who left; it goes with the list. Sends stay as keyed hashes: nobody is written to twice.
create or replace function {{ state }}.remove_memberships(p_org text, p_visitors text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $memberships$
begin
    delete from {{ state }}.segment_memberships where org_id = p_org and visitor_id = any(p_visitors);
    delete from {{ state }}.hot_lead_alerts where org_id = p_org and visitor_id = any(p_visitors);
    delete from {{ state }}.suppressed_visitors where org_id = p_org and visitor_id = any(p_visitors);
    update {{ state }}.campaign_sends as sends set visitor_id = 'erased:' || {{ keyed_hash('p_org', "'id'", 'sends.visitor_id') }}
    from {{ privacy_key() }} as key
    where sends.org_id = p_org and sends.visitor_id = any(p_visitors);
    update {{ state }}.segment_export_members
    set visitor_ids = array(
        select case when visitor_id = any(p_visitors) then 'sha256:' || encode(sha256(convert_to(visitor_id, 'UTF8')), 'hex') else visitor_id end
        from unnest(visitor_ids) with ordinality as listed (visitor_id, place) order by place
    )
    where visitor_ids && p_visitors and export_id in (select export_id from {{ state }}.segment_export_log where org_id = p_org);
end $memberships$;

drop function if exists {{ state }}.erase_subject(text, jsonb, jsonb, jsonb);
-- Removes at once what a build does not: landed rows, rejected rows, memberships. Leaves tombstones, and a request that is open
-- until the tables are built without the subject, which is kept for that long; nobody lists him meanwhile. Returns
-- {rows_by_table, deliveries} of before; nothing is removed where nothing is held.
create or replace function {{ state }}.erase_subject(p_request_id uuid, p_given jsonb, p_tables jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $erase$
declare
    p_org constant text := {{ state }}.org_of_request(p_request_id, array['erasure']);
    p_subject jsonb;
    found_rows jsonb;
    found_deliveries jsonb;
    visitors text[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'invalid_parameter_value', message = 'An erasure has to see what others commit meanwhile: make it in a transaction of isolation level read committed.';
    end if;
    -- what others have landed and not committed is seen afterwards, and what they land from now on meets the tombstones
    lock table {{ landing }}.events in share row exclusive mode;
    p_subject := {{ state }}.find_subject(p_org, p_given);
    found_rows := {{ state }}.count_rows_of_subject(p_subject, p_tables);
    visitors := array(select jsonb_array_elements_text(p_subject -> 'visitor_ids'));
    found_deliveries := {{ state }}.deliveries_of_subject(p_org, visitors);
    if found_rows = '{}' then
        return jsonb_build_object('rows_by_table', found_rows, 'deliveries', found_deliveries);
    end if;
    insert into {{ landing }}.tombstones (org_id, identifier_kind, identifier_hash, erased_at)
    select distinct p_org, identifiers.kind, {{ keyed_hash('p_org', 'identifiers.kind', 'identifiers.value') }}, clock_timestamp()
    from (
        select 'id' as kind, jsonb_array_elements_text((p_subject -> 'visitor_ids') || (p_subject -> 'device_ids') || (p_subject -> 'mapped_device_ids')) as value
        union select 'email', jsonb_array_elements_text(p_subject -> 'emails')
        union select 'phone', jsonb_array_elements_text(p_subject -> 'phones')
        union select 'event', jsonb_array_elements_text(p_subject -> 'given_event_ids')
    ) as identifiers
    cross join {{ privacy_key() }} as key
    where {{ keyed_hash('p_org', 'identifiers.kind', 'identifiers.value') }} is not null
    on conflict (org_id, identifier_hash) do update set erased_at = excluded.erased_at;
    perform {{ landing }}.ensure_erased_stay_out();
    delete from {{ landing }}.rejected_rows where rejection_id in (select {{ state }}.rejections_of_subject(p_subject));
    delete from {{ landing }}.events where landing_id in (select cast(jsonb_array_elements_text(p_subject -> 'landing_ids') as bigint));
    delete from {{ landing }}.retained_events where landing_id in (select cast(jsonb_array_elements_text(p_subject -> 'landing_ids') as bigint));
    perform {{ state }}.remove_memberships(p_org, visitors);
    insert into {{ state }}.suppressed_visitors (org_id, visitor_id, purpose)
    select p_org, visitor_id, 'all' from unnest(visitors) as visitor_id on conflict do nothing;
    update {{ state }}.subject_requests set rows_by_table = found_rows, deliveries = found_deliveries, subject = p_subject where request_id = p_request_id;
    return jsonb_build_object('rows_by_table', found_rows, 'deliveries', found_deliveries);
end $erase$;

{% for signature in ['remove_memberships(text, text[])', 'erase_subject(uuid, jsonb, jsonb)'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}

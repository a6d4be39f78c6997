{# The erasure of a person, or of an event: who that is, what is removed at once, and what keeps it out. What is computed from
   events goes with the next build. More: docs/privacy.md #}

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


{# Who sent what landed of an org, as the models tell it, also of rows that they do not read; a row without an org may be anybody's. #}
{% macro landed_senders() -%}
(
        select events.landing_id, events.event_id, events.anonymous_id,
            coalesce({{ identifier_or_null('events.user_id') }}, devices.user_id, {{ identifier_or_null('events.anonymous_id') }}) as visitor_id,
            nullif(lower(btrim(events.properties ->> 'email')), '') as email, {{ identifier_or_null("events.properties ->> 'phone'") }} as phone,
            ltrim(regexp_replace(events.properties ->> 'phone', '\D', '', 'g'), '0') as digits
        from (
            select landing_id, event_id, org_id, anonymous_id, user_id, properties from {{ var('landing_schema') }}.events
            union all
            select landing_id, event_id, org_id, anonymous_id, user_id, properties from {{ var('landing_schema') }}.retained_events
        ) as events
        left join {{ target.schema }}_intermediate.int_devices as devices on devices.org_id = p_org and devices.device_id = events.anonymous_id
        where events.org_id = p_org or coalesce(btrim(events.org_id), '') = ''
    )
{%- endmacro %}


{% macro erasure_ddl() %}
{%- set state = state_schema() -%}
{%- set landing = var('landing_schema') -%}
create table if not exists {{ state }}.subject_requests (
    request_id uuid primary key default gen_random_uuid(),
    kind text not null constraint known_kind check (kind in ('erasure', 'export')),
    org_id text not null,
    login_name text not null default session_user,
    role_name text not null,
    requested_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    rows_by_table jsonb not null,
    deliveries jsonb not null,
    files text[] not null default '{}',
    subject jsonb,
    constraint finished_without_subject check (finished_at is null or subject is null)
);

-- Who is meant by what is given: {emails, phones, user_ids, device_ids, event_ids}, arrays of texts. The visitors, and what is
-- theirs alone: a device, an address or a number that others use too is not. With event_ids alone it is these events.
create or replace function {{ state }}.find_subject(p_org text, p_given jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $find$
declare
    given_emails constant text[] := array(select lower(btrim(jsonb_array_elements_text(p_given -> 'emails'))));
    given_digits constant text[] := array(select ltrim(regexp_replace(jsonb_array_elements_text(p_given -> 'phones'), '\D', '', 'g'), '0'));
    given_devices constant text[] := array(select jsonb_array_elements_text(p_given -> 'device_ids'));
    given_events constant text[] := array(select jsonb_array_elements_text(p_given -> 'event_ids'));
    is_of_events constant boolean := given_events <> '{}';
    visitors text[] := array(select jsonb_array_elements_text(p_given -> 'user_ids'));
    own_devices text[];
    own_emails text[];
    own_digits text[];
    others record;
begin
    if not {{ has_role('admin') }} or not {{ may_read_org() }} then
        raise exception using errcode = 'insufficient_privilege', message = format('Who is in org %L is not shown to you: ask an administrator.', p_org);
    end if;
    visitors := visitors || array(
        select coalesce(mapped.user_id, given.device_id) from unnest(given_devices) as given (device_id)
        left join {{ target.schema }}_intermediate.int_devices as mapped on mapped.org_id = p_org and mapped.device_id = given.device_id
    );
    if given_emails <> '{}' or given_digits <> '{}' then
        visitors := visitors || array(select visitor_id from {{ landed_senders() }} as senders where visitor_id is not null and (email = any(given_emails) or digits = any(given_digits)));
    end if;
    visitors := array(select distinct visitor_id from unnest(visitors) as visitor_id order by 1);

    drop table if exists pg_temp.subject_rows;
    create temporary table subject_rows on commit drop as
    select * from {{ landed_senders() }} as senders
    where visitor_id = any(visitors) or event_id = any(given_events) or (visitor_id is null and (email = any(given_emails) or digits = any(given_digits)));

    -- what others use too
    own_devices := case when is_of_events then '{}' else array(
        select anonymous_id from pg_temp.subject_rows where {{ identifier_or_null('anonymous_id') }} is not null
        union select device_id from {{ target.schema }}_intermediate.int_devices where org_id = p_org and user_id = any(visitors)
        union select unnest(given_devices)
    ) end;
    own_emails := case when is_of_events then '{}' else array(select email from pg_temp.subject_rows where email is not null union select unnest(given_emails)) end;
    own_digits := case when is_of_events then '{}' else array(select senders.digits from pg_temp.subject_rows as senders where senders.digits <> '' union select unnest(given_digits)) end;
    select array_agg(distinct anonymous_id) filter (where anonymous_id = any(own_devices)) as devices, array_agg(distinct email) filter (where email = any(own_emails)) as emails,
        array_agg(distinct senders.digits) filter (where senders.digits = any(own_digits)) as digits
    into others
    from {{ landed_senders() }} as senders
    where visitor_id is not null and not visitor_id = any(visitors) and (anonymous_id = any(own_devices) or email = any(own_emails) or senders.digits = any(own_digits));
    own_emails := array(select unnest(own_emails) except select unnest(others.emails));
    own_digits := array(select unnest(own_digits) except select unnest(others.digits));
    insert into pg_temp.subject_rows
    select * from {{ landed_senders() }} as senders
    where not is_of_events and visitor_id is null and (email = any(own_emails) or senders.digits = any(own_digits)) and not exists (select from pg_temp.subject_rows as known where known.landing_id = senders.landing_id);

    return jsonb_build_object(
        'org_id', p_org,
        'visitor_ids', to_jsonb(visitors),
        'device_ids', to_jsonb(array(select unnest(own_devices) except select unnest(others.devices) order by 1)),
        -- the rows of a mapped device that say no user are the visitor's, also when others use it
        'mapped_device_ids', to_jsonb(array(
            select given.device_id from unnest(own_devices) as given (device_id)
            left join {{ target.schema }}_intermediate.int_devices as mapped on mapped.org_id = p_org and mapped.device_id = given.device_id
            where coalesce(mapped.user_id, given.device_id) = any(visitors) order by 1
        )),
        'emails', to_jsonb(own_emails),
        'phones', to_jsonb(array(select distinct phone from pg_temp.subject_rows as senders where senders.digits = any(own_digits) order by 1)),
        'shared', jsonb_build_object('device_ids', to_jsonb(coalesce(others.devices, '{}')), 'emails', to_jsonb(coalesce(others.emails, '{}')), 'phones', to_jsonb(coalesce(others.digits, '{}'))),
        'given_event_ids', to_jsonb(given_events),
        'landing_ids', (select coalesce(jsonb_agg(landing_id order by landing_id), '[]') from pg_temp.subject_rows),
        'event_ids', to_jsonb(array(select distinct event_id from pg_temp.subject_rows order by 1)),
        'order_keys', to_jsonb(array(select order_key from {{ target.schema }}_intermediate.int_orders where org_id = p_org and visitor_id = any(visitors) order by 1)),
        'order_references', to_jsonb(array(
            select order_reference from {{ target.schema }}_intermediate.int_orders where org_id = p_org
                and order_reference in (select order_reference from {{ target.schema }}_intermediate.int_orders where org_id = p_org and visitor_id = any(visitors))
            group by order_reference having bool_and(coalesce(visitor_id = any(visitors), false)) order by 1
        ))
    );
end $find$;

-- Rows of files that became no event and are the subject's, of the org or of none: by the columns of a contract's row; one that
-- cannot be read so by any identifier in it, with nothing beside it that would make it another.
create or replace function {{ state }}.rejections_of_subject(p_subject jsonb) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp as $rejections$
declare
    visitors constant text[] := array(select jsonb_array_elements_text(p_subject -> 'visitor_ids'));
    devices constant text[] := array(select jsonb_array_elements_text((p_subject -> 'visitor_ids') || (p_subject -> 'device_ids')));
    emails constant text[] := array(select jsonb_array_elements_text(p_subject -> 'emails'));
    digits constant text[] := array(select ltrim(regexp_replace(jsonb_array_elements_text(p_subject -> 'phones'), '\D', '', 'g'), '0'));
    events constant text[] := array(select jsonb_array_elements_text(p_subject -> 'given_event_ids'));
    texts constant text := (
        select '(^|[^[:alnum:]_.@+-])(' || string_agg(regexp_replace(value, '([^[:alnum:][:space:]_@])', '\\\1', 'g'), '|') || ')($|[^[:alnum:]_.@+-])'
        from (select unnest(devices || emails || events) as value union select jsonb_array_elements_text(p_subject -> 'phones')) as identifiers
        where btrim(value) <> ''
    );
begin
    return query
    select rejected.rejection_id
    from {{ landing }}.rejected_rows as rejected
    cross join lateral (
        select case when rejected.rejection_reason <> 'wrong_column_count' then {{ landing }}.json_or_null(rejected.raw_row) end as content
    ) as read
    cross join lateral (
        select case jsonb_typeof(content -> 'properties') when 'string' then {{ landing }}.json_or_null(content ->> 'properties') else content -> 'properties' end as properties
    ) as nested
    where (rejected.org_id = p_subject ->> 'org_id' or coalesce(btrim(rejected.org_id), '') = '')
        and case
            when jsonb_typeof(content) = 'object' then coalesce(
                content ->> 'user_id' = any(visitors) or content ->> 'anonymous_id' = any(devices) or content ->> 'event_id' = any(events)
                or lower(btrim(coalesce(content ->> 'email', properties ->> 'email'))) = any(emails)
                or nullif(ltrim(regexp_replace(coalesce(content ->> 'phone', properties ->> 'phone'), '\D', '', 'g'), '0'), '') = any(digits),
                false
            )
            else rejected.raw_row ~* texts
        end;
end $rejections$;

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

-- Removes at once what a build does not: landed rows, rejected rows, memberships. Leaves tombstones, and a request that is open
-- until the tables are built without the subject, which is kept for that long.
create or replace function {{ state }}.erase_subject(p_org text, p_subject jsonb, p_rows_by_table jsonb, p_deliveries jsonb) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $erase$
declare
    visitors constant text[] := array(select jsonb_array_elements_text(p_subject -> 'visitor_ids'));
    new_id uuid;
begin
    if not {{ has_role('admin') }} or not {{ may_read_org() }} then
        raise exception using errcode = 'insufficient_privilege', message = format('Nobody of org %L is erased by you: ask an administrator.', p_org);
    end if;
    if p_subject ->> 'org_id' <> p_org then
        raise exception using errcode = 'invalid_parameter_value', message = 'The subject is of another org: find it in this one.';
    end if;
    -- what others have landed and not committed is seen afterwards, and what they land from now on meets the tombstones
    lock table {{ landing }}.events in share row exclusive mode;
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
    insert into {{ state }}.subject_requests (kind, org_id, role_name, rows_by_table, deliveries, subject)
    values ('erasure', p_org, {{ who_asks() }}, p_rows_by_table, p_deliveries, p_subject)
    returning request_id into new_id;
    return new_id;
end $erase$;

{% for signature in ['find_subject(text, jsonb)', 'rejections_of_subject(jsonb)', 'remove_memberships(text, text[])', 'erase_subject(text, jsonb, jsonb, jsonb)'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}

{# The data of a person: who that is, what is held on him, and the requests for it, which are kept. By functions with the rights of
   their owner, because nobody else may read it all. More: docs/privacy.md #}

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


{% macro subjects_ddl() %}
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
alter table {{ state }}.subject_requests
    drop constraint if exists known_kind, add constraint known_kind check (kind in ('preview', 'erasure', 'export')),
    alter rows_by_table set default '{}', alter deliveries set default '[]',
    add column if not exists refused_because text, add column if not exists asked_in xid8 default pg_current_xact_id();

-- Who is meant by what is given: {emails, phones, user_ids, device_ids, event_ids}, arrays of texts. The visitors, and what is
-- theirs alone: a device, an address or a number that others use too is not. With event_ids alone it is these events.
create or replace function {{ state }}.find_subject(p_org text, p_given jsonb) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $find$
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

-- Exports that had the subject on their lists, the oldest first: a kept list says so, or he was a member of its segment at the
-- time. Of a delta that is less certain: it may have had him in an earlier one of its line.
create or replace function {{ state }}.deliveries_of_subject(p_org text, p_visitors text[]) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $deliveries$
    select coalesce(jsonb_agg(jsonb_build_object(
        'export_id', export_id, 'org_id', org_id, 'segment_name', segment_name, 'purpose', purpose, 'format', format, 'destination', destination,
        'outcome', outcome, 'logged_at', to_char(logged_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    ) order by logged_at, export_id), '[]')
    from (
        select distinct on (export_id) * from {{ state }}.segment_export_log where org_id = p_org order by export_id, log_number desc
    ) as latest
    where outcome not in ('refused', 'failed') and (
        exists (
            select from {{ state }}.segment_export_members as lists where lists.export_id = latest.export_id and lists.visitor_ids && p_visitors
        )
        or exists (
            select from {{ state }}.segment_memberships as stays
            cross join (
                -- the list is of some moment between these
                select min(logged_at) as asked_at, coalesce(min(logged_at) filter (where outcome in ('completed', 'failed')), max(logged_at)) as read_at
                from {{ state }}.segment_export_log as log where log.export_id = latest.export_id
            ) as reading
            where stays.org_id = latest.org_id and stays.segment_name = latest.segment_name and stays.visitor_id = any(p_visitors)
                and stays.entered_at <= reading.read_at and coalesce(stays.left_at, 'infinity') > reading.asked_at
        )
    )
$deliveries$;

-- The rows of tables that are on a subject, or with p_is_counted how many, of tables that have some. p_tables: {schema_name,
-- table_name, key, device}, of which the key is by what a row is his. Whoever names the tables, all rows are his: each key asks for
-- his org or for what find_subject found.
create or replace function {{ state }}.rows_of_subject(p_subject jsonb, p_tables jsonb, p_is_counted boolean) returns table (full_name text, rows_count bigint, content jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp as $rows$
declare
    one record;
    keys constant jsonb := jsonb_build_object(
        'visitor_ids', 'rows.visitor_ids && $2 and rows.export_id in (select export_id from {{ state }}.segment_export_log where org_id = $1)',
        'visitor_id', 'rows.org_id = $1 and rows.visitor_id = any($2)',
        'landing_id', 'rows.landing_id = any($3)',
        'order_key', 'rows.org_id = $1 and rows.order_key = any($4)',
        'event_id', 'rows.org_id = $1 and rows.event_id = any($5)',
        'sender_id', 'rows.org_id = $1 and rows.sender_id = any(case rows.sender_type when ''user'' then $2 else $6 end)',
        'user_id', 'rows.org_id = $1 and (rows.user_id = any($2) or (rows.user_id is null and rows.%1$I = any($6)))',
        'device_id', 'rows.org_id = $1 and rows.device_id = any($6)',
        'order_reference', 'rows.org_id = $1 and rows.order_reference = any($7)',
        'rejection_id', 'rows.rejection_id in (select {{ state }}.rejections_of_subject($8))',
        -- of a request: that of an open erasure
        'subject', 'rows.org_id = $1 and rows.subject -> ''visitor_ids'' ?| $2'
    );
begin
    for one in select * from jsonb_to_recordset(p_tables) as given (schema_name text, table_name text, key text, device text) loop
        if not coalesce((one.schema_name in ('{{ landing }}', '{{ target.schema }}') or starts_with(one.schema_name, '{{ target.schema }}_')) and keys ? one.key, false) then
            raise exception using errcode = 'invalid_parameter_value', message = format('%s.%s has no rows of people: leave it out.', one.schema_name, one.table_name);
        end if;
        return query execute format(
            case when p_is_counted then 'select %L, count(*), cast(null as jsonb) from %I.%I as rows where %s having count(*) > 0' else 'select %L, cast(1 as bigint), %4$s from %2$I.%3$I as rows where %5$s' end,
            one.schema_name || '.' || one.table_name, one.schema_name, one.table_name,
            case when p_is_counted then format(keys ->> one.key, one.device) when one.key <> 'visitor_ids' then 'to_jsonb(rows)'
                -- of a list of people he alone
                else 'jsonb_set(to_jsonb(rows), ''{visitor_ids}'', to_jsonb(array(select listed from unnest(rows.visitor_ids) as listed where listed = any($2))))'
            end,
            format(keys ->> one.key, one.device)
        ) using
            p_subject ->> 'org_id', array(select jsonb_array_elements_text(p_subject -> 'visitor_ids')),
            array(select cast(jsonb_array_elements_text(p_subject -> 'landing_ids') as bigint)), array(select jsonb_array_elements_text(p_subject -> 'order_keys')),
            array(select jsonb_array_elements_text(p_subject -> 'event_ids')), array(select jsonb_array_elements_text(p_subject -> 'device_ids')),
            array(select jsonb_array_elements_text(p_subject -> 'order_references')), p_subject;
    end loop;
end $rows$;

create or replace function {{ state }}.count_rows_of_subject(p_subject jsonb, p_tables jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $count$
    select coalesce(jsonb_object_agg(full_name, rows_count), '{}') from {{ state }}.rows_of_subject(p_subject, p_tables, true)
$count$;

-- Asks to preview or make an erasure, or to export a subject. The row is written whether it is refused or not: a refusal is an
-- answer and no error, which would take the row back. What is asked for is given in a later transaction.
create or replace function {{ state }}.request_subject(p_org text, p_kind text, out new_id uuid, out refusal text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $request$
begin
    refusal := case
        when not {{ has_role('admin') }} then 'the data of a person need the role audience_admin: ask an administrator for it'
        when not {{ may_read_org() }} then format('org %L is not one of yours: ask an administrator for it', p_org)
    end;
    insert into {{ state }}.subject_requests (kind, org_id, role_name, refused_because, finished_at)
    values (p_kind, coalesce(p_org, ''), {{ who_asks() }}, refusal, case when refusal is not null then clock_timestamp() end)
    returning request_id into new_id;
end $request$;

-- The org of a request that who asks made before, and that is still to be answered.
create or replace function {{ state }}.org_of_request(p_request_id uuid, p_kinds text[]) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $org$
declare
    p_org text;
begin
    -- not of this transaction: taken back with it, nobody would know who looked
    select org_id into p_org from {{ state }}.subject_requests
    where request_id = p_request_id and kind = any(p_kinds) and login_name = session_user and role_name = {{ who_asks() }}
        and finished_at is null and subject is null and asked_in <> pg_current_xact_id()
    for update;
    if not found or not {{ has_role('admin') }} or not {{ may_read_org() }} then
        raise exception using errcode = 'insufficient_privilege', message = format('Request %s is not open to you: ask for a new one.', p_request_id);
    end if;
    return p_org;
end $org$;

-- What is held on a subject: {subject, rows_by_table, deliveries}, of an export with the rows, as {tables: {name: [row]}}. Once,
-- in a transaction of isolation level repeatable read, so that all of it is of one moment.
create or replace function {{ state }}.read_subject(p_request_id uuid, p_given jsonb, p_tables jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $read$
declare
    p_org constant text := {{ state }}.org_of_request(p_request_id, array['preview', 'export']);
    found_subject constant jsonb := {{ state }}.find_subject(p_org, p_given);
    found_rows jsonb := {{ state }}.count_rows_of_subject(found_subject, p_tables);
    found_deliveries constant jsonb := {{ state }}.deliveries_of_subject(p_org, array(select jsonb_array_elements_text(found_subject -> 'visitor_ids')));
    request {{ state }}.subject_requests;
begin
    if current_setting('transaction_isolation') = 'read committed' then
        raise exception using errcode = 'invalid_parameter_value', message = 'A person is read in a transaction of isolation level repeatable read, so that all of it is of one moment: begin one.';
    end if;
    update {{ state }}.subject_requests set rows_by_table = found_rows, deliveries = found_deliveries, finished_at = clock_timestamp()
    where request_id = p_request_id returning * into request;
    return jsonb_build_object('subject', found_subject, 'rows_by_table', found_rows, 'deliveries', found_deliveries, 'tables', case request.kind when 'export' then (
        select coalesce(jsonb_object_agg(full_name, contents), '{}')
        from (select full_name, jsonb_agg(content) as contents from {{ state }}.rows_of_subject(found_subject, p_tables, false) group by full_name) as by_table
    ) end);
end $read$;

{% for signature in ['find_subject(text, jsonb)', 'rejections_of_subject(jsonb)', 'deliveries_of_subject(text, text[])', 'rows_of_subject(jsonb, jsonb, boolean)',
    'count_rows_of_subject(jsonb, jsonb)', 'request_subject(text, text)', 'org_of_request(uuid, text[])', 'read_subject(uuid, jsonb, jsonb)'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}


{# Brings the rights on the data of a person to what they should be; writes nothing when they are. A reader may ask, so that his
   refusal is kept. #}
{% macro secure_subjects_sql() %}
do $rights$
begin
    {% for name, role in {'request_subject': 'reader', 'read_subject': 'admin', 'erase_subject': 'admin'}.items() %}
    perform {{ state_schema() }}.secure('{{ state_schema() }}', '{{ name }}', '{"execute": ["audience_{{ role }}"]}', false);
    {% endfor %}
end $rights$;
commit;
{% endmacro %}

{# The door through which segments leave: a log that is only appended to, and functions with the rights of their owner that
   check who asks, write it, and give rows. More: docs/exports.md #}

{% macro export_roles() %}{{ return({'analyst': "to_regrole('audience_analyst')", 'admin': "to_regrole('audience_admin')"}) }}{% endmacro %}

{# In a function with its owner's rights: has who asks this role? The owner has every role. #}
{% macro has_role(role) -%}
(pg_has_role(cast({{ who_asks() }} as name), current_user, 'usage') or coalesce(pg_has_role(cast({{ who_asks() }} as name), {{ export_roles()[role] }}, 'usage'), false))
{%- endmacro %}

{# Contact details, which leave with include_pii alone. #}
{% macro contact_columns() %}{{ return(['email', 'phone', 'first_name', 'last_name', 'full_name']) }}{% endmacro %}

{# Applied last, to every export: who may be listed although a member. purposes: of the list, an array. #}
{% macro may_be_listed(people, purposes) -%}
{{ people }}.is_opted_out is not true and not {{ is_left_alone(people, purposes) }}
{%- endmacro %}


{# What the process of an export holds while it lives. The runner asks for it by the same name (orchestration/exports/runner.py). #}
{% macro export_lock_key(export_id) %}hashtextextended('audience export ' || {{ export_id }}, 42){% endmacro %}


{% macro export_log_ddl() %}
{%- set log = state_schema() ~ '.segment_export_log' -%}
create table if not exists {{ log }} (
    log_number bigint primary key,
    export_id uuid not null,
    logged_at timestamptz not null,
    login_name text not null,
    role_name text not null,
    org_id text not null,
    segment_name text not null,
    filter jsonb,
    filter_version integer,
    purpose text,
    include_pii boolean not null,
    columns text[] not null,
    format text not null,
    destination text not null,
    kind text not null constraint known_kind check (kind in ('full', 'delta')),
    since_export_id uuid,
    rows_count bigint,
    entered_count bigint,
    left_count bigint,
    suppressed_count bigint,
    file_sha256 text,
    is_queued boolean not null,
    format_counts jsonb,
    outcome text not null constraint known_outcome check (outcome in ('requested', 'refused', 'started', 'completed', 'failed', 'undelivered', 'delivered', 'acknowledged')),
    reason text,
    previous_hash text not null,
    row_hash text not null
);
create index if not exists segment_export_log_export on {{ log }} (export_id, log_number);
create index if not exists segment_export_log_segment on {{ log }} (org_id, segment_name, log_number);
comment on table {{ log }} is 'One row per outcome of an export, in the order in which they were committed. Rows are never changed.';
comment on column {{ log }}.log_number is 'Counts the rows from 1, without gaps.';
comment on column {{ log }}.login_name is 'The login of the session; role_name is the role that it had taken on, else the same.';
comment on column {{ log }}.since_export_id is 'Of a delta: the acknowledged export that it is compared with.';
comment on column {{ log }}.suppressed_count is 'Members who were not listed: opted out, suppressed, or no customers any more.';
comment on column {{ log }}.outcome is 'requested or refused; started, of one that was queued; completed: the file is whole; failed; undelivered, each try; delivered; acknowledged.';
comment on column {{ log }}.is_queued is 'Whether another process, that of the owner, makes the list; else the one that asked does.';
comment on column {{ log }}.format_counts is 'Of a list for an ad platform, as its writer counts: rows, left_out, and blank and invalid values by column.';
comment on column {{ log }}.row_hash is 'SHA-256 of previous_hash and the row as JSON without row_hash and nulls; audience verify-log computes it again.';

-- Nulls are left out, so that a column of a later release leaves the hashes of earlier rows as they are.
create or replace function {{ state_schema() }}.export_log_hash(entry {{ log }}) returns text
language sql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $hash$
    select encode(sha256(convert_to(entry.previous_hash || cast(jsonb_object_agg(key, value) as text), 'UTF8')), 'hex')
    from jsonb_each(to_jsonb(entry) - 'row_hash') where value <> 'null'
$hash$;

create or replace function {{ state_schema() }}.chain_export_log() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $chain$
declare
    last {{ log }};
begin
    -- held until the commit: the next row follows this one, and there is no gap and no fork
    perform pg_advisory_xact_lock(hashtextextended('audience export log {{ state_schema() }}', 42));
    select * into last from {{ log }} order by log_number desc limit 1;
    new.log_number := coalesce(last.log_number, 0) + 1;
    new.previous_hash := coalesce(last.row_hash, '');
    new.logged_at := clock_timestamp();
    new.login_name := session_user;
    new.role_name := {{ who_asks() }};
    new.row_hash := {{ state_schema() }}.export_log_hash(new);
    return new;
end $chain$;
create or replace function {{ state_schema() }}.refuse_log_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $refuse$
begin
    raise exception using errcode = 'insufficient_privilege', message = 'Rows of segment_export_log are never changed or removed: a correction is a further row.';
end $refuse$;
create or replace trigger chained before insert on {{ log }} for each row execute function {{ state_schema() }}.chain_export_log();
create or replace trigger unchanged before update or delete or truncate on {{ log }} for each statement execute function {{ state_schema() }}.refuse_log_change();
alter table {{ log }} enable always trigger chained;
alter table {{ log }} enable always trigger unchanged;
{% endmacro %}


{% macro exports_ddl() %}
{%- set state = state_schema() -%}
{%- set log = state ~ '.segment_export_log' -%}
{{ export_log_ddl() }}
create table if not exists {{ state }}.segment_export_lists (
    export_id uuid primary key,
    rows_count bigint not null,
    entered_count bigint not null,
    left_count bigint not null,
    suppressed_count bigint not null
);
comment on table {{ state }}.segment_export_lists is 'One row per export that was read: its counts, as the database made them.';
create table if not exists {{ state }}.segment_export_members (
    export_id uuid not null,
    batch bigint not null,
    visitor_ids text[] not null,
    primary key (export_id, batch)
);
alter table {{ state }}.segment_export_members alter visitor_ids set storage external;
comment on table {{ state }}.segment_export_members is 'One row per export and batch of people on its list; kept until a later export of the same line is acknowledged.';

-- The filter's version is counted here, so that whoever may change a filter cannot leave its version as it was.
create or replace function {{ state }}.count_filter_version() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $count$
begin
    new.filter_version := old.filter_version + cast(new.filter <> old.filter as integer);
    return new;
end $count$;
create or replace trigger filter_version before update on {{ state }}.audience_segments for each row execute function {{ state }}.count_filter_version();

create or replace function {{ state }}.customers_as_of() returns timestamptz
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $as_of$
begin
    return (select as_of from {{ state }}.model_state where model = 'audience_customers' and to_regclass('{{ target.schema }}.audience_customers') is not null);
end $as_of$;

-- Asks for an export: the row is written whether it is refused or not, so a refusal is an outcome with its reason and no
-- error, which would take the row back. Whoever gets outcome requested, and does not leave it to a queue, holds a lock of the session until it ends, by which
-- others see that he is alive. p_refusal: why who asks does not even try, for the log.
drop function if exists {{ state }}.request_segment_export(text, text, text, boolean, text[], text, text, boolean, boolean);
create or replace function {{ state }}.request_segment_export(
    p_org text, p_segment text, p_purpose text, p_include_pii boolean, p_columns text[], p_format text, p_destination text, p_is_delta boolean, p_is_queued boolean default false,
    p_refusal text default null
) returns {{ log }}
language plpgsql security definer set search_path = pg_catalog, pg_temp as $request$
declare
    entry {{ log }};
    segment {{ state }}.audience_segments;
    people_count bigint;
    unknown_columns text[];
begin
    entry.export_id := gen_random_uuid();
    entry.org_id := coalesce(p_org, '');
    entry.segment_name := coalesce(p_segment, '');
    entry.purpose := p_purpose;
    entry.include_pii := coalesce(p_include_pii, false);
    entry.columns := coalesce(p_columns, '{}');
    entry.format := coalesce(p_format, '');
    entry.destination := coalesce(p_destination, '');
    entry.is_queued := coalesce(p_is_queued, false);
    entry.kind := 'full';
    select array_agg(wanted order by wanted) into unknown_columns
    from unnest(entry.columns) as wanted
    where wanted not in ('change', 'entered_at', '{{ contact_columns() | join("', '") }}') and not exists (
        select from pg_attribute where attrelid = to_regclass('{{ target.schema }}.audience_customers') and attname = wanted and attnum > 0 and not attisdropped
    );
    if {{ may_read_org() }} and {{ has_role('analyst') }} then
        select * into segment from {{ state }}.audience_segments where org_id = p_org and segment_name = p_segment;
        entry.filter := segment.filter;
        entry.filter_version := segment.filter_version;
        select count(*) into people_count from {{ state }}.segment_memberships where org_id = p_org and segment_name = p_segment and left_at is null;
    end if;
    if p_is_delta and segment.segment_name is not null then
        select export_id into entry.since_export_id from {{ log }}
        where org_id = p_org and segment_name = p_segment and format = entry.format and destination = entry.destination and outcome = 'acknowledged'
        order by log_number desc limit 1;
        entry.kind := case when entry.since_export_id is null then 'full' else 'delta' end;
    end if;
    entry.reason := case
        when not {{ has_role('analyst') }} then 'exports need the role audience_analyst: ask an administrator for it'
        when p_refusal is not null then p_refusal
        when entry.include_pii and not {{ has_role('admin') }} then 'personal data needs the role audience_admin: export without it, or ask an administrator'
        when coalesce(p_purpose, '') !~ '\S' then 'no purpose is given: say what the list is for'
        when segment.segment_name is null then format('there is no segment %L of org %L: see the segments that there are', p_segment, p_org)
        when entry.format !~ '^[a-z_]+$' then 'its format is no name: give one of those that there are'
        when cardinality(entry.columns) = 0 then 'no columns are given: name some'
        when unknown_columns is not null then format('there is no column %s: give columns of audience_customers', array_to_string(unknown_columns, ', '))
        when entry.columns && array['{{ contact_columns() | join("', '") }}'] and not entry.include_pii then 'contact details are personal data: ask for personal data (--include-pii), or leave their columns out'
        when segment.materialized_filter_version is distinct from segment.filter_version then 'its members were not observed since its filter changed: materialize the segment, or wait for the next build'
        when people_count < {{ var('export_minimum_people_count') }} and entry.format = any(array[{% for format in var('export_formats_with_minimum') %}'{{ format }}'{{ ', ' if not loop.last }}{% endfor %}])
            then format('it has %s people, and %s wants at least {{ var("export_minimum_people_count") }}: widen its filter', people_count, p_format)
    end;
    entry.outcome := case when entry.reason is null then 'requested' else 'refused' end;
    if entry.reason is null and people_count < {{ var('export_minimum_people_count') }} then
        entry.reason := format('warned: it has %s people, fewer than {{ var("export_minimum_people_count") }}: they may be recognised', people_count);
    end if;
    insert into {{ log }} select (entry).* returning * into entry;
    if entry.outcome = 'requested' then
        perform {{ state }}.refresh_suppressed_visitors();
    end if;
    if entry.outcome = 'requested' and not entry.is_queued then
        perform pg_advisory_lock({{ export_lock_key('entry.export_id') }});
    end if;
    return entry;
end $request$;

-- The last row of an export that who asks requested; the owner may see to those of others, whose processes ended.
create or replace function {{ state }}.own_export(p_export_id uuid) returns {{ log }}
language plpgsql stable set search_path = pg_catalog, pg_temp as $own$
declare
    entry {{ log }};
begin
    select * into entry from {{ log }} as last
    where export_id = p_export_id and (
        pg_has_role(cast({{ who_asks() }} as name), current_user, 'usage')
        or exists (
            select from {{ log }} as first
            where first.export_id = p_export_id and first.outcome = 'requested' and first.login_name = session_user and first.role_name = {{ who_asks() }}
        )
    )
    order by log_number desc limit 1;
    if not found then
        raise exception using errcode = 'invalid_parameter_value', message = format('There is no export %s of yours: see the log for those that there are.', p_export_id);
    end if;
    return entry;
end $own$;

-- The rows of a request that is open, once, as records of its columns. What is listed is kept for the next delta.
-- work_mem: so that a join of a million hashes the members, who are narrow, and not the people.
create or replace function {{ state }}.read_segment_export(p_export_id uuid) returns setof record
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan set jit = off set work_mem = '64MB' as $read$
declare
    request constant {{ log }} := {{ state }}.own_export(p_export_id);
    p_org constant text := request.org_id;
    members_count bigint;
    listed_count bigint;
    entered_count bigint;
    gone_count bigint := 0;
    listed constant text := $list$
        from {{ state }}.segment_memberships as members
        join {{ target.schema }}.audience_customers as people on people.org_id = members.org_id and people.visitor_id = members.visitor_id
        left join {{ target.schema }}_contacts.customer_contacts as contacts on contacts.org_id = members.org_id and contacts.visitor_id = members.visitor_id
        where members.org_id = $1 and members.segment_name = $2 and members.left_at is null and {{ may_be_listed('people', '$5') }} $list$;
    -- without personal data, an id that is an e-mail address or a phone number stays blank; few get to the regular expression
    visitor constant text := case when request.include_pii then '%1$s.visitor_id' else $id$case when strpos(%1$s.visitor_id, '@') = 0 and (ascii(%1$s.visitor_id) <> 43 or %1$s.visitor_id !~ '^\+[0-9]') then %1$s.visitor_id end$id$ end;
    purposes constant text[] := {{ purposes_of_list('request.format', 'request.columns') }};
    entered text;
    gone text;
begin
    if request.outcome <> (case when request.is_queued then 'started' else 'requested' end) or not ({{ may_read_org() }} and {{ has_role('analyst') }}) or (request.include_pii and not {{ has_role('admin') }}) then
        raise exception using errcode = 'insufficient_privilege', message = format('Export %s is not open to you: ask for a new one.', p_export_id);
    end if;
    if current_setting('transaction_isolation') = 'read committed' then
        raise exception using errcode = 'invalid_parameter_value', message = 'An export is read in a transaction of isolation level repeatable read, so that all of it is of one moment: begin one.';
    end if;
    -- asked for in this transaction, it could be read and taken back: the log would not know
    if request.logged_at >= transaction_timestamp() then
        raise exception using errcode = 'invalid_parameter_value', message = 'An export is read after its request is committed: commit, then begin another transaction.';
    end if;
    if {{ customers_version() }} is distinct from (select fingerprint from {{ state }}.model_state where model = 'the suppressed visitors') then
        raise exception using errcode = 'invalid_parameter_value', message = 'Customers were built since this export was asked for: ask for a new one.';
    end if;
    if not exists (
        select from {{ state }}.audience_segments
        where org_id = p_org and segment_name = request.segment_name and filter_version = request.filter_version and materialized_filter_version = request.filter_version
    ) then
        raise exception using errcode = 'invalid_parameter_value', message = format('Segment %L changed since its export was asked for: ask for a new one.', request.segment_name);
    end if;
    select
        string_agg(case
            when name = 'visitor_id' then format(visitor, 'people')
            when name = 'change' then '''entered'''
            when name = 'entered_at' then 'members.entered_at'
            when name in ('{{ contact_columns() | join("', '") }}') then format('contacts.%I', name)
            else format('people.%I', name)
        end, ', ' order by place),
        string_agg(case name
            when 'visitor_id' then format(visitor, 'former')
            when 'change' then '''left'''
            when 'org_id' then 'cast($1 as text)'
            else format('cast(null as %s)', coalesce(format_type(atttypid, atttypmod), case name when 'entered_at' then 'timestamptz' else 'text' end))
        end, ', ' order by place)
    into entered, gone
    from unnest(request.columns) with ordinality as wanted (name, place)
    left join pg_attribute on attrelid = '{{ target.schema }}.audience_customers'::regclass and attname = name and attnum > 0;
    select count(*) into members_count from {{ state }}.segment_memberships where org_id = p_org and segment_name = request.segment_name and left_at is null;
    if request.kind = 'full' then
        return query execute 'select ' || entered || listed using p_org, request.segment_name, p_export_id, request.since_export_id, purposes;
        get diagnostics listed_count = row_count;
    end if;
    -- batches, because a row for each takes twice as long as all the rest
    execute 'insert into {{ state }}.segment_export_members select $3, batch, array_agg(visitor_id)
        from (select members.visitor_id, row_number() over () / 10000 as batch ' || case when listed_count = members_count
            then 'from {{ state }}.segment_memberships as members where org_id = $1 and segment_name = $2 and left_at is null'
            else listed end || ') as batches group by batch'
    using p_org, request.segment_name, p_export_id, request.since_export_id, purposes;
    if request.kind = 'delta' then
        select count(*) filter (where former.visitor_id is null), count(*) filter (where listed.visitor_id is null), count(listed.visitor_id)
        into entered_count, gone_count, listed_count
        from (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = request.since_export_id) as former
        full join (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = p_export_id) as listed using (visitor_id);
        return query execute 'select ' || entered || listed || $delta$
            and not exists (select from (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = $4) as former where former.visitor_id = members.visitor_id)
        union all
        select $delta$ || gone || $gone$
        from (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = $4) as former
        where not exists (select from (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = $3) as listed where listed.visitor_id = former.visitor_id)
        $gone$ using p_org, request.segment_name, p_export_id, request.since_export_id, purposes;
    end if;
    insert into {{ state }}.segment_export_lists (export_id, rows_count, entered_count, left_count, suppressed_count)
    values (p_export_id, coalesce(entered_count, listed_count) + gone_count, coalesce(entered_count, listed_count), gone_count, members_count - listed_count);
end $read$;

-- How many people of a list that was read may not be on it any more. Looks where something changed since it was asked for.
create or replace function {{ state }}.count_withdrawn(p_export_id uuid) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $withdrawn$
declare
    request constant {{ log }} := {{ state }}.own_export(p_export_id);
    purposes constant text[] := {{ purposes_of_list('request.format', 'request.columns') }};
    asked_at constant timestamptz := (select min(logged_at) from {{ log }} where export_id = p_export_id);
begin
    perform {{ state }}.refresh_suppressed_visitors();
    if not exists (select from {{ state }}.suppressions where org_id = request.org_id and suppressed_at > asked_at)
        and not exists (select from {{ var('landing_schema') }}.tombstones where org_id = request.org_id and erased_at > asked_at)
        and not exists (select from {{ state }}.model_state where model in ('audience_customers', 'customer_contacts') and built_at > asked_at) then
        return 0;
    end if;
    return (
        select count(*)
        from (select unnest(visitor_ids) as visitor_id from {{ state }}.segment_export_members where export_id = p_export_id) as listed
        left join {{ target.schema }}.audience_customers as people on people.org_id = request.org_id and people.visitor_id = listed.visitor_id
        -- of somebody who was erased a hash stands in (remove_memberships)
        where (people.visitor_id is null and starts_with(listed.visitor_id, 'sha256:')) or not ({{ may_be_listed('people', 'purposes') }})
    );
end $withdrawn$;

-- What became of an export. Its counts are those that the database made when it was read.
create or replace function {{ state }}.record_segment_export(p_export_id uuid, p_outcome text, p_file_sha256 text default null, p_reason text default null, p_format_counts jsonb default null) returns {{ log }}
language plpgsql security definer set search_path = pg_catalog, pg_temp as $record$
declare
    entry {{ log }};
begin
    -- two outcomes at once: the second sees the first
    perform pg_advisory_xact_lock(hashtextextended('audience export outcome ' || p_export_id, 42));
    entry := {{ state }}.own_export(p_export_id);
    if not coalesce((entry.outcome, p_outcome) in (
        ('requested', 'completed'), ('requested', 'failed'), ('requested', 'started'), ('started', 'completed'), ('started', 'failed'),
        ('completed', 'delivered'), ('completed', 'undelivered'), ('completed', 'failed'),
        ('undelivered', 'delivered'), ('undelivered', 'undelivered'), ('undelivered', 'failed'), ('delivered', 'acknowledged')
    ) and (entry.outcome <> 'requested' or entry.is_queued = (p_outcome = 'started') or p_outcome = 'failed'), false) then
        raise exception using errcode = 'invalid_parameter_value', message = format('Export %s is %s and cannot become %s: see its rows in the log.', p_export_id, entry.outcome, coalesce(p_outcome, 'null'));
    end if;
    if p_outcome = 'completed' then
        select rows_count, entered_count, left_count, suppressed_count into strict entry.rows_count, entry.entered_count, entry.left_count, entry.suppressed_count
        from {{ state }}.segment_export_lists where export_id = p_export_id;
        entry.file_sha256 := p_file_sha256;
        entry.format_counts := p_format_counts;
    elsif p_outcome = 'started' then
        perform {{ state }}.refresh_suppressed_visitors();
        perform pg_advisory_lock({{ export_lock_key('p_export_id') }});
    elsif p_outcome = 'failed' then
        delete from {{ state }}.segment_export_members where export_id = p_export_id;
    elsif p_outcome = 'acknowledged' then
        delete from {{ state }}.segment_export_members where export_id in (
            select export_id from {{ log }}
            where org_id = entry.org_id and segment_name = entry.segment_name and format = entry.format and destination = entry.destination
                and outcome = 'requested' and log_number < (select min(log_number) from {{ log }} where export_id = p_export_id)
        );
    end if;
    entry.outcome := p_outcome;
    entry.reason := p_reason;
    insert into {{ log }} select (entry).* returning * into entry;
    return entry;
end $record$;

{% for signature in ['export_log_hash(' ~ log ~ ')', 'chain_export_log()', 'refuse_log_change()', 'count_filter_version()', 'customers_as_of()', 'request_segment_export(text, text, text, boolean, text[], text, text, boolean, boolean, text)',
    'own_export(uuid)', 'read_segment_export(uuid)', 'count_withdrawn(uuid)', 'record_segment_export(uuid, text, text, text, jsonb)'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}


{# Brings the rights on what analysts use of the state to what they should be; writes nothing when they are. A reader may ask
   for an export, so that his refusal is in the log. #}
{% macro secure_exports_sql() %}
{%- set state = state_schema() -%}
{%- set grants = {
    'audience_segments': {'select': 'analyst', 'insert': 'analyst', 'delete': 'analyst'},
    'segment_memberships': {'select': 'analyst'}, 'segment_export_log': {'select': 'analyst'}, 'customers_as_of': {'execute': 'analyst'},
    'request_segment_export': {'execute': 'reader'}, 'read_segment_export': {'execute': 'analyst'}, 'count_withdrawn': {'execute': 'analyst'},
    'suppressed_visitors': {'select': 'analyst'}, 'suppress': {'execute': 'admin'}, 'record_segment_export': {'execute': 'analyst'},
} -%}
do $rights$
begin
    {% for name, privileges in grants.items() %}
    perform {{ state }}.secure('{{ state }}', '{{ name }}', '{ {%- for privilege, role in privileges.items() %}"{{ privilege }}": ["audience_{{ role }}"]{{ ', ' if not loop.last }}{% endfor -%} }', false);
    {% endfor %}
    if not exists (select from pg_policy where polrelid = '{{ state }}.audience_segments'::regclass and polname = 'writers') then
        -- those of files change with their files
        create policy writers on {{ state }}.audience_segments using (org_id = any(cast((select {{ state }}.readable_orgs()) as text[])) and origin = 'stored');
    end if;
    if not coalesce(has_column_privilege(cast(to_regrole('audience_analyst') as oid), '{{ state }}.audience_segments', 'filter', 'update'), true) then
        grant update (description, filter, updated_at) on {{ state }}.audience_segments to audience_analyst;
    end if;
end $rights$;
commit;
{% endmacro %}

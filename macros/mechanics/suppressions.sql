{# Who is to be left alone, whatever lists and segments say: by keyed hashes, so that the list of them is none of people, and
   so that somebody who is not held yet, or comes back with an old list, is recognised. More: docs/privacy.md #}

{# all: every list and message; advertising: lists for ad platforms; email: messages, and lists with e-mail addresses. #}
{% macro suppression_purposes() %}{{ return(['all', 'advertising', 'email']) }}{% endmacro %}

{# What a list is for, as purposes by which its people may be suppressed. #}
{% macro purposes_of_list(format, columns) -%}
case
    when {{ format }} = any(array['{{ var("export_formats_with_minimum") | join("', '") }}']) then array['all', 'advertising']
    when 'email' = any({{ columns }}) then array['all', 'email']
    else array['all']
end
{%- endmacro %}

{# The visitors as the marts have them: when these were built. Changes with every build that wrote them. #}
{% macro customers_version() -%}
(select coalesce(string_agg(model || ' ' || built_at, ',' order by model), '') from {{ state_schema() }}.model_state where model in ('audience_customers', 'customer_contacts'))
{%- endmacro %}


{% macro suppressions_ddl() %}
{%- set state = state_schema() -%}
create table if not exists {{ state }}.suppressions (
    org_id text not null,
    identifier_kind text not null constraint known_identifier_kind check (identifier_kind in ('id', 'email', 'phone')),
    identifier_hash text not null,
    purpose text not null constraint known_purpose check (purpose in ('{{ suppression_purposes() | join("', '") }}')),
    reason text not null,
    login_name text not null,
    suppressed_at timestamptz not null,
    lifted_at timestamptz,
    primary key (org_id, identifier_kind, identifier_hash, purpose)
);
comment on table {{ state }}.suppressions is 'One row per org, identifier (a keyed hash) and purpose for which its person is left alone; until lifted_at.';
create table if not exists {{ state }}.suppressed_visitors (
    org_id text not null,
    visitor_id text not null,
    purpose text not null,
    primary key (org_id, visitor_id, purpose)
);
comment on table {{ state }}.suppressed_visitors is 'One row per org, visitor and purpose: whom the suppressions are, as the customers are now. Made anew after each build.';

-- Who is suppressed, as visitors. Runs after a build, and before a list is made when something was built since. p_org: after a
-- change of its suppressions; null: where the customers changed. Refused to all but its owner.
create or replace function {{ state }}.refresh_suppressed_visitors(p_org text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $refresh$
declare
    seen constant text := {{ customers_version() }};
begin
    if p_org is null and seen = (select fingerprint from {{ state }}.model_state where model = 'the suppressed visitors') then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('audience suppressed visitors {{ state }}', 42));
    if to_regclass('{{ target.schema }}.audience_customers') is not null and to_regclass('{{ target.schema }}_contacts.customer_contacts') is not null then
        with active as (
            select * from {{ state }}.suppressions where lifted_at is null and org_id = coalesce(p_org, org_id)
        ),
        orgs as (
            select org_id, array_agg(distinct identifier_kind) as kinds from active group by org_id
        ),
        identifiers as (
            select people.org_id, people.visitor_id, 'id' as kind, people.visitor_id as value
            from orgs join {{ target.schema }}.audience_customers as people on people.org_id = orgs.org_id and 'id' = any(orgs.kinds)
            union all
            select contacts.org_id, contacts.visitor_id, details.kind, details.value
            from orgs join {{ target.schema }}_contacts.customer_contacts as contacts on contacts.org_id = orgs.org_id
            cross join lateral (values ('email', contacts.email), ('phone', contacts.phone)) as details (kind, value)
            where details.kind = any(orgs.kinds) and details.value is not null
        ),
        wanted as (
            select distinct identifiers.org_id, identifiers.visitor_id, active.purpose
            from identifiers
            cross join {{ privacy_key() }} as key
            join active
                on active.org_id = identifiers.org_id and active.identifier_kind = identifiers.kind
                and active.identifier_hash = {{ keyed_hash('identifiers.org_id', 'identifiers.kind', 'identifiers.value') }}
            union
            -- who was erased, while the tables still have him
            select org_id, jsonb_array_elements_text(subject -> 'visitor_ids'), 'all'
            from {{ state }}.subject_requests where subject is not null and org_id = coalesce(p_org, org_id)
        ),
        gone as (
            delete from {{ state }}.suppressed_visitors as known
            where known.org_id = coalesce(p_org, known.org_id) and (known.org_id, known.visitor_id, known.purpose) not in (select org_id, visitor_id, purpose from wanted)
        )
        insert into {{ state }}.suppressed_visitors select org_id, visitor_id, purpose from wanted on conflict do nothing;
    end if;
    if p_org is null then
        insert into {{ state }}.model_state (model, fingerprint, positions, as_of, built_at)
        values ('the suppressed visitors', seen, '{}', 'epoch', clock_timestamp())
        on conflict (model) do update set fingerprint = excluded.fingerprint, built_at = excluded.built_at;
    end if;
end $refresh$;

-- Suppresses, or with p_is_lifted lifts, identifiers of an org for a purpose: objects {kind, value}, or {kind, hash} where only
-- that is known. With them what else the customers of these identifiers are known by. Returns how many became so.
create or replace function {{ state }}.suppress(p_org text, p_identifiers jsonb, p_purpose text, p_reason text, p_is_lifted boolean default false) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $suppress$
declare
    moment constant timestamptz := clock_timestamp();
    found jsonb;
    changed_count bigint;
begin
    if not ({{ may_read_org() }} and {{ has_role('admin') }}) then
        raise exception using errcode = 'insufficient_privilege', message = format('Who is left alone in org %L is for the role audience_admin to say: ask an administrator.', p_org);
    end if;
    select jsonb_agg(jsonb_build_object('kind', given.kind, 'hash', coalesce(given.hash, {{ keyed_hash('p_org', 'given.kind', 'given.value') }}))) into found
    from jsonb_to_recordset(p_identifiers) as given (kind text, value text, hash text) cross join {{ privacy_key() }} as key;
    if found is null or jsonb_path_exists(found, '$[*].hash ? (@ == null)') then
        raise exception using errcode = 'invalid_parameter_value', message = 'An identifier is missing or blank: give what it is.';
    end if;
    if to_regclass('{{ target.schema }}_contacts.customer_contacts') is not null and to_regclass('{{ target.schema }}_intermediate.int_devices') is not null then
        with known as materialized (
            select contacts.visitor_id, details.kind, {{ keyed_hash('p_org', 'details.kind', 'details.value') }} as hash
            from {{ target.schema }}_contacts.customer_contacts as contacts
            cross join {{ privacy_key() }} as key
            cross join lateral (values ('id', contacts.visitor_id), ('email', contacts.email), ('phone', contacts.phone)) as details (kind, value)
            where contacts.org_id = p_org and details.value is not null
        ),
        users as (
            -- a device that is mapped is its user, who may have given no details
            select mapped.user_id from {{ target.schema }}_intermediate.int_devices as mapped
            join jsonb_to_recordset(p_identifiers) as given (kind text, value text) on given.kind = 'id' and given.value = mapped.device_id
            where mapped.org_id = p_org and mapped.user_id is not null
        ),
        people as (
            select visitor_id from known join jsonb_to_recordset(found) as given (kind text, hash text) using (kind, hash)
            union
            select user_id from users
        )
        select found || coalesce(jsonb_agg(jsonb_build_object('kind', kind, 'hash', hash)), '[]') into found
        from (
            select kind, hash from known where visitor_id in (select visitor_id from people)
            union
            select 'id' as kind, {{ keyed_hash('p_org', "'id'", 'users.user_id') }} as hash from users cross join {{ privacy_key() }} as key
        ) as theirs;
    end if;
    if p_is_lifted then
        update {{ state }}.suppressions as kept set lifted_at = moment, login_name = session_user, reason = p_reason
        from (select distinct kind, hash from jsonb_to_recordset(found) as given (kind text, hash text)) as lifted
        where kept.org_id = p_org and kept.identifier_kind = lifted.kind and kept.identifier_hash = lifted.hash and kept.purpose = p_purpose and kept.lifted_at is null;
    else
        insert into {{ state }}.suppressions as kept (org_id, identifier_kind, identifier_hash, purpose, reason, login_name, suppressed_at)
        select distinct p_org, kind, hash, p_purpose, p_reason, cast(session_user as text), moment from jsonb_to_recordset(found) as given (kind text, hash text)
        on conflict (org_id, identifier_kind, identifier_hash, purpose) do update
            set reason = excluded.reason, login_name = excluded.login_name, suppressed_at = excluded.suppressed_at, lifted_at = null
            where kept.lifted_at is not null;
    end if;
    get diagnostics changed_count = row_count;
    perform {{ state }}.refresh_suppressed_visitors(p_org);
    return changed_count;
end $suppress$;

-- Is this person to be left alone for a purpose, or for all? By hashes, so it knows what no build has seen yet; and as a visitor.
create or replace function {{ state }}.is_suppressed(p_org text, p_visitor_id text, p_email text, p_purpose text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $suppressed$
    select exists (
        select from {{ privacy_key() }} as key
        cross join lateral (values ('id', p_visitor_id), ('email', p_email)) as details (kind, value)
        join {{ state }}.suppressions
            on org_id = p_org and identifier_kind = details.kind and identifier_hash = {{ keyed_hash('p_org', 'details.kind', 'details.value') }}
            and purpose in ('all', p_purpose) and lifted_at is null
    ) or exists (
        select from {{ state }}.suppressed_visitors where org_id = p_org and visitor_id = p_visitor_id and purpose in ('all', p_purpose)
    )
$suppressed$;
{% for signature in ['refresh_suppressed_visitors(text)', 'suppress(text, jsonb, text, text, boolean)', 'is_suppressed(text, text, text, text)'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}


{# Nobody who is suppressed for everything: as the last build has its customers, and by the id, which no build may have seen yet. #}
{% macro is_left_alone_by_id(org, visitor) -%}
(
    exists (
        select from {{ state_schema() }}.suppressed_visitors as left_alone
        where left_alone.org_id = {{ org }} and left_alone.visitor_id = {{ visitor }} and left_alone.purpose = 'all'
    )
    or exists (
        select from {{ privacy_key() }} as key
        join {{ state_schema() }}.suppressions as left_alone
            on left_alone.org_id = {{ org }} and left_alone.identifier_kind = 'id' and left_alone.purpose = 'all' and left_alone.lifted_at is null
            and left_alone.identifier_hash = {{ keyed_hash(org, "'id'", visitor) }}
    )
)
{%- endmacro %}


{# Nobody who is suppressed for one of the purposes, an array. people: of audience_customers. #}
{% macro is_left_alone(people, purposes) -%}
exists (
    select from {{ state_schema() }}.suppressed_visitors as left_alone
    where left_alone.org_id = {{ people }}.org_id and left_alone.visitor_id = {{ people }}.visitor_id and left_alone.purpose = any({{ purposes }})
)
{%- endmacro %}

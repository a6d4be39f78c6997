{# Who may read what. Roles belong to the cluster; whose orgs a login may read is state; what a role may do with a model, a
   seed or a function is its config `grants`. More: docs/security.md #}

{% macro group_roles() %}{{ return(['audience_owner', 'audience_reader', 'audience_analyst', 'audience_admin']) }}{% endmacro %}


{# Makes the group roles where they are missing. They are of the cluster: another database's run may make them meanwhile. #}
{% macro ensure_roles_sql() %}
do $roles$
declare
    group_role text;
begin
    if exists (select from pg_auth_members where roleid = to_regrole('audience_reader') and member = to_regrole('audience_analyst'))
        and exists (select from pg_auth_members where roleid = to_regrole('audience_analyst') and member = to_regrole('audience_admin'))
        and exists (select from pg_roles where oid = to_regrole('audience_owner') and pg_has_role(oid, 'usage')) then
        return;
    end if;
    foreach group_role in array array['{{ group_roles() | join("', '") }}'] loop
        if to_regrole(group_role) is null then
            begin
                execute format('create role %I nologin', group_role);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    grant audience_reader to audience_analyst;
    grant audience_analyst to audience_admin;
    if not pg_has_role('audience_owner', 'usage') then
        execute format('grant audience_owner to %I', current_user);
    end if;
exception when insufficient_privilege then
    raise exception using errcode = 'insufficient_privilege', message = format(
        'The roles {{ group_roles() | join(", ") }} are not all as they should be, and %1$I may not make them so. '
        'An administrator of the server runs: %2$s'
        'grant audience_reader to audience_analyst; grant audience_analyst to audience_admin; grant audience_owner to %1$I; '
        'grant audience_reader, audience_analyst, audience_admin to %1$I with admin option; '
        'Or set the variable roles_are_needed to false: then only its owner reads what is built, until you grant rights by hand.',
        current_user,
        (select string_agg(format('create role %I nologin; ', name), '') from unnest(array['{{ group_roles() | join("', '") }}']) as roles (name) where to_regrole(name) is null)
    );
end $roles$;
commit;
{% endmacro %}


{# Who asks: the role taken on with SET ROLE, as a pool does for each request, else the login. Not current_user, which in a
   function with its owner's rights is the owner. PostgreSQL lets nobody set it to a role that he is not a member of. #}
{% macro who_asks() %}coalesce(nullif(current_setting('role'), 'none'), cast(session_user as text)){% endmacro %}


{# In a function with its owner's rights: may who asks read p_org? The owner may, as everywhere. #}
{% macro may_read_org() -%}
(pg_has_role(cast({{ who_asks() }} as name), current_user, 'usage') or p_org = any({{ state_schema() }}.readable_orgs()))
{%- endmacro %}


{% macro rights_ddl() %}
-- Whose rows a login may read. Lost, everybody reads nothing until it is filled again.
create table if not exists {{ state_schema() }}.org_members (
    login_name text not null,
    org_id text not null,
    added_by text not null default session_user,
    added_at timestamptz not null default now(),
    primary key (login_name, org_id)
);

-- What policies compare with. A function, because who reads a mart may not read the members; in PL/pgSQL, which keeps its plan.
create or replace function {{ state_schema() }}.readable_orgs() returns text[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $orgs$
begin
    return array(select org_id from {{ state_schema() }}.org_members where login_name = {{ who_asks() }});
end $orgs$;

-- By what a policy is known: what it was made of, and how PostgreSQL has it. Kept as its comment, because PostgreSQL spells
-- an expression its own way.
create or replace function {{ state_schema() }}.policy_version(policy oid, readable text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $version$
    select md5(concat_ws('|', readable, polcmd, polpermissive, cast(polroles as text), pg_get_expr(polqual, polrelid)))
    from pg_policy where oid = policy
$version$;

-- Brings the rights on a table, view or function to what is declared, and changes nothing that is right. grants: roles by
-- privilege. Of the group roles it takes away what is not declared; what others were granted by hand stays.
-- is_setting: rows for every org (*) are everybody's.
create or replace function {{ state_schema() }}.secure(schema_name text, object_name text, grants jsonb, is_setting boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $secure$
declare
    found_object record;
    readable text;
    difference record;
    group_roles constant text[] := array['{{ group_roles() | join("', '") }}'];
    -- a role that the cluster does not have, because the project does without
    declared constant jsonb := (
        select coalesce(jsonb_agg(jsonb_build_object('grantee', grantee, 'privilege', lower(privilege))), '[]')
        from jsonb_each(grants) as kinds (privilege, grantees)
        cross join jsonb_array_elements_text(grantees) as roles (grantee)
        where not (grantee = any(group_roles) and to_regrole(quote_ident(grantee)) is null)
    );
begin
    if to_regnamespace(quote_ident(schema_name)) is null then
        return;
    end if;
    for difference in
        select distinct grantee from jsonb_to_recordset(declared) as wanted (grantee text)
        where not has_schema_privilege(grantee, schema_name, 'usage')
    loop
        -- two models at once would update one row of the catalog
        perform pg_advisory_xact_lock(hashtextextended('audience ddl', 42));
        execute format('grant usage on schema %I to %I', schema_name, difference.grantee);
    end loop;

    select * into found_object
    from (
        select 'table' as kind, oid, oid::regclass::text as name, relkind in ('r', 'p') as has_rows, relrowsecurity, relowner as owner,
            coalesce(relacl, acldefault('r', relowner)) as rights
        from pg_class where oid = to_regclass(format('%I.%I', schema_name, object_name))
        union all
        select 'function', oid, oid::regprocedure::text, false, false, proowner, coalesce(proacl, acldefault('f', proowner))
        from pg_proc where pronamespace = to_regnamespace(quote_ident(schema_name)) and proname = object_name
    ) as objects;
    if not found then
        return;
    end if;

    if found_object.has_rows then
        -- a sub-select, so that it is asked once and not for each row; cast, so that it is an array and not rows
        readable := case
            when not exists (select from pg_attribute where attrelid = found_object.oid and attname = 'org_id' and not attisdropped) then 'true'
            when is_setting then 'org_id = any(cast((select array_append({{ state_schema() }}.readable_orgs(), ''*'')) as text[]))'
            else 'org_id = any(cast((select {{ state_schema() }}.readable_orgs()) as text[]))'
        end;
        if readable = 'true' and not is_setting then
            raise exception '% has no org_id by which its rows could be kept from others: give it one, or no grants.', found_object.name;
        end if;
        if not found_object.relrowsecurity then
            execute format('alter table %s enable row level security', found_object.name);
        end if;
        if not exists (
            select from pg_policy
            where polrelid = found_object.oid and polname = 'readers'
                and obj_description(oid, 'pg_policy') = {{ state_schema() }}.policy_version(oid, readable)
        ) then
            execute format('drop policy if exists readers on %s', found_object.name);
            execute format('create policy readers on %s for select using (%s)', found_object.name, readable);
            execute format('comment on policy readers on %s is %L', found_object.name, (
                select {{ state_schema() }}.policy_version(oid, readable) from pg_policy where polrelid = found_object.oid and polname = 'readers'
            ));
        end if;
    end if;

    for difference in
        select grantee, privilege, wanted.is_wanted is not null as is_wanted
        from (
            select *, true as is_wanted from jsonb_to_recordset(declared) as declared_rights (grantee text, privilege text)
        ) as wanted
        full join (
            select cast(pg_get_userbyid(grantee) as text) as grantee, lower(privilege_type) as privilege
            from aclexplode(found_object.rights)
            where grantee <> found_object.owner
        ) as held using (grantee, privilege)
        where held.grantee is null or (wanted.grantee is null and held.grantee = any(group_roles))
    loop
        execute format(case when difference.is_wanted then 'grant %s on %s %s to %I' else 'revoke %s on %s %s from %I' end,
            difference.privilege, found_object.kind, found_object.name, difference.grantee);
    end loop;
end $secure$;
{% endmacro %}


{# Brings the rights on a model, seed or function to its config `grants`; in the transaction that makes it, so that there is
   no moment at which it is everybody's. #}
{% macro secured(node) -%}
{%- set grants = {} -%}
{%- for privilege, grantees in (node.config.get('grants') or {}).items() -%}
    {%- do grants.update({privilege: [grantees] if grantees is string else grantees}) -%}
{%- endfor -%}
{%- if grants -%}
select {{ state_schema() }}.secure('{{ node.schema }}', '{{ node.alias }}', cast('{{ tojson(grants) }}' as jsonb), {{ 'true' if node.resource_type == 'seed' else 'false' }});
{%- endif -%}
{%- endmacro %}


{# At the start of a run: what is there already, of an older release, or before there were roles. #}
{% macro secure_what_is_there() %}
{% set calls = [] %}
{% for node in graph.nodes.values() | list + graph.functions.values() | list if node.resource_type in ('model', 'seed', 'function') %}
    {% do calls.append(secured(node)) %}
{% endfor %}
{% do run_query(calls | join('\n') ~ '\ncommit;') %}
{% endmacro %}

{# At the end of a run: what it made belongs to audience_owner, so that every member of it can go on. What somebody reads for
   longer than a moment is handed over by a later run, so that nobody waits behind it; and functions after all that they may
   read, because some run with the rights of their owner. #}
{% macro hand_over_sql() %}
{%- set schemas = (graph.nodes.values() | list + graph.functions.values() | list) | map(attribute='schema') | unique | list + [state_schema(), var('landing_schema')] -%}
do $hand_over$
declare
    object record;
    is_complete boolean := true;
    new_owner constant oid := (select oid from pg_roles where rolname = 'audience_owner' and pg_has_role(oid, 'usage'));
begin
    perform set_config('lock_timeout', '20ms', true);
    for object in
        with ours as (
            select oid, nspname, nspowner from pg_namespace where nspname in ('{{ schemas | join("', '") }}')
        )
        select place, format('alter %s owner to audience_owner', name) as statement
        from (
            -- first the schemas: in them the new owner has to have the right to create
            select 1 as place, format('schema %I', nspname) as name, nspowner as owner from ours
            union all
            select 2, format(case relkind when 'v' then 'view %I.%I' when 'S' then 'sequence %I.%I' else 'table %I.%I' end, nspname, relname), relowner
            from pg_class join ours on ours.oid = relnamespace
            where relkind in ('r', 'p', 'v', 'S')
                -- the sequence of a column goes with its table
                and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = pg_class.oid and refobjsubid > 0 and deptype in ('a', 'i'))
            union all
            select 3, 'routine ' || cast(cast(pg_proc.oid as regprocedure) as text), proowner
            from pg_proc join ours on ours.oid = pronamespace
        ) as objects
        where owner <> new_owner and pg_has_role(owner, 'usage')
        order by place
    loop
        exit when object.place = 3 and not is_complete;
        begin
            execute object.statement;
        exception when lock_not_available then
            is_complete := false;
        end;
    end loop;
end $hand_over$;
commit;
{% endmacro %}

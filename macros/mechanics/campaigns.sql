{# E-mail campaigns: who was written to, in a log that is committed before and after each message, and the functions with
   the rights of their owner that write it. Recipients are read through the door of exports. More: docs/campaigns.md #}

{% macro campaigns_ddl() %}
{%- set state = state_schema() -%}
{%- set log = state ~ '.segment_export_log' -%}
create table if not exists {{ state }}.campaigns (
    org_id text not null,
    campaign_name text not null constraint campaign_is_named check (campaign_name ~ '\S'),
    segment_name text not null,
    template_sha256 text not null,
    export_id uuid not null unique,
    created_at timestamptz not null default clock_timestamp(),
    started_at timestamptz not null default clock_timestamp(),
    primary key (org_id, campaign_name)
);
comment on table {{ state }}.campaigns is 'One row per org and e-mail campaign.';
comment on column {{ state }}.campaigns.template_sha256 is 'Of its template when the first was written to: all get the same.';
comment on column {{ state }}.campaigns.export_id is 'The export that the last run read its recipients by; started_at is when.';
create table if not exists {{ state }}.campaign_sends (
    org_id text not null,
    campaign_name text not null,
    visitor_id text not null,
    email_hash text not null,
    message_id text not null unique,
    export_id uuid not null,
    status text not null constraint known_status check (status in ('claimed', 'sent', 'deferred', 'failed', 'uncertain', 'bounced', 'suppressed')),
    status_code text constraint code_is_short check (length(status_code) <= 20),
    created_at timestamptz not null default clock_timestamp(),
    status_at timestamptz not null default clock_timestamp(),
    primary key (org_id, campaign_name, email_hash),
    unique (org_id, campaign_name, visitor_id),
    foreign key (org_id, campaign_name) references {{ state }}.campaigns on delete cascade
);
comment on table {{ state }}.campaign_sends is 'One row per org, campaign and person, and per address: what became of the message.';
comment on column {{ state }}.campaign_sends.email_hash is 'Keyed hash of the address, which is not kept.';
comment on column {{ state }}.campaign_sends.message_id is 'What the Message-ID begins with; of a campaign and an address always the same.';
comment on column {{ state }}.campaign_sends.export_id is 'The export that this recipient was read by.';
comment on column {{ state }}.campaign_sends.status is 'claimed: handed to the server, or about to be; sent: it took the message; deferred: not now, a later run tries again; failed: refused for good; uncertain: the process ended in between; bounced: returned later; suppressed: may not be written to.';
comment on column {{ state }}.campaign_sends.status_code is 'The code of the mail server, such as 550 or 5.1.1, and none of its words.';

-- What may be sent to a person by a campaign: ready, suppressed, or what became of it already. Asked again before each message.
create or replace function {{ state }}.send_standing(p_org text, p_campaign text, p_visitor_id text, p_email text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $standing$
declare
    standing text;
begin
    if not ({{ may_read_org() }} and {{ has_role('admin') }}) then
        raise exception using errcode = 'insufficient_privilege', message = 'Campaigns need the role audience_admin: ask an administrator for it.';
    end if;
    -- two look-ups, because or would scan
    select status into standing from {{ state }}.campaign_sends
    where org_id = p_org and campaign_name = p_campaign and visitor_id = p_visitor_id and status <> 'deferred';
    if standing is null then
        select status into standing from {{ state }}.campaign_sends
        where org_id = p_org and campaign_name = p_campaign and email_hash = {{ state }}.email_hash(p_org, p_email) and status <> 'deferred';
    end if;
    return coalesce(standing, case when {{ may_be_mailed('p_org', 'p_visitor_id', 'p_email') }} then 'ready' else 'suppressed' end);
end $standing$;

create or replace function {{ state }}.email_hash(p_org text, p_email text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $hash$
begin
    return (select {{ keyed_hash('p_org', "'email'", 'p_email') }} from {{ privacy_key() }} as key);
end $hash$;

-- What a link to unsubscribe carries: org and address, recognised by those who have the key alone, and which nobody else can make.
create or replace function {{ state }}.unsubscribe_token(p_org text, p_email_hash text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $token$
begin
    return encode(convert_to(p_org, 'UTF8'), 'hex') || '.' || p_email_hash || '.' || (
        select left({{ keyed_hash('p_org', "'unsubscribe'", 'p_email_hash') }}, 32) from {{ privacy_key() }} as key
    );
end $token$;

-- Begins a run of a campaign, or another one, by an export that was read; returns the export of the run before. One
-- process at a time has a campaign: it holds a lock of the session, which a killed one loses within moments. So what is
-- still claimed is of a process that is gone, and nobody knows whether the server took the message.
create or replace function {{ state }}.open_campaign(p_export_id uuid, p_campaign text, p_template_sha256 text) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $open$
declare
    request constant {{ log }} := {{ state }}.own_export(p_export_id);
    p_org constant text := request.org_id;
    before {{ state }}.campaigns;
begin
    if request.outcome <> 'completed' or request.format <> 'email' or not ({{ may_read_org() }} and {{ has_role('admin') }}) then
        raise exception using errcode = 'insufficient_privilege', message = format('Export %s is not open to a campaign of yours: ask for a new one.', p_export_id);
    end if;
    perform pg_advisory_lock({{ campaign_lock_key('p_org', 'p_campaign') }});
    select * into before from {{ state }}.campaigns where org_id = p_org and campaign_name = p_campaign;
    if not exists (select from {{ state }}.campaign_sends where org_id = p_org and campaign_name = p_campaign) then
        null;  -- nobody got anything yet
    elsif before.segment_name <> request.segment_name then
        raise exception using errcode = 'invalid_parameter_value', message = format('Campaign %L goes to segment %L: name that one, or give another campaign a name of its own.', p_campaign, before.segment_name);
    elsif before.template_sha256 <> p_template_sha256 then
        raise exception using errcode = 'invalid_parameter_value', message = format('The template of campaign %L is not the one that others got: put that back, or give a campaign with this one another name.', p_campaign);
    end if;
    insert into {{ state }}.campaigns (org_id, campaign_name, segment_name, template_sha256, export_id)
    values (p_org, p_campaign, request.segment_name, p_template_sha256, p_export_id)
    on conflict (org_id, campaign_name) do update set segment_name = excluded.segment_name, template_sha256 = excluded.template_sha256,
        export_id = excluded.export_id, started_at = excluded.started_at;
    update {{ state }}.campaign_sends set status = 'uncertain', status_at = clock_timestamp()
    where org_id = p_org and campaign_name = p_campaign and status = 'claimed';
    return before.export_id;
end $open$;

-- Claims a person for the message that is sent next; the row is committed before. Returns claimed, once; suppressed; or what
-- became of it already, then without message_id and token.
create or replace function {{ state }}.claim_send(
    p_export_id uuid, p_visitor_id text, p_email text, out standing text, out claimed_message_id text, out token text
) language plpgsql security definer set search_path = pg_catalog, pg_temp as $claim$
declare
    request constant {{ log }} := {{ state }}.own_export(p_export_id);
    campaign {{ state }}.campaigns;
    hash constant text := {{ state }}.email_hash(request.org_id, p_email);
    new_id text;
begin
    select * into campaign from {{ state }}.campaigns where export_id = p_export_id;
    if not found or request.outcome <> 'completed' then
        raise exception using errcode = 'invalid_parameter_value', message = format('Export %s is of no campaign that is being sent: begin a run.', p_export_id);
    end if;
    standing := {{ state }}.send_standing(campaign.org_id, campaign.campaign_name, p_visitor_id, p_email);
    if standing not in ('ready', 'suppressed') then
        return;
    end if;
    select left({{ keyed_hash('campaign.org_id', "'message'", "cast(jsonb_build_array(campaign.campaign_name, hash) as text)") }}, 32) into new_id
    from {{ privacy_key() }} as key;
    -- of an earlier run that was told to try later; its person may have another address by now
    delete from {{ state }}.campaign_sends
    where org_id = campaign.org_id and campaign_name = campaign.campaign_name and (visitor_id = p_visitor_id or email_hash = hash) and status = 'deferred';
    insert into {{ state }}.campaign_sends (org_id, campaign_name, visitor_id, email_hash, message_id, export_id, status)
    values (campaign.org_id, campaign.campaign_name, p_visitor_id, hash, new_id, p_export_id, case standing when 'ready' then 'claimed' else standing end)
    on conflict do nothing
    returning status, message_id, {{ state }}.unsubscribe_token(org_id, email_hash) into standing, claimed_message_id, token;
end $claim$;

-- Notes what became of a message, unless it cannot become that, and returns what it was before; null: there is none.
create or replace function {{ state }}.record_send(p_message_id text, p_status text, p_code text default null) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $record$
declare
    p_org text;
    before text;
begin
    select org_id, status into p_org, before from {{ state }}.campaign_sends where message_id = p_message_id for update;
    if not ({{ may_read_org() }} and {{ has_role('admin') }}) then
        return null;
    end if;
    if (before, p_status) in (
        ('claimed', 'sent'), ('claimed', 'deferred'), ('claimed', 'failed'), ('claimed', 'uncertain'),
        ('uncertain', 'sent'), ('uncertain', 'deferred'), ('uncertain', 'bounced'), ('sent', 'bounced')
    ) then
        update {{ state }}.campaign_sends set status = p_status, status_code = p_code, status_at = clock_timestamp() where message_id = p_message_id;
    end if;
    return before;
end $record$;

-- Takes off whoever used the link of a message: nothing is mailed to these addresses of an org any more. A token proves that
-- its link was made here. Returns each token once: unsubscribed, already or invalid.
create or replace function {{ state }}.unsubscribe(p_org text, p_tokens text[]) returns table (token text, became text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $unsubscribe$
declare
    found_tokens jsonb;
begin
    if not {{ has_role('admin') }} then
        raise exception using errcode = 'insufficient_privilege', message = 'Taking people off needs the role audience_admin: ask an administrator for it.';
    end if;
    select jsonb_agg(jsonb_build_object('token', given.token, 'kind', 'email', 'hash', split_part(given.token, '.', 2), 'became', case
        when not {{ may_read_org() }} or given.token <> {{ state }}.unsubscribe_token(p_org, split_part(given.token, '.', 2)) then 'invalid'
        when exists (
            select from {{ state }}.suppressions as known
            where known.org_id = p_org and known.identifier_kind = 'email' and known.identifier_hash = split_part(given.token, '.', 2)
                and known.purpose in ('all', 'email') and known.lifted_at is null
        ) then 'already'
        else 'unsubscribed'
    end)) into found_tokens
    from (select distinct unnest(p_tokens) as token) as given;
    if jsonb_path_exists(found_tokens, '$[*].became ? (@ == "unsubscribed")') then
        perform {{ state }}.suppress(p_org, jsonb_path_query_array(found_tokens, '$[*] ? (@.became == "unsubscribed")'), 'email', 'unsubscribed by the link in a message');
    end if;
    return query select each.token, each.became from jsonb_to_recordset(found_tokens) as each (token text, became text);
end $unsubscribe$;

{% for signature in ['send_standing(text, text, text, text)', 'email_hash(text, text)', 'unsubscribe_token(text, text)', 'open_campaign(uuid, text, text)',
    'claim_send(uuid, text, text)', 'record_send(text, text, text)', 'unsubscribe(text, text[])'] %}
revoke all on function {{ state }}.{{ signature }} from public;
{% endfor %}
{% endmacro %}


{# May this person be written to now: said yes, did not say no, also not as another visitor who gave the address, and is not to
   be left alone. By md5, as customer_contacts is indexed: an address may be longer than an index takes. #}
{% macro may_be_mailed(org, visitor, email) -%}
exists (
    select from {{ target.schema }}.audience_customers as people
    where people.org_id = {{ org }} and people.visitor_id = {{ visitor }} and people.is_consented and people.is_opted_out is not true
) and not exists (
    select from {{ target.schema }}_contacts.customer_contacts as contacts
    join {{ target.schema }}.audience_customers as people on people.org_id = contacts.org_id and people.visitor_id = contacts.visitor_id
    where contacts.org_id = {{ org }} and md5(contacts.email) = md5(lower(btrim({{ email }}))) and people.is_opted_out
) and not {{ state_schema() }}.is_suppressed({{ org }}, {{ visitor }}, {{ email }}, 'email')
{%- endmacro %}


{% macro campaign_lock_key(org, campaign) %}hashtextextended('audience campaign ' || cast(jsonb_build_array({{ org }}, {{ campaign }}) as text), 42){% endmacro %}


{# Brings the rights on campaigns to what they should be; writes nothing when they are. #}
{% macro secure_campaigns_sql() %}
{%- set state = state_schema() -%}
do $rights$
begin
    {% for name in ['campaigns', 'campaign_sends'] %}
    perform {{ state }}.secure('{{ state }}', '{{ name }}', '{"select": ["audience_admin"]}', false);
    {% endfor %}
    {% for name in ['send_standing', 'open_campaign', 'claim_send', 'record_send', 'unsubscribe'] %}
    perform {{ state }}.secure('{{ state }}', '{{ name }}', '{"execute": ["audience_admin"]}', false);
    {% endfor %}
end $rights$;
commit;
{% endmacro %}

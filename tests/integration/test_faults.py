"""Faults: killed anywhere, raced, cut off, read meanwhile. Readers keep the last good state, the next build is right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.build import build_lock
from orchestration.errors import UserError
from orchestration.load import load_files
from orchestration.settings import project_dir
from tests.forks import PATIENCE_SECONDS, Fork, Forks, forks
from tests.projects import AS_OF, RARE, Project, shuffled_sample

REFUSED = "Another build of schema audience is running: wait"
VARIABLES = f'{{"as_of": "{AS_OF}"}}'
BUILD_UNTESTED = ("build", "--exclude-resource-type", "unit_test", "test")
# The sample in pieces: those of the first build, and those that land between faults.
FIRST_FILES, FILES, LAST_FILES = 20, 100, 30
FIRST_KILLED = ("seed channel_rules", "view stg_events", "int_events_enriched", "int_visits", "audience_customers")
# Which kills of the long chain hit `audience build` instead of a forked dbt.
AUDIENCE_KILLS = (4, 12)

# The models, seeds and views of a dbt that wait for this connection to end.
STOPPED = """
select substring(query from '"node_id": "[^."]+[.][^."]+[.]([^."]+)"') from pg_stat_activity
where %s = any(pg_blocking_pids(pid)) and application_name = 'dbt audience'
"""
# Counts the written rows of transactions that were rolled back, too: a sequence does not go back.
WITNESS = """
create schema witness;
create function witness.count_row() returns trigger language plpgsql as $$
begin perform nextval('witness.' || tg_table_name); return null; end $$;
"""
# As much as a server says when its disk is full, in the middle of a statement.
FULL_DISK = """
create schema fault;
create sequence fault.room;
create function fault.fill() returns trigger language plpgsql as $$
begin
    if nextval('fault.room') > 3 then
        raise exception 'could not extend file: No space left on device' using errcode = 'disk_full';
    end if;
    return new;
end $$;
create trigger fill before insert or update on {} for each row execute function fault.fill();
"""
READ_MARTS = (
    "select count(*), sum(net_revenue_amount), sum(sessions_count) from audience.audience_overview_daily",
    "select count(*), sum(net_revenue_amount), sum(sessions_count) from audience.audience_by_channel_daily",
    "select count(*), sum(net_revenue_amount), sum(sessions_count) from bi.customers",
)


@dataclass
class Night(Project):
    """A project whose sample lands piece by piece, and that is built by forked dbts or by `audience build`."""

    forks: Forks | None = None
    files: list[Path] = field(default_factory=list)
    rebuilt_from: object = None

    def land(self, count: int = 1) -> None:
        landing, self.files = self.files[:count], self.files[count:]
        assert landing, "the sample is used up: deal it into more files"
        load_files(landing)

    def start(self, *arguments: str) -> Fork:
        return self.forks.start(*arguments)

    def run(self, *arguments: str) -> None:
        self.forks.run(*(arguments or ("run",)))

    def models(self) -> set[str]:
        """The maintained models: those that have a table."""
        return {table for _, table in self.tables("audience").values()}

    def rebuild(self) -> str:
        """As in Project, made anew only when something landed since the last one."""
        landed = self.connection.execute(
            "select max(landed_xid::text::bigint), count(*), (select count(*) from analytics.events_removed)"
            " from analytics.events"
        ).fetchone()
        if self.rebuilt_from != landed:
            self.drop("^rebuilt(_|$)")
            self.forks.run(*BUILD_UNTESTED, schema="rebuilt")
            self.rebuilt_from = landed
        return "rebuilt"

    def drop(self, pattern: str) -> None:
        query = "select nspname from pg_namespace where nspname ~ %s"
        for (schema,) in self.connection.execute(query, [pattern]).fetchall():
            self.connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))

    def content(self) -> dict[str, object]:
        """Of each model what a commit would change: its rows, and the record of what it consumed."""
        found: dict[str, object] = {}
        for namespace, table in self.tables("audience").values():
            rows = sql.SQL("select count(*), sum(hashtextextended(t::text, 0)) from {} as t")
            found[table] = self.connection.execute(rows.format(sql.Identifier(namespace, table))).fetchone()
        states = self.connection.execute("select model, s::text, s.xmin::text from audience_state.model_state as s")
        for model, *state in states:
            found["state of " + model] = state
        return found

    def wait_until_nobody_builds(self) -> None:
        """Waits for what killed processes left on the server: it goes by itself, without any help."""
        query = "select 1 from pg_stat_activity where application_name in ('dbt audience', 'audience build')"
        wait_for(lambda: not self.connection.execute(query).fetchone())


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


class Hold:
    """Keeps models from recording what they consumed: a model stops with everything written and nothing committed."""

    def __init__(self, models: Iterable[str]) -> None:
        self.connection, self.watch = database.connect(), database.connect(autocommit=True)
        for model in sorted(models):
            # the row that the model is going to write, whether it is there yet or not
            self.connection.execute(
                "insert into audience_state.model_state (model, fingerprint, positions, as_of, built_at)"
                " values (%s, '', '{}', now(), now()) on conflict (model) do update set model = excluded.model",
                [model],
            )

    def stopped(self) -> set[str]:
        return {name for (name,) in self.watch.execute(STOPPED, [self.connection.info.backend_pid])}

    def wait(self, running: Callable[[], bool]) -> set[str]:
        """What stopped, within the moment that dbt's other threads need; nothing when the run ended before."""
        wait_for(lambda: self.stopped() or not running())
        time.sleep(0.3)
        return self.stopped()

    def release(self) -> None:
        self.connection.close()
        self.watch.close()


@contextmanager
def held(*models: str) -> Iterator[Hold]:
    hold = Hold(models)
    try:
        yield hold
    finally:
        hold.release()


class Audience:
    """`audience build` in a group of processes of its own, which can be killed with its dbt."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "orchestration.cli", "build", "--as-of", AS_OF, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def kill_parent(self) -> None:
        self.process.kill()
        self.process.communicate()

    def wait(self) -> tuple[int, str]:
        """Exit code and output."""
        output, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, output


def typed_dbt(*arguments: str) -> subprocess.Popen[str]:
    """dbt as it is typed by hand."""
    command = dbt.command(*arguments, "--vars", VARIABLES)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_at(night: Night, held_models: Iterable[str], start: Callable[[], Fork | Audience]) -> set[str]:
    """Kills a run where the first of the models stop, and looks for traces of what they had done. Returns these."""
    with held(*held_models) as hold:
        before = night.content()
        run = start()
        stopped = hold.wait(run.running)
        if stopped:
            run.kill()
    if stopped:
        night.wait_until_nobody_builds()
        after = night.content()
        for name in stopped:
            for part in (name, "state of " + name, "state of seed " + name, "state of view " + name):
                assert after.get(part) == before.get(part), "a killed transaction left something"
    return stopped


@pytest.fixture(scope="module")
def night(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A first part of the sample, loaded and built; its first build was killed five times before."""
    folder = tmp_path_factory.mktemp("faults")
    project = project_dir()
    options = ["--quiet", "--project-dir", str(project), "--profiles-dir", str(project / "profiles")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
        patch.setenv("DBT_LOG_PATH", str(folder / "logs"))
        patch.delenv("AUDIENCE_SCHEMA", raising=False)
        files = shuffled_sample(folder, events=2_000, files=FILES)
        with (
            forks(folder, ("rebuilt", "audience"), [*options, "--vars", VARIABLES]) as started,
            database.connect(autocommit=True) as connection,
        ):
            night = Night(connection, forks=started, files=files)
            night.land(FIRST_FILES)
            for model in FIRST_KILLED:
                stopped = kill_at(night, [model], lambda: started.start(*BUILD_UNTESTED))
                assert stopped == {model.split()[-1]}
            night.run(*BUILD_UNTESTED)
            yield night


def test_a_first_build_that_was_killed_is_completed(night):
    night.assert_equals_a_rebuild()


def test_killed_at_every_model_in_turn(night):
    models, connection = night.models(), night.connection
    connection.execute(WITNESS)
    for namespace, table in night.tables("audience").values():
        counter, name = sql.Identifier("witness", table), sql.Identifier(namespace, table)
        connection.execute(sql.SQL("create sequence {}").format(counter))
        connection.execute(
            sql.SQL(
                "create trigger witness after insert or update or delete on {}"
                " for each row execute function witness.count_row()"
            ).format(name)
        )

    def written() -> dict[str, int]:
        query = "select sequencename, coalesce(last_value, 0) from pg_sequences where schemaname = 'witness'"
        return dict(connection.execute(query).fetchall())

    remaining, kills, audience_kills = models - RARE, 0, 0
    while remaining:
        night.land()
        before = written()
        by_audience = kills >= AUDIENCE_KILLS[0] and audience_kills < len(AUDIENCE_KILLS)
        stopped = kill_at(night, remaining, Audience if by_audience else lambda: night.start("run", "--threads", "4"))
        had_written = {name for name in stopped if written()[name] > before[name]}
        remaining -= had_written
        kills += 1
        audience_kills += by_audience and bool(had_written)
        assert night.files[LAST_FILES:], f"never killed with rows written: {remaining}"
    connection.execute("drop schema witness cascade")

    assert audience_kills == len(AUDIENCE_KILLS)
    code, output = Audience().wait()
    assert code == 0, output
    night.assert_equals_a_rebuild()


def test_a_full_refresh_killed_on_its_way_is_completed_by_the_next_build(night):
    for model in ("int_devices", "int_buyer_weeks", "cohort_retention_weekly"):
        night.land()
        assert kill_at(night, [model], lambda: night.start("run", "--full-refresh")) == {model}
    night.run()
    night.assert_equals_a_rebuild()


def test_what_a_killed_dbt_left_on_the_server_is_waited_for(night):
    night.land()
    hold = Hold(["int_orders"])
    run = night.start("run")
    assert hold.wait(run.running)
    run.kill()
    leave = threading.Timer(1, hold.release)
    leave.start()
    with build_lock():
        pass
    leave.join()
    night.run()
    night.assert_equals_a_rebuild()


def test_a_dbt_that_lost_its_audience_build_keeps_further_builds_away_until_it_has_ended(night):
    night.land()
    with held("int_devices") as hold:
        orphaned = Audience("--full-refresh")
        assert hold.wait(orphaned.running) == {"int_devices"}
        orphaned.kill_parent()
        code, output = Audience().wait()
        assert (code, REFUSED in output) == (2, True), output
    begun = night.connection.execute("select clock_timestamp()").fetchone()

    def let_in() -> bool:
        try:
            with build_lock():
                return True
        except UserError:
            return False

    wait_for(let_in)
    unbuilt = night.connection.execute(
        "select count(*) from audience_state.model_state where model = 'cohort_retention_weekly' and built_at < %s",
        begun,
    ).fetchone()
    assert unbuilt == (0,), "a second build was let in before the first one's end"
    night.assert_equals_a_rebuild()


def test_rows_of_a_transaction_left_open_are_taken_after_its_commit(night):
    with database.connect() as slow:
        count = slow.execute(
            "insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at, anonymous_id, user_id,"
            " session_id, url, referrer, user_agent, properties) select 'slow ' || event_id, org_id, event_type,"
            " occurred_at, received_at, anonymous_id, user_id, session_id, url, referrer, user_agent,"
            " properties - 'order_id' from analytics.events where rejection_reason is null order by event_id limit 40"
        ).rowcount
        for options in ((), ("--full-refresh",)):
            night.land()
            night.run("run", *options)
        # an increment leaves what landed after the slow rows for later, a full refresh does not
        night.assert_equals_a_rebuild()
        slow.commit()
    found = "select count(*) from audience_intermediate.int_events_enriched where event_id like 'slow %'"
    assert night.connection.execute(found).fetchone() == (0,)
    night.run()
    assert night.connection.execute(found).fetchone() == (count,)
    night.run()
    night.assert_equals_a_rebuild()


def test_what_lands_during_a_build_waits_for_the_next(night):
    """A repeated delivery that lands after repeated deliveries were sought: nobody may count it, and none may lose it."""
    night.run()
    night.run("run", "--select", "int_repeated_deliveries")
    count = night.connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at, anonymous_id, user_id,"
        " session_id, url, referrer, user_agent, properties) select event_id, org_id, event_type, occurred_at,"
        " received_at - interval '1 second', anonymous_id, user_id, session_id, url, referrer, user_agent, properties"
        " from analytics.events where rejection_reason is null order by event_id limit 20"
    ).rowcount
    night.run("run", "--exclude", "int_repeated_deliveries")
    found = "select count(*) from audience_intermediate.int_events_enriched as e where landing_id in ({})".format(
        "select landing_id from analytics.events order by landing_id desc limit 20"
    )
    assert night.connection.execute(found).fetchone() == (0,)
    night.run()
    assert night.connection.execute(found).fetchone() == (count,)
    night.assert_equals_a_rebuild()


def test_a_reader_that_leaves_its_transaction_open_holds_nobody_up(night):
    tables = [sql.Identifier(*name) for name in night.tables("audience").values()]
    query = "select 1 from pg_stat_activity where %s = any(pg_blocking_pids(pid))"

    def read_all(reader: psycopg.Connection) -> None:
        for table in tables:
            reader.execute(sql.SQL("select t::text from {} as t").format(table)).fetchall()

    with database.connect() as reader:
        read_all(reader)
        for options in ((), ("--full-refresh",)):
            night.land()
            run = night.start("run", *options)
            while run.running():
                waits = night.connection.execute(query, [reader.info.backend_pid]).fetchone()
                assert not waits, "the build waits for a reader"
                time.sleep(0.02)
            assert run.wait() == 0, run.output.read_text()
            read_all(reader)
    night.assert_equals_a_rebuild()


def test_builds_started_at_the_same_moment(night):
    night.land()
    typed = typed_dbt("run")
    builds = [Audience(), Audience()]
    ended = [build.wait() for build in builds]
    typed_output, _ = typed.communicate(timeout=PATIENCE_SECONDS)
    for code, output in ended:
        assert code == 0 or (code == 2 and REFUSED in output), output
    assert typed.returncode == 0 or REFUSED in typed_output, typed_output
    assert 0 in (typed.returncode, *(code for code, _ in ended)), "nobody built"
    assert [code for code, _ in ended].count(0) < 2
    night.assert_equals_a_rebuild()


def test_two_dbts_typed_within_the_same_second(night):
    for options in ((), ("--full-refresh",)):
        night.land()
        runs = [night.start("run"), night.start("run", *options)]
        for run in runs:
            assert run.wait() == 0 or REFUSED in run.output.read_text(), run.output.read_text()
    night.run()
    night.assert_equals_a_rebuild()


def test_a_sum_made_anew_while_what_it_reads_changes_counts_nothing_twice(night):
    """A change is committed after the sum has looked how far it can consume, and before it reads the rows."""
    rows, changes = (sql.Identifier("audience_intermediate", name) for name in ("int_visits", "int_visits__changes"))
    names = night.connection.execute(sql.SQL("select * from {} limit 0").format(changes)).description
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in names[1:-1])
    remove = sql.SQL(
        "with gone as (delete from {0} where ctid = (select min(ctid) from {0}) returning *), kept as ("
        "insert into {1} ({2}, weight) select {2}, -1 from gone) select to_jsonb(gone) from gone"
    ).format(rows, changes, columns)
    put_back = sql.SQL(
        "with back as (insert into {0} select * from jsonb_populate_record(null::{0}, %s) returning *)"
        " insert into {1} ({2}, weight) select {2}, 1 from back"
    ).format(rows, changes, columns)
    removed: list[object] = []

    def build_beside() -> None:
        with database.connect() as builder:
            removed.extend(builder.execute(remove).fetchone())

    query = "select 1 from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    with database.connect() as between:
        between.execute("lock table audience_intermediate.int_orders")
        run = night.start("run", "--full-refresh", "--select", "audience_overview_daily")
        wait_for(lambda: night.connection.execute(query, [between.info.backend_pid]).fetchone())
        beside = threading.Thread(target=build_beside)
        beside.start()
        beside.join(timeout=1)
    beside.join()
    assert run.wait() == 0, run.output.read_text()
    night.run()
    night.connection.execute(put_back, [Jsonb(removed[0])])
    night.run()
    try:
        night.assert_equals_a_rebuild()
    finally:
        night.run("run", "--full-refresh")  # for the tests after this one


def test_the_end_of_a_run_empties_no_changes_that_somebody_has_yet_to_read(night):
    changes = sql.Identifier("audience_intermediate", "int_devices__changes")
    add = sql.SQL("insert into {} ({}org_id, device_id, weight) values ({}'org', 'device', 1)")
    other = "audience_b_intermediate"
    night.connection.execute(
        sql.SQL("create schema {0}; create table {0}.int_devices__changes as select 1 as change_id").format(
            sql.Identifier(other)
        )
    )
    night.connection.execute(add.format(changes, sql.SQL("change_id, "), sql.SQL("1, ")))  # consumed long ago
    with database.connect() as builder:
        builder.execute(add.format(changes, sql.SQL(""), sql.SQL("")))
        run = night.start("run", "--select", "stg_events")
        query = "select 1 from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        wait_for(lambda: not run.running() or night.connection.execute(query, [builder.info.backend_pid]).fetchone())
        builder.commit()
    assert run.wait() == 0, run.output.read_text()
    found = night.connection.execute(sql.SQL("select count(*) from {} where change_id > 1").format(changes)).fetchone()
    assert found == (1,), "changes of a build beside this one were emptied unread"
    found = night.connection.execute(f"select count(*) from {other}.int_devices__changes").fetchone()
    assert found == (1,), "changes of another target schema were emptied"
    night.drop("^audience_b_")
    night.run()
    night.assert_equals_a_rebuild()


def test_readers_see_finished_states_only(night):
    connection = night.connection
    connection.execute("create schema bi; create view bi.customers as select * from audience.audience_customers")
    reads: dict[str, list[object]] = {query: [] for query in READ_MARTS}
    errors: list[Exception] = []
    stop = threading.Event()

    def poll() -> None:
        with database.connect(autocommit=True) as reader:
            while not stop.is_set():
                for query, found in reads.items():
                    try:
                        found.append(reader.execute(query).fetchone())
                    except psycopg.Error as error:
                        errors.append(error)

    def state() -> list[object]:
        return [connection.execute(query).fetchone() for query in READ_MARTS]

    states = [state()]
    thread = threading.Thread(target=poll)
    thread.start()
    try:
        for options in ((), ("--full-refresh",), ()):
            night.land()
            night.run("run", *options)
            states.append(state())
    finally:
        stop.set()
        thread.join()
    assert errors == []
    for number, found in enumerate(reads.values()):
        assert len(found) > 100
        assert set(found) == {state[number] for state in states}
    assert len({tuple(state) for state in states}) == 4
    night.drop("^bi$")


def test_a_build_whose_connection_is_cut_is_red_and_the_next_completes_it(night):
    night.land()
    before = night.content()
    with held("int_orders") as hold:
        build = Audience(
            "--select",
            "int_orders+ int_repeated_deliveries int_consent_events int_events_enriched int_devices int_visits",
        )
        assert hold.wait(build.running) == {"int_orders"}
        cut = night.connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where %s = any(pg_blocking_pids(pid))",
            [hold.connection.info.backend_pid],
        ).fetchall()
        assert cut == [(True,)]
    code, output = build.wait()
    assert code == 1, output
    assert "int_orders: " in output
    assert re.search("terminating connection|server closed the connection", output), output
    assert "the next build completes it" in output
    after = night.content()
    for name in ("int_orders", "audience_overview_daily", "audience_customers"):
        assert after[name] == before[name]
    night.run()
    night.assert_equals_a_rebuild()


def test_a_model_that_the_server_refuses_to_write_on_keeps_its_state(night):
    """Not a full disk, but the same error of the server's, raised by a trigger when some rows are written."""
    model = "audience_customers"
    night.land()
    before = night.content()
    night.connection.execute(sql.SQL(FULL_DISK).format(sql.Identifier("audience", model)))
    run = night.start("run")
    assert run.wait() == 1
    assert "No space left on device" in run.output.read_text()
    after = night.content()
    assert (after[model], after["state of " + model]) == (before[model], before["state of " + model])
    night.drop("^fault$")
    night.run()
    night.assert_equals_a_rebuild()


@pytest.mark.parametrize(
    "schemas",
    ["^audience(_(?!state$).*)?$", "^audience(_.*)?$", "^audience_state$"],
    ids=["all but the state", "everything", "the state"],
)
def test_dropped_schemas_are_built_again(night, schemas):
    states = "select model from audience_state.model_state where model not like 'test %' order by 1"
    before = night.connection.execute(states).fetchall()
    night.land()
    night.drop(schemas)
    night.run(*BUILD_UNTESTED)
    assert night.connection.execute(states).fetchall() == before
    night.land()
    night.run()
    night.assert_equals_a_rebuild()

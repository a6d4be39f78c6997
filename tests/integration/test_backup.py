"""Back up, destroy, restore, build: the state and the marts are what they were."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from orchestration import backup, database, members, segments
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.exports import log, runner
from orchestration.load import load_files
from tests import states
from tests.conftest import _fresh_database
from tests.projects import AS_OF, audience, shuffled_sample

LOGIN = f"restored_reader_{os.getpid()}"
LATER = "2026-07-02T12:00:00+00:00"


def contents(connection: psycopg.Connection) -> dict[str, Counter[tuple[str, ...]]]:
    """Every row of the landing tables and of the state but for what builds had consumed."""
    found = connection.execute(
        "select relnamespace::regnamespace::text, relname from pg_class where relkind = 'r'"
        " and relnamespace::regnamespace::text in ('analytics', 'audience_state') and relname <> 'model_state'"
    ).fetchall()
    return {
        f"{schema}.{table}": Counter(
            connection.execute(sql.SQL("select t::text from {} as t").format(sql.Identifier(schema, table)))
        )
        for schema, table in found
    }


def marts(connection: psycopg.Connection) -> dict[str, Counter[tuple[str, ...]]]:
    return {
        name: Counter(connection.execute(sql.SQL("select t::text from {} as t").format(table)))
        for name, table in states.tables(connection, "audience").items()
    }


class Original:
    """What was backed up, and what it was then."""

    def __init__(self, file: Path, connection: psycopg.Connection) -> None:
        self.file, self.contents, self.marts = file, contents(connection), marts(connection)


@pytest.fixture(scope="module")
def empty(server: dict[str, str]) -> Callable[[], AbstractContextManager[str]]:
    """Makes a database without a table, to which the environment points."""
    return lambda: _fresh_database(server, "template0")


@pytest.fixture(scope="module")
def original(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """A project in use: loaded twice, rows corrected and removed, segments, an export, a member."""
    folder = tmp_path_factory.mktemp("backup")
    with pytest.MonkeyPatch.context() as patch, database.connect(autocommit=True) as connection:
        patch.setenv("AUDIENCE_HOME", str(folder / "home"))
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(LOGIN)))
        try:
            first, *others = shuffled_sample(folder, events=2_000)
            load_files([first])
            build(as_of=AS_OF)
            bad = folder / "bad.ndjson"
            bad.write_text('{"event_id": "bad", "org_id": "o"}\nnot json\n')
            load_files([*others, bad])
            connection.execute("delete from analytics.events where landing_id % 97 = 0")
            connection.execute("update analytics.events set url = url || '#a' where landing_id % 101 = 0")
            members.add(LOGIN, ["north_hall"], "analyst")
            build(as_of=AS_OF)
            with segments.connect() as own:
                segments.sync(own)
                segments.materialize(own)
                runner.export_segment(own, "Champions", "a test\twith \\N and ü", "north_hall")
            backup.back_up(folder / "all.zip")
            yield Original(folder / "all.zip", connection)
        finally:
            connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(LOGIN)))


def test_it_holds_every_table_that_no_build_computes_and_is_nobody_elses(original):
    with zipfile.ZipFile(original.file) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
    places = {"analytics": "landing", "audience_state": "state"}
    expected = {
        f"{places[name.split('.')[0]]}.{name.split('.')[1]}": rows.total() for name, rows in original.contents.items()
    }
    assert {one["table"]: one["rows"] for one in manifest["tables"]} == expected
    filled = {
        "landing.events",
        "landing.events_removed",
        "landing.rejected_rows",
        "state.segment_export_log",
        "state.org_members",
    }
    assert all(expected[name] for name in filled)
    assert original.file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in original.file.parent.glob("*.part")] == []


@pytest.mark.parametrize("cluster", ["same", "another"])
def test_restored_and_built_state_and_marts_are_what_they_were(original, empty, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path))
    with empty():
        if cluster == "another":
            # told by its identifier; its transaction numbers are far behind those of the rows
            monkeypatch.setattr(backup, "_opened", opened_in_another_cluster)
        backup.restore(original.file)
        with database.connect(autocommit=True) as connection:
            found = contents(connection)
            changed = {name for name in found if found[name] != original.contents[name]}
            assert changed == (set() if cluster == "same" else {"analytics.events", "analytics.runner_state"})
            triggers = "select count(*) from pg_trigger where tgenabled = 'D' and not tgisinternal"
            assert connection.execute(triggers).fetchone() == (0,)
            assert log.check(connection).rows == original.contents["audience_state.segment_export_log"].total()

            build(as_of=AS_OF)
            built = marts(connection)
            assert {name for name in built if built[name] != original.marts[name]} == set()
            assert built.keys() == original.marts.keys()
            state = contents(connection)
            moved = {"analytics.runner_state", "analytics.events", "analytics.events_removed", "analytics.rejected_rows", "analytics.user_agents"}  # fmt: skip
            stamped = {"audience_state.audience_segments", "analytics.runner_state"}
            assert {name for name in state if state[name] != original.contents[name]} <= stamped | (
                moved if cluster == "another" else set()
            )
            # what goes on: new rows get new numbers, are taken, and the log is chained on
            connection.execute(
                "insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at, anonymous_id) values"
                " ('after', 'north_hall', 'page_view', '2026-07-01T13:00Z', '2026-07-01T13:00Z', 'after the restore')"
            )
            build(as_of=LATER)
            assert connection.execute(
                "select count(*) from audience.audience_customers where visitor_id = 'after the restore'"
            ).fetchone() == (1,)
            with segments.connect() as own:
                runner.export_segment(own, "Champions", "after", "north_hall")
            assert log.check(connection).rows > original.contents["audience_state.segment_export_log"].total()


def opened_in_another_cluster(file: Path) -> AbstractContextManager[zipfile.ZipFile]:
    """The back-up as if another server had made it, whose transactions were far ahead."""
    changed = file.with_name("another.zip")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(changed, "w") as out:
        columns = {one["table"]: one["columns"] for one in json.loads(archive.read("manifest.json"))["tables"]}
        for name in archive.namelist():
            rows = archive.read(name)
            if name == "landing.runner_state.copy":
                place = columns["landing.runner_state"].index("position")
                rows = b"".join(edited(line, place, lambda _: b"1") for line in rows.splitlines(True))
            if name == "landing.events.copy":
                place = columns["landing.events"].index("landed_xid")
                rows = b"".join(edited(line, place, lambda old: b"%d" % (int(old) + 9_000_000_000)) for line in rows.splitlines(True))  # fmt: skip
            out.writestr(name, rows)
    return zipfile.ZipFile(changed)


def edited(line: bytes, place: int, edit: Callable[[bytes], bytes]) -> bytes:
    fields = line.rstrip(b"\n").split(b"\t")
    fields[place] = edit(fields[place])
    return b"\t".join(fields) + b"\n"


def test_a_database_that_is_not_empty_is_refused_and_stays(original, module_database):
    with database.connect(autocommit=True) as connection:
        before = contents(connection)
        with pytest.raises(UserError, match=r"is not empty, landing\.events has rows: nothing was changed"):
            backup.restore(original.file)
        assert contents(connection) == before


@pytest.mark.parametrize("damage", ["cut", "a byte", "not ours", "no zip", "gone"])
def test_what_is_no_whole_back_up_is_refused_and_nothing_is_restored(original, empty, damage, tmp_path):
    file = tmp_path / "damaged.zip"
    data = bytearray(original.file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "a byte":
        data[len(data) // 3] ^= 0xFF
        file.write_bytes(data)
    elif damage == "not ours":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("holiday.txt", "sun")
    elif damage == "no zip":
        file.write_text("select 1")
    with empty():
        with pytest.raises(UserError, match=r"no whole back-up|was not made by|cannot be read"):
            backup.restore(file)
        with database.connect(autocommit=True) as connection:
            assert not any(rows for name, rows in contents(connection).items() if name.split(".")[1] not in ("runner_state", "privacy_key"))  # fmt: skip


def test_a_back_up_of_a_later_release_is_refused(original, empty, tmp_path):
    file = tmp_path / "later.zip"
    with zipfile.ZipFile(original.file) as archive, zipfile.ZipFile(file, "w") as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name).replace(b'"anonymous_id"', b'"hologram_id"'))
    with empty(), pytest.raises(UserError, match=r"hologram_id of landing\.events, which this release does not know"):
        backup.restore(file)


def test_no_file_is_overwritten_and_none_is_left_half_done(original, module_database, tmp_path, monkeypatch):
    before = original.file.read_bytes()
    refused = audience("backup", "--out", str(original.file))
    assert refused.returncode == 2 and "is there already" in refused.stderr
    assert original.file.read_bytes() == before
    gone = audience("backup", "--out", str(tmp_path / "no" / "folder.zip"))
    assert gone.returncode == 2 and "cannot be written" in gone.stderr
    done = audience("backup", "--out", str(tmp_path / "one.zip"), "--json")
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "one.zip").stat().st_size

    def fails(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_write", fails)
    with pytest.raises(UserError, match="No space left"):
        backup.back_up(tmp_path / "two.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["one.zip"]

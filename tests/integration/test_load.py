"""Loading files: every row is accounted for, and a load can be repeated, reordered or killed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration import database as db
from orchestration import read
from orchestration.errors import UserError
from orchestration.load import LoadReport, load_files, parse_new_user_agents

pytestmark = pytest.mark.usefixtures("database")

CONTENT = (
    "event_id, org_id, event_type, occurred_at, received_at, anonymous_id, user_id, session_id, url, referrer,"
    " user_agent, properties::text"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"


def event(event_id: str | None = "e1", **values: Any) -> dict[str, Any]:
    row = {
        "event_id": event_id, "org_id": "org", "event_type": "page_view", "occurred_at": "2025-07-01T10:00:00Z",
        "received_at": "2025-07-01T10:00:01Z", "anonymous_id": "device", "user_agent": FIREFOX, "properties": {"a": 1},
    } | values  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def lines(path: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    encoded = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in encoded) + b"\n")
    return path


def query(statement: str) -> list[tuple]:
    with db.connect(autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def everything() -> list[list[tuple]]:
    """Every column of every row of the tables that a repeated load must not change."""
    tables = ("events", "rejected_rows", "user_agents", "events_removed")
    return [query(f"select t::text, xmin::text, ctid::text from analytics.{table} as t order by 1") for table in tables]


def counts(report: LoadReport) -> tuple[int, int, int, int]:
    assert report.received == report.accepted + report.rejected + report.duplicate
    assert sum(report.rejected_reasons.values()) == report.rejected
    columns = "received_count, accepted_count, rejected_count, duplicate_count"
    stored = query(
        f"select {columns} from analytics.loads where load_id = {report.load_id} and finished_at > started_at"
    )
    assert stored == [(report.received, report.accepted, report.rejected, report.duplicate)]
    return stored[0]


LONG = "x" * 600
BAD_ROWS: list[tuple[str, dict[str, Any] | str | bytes]] = [
    ("invalid_json", '{"event_id": "broken", '),
    ("invalid_json", '{"event_id": "nan", "org_id": "org", "properties": {"revenue": NaN}}'),
    ("invalid_json", b'{"event_id": "raw \0 nul", "org_id": "org"}'),
    ("not_an_object", "[1, 2]"),
    ("not_an_object", "null"),
    ("invalid_utf8", b'{"event_id": "\xff\xfe", "org_id": "org"}'),
    ("invalid_utf8", r'{"event_id": "\ud800", "org_id": "org"}'),
    ("nul_character", event("nul\0id")),
    ("nul_character", event("nul property", properties={"nested": [{"a": "x\0y"}]})),
    ("missing_org", event(org_id=None)),
    ("missing_org", event(org_id="  ")),
    ("missing_event_type", event(event_type="")),
    ("missing_time", event(occurred_at=None)),
    *(
        ("unparsable_time", event(occurred_at=moment))
        for moment in (
            1751364000000, "1751364000000", 1751364000.5, "now", "infinity", "-infinity", "0044-03-15 BC", "yesterday",
            "2025-02-30T00:00:00Z", "20250701T100000Z", "2025-W99-2T10:00:00Z", "2025-07-01x10:00:00Z",
            "0001-01-01T00:00:00+10:00", True, {},
        )
    ),
    ("unparsable_time", event(received_at="soon")),
    ("time_too_early", event(occurred_at="1970-01-01T00:00:00Z")),
    ("time_too_early", event(occurred_at="0001-01-01T00:00:00Z")),
    ("time_in_future", event(occurred_at="2090-01-01T00:00:00Z")),
    ("time_in_future", event(occurred_at="9999-12-31T23:59:59Z")),
    ("time_in_future", event(occurred_at="2090-01-01T00:00:00Z", received_at=None)),
    ("identifier_too_long", event(user_id=LONG)),
    ("text_expected", event(user_id={"id": 1})),
    ("text_expected", event(url=["https://example.com"])),
    ("properties_not_an_object", event(properties=[1])),
    ("properties_not_an_object", event(properties="text")),
    ("properties_too_large", event(properties={"a": "x" * 65_536})),
    ("negative_revenue", event(properties={"revenue": -1})),
    ("negative_revenue", event(properties={"revenue": "-0.01"})),
    ("invalid_revenue", event(properties={"revenue": "free"})),
    ("invalid_revenue", event(properties={"revenue": "Infinity"})),
    ("invalid_revenue", event(properties={"revenue": 1e300})),
    ("invalid_revenue", event(properties={"revenue": True})),
]  # fmt: skip


def test_each_bad_row_is_kept_with_its_reason_and_the_others_go_in(tmp_path):
    rows: list[Any] = []
    for number, (_, bad) in enumerate(BAD_ROWS):
        rows += [event(f"good {number}"), bad]
    path = lines(tmp_path / "mixed.ndjson", *rows)
    report = load_files([path])
    assert counts(report) == (2 * len(BAD_ROWS), len(BAD_ROWS), len(BAD_ROWS), 0)
    kept = query("select line_number, rejection_reason, raw_row, file_name from analytics.rejected_rows order by 1")
    assert [(line, reason) for line, reason, _, _ in kept] == [
        (2 * number + 2, reason) for number, (reason, _) in enumerate(BAD_ROWS)
    ]
    assert {name for *_, name in kept} == {str(path)}
    for (_, bad), (_, _, raw, _) in zip(BAD_ROWS, kept, strict=True):
        if isinstance(bad, dict):
            assert json.loads(raw) == bad
        elif isinstance(bad, str):
            assert raw == bad
    assert r'"\xff\xfe"' in kept[5][2] and r"raw \u0000 nul" in kept[2][2]
    assert query("select count(*) from analytics.events where rejection_reason is not null") == [(0,)]
    before = everything()
    assert counts(load_files([path])) == (2 * len(BAD_ROWS), 0, len(BAD_ROWS), len(BAD_ROWS))
    assert everything() == before


def test_the_rule_of_the_landing_table_has_the_last_word(tmp_path, monkeypatch):
    rows = [event("a"), event("b", properties={"revenue": -1}), event("c", org_id=None), event("d")]
    path = lines(tmp_path / "a.ndjson", *rows)
    monkeypatch.setattr(read._Typing, "_is_plain", lambda *_: True)
    report = load_files([path])
    assert counts(report) == (4, 2, 2, 0)
    assert report.rejected_reasons == {"negative_revenue": 1, "missing_org": 1}
    kept = query("select file_name, raw_row::jsonb -> 'event_id', org_id from analytics.rejected_rows order by 2")
    assert kept == [(str(path), "b", "org"), (str(path), "c", None)]
    assert query("select event_id from analytics.events order by 1") == [("a",), ("d",)]
    assert query("select * from analytics.events_removed") == []
    before = everything()
    assert counts(load_files([path])) == (4, 0, 2, 2)
    assert everything() == before


def test_a_corrected_row_is_accepted(tmp_path):
    assert load_files([lines(tmp_path / "a.ndjson", event(occurred_at=1))]).rejected == 1
    assert counts(load_files([lines(tmp_path / "b.ndjson", event())])) == (1, 1, 0, 0)


def test_a_very_long_line_is_one_rejected_row(tmp_path):
    path = lines(tmp_path / "long.ndjson", event("a"), event("b", properties={"a": "x" * 20_000_000}), event("c"))
    report = load_files([path])
    assert counts(report) == (3, 2, 1, 0) and report.rejected_reasons == {"properties_too_large": 1}
    assert query("select length(raw_row) > 20000000 from analytics.rejected_rows") == [(True,)]


def test_a_line_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "LINE_MAX_BYTES", 1000)
    monkeypatch.setattr(read, "READ_BYTES", 500)
    path = lines(tmp_path / "long.ndjson", event("a"), event("b", url="x" * 5000), event("c"))
    report = load_files([path])
    assert counts(report) == (3, 2, 1, 0) and report.rejected_reasons == {"line_too_long": 1}


def test_good_values_arrive_as_they_are(tmp_path):
    odd = 'tab\t quote" back\\slash \\u0000 line\nend\r \\. \\N ünï €'
    lines(
        tmp_path / "values.ndjson",
        event("revenue", properties={"revenue": "12.50"}),
        event(odd, url=odd, properties={"odd": odd, "list": [1, None, {"x": 0.1}], odd: True}),
        event(
            None,
            anonymous_id=12,
            user_id=0,
            session_id=12345678901234567890123,
            received_at=None,
            nested={"b": [1]},
        ),
        '{"event_id":"o","org_id":"org","event_type":"purchase","occurred_at":"2025-07-01",'
        '"properties":{"order_id":9007199254740993123456,"x":1.5}}',
        event("zones", occurred_at="2025-07-01T23:30:00.123456789+20:30", received_at="2025-07-01 10:00"),
        "",
    )
    report = load_files([tmp_path])
    assert counts(report) == (5, 5, 0, 0)
    assert report.repaired == {
        "event_id_from_content": 1, "received_at_from_load": 2, "text_from_number": 2, "utc_assumed": 2,
    }  # fmt: skip
    found = {row[0]: row for row in query(f"select {CONTENT} from analytics.events")}
    assert found[odd][8] == odd
    assert json.loads(found[odd][-1]) == {"odd": odd, "list": [1, None, {"x": 0.1}], odd: True}
    assert json.loads(found["revenue"][-1]) == {"revenue": "12.50"}
    assert json.loads(found["o"][-1]) == {"order_id": "9007199254740993123456", "x": 1.5}
    assert found["zones"][3].isoformat() == "2025-07-01T03:00:00.123456+00:00"
    (numbers,) = [row for row in found.values() if row[5] == "12"]
    assert numbers[6:8] == ("0", "12345678901234567890123") and json.loads(numbers[-1]) == {
        "a": 1,
        "nested": {"b": [1]},
    }


def test_a_row_without_event_id_has_one_id_whichever_way_it_comes(tmp_path):
    row = event(None, url="https://example.com/?a=b", properties={"b": 1.50, "a": None})
    load_files([lines(tmp_path / "a.ndjson", row)])
    with db.connect() as connection:
        connection.execute(
            "insert into analytics.events (org_id, event_type, occurred_at, anonymous_id, url, user_agent, properties)"
            " values (%(org_id)s, %(event_type)s, %(occurred_at)s, %(anonymous_id)s, %(url)s, %(user_agent)s, %(p)s)",
            row | {"p": json.dumps(row["properties"])},
        )
    assert query("select count(*), count(distinct event_id) from analytics.events") == [(2, 1)]


def test_an_impossible_time_of_receipt_is_the_time_of_the_load(tmp_path):
    path = lines(tmp_path / "a.ndjson", event("a", received_at="1970-01-01T00:00:00Z"), event("a"))
    report = load_files([path])
    assert counts(report) == (2, 1, 0, 1) and report.repaired == {"received_at_from_load": 1}
    assert query("select count(*) from analytics.events where received_at > '2025-07-02'") == [(1,)]
    before = everything()
    assert load_files([path]).duplicate == 2
    assert everything() == before


def test_missing_values_do_not_change_places_in_a_made_id(tmp_path):
    rows = [event(None, anonymous_id="x", user_id=None), event(None, anonymous_id=None, user_id="x")]
    assert load_files([lines(tmp_path / "a.ndjson", *rows)]).accepted == 2
    assert query("select count(distinct event_id) from analytics.events") == [(2,)]


def test_the_same_file_twice_changes_nothing(tmp_path):
    moments = [None if i % 3 else f"2025-07-02T00:00:{i % 50:02}Z" for i in range(300)]
    rows = [event(f"e{i % 90}", properties={"n": i % 95}, received_at=moments[i]) for i in range(300)]
    rows += [event(None, received_at=None, url=str(i % 20)) for i in range(60)]
    path = lines(tmp_path / "a.ndjson", *rows)
    assert load_files([path]).accepted == 90 + 20
    before = everything()
    again = load_files([path, path])
    assert counts(again) == (720, 0, 0, 720)
    assert everything() == before


def test_repeats_of_an_event_count_as_duplicates(tmp_path):
    path = lines(
        tmp_path / "a.ndjson",
        event("e"),
        event("e"),
        event("e", received_at="2025-07-01T09:00:00Z"),
        event("e", received_at=None),
        event("e", properties={"a": 2}),
        event("e", org_id="other"),
    )
    assert counts(load_files([path])) == (6, 2, 0, 4)
    assert query("select count(*) from analytics.events") == [(4,)]
    again = lines(tmp_path / "b.ndjson", event("e", user_id="u"), event("e"))
    assert counts(load_files([again])) == (2, 0, 0, 2)
    assert query("select count(*) from analytics.events") == [(5,)]


def test_order_and_batches_do_not_matter(tmp_path, monkeypatch):
    deliveries = [event("e", received_at=f"2025-07-01T1{hour}:00:00Z") for hour in (1, 2, 3)] + [event("e", url="x")]
    found = []
    for order in list(permutations(deliveries))[::6]:
        for rows_per_block in (1, 3, 100):
            monkeypatch.setattr(read, "BLOCK_ROWS", rows_per_block)
            report = load_files([lines(tmp_path / "a.ndjson", *order, order[1])])
            assert counts(report) == (5, 1, 0, 4)
            found.append(query(f"select {CONTENT} from analytics.events order by received_at"))
            with db.connect() as connection:
                connection.execute("truncate analytics.events")
    assert len(found[0]) == 4 and all(table == found[0] for table in found)


def as_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, "properties": json.dumps(row.get("properties"))} for row in rows)
    return path


def test_csv_with_quoted_lines_unknown_columns_and_bad_rows(tmp_path):
    columns = [*event(), "url", "revenue", "utm_source"]
    rows = [
        event("a", url='two\nlines, "quoted"', revenue="12.50"),
        event("b", utm_source="x"),
        event("c", revenue="-1"),
    ]
    path = as_csv(tmp_path / "events.csv", rows, columns)
    with open(path, "ab") as file:
        file.write(b'd,org,t,2025-07-01,,dev,ua,"not json",,,\r\n')
        file.write(b"e,org,t,2025-07-01,,d\xff,ua,,,,\r\n")
        file.write(b"f,org,t\r\n")
        file.write(b"g,org,t,2025-07-01,,d\0,ua,,,,\r\n")
        file.write(b"h,org,t,2025-07-01,,dev,ua,,,,\r\n")
    report = load_files([path])
    assert counts(report) == (8, 3, 5, 0)
    assert report.rejected_reasons == dict.fromkeys(
        [
            "properties_not_an_object",
            "invalid_utf8",
            "wrong_column_count",
            "nul_character",
            "negative_revenue",
        ],
        1,
    )
    found = query("select event_id, url, properties from analytics.events order by 1")
    assert found[0] == ("a", 'two\nlines, "quoted"', {"a": 1, "revenue": "12.50"})
    assert found[1:] == [("b", None, {"a": 1, "utm_source": "x"}), ("h", None, {})]
    before = everything()
    packed = path.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert counts(load_files([packed])) == (8, 0, 5, 3)
    assert everything() == before


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("a", pa.int64()), ("revenue", pa.float64())]),
        pa.map_(pa.string(), pa.int64()),
        pa.string(),
    ],
    ids=["struct", "map", "text"],
)
def test_parquet_properties(tmp_path, kind):
    properties = {"a": 1} if not pa.types.is_string(kind) else '{"a": 1}'
    moments = pa.array([1751364000123456, None, 0], pa.timestamp("us", "UTC"))
    table = pa.table({
        "event_id": ["a", "b", "c"], "org_id": ["org"] * 3, "event_type": ["t"] * 3, "occurred_at": moments,
        "anonymous_id": pa.array([1, 2, 3], pa.int32()), "plan": ["gold", None, None],
        "properties": pa.array([list(properties.items()) if pa.types.is_map(kind) else properties] * 3, kind),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "events.parquet")
    report = load_files([tmp_path / "events.parquet"])
    assert counts(report) == (3, 1, 2, 0)
    assert report.rejected_reasons == {"missing_time": 1, "time_too_early": 1}
    (row,) = query("select event_id, occurred_at, anonymous_id, properties from analytics.events")
    assert (row[0], row[1].isoformat(), row[2], row[3]) == (
        "a", "2025-07-01T10:00:00.123456+00:00", "1", {"a": 1, "plan": "gold"},
    )  # fmt: skip
    before = everything()
    assert load_files([tmp_path / "events.parquet"]).duplicate == 1
    assert everything() == before


def test_parquet_numbers_that_json_does_not_have(tmp_path):
    table = {**{name: [value] * 2 for name, value in event().items()}, "event_id": ["a", "b"]}
    table |= {"properties": [None, None], "revenue": [float("nan"), float("inf")]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert load_files([tmp_path / "a.parquet"]).rejected_reasons == {"invalid_revenue": 2}


def test_formats_agree(tmp_path):
    rows = [event(f"e{i}", properties={"n": i, "s": f"{i}"}, user_id=f"u{i}" if i % 2 else None) for i in range(50)]
    columns = [*event(), "user_id"]
    as_csv(tmp_path / "a.csv", rows, columns)
    texts = [{**{name: row.get(name) for name in columns}, "properties": json.dumps(row["properties"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "a.parquet")
    lines(tmp_path / "a.jsonl", *rows)
    (tmp_path / "packed.JSON.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert counts(load_files([tmp_path])) == (200, 50, 0, 150)
    assert query("select count(*) from analytics.events") == [(50,)]


def test_empty_files_are_no_rows(tmp_path):
    for name in ("a.ndjson", "b.csv", "c.ndjson.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert counts(load_files([tmp_path])) == (0, 0, 0, 0)


def unreadable(folder: Path) -> dict[str, list[Path]]:
    (folder / "empty").mkdir()
    packed = gzip.compress(
        b"\n".join(json.dumps(event(f"{i}", url=os.urandom(20).hex())).encode() for i in range(3000))
    )
    good = lines(folder / "good.ndjson", event("good"))
    bad = {
        "array.json": b'[{"event_id": 1}]',
        "cut.ndjson.gz": packed[: len(packed) - 2000],
        "flipped.ndjson.gz": packed[:60_000] + b"\0\0\0\0" + packed[60_004:],
        "few.csv": b"a,b\n1,2\n",
        "quote.csv": b"org_id,event_type,occurred_at\n" + b'"' + b"x" * 2000,
        "twice.csv": b"org_id,event_type,occurred_at,org_id\n",
        "text.parquet": b"no parquet",
        "strange.bin": b"\x7fELF\0\0",
        "utf16.csv": "org_id".encode("utf-16"),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"a": [1]}), folder / "columns.parquet")
    return {name: [good, folder / name] for name in [*bad, "columns.parquet", "missing.csv", "empty"]} | {"none": []}


def test_files_that_cannot_be_loaded_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "LINE_MAX_BYTES", 1000)
    for ahead in (read.AHEAD_MIN_BYTES, 0):
        monkeypatch.setattr(read, "AHEAD_MIN_BYTES", ahead)
        for name, paths in unreadable(tmp_path).items() if ahead else [("cut", [tmp_path / "cut.ndjson.gz"])]:
            with pytest.raises(UserError) as error:
                load_files(paths)
            assert not paths or str(paths[-1]) in str(error.value), name
    assert all(not table for table in everything()) and query("select from analytics.loads") == []


def test_a_reading_process_gives_the_same(tmp_path, monkeypatch):
    rows = [event(f"e{i}", url="x" * 200, properties={"revenue": -(i % 7)}) for i in range(500)]
    path = lines(tmp_path / "a.ndjson", *rows)
    lines(tmp_path / "b.ndjson", event("last"))
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(read, "AHEAD_MIN_BYTES", 0)
    report = load_files([path, tmp_path / "b.ndjson"], progress=lambda size, count: seen.append((size, count)))
    assert counts(report) == (501, 73, 428, 0)
    assert seen[-1] == (sum(p.stat().st_size for p in tmp_path.iterdir()), 501)
    before = everything()
    monkeypatch.undo()
    assert counts(load_files([path])) == (500, 0, 428, 72)
    assert everything() == before


@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_an_interrupted_load_leaves_nothing(tmp_path, signal):
    path = lines(tmp_path / "a.ndjson", *(event(f"e{i}", url="x" * 300) for i in range(60_000)))
    program = (
        "import os, signal, sys; from pathlib import Path; from orchestration.load import load_files\n"
        # a shell starts what it runs in the background with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"stop = lambda size, rows: os.kill(os.getpid(), signal.{signal})\n"
        "load_files([Path(sys.argv[1])], progress=stop)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=False)
    assert ended.returncode != 0 and b"UserError" not in ended.stderr
    deadline = time.monotonic() + 10
    while query("select from pg_stat_activity where application_name = 'audience load'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(not table for table in everything()) and query("select from analytics.loads") == []


def test_memory_is_flat(tmp_path):
    path = tmp_path / "a.ndjson.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in range(60_000):
            file.write(json.dumps(event(f"e{i}", properties={"text": "x" * 3000})) + "\n")
    program = (
        "import resource, sys; from pathlib import Path; from orchestration.read import Rules, blocks, find_sources\n"
        "rules = Rules('2025-01-01', '1990-01-01', 65536)\n"
        "rows = sum(b.row_count for b in blocks(find_sources([Path(sys.argv[1])]), rules))\n"
        "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    # a process is born with its parent's peak: a shell stands between this one, which may be large, and the measured
    measured = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", program, str(path)]
    rows, peak = subprocess.check_output(measured).split()
    assert int(rows) == 60_000 and int(peak) < 350  # MB, for 200 MB of rows


def test_user_agents_are_parsed_once(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.ndjson", *(event(f"e{i}", user_agent=[FIREFOX, "curl/8.0"][i % 2]) for i in range(4)))
    load_files([path])
    known = query(
        "select user_agent_id = md5(user_agent), user_agent, device_type, os from analytics.user_agents order by 2"
    )
    assert known == [(True, FIREFOX, "desktop", "Linux"), (True, "curl/8.0", known[1][2], known[1][3])]
    with db.connect() as connection:
        connection.execute(
            "insert into analytics.events (org_id, event_type, occurred_at, user_agent) values ('o', 't', now(), 'new')"
        )
        assert parse_new_user_agents(connection) == 1
        assert parse_new_user_agents(connection) == 0
    landed = "select user_agent, landed_xid::text from analytics.user_agents order by 1"
    before = query(landed)
    monkeypatch.setattr("orchestration.user_agents.parser_version", lambda: "another")
    with db.connect() as connection:
        connection.execute("update analytics.user_agents set os = 'wrong' where user_agent = 'new'")
        assert parse_new_user_agents(connection) == 3
    changed = [text for (text, xid), old in zip(query(landed), before, strict=True) if (text, xid) != old]
    assert changed == ["new"]
    assert query("select user_agent from analytics.user_agents where is_reparsed") == [("new",)]
    assert query("select distinct parser_version from analytics.user_agents") == [("another",)]


def test_user_agents_of_slow_transactions_are_not_missed():
    insert = "insert into analytics.events (org_id, event_type, occurred_at, user_agent) values ('o', 't', now(), %s)"
    with db.connect() as slow, db.connect(autocommit=True) as quick, db.connect(autocommit=True) as runner:
        slow.execute(insert, ["slow"])
        quick.execute(insert, ["quick"])
        assert parse_new_user_agents(runner) == 1
        slow.commit()
        quick.execute("delete from analytics.user_agents")
        quick.execute(insert, ["last"])
        assert parse_new_user_agents(runner) == 3
        quick.execute("delete from analytics.user_agents")
        assert parse_new_user_agents(runner) == 0

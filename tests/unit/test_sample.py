"""The sample generator: the same bytes for the same arguments, and every ingredient the demo relies on."""

import csv
import gzip
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import orjson
import pyarrow.parquet as parquet
import pytest

from orchestration.sample import write_sample

EVENTS = 20_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample"), EVENTS, seed=11)


@pytest.fixture(scope="module")
def rows(files):
    return [row for file in files for row in read(file.path)]


@pytest.fixture(scope="module")
def good(rows):
    return [row for row in rows if not is_bad(row)]


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            found = [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]
    elif path.suffix == ".parquet":
        found = parquet.read_table(path).to_pylist()
    else:
        found = [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [parsed(row) for row in found]


def parsed(row: dict) -> dict:
    times = {name: instant(row[name]) for name in ("occurred_at", "received_at")}
    properties = row["properties"]
    return row | times | {"properties": orjson.loads(properties) if isinstance(properties, str) else properties}


def instant(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def is_bad(row: dict) -> bool:
    negative = row["properties"].get("revenue", 0) < 0
    return not row["org_id"] or not row["event_type"] or row["occurred_at"].year == 2090 or negative


def of_type(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["event_type"] == name]


def test_same_arguments_give_the_same_bytes(files, tmp_path):
    again = write_sample(tmp_path, EVENTS, seed=11)
    assert [(f.path.name, f.rows) for f in again] == [(f.path.name, f.rows) for f in files]
    assert all(a.path.read_bytes() == f.path.read_bytes() for a, f in zip(again, files, strict=True))


def test_another_seed_gives_other_events(files, tmp_path):
    other = write_sample(tmp_path, EVENTS, seed=12)
    assert other[-1].path.read_bytes() != files[-1].path.read_bytes()


def test_files_are_months_then_the_last_seven_days_of_arrival(files):
    names = [file.path.name for file in files]
    assert names[:4] == [
        "events-2026-03.csv",
        "events-2026-04.parquet",
        "events-2026-05.ndjson.gz",
        "events-2026-06.ndjson.gz",
    ]
    assert names[4:] == [f"events-2026-06-{day}.ndjson.gz" for day in range(24, 31)]
    for file in files:
        label = file.path.name.removeprefix("events-").split(".")[0]
        assert {row["received_at"].isoformat()[: len(label)] for row in read(file.path)} == {label}


def test_no_partial_file_is_left(files):
    assert {path.name for path in files[0].path.parent.iterdir()} == {file.path.name for file in files}


def test_row_count_and_progress_are_what_was_asked_for(tmp_path):
    seen: list[int] = []
    files = write_sample(tmp_path, 3_000, end=date(2026, 3, 3), progress=seen.append)
    assert sum(file.rows for file in files) == sum(seen) == 3_000
    assert sum(len(read(file.path)) for file in files) == 3_000


def test_too_few_events_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1000 events"):
        write_sample(tmp_path, 10)


def test_nothing_is_received_before_it_happens(good):
    assert len(good) == EVENTS - 12
    assert all(row["occurred_at"] <= row["received_at"] for row in good)
    assert max(row["received_at"] for row in good) < datetime(2026, 7, 1, tzinfo=UTC)


def test_bad_rows_cover_four_reasons(rows):
    bad = [row for row in rows if is_bad(row)]
    assert len(bad) == 12
    assert sum(not row["org_id"] for row in bad) == 3
    assert sum(not row["event_type"] for row in bad) == 3
    assert sum(row["occurred_at"].year == 2090 for row in bad) == 3


def test_late_events_and_repeated_deliveries(good):
    deliveries = defaultdict(list)
    for row in good:
        deliveries[row["event_id"]].append(row)
    repeated = [pair for pair in deliveries.values() if len(pair) > 1]
    assert len(repeated) == 100
    for first, second in repeated:
        assert first["received_at"] < second["received_at"]
        assert first | {"received_at": None} == second | {"received_at": None}
    late = [1 for first, *_ in deliveries.values() if first["received_at"] - first["occurred_at"] > timedelta(hours=11)]
    assert 0.005 < len(late) / len(deliveries) < 0.02


def test_both_organisers_and_all_funnel_steps(good):
    share = Counter(row["org_id"] for row in good)
    assert 0.5 < share["north_hall"] / len(good) < 0.8
    assert set(share) == {"north_hall", "harbor_live"}
    steps = Counter(row["event_type"] for row in good)
    assert steps["page_view"] > steps["event_view"] > steps["ticket_cta"] > steps["checkout_start"] > steps["purchase"]
    assert {"search", "product_view", "add_to_cart", "identify", "consent", "refund"} <= set(steps)


def test_robots_browse_and_never_buy(good):
    robots = [row for row in good if row["user_agent"] and "bot" in row["user_agent"].lower()]
    sessions = {row["session_id"] for row in robots}
    assert 0.005 < len(sessions) / len({row["session_id"] for row in good}) < 0.05
    assert not {row["event_type"] for row in robots} & {
        "ticket_cta",
        "checkout_start",
        "purchase",
        "identify",
    }


def test_opt_outs_consent_and_internal_traffic(good):
    properties = [row["properties"] for row in good]
    assert any(p.get("dnt") for p in properties) and any(p.get("gpc") for p in properties)
    assert {p["consent"] for p in properties if "consent" in p} == {"allow_all", "deny_all", "withdrawn"}
    assert 0 < sum(p.get("internal", False) for p in properties) < 0.03 * len(good)


def test_orders_are_free_foreign_and_refunded(good):
    orders = {row["properties"]["order_id"]: row for row in of_type(good, "purchase")}
    own = {"north_hall": "EUR", "harbor_live": "USD"}
    currencies = [(own[row["org_id"]], row["properties"].get("currency")) for row in orders.values()]
    assert any(row["properties"]["revenue"] == 0 for row in orders.values())
    assert any(said not in (None, home) for home, said in currencies)
    assert all(round(row["properties"]["revenue"], 2) == row["properties"]["revenue"] for row in orders.values())
    refunds = of_type(good, "refund")
    assert refunds
    for refund in refunds:
        order = orders.get(refund["properties"]["order_id"])
        if order:
            assert 0 < refund["properties"]["revenue"] <= order["properties"]["revenue"]
            assert refund["occurred_at"] - order["occurred_at"] > timedelta(days=1)


def test_logins_follow_anonymous_history_and_some_devices_are_shared(good):
    users, first_login, first_seen, devices = defaultdict(set), {}, {}, defaultdict(set)
    for row in sorted(good, key=lambda row: row["occurred_at"]):
        device = row["anonymous_id"]
        first_seen.setdefault(device, row["occurred_at"])
        if row["user_id"]:
            first_login.setdefault(device, row["occurred_at"])
            users[device].add(row["user_id"])
            devices[row["user_id"]].add(device)
    days_before = [first_login[d] - first_seen[d] > timedelta(days=1) for d in first_login]
    assert sum(days_before) > 20
    assert 1 <= sum(len(known) > 3 for known in users.values()) <= 10
    assert sum(len(owned) > 1 for owned in devices.values()) > 10


def test_personal_data_is_fictional(good):
    contacts = [row["properties"] for row in good if "email" in row["properties"]]
    assert contacts and all(c["email"].endswith(("@example.com", "@example.org")) for c in contacts)
    phones = [c["phone"] for c in contacts if "phone" in c]
    assert phones and all(phone.startswith(("+1 202 555 01", "+49 30 23125 ")) for phone in phones)


def test_channels_and_networks_are_told_in_every_way(good):
    urls, properties = [row["url"] for row in good], [row["properties"] for row in good]
    hosts = {row["referrer"].split("/")[2] for row in good if row["referrer"]}
    for mark in ("utm_source=", "gclid=", "fbclid="):
        assert any(mark in url for url in urls)
    assert any("utm_source" in p for p in properties)
    assert {"www.google.com", "www.bing.com", "l.instagram.com", "checkout.stripe.com"} <= hosts
    assert {"4g", "3g", "2g", "slow-2g"} <= {p.get("effective_type") for p in properties}
    assert {"wifi", "cellular", None} <= {p.get("network_type") for p in properties}


def test_some_people_buy_again(good):
    buyers = defaultdict(set)
    for row in of_type(good, "purchase"):
        buyers[row["properties"]["email"]].add(row["properties"]["order_id"])
    orders = Counter(min(len(ids), 4) for ids in buyers.values())
    assert orders[1] > orders[2] > 0

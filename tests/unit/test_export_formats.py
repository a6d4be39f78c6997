"""Formats of exports: golden files, each hash of which is computed here from what it should be the hash of."""

import csv
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import UserError
from orchestration.exports import identifiers
from orchestration.exports.formats import FORMATS, Written, minimum_people

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
COLUMNS, *PEOPLE = json.loads((GOLDEN / "people.json").read_text())
LISTS = ("meta", "google", "tiktok")
OF_NOTHING = sha256(b"").hexdigest()

# What each cell is the hash of, or the cell itself where the platform wants it so. Rows that are left out are not here.
HEADERS = {
    "meta": "email,phone,fn,ln,ct,st,zip,country,dob,gen,madid,uid",
    "google": "Email,Phone,First Name,Last Name,Country,Zip",
    "tiktok": "Email_SHA256,Phone_SHA256,MAID",
}
NOT_HASHED = {"madid", "uid", "Country", "Zip", "MAID"}
MAID = "aece52e7-03ee-455a-b3c4-e57283966239"
EXPECTED = {
    "meta": [
        ("jane.doe+vip@gmail.com", "447911123456", "jane", "doe", "", "", "", "", "", "", "", ""),
        ("max@example.org", "4915123456789", "maxemanuel", "m\u00fcller", "", "", "10115", "de", "", "", "", ""),
        ("shaun@example.com", "16502530000", "shaun", "oneil", "", "", "94303", "us", "", "", MAID, "1234567890"),
        ("eve@example.com", "", "hyperlinkhttpxy", "cmd c calca0", "", "", "", "", "", "", "", ""),
        ("", "390669812345", "ann marie q", "", "", "", "wc2h8lg", "gb", "", "", "", ""),
        ("", "", "שלום", "כהן", "", "", "9414101", "il", "", "", "", ""),
        ("+vip@example.com", "", "", "", "", "", "", "", "", "", "", ""),
    ],
    "google": [
        ("jane.doe+vip@gmail.com", "+447911123456", "", "", "", ""),
        ("max@example.org", "+4915123456789", "max-emanuel", "m\u00fcller", "DE", "10115"),
        ("shaun@example.com", "+16502530000", "shaun", "o'neil", "US", "94303-5300"),
        ("eve@example.com", "", "", "", "", ""),
        ("", "+390669812345", "", "", "", ""),
        ("", "", "שלום", "כהן", "IL", "9414101"),
        ("+vip@example.com", "", "", "", "", ""),
    ],
    "tiktok": [
        ("jane.doe@gmail.com", "447911123456", ""),
        ("max@example.org", "4915123456789", ""),
        ("shaun@example.com", "16502530000", MAID),
        ("eve@example.com", "", ""),
        ("", "390669812345", ""),
    ],
}


def written(
    name: str, rows: Iterable[Iterable[str | None]], columns: Iterable[str] = COLUMNS, **options: str
) -> tuple[bytes, Written]:
    """The bytes of a file of rows of text, and what the format says of them."""
    file = io.BytesIO()
    report = FORMATS[name].write(rows, dict.fromkeys(columns, "text"), file, **options)
    return file.getvalue(), report


def parsed(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))


def expected(name: str) -> bytes:
    header = HEADERS[name].split(",")
    lines = [header]
    for plain in EXPECTED[name]:
        cells = zip(header, plain, strict=True)
        lines.append(
            [text if column in NOT_HASHED or not text else sha256(text.encode()).hexdigest() for column, text in cells]
        )
    return "".join(",".join(line) + "\r\n" for line in lines).encode()


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_its_golden_file_to_the_byte(name):
    golden = (GOLDEN / f"{name}.csv").read_bytes()
    assert golden == expected(name)
    assert written(name, PEOPLE)[0] == golden


@pytest.mark.parametrize(
    ("name", "email", "phone"),
    [
        ("meta", "30c26380948ff6e5804337eb91073d3e3b539dff0fd625823759a65071814074", "40b5c38342a9c584ec707e8679b003f8c779c6aaa138c976ef94e049cc05208f"),
        ("google", "30c26380948ff6e5804337eb91073d3e3b539dff0fd625823759a65071814074", "20b18ac9de7b3aad174961827d8e451c410af9aedfd1d699927f4b29b81aa1fa"),
        ("tiktok", "831f6494ad6be4fcb3a724c3d5fef22d3ceffa3c62ef3a7984e45a0ea177f982", "40b5c38342a9c584ec707e8679b003f8c779c6aaa138c976ef94e049cc05208f"),
    ],
)  # fmt: skip
def test_the_published_vectors_of_the_platforms_hold(name, email, phone):
    content, _ = written(name, [(" Jane.Doe+VIP@Gmail.com ", "+44 (0)7911 123456")], ["email", "phone"])
    assert parsed(content)[1][:2] == [email, phone]


def test_every_row_and_value_that_is_not_used_is_counted():
    values = {"email": 2, "phone": 3, "country": 2, "zip": 2, "mobile_advertising_id": 2}
    reports = {name: written(name, PEOPLE)[1] for name in LISTS}
    assert reports["meta"].invalid == Counter(values, last_name=1, meta_user_id=2)
    assert reports["google"].invalid == Counter({**values, "last_name": 1, "mobile_advertising_id": 0})
    assert reports["tiktok"].invalid == Counter(email=3, phone=3, mobile_advertising_id=2)
    assert {name: (report.rows, report.left_out) for name, report in reports.items()} == {
        "meta": (7, 3), "google": (7, 3), "tiktok": (5, 5)
    }  # fmt: skip
    for name, report in reports.items():
        header, *lines = parsed((GOLDEN / f"{name}.csv").read_bytes())
        assert report.blank == Counter(
            column for line in lines for column, cell in zip(header, line, strict=True) if not cell
        )


def test_columns_may_come_in_any_order_and_others_are_not_read():
    rows = [("visitor", phone, "x", email) for email, phone, *_ in PEOPLE]
    assert written("tiktok", rows, ["visitor_id", "phone", "propensity_band", "email"])[0] == written(
        "tiktok", [row[:2] for row in PEOPLE], ["email", "phone"]
    )[0]  # fmt: skip


def test_an_export_without_people_is_its_header():
    for name in LISTS:
        assert written(name, [])[0] == f"{HEADERS[name]}\r\n".encode()


@pytest.mark.parametrize(
    ("given", "region", "number"),
    [
        ("07911 123456", "GB", "+447911123456"),
        ("07911 123456", None, ""),
        ("0044 7911 123456", "GB", "+447911123456"),
        ("+39 06 698 12345", "GB", "+390669812345"),
        ("+44 7911 123456 ext. 5", None, "+447911123456"),
        ("+٤٤٧٩١١١٢٣٤٥٦", None, "+447911123456"),
        ("+44 7911 12345", "GB", ""),
        ("+999 123456789", "GB", ""),
        ("n/a", "GB", ""),
        ("1" * 5000, "GB", ""),
    ],
)
def test_phone_numbers(given, region, number):
    assert identifiers.phone(given, region) == number


def test_a_default_country_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"'UK' is no country .* such as GB"):
        written("meta", PEOPLE, default_region="UK")
    content, _ = written("google", [("07911 123456",)], ["phone"], default_region="GB")
    assert parsed(content)[1][1] == sha256(b"+447911123456").hexdigest()


@pytest.mark.parametrize(
    "address",
    [
        "jane", "@example.com", "jane@", "jane@example", "jane@@example.com", "jane doe@example.com", "jane@exam ple.com",
        "jane@b\u00fccher.example", "<jane@example.com>", "jane@example.com, joe@example.com", "mailto:jane@example.com",
        "jane@example.com\nbcc:x@example.com", "jane@example.c", "jane@.com", f"{'j' * 250}@example.com", "jane@10.0.0.1",
    ],
)  # fmt: skip
def test_what_is_no_email_address_is_none(address):
    assert identifiers.email(address) == ""


def test_an_email_address_is_written_in_one_way():
    assert identifiers.email("\u00a0Zoe\u0308@XN--BCHER-KVA.Example\t") == "zo\u00eb@xn--bcher-kva.example"
    assert identifiers.email_without_suffix("a+b+c@example.com") == "a@example.com"
    assert identifiers.email_without_suffix("+b@example.com") == ""


def test_a_delta_is_no_list_of_an_ad_platform():
    with pytest.raises(UserError, match="as two lists"):
        written("google", [("jane@example.com", "left")], ["email", "change"])


def test_a_list_of_an_ad_platform_is_personal_data_and_the_platforms_floors_are_settings():
    assert {name: format_.is_personal for name, format_ in FORMATS.items()} == {
        **dict.fromkeys(LISTS, True),
        "parquet": False,
    }
    assert minimum_people() == {"meta": 100, "tiktok": 1000}
    for name in LISTS:
        assert written(name, PEOPLE)[0] == written(
            name, [[row[COLUMNS.index(column)] for column in FORMATS[name].reads] for row in PEOPLE], FORMATS[name].reads
        )[0]  # fmt: skip


anything = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.sampled_from(["=1+1", "+1", "-1", "@x", "\t=1", "\ufeffx", "a@b.co", "+447911123456", "DE", "10115", MAID, "7"]),
)


@settings(deadline=None)  # the first number of a country reads its rules
@given(st.sampled_from(LISTS), st.lists(st.tuples(*[anything] * len(COLUMNS)), max_size=5))
def test_whatever_is_given_a_list_holds_hashes_and_values_of_a_fixed_shape(name, rows):
    content, report = written(name, rows)
    header, *lines = parsed(content)
    assert report.rows == len(lines) == content.count(b"\n") - 1
    assert report.rows + report.left_out == len(rows)
    for line in lines:
        assert len(line) == len(header)
        for column, cell in zip(header, line, strict=True):
            assert cell != OF_NOTHING
            if column in NOT_HASHED:
                assert not cell or (cell[0].isalnum() and cell.isascii() and cell.isprintable() and "," not in cell)
            else:
                assert not cell or (len(cell) == 64 and not set(cell) - set("0123456789abcdef"))


def test_parquet_has_the_types_of_the_columns():
    columns = {"name": "text", "visits": "integer", "spent": "number", "is_new": "boolean", "seen_at": "timestamptz"}
    rows = [
        ("=1+1", "9007199254740993", "19.90", "t", "2026-06-01 00:00:00.5+00"),
        ("Zoë\n", "-1", "NaN", "false", "2026-06-01 02:00:00+02"),
        (None,) * 5,
    ]
    file = io.BytesIO()
    report = FORMATS["parquet"].write(iter(rows), columns, file)
    first, second, third = pyarrow.parquet.read_table(file).to_pylist()
    assert list(first.values()) == [
        "=1+1", 9007199254740993, 19.9, True, datetime(2026, 6, 1, microsecond=500_000, tzinfo=UTC)
    ]  # fmt: skip
    assert (second["name"], second["visits"], second["is_new"]) == ("Zoë\n", -1, False)
    assert second["spent"] != second["spent"]
    assert second["seen_at"] == datetime(2026, 6, 1, tzinfo=UTC)
    assert list(third.values()) == [None] * 5
    assert (report.rows, report.left_out, report.blank) == (3, 0, dict.fromkeys(columns, 1))


def test_parquet_refuses_a_value_that_it_cannot_hold():
    with pytest.raises(UserError, match=r"Column seen_at has a value .*infinity.*: leave it out"):
        FORMATS["parquet"].write([("infinity",)], {"seen_at": "timestamptz"}, io.BytesIO())


@pytest.mark.parametrize("name", [*LISTS, "parquet"])
def test_no_more_than_a_part_of_a_long_export_is_in_memory(name, tmp_path):
    def rows(count):
        return ((f"guest{number}@example.com", "Zoë" * 20) for number in range(count))

    with (tmp_path / "file").open("wb") as file:
        FORMATS[name].write(rows(10), {"email": "text", "first_name": "text"}, file)
        tracemalloc.start()
        try:
            report = FORMATS[name].write(rows(40_000), {"email": "text", "first_name": "text"}, file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert report.rows == 40_000
    assert peak < 6_000_000

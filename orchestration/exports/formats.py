"""The formats in which an export leaves, but for those that the server writes itself: lists for ad platforms, and Parquet.

An ad platform's list has hashed identifiers, and nobody in it who could not be found by them. Nothing in it can be taken
for a formula by a spreadsheet: what is not hashed is of a fixed shape.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet

from orchestration.errors import UserError
from orchestration.exports import identifiers
from orchestration.exports.identifiers import hashed
from orchestration.settings import project_variables

Row = Sequence[str | None]

# Rows of a row group of Parquet, which is what is held in memory of a file.
_GROUP_ROWS = 10_000


@dataclass
class Written:
    """What became of the rows of an export.

    rows: those in the file. left_out: those with nothing by which the person could be found. blank: empty cells by column
    of the file. invalid: values by column of the export that are not what the column should hold, of all rows; their cells
    are blank.
    """

    rows: int = 0
    left_out: int = 0
    blank: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)


class Write(Protocol):
    def __call__(
        self, rows: Iterable[Row], columns: Mapping[str, str], file: BinaryIO, *, default_region: str | None = None
    ) -> Written:
        """Writes rows as they come, in constant memory, and leaves the file open.

        columns: the kind of each column of the rows, in their order: text, integer, number, boolean or timestamptz. Values
        are what PostgreSQL prints for them. default_region: the country of phone numbers that are written without one, as
        two capital letters; None: they are invalid. Raises UserError for rows or a country that the format cannot take.
        """


@dataclass(frozen=True)
class Format:
    """How a file is written. suffix: of its name. is_personal: whatever it holds is personal data; a file of another format
    is if a column of it is. reads: the columns of an export that it takes, of those that are there; None: all of them. One
    that reads no `change` is a list to add or a list to remove: of a delta it takes who entered or who left, not both.
    """

    suffix: str
    media_type: str
    is_personal: bool
    reads: tuple[str, ...] | None
    write: Write


def minimum_people() -> dict[str, int]:
    """How many people a list must have at least, by format, where the platform says so."""
    variables = project_variables()
    return {
        "meta": variables["export_minimum_people_count_meta"],
        "tiktok": variables["export_minimum_people_count_tiktok"],
    }


class _Person:
    """The identifiers of a row at a time; counts those that are not what they should be."""

    def __init__(self, columns: Mapping[str, str], invalid: Counter[str]):
        self._positions = {column: position for position, column in enumerate(columns)}
        self._invalid = invalid
        self.row: Row = ()

    def take(self, column: str, rule: Callable[[str], str]) -> str:
        """The value of a column in its normal form; "" when there is no such column, no value or no valid one."""
        position = self._positions.get(column)
        value = self.row[position] if position is not None else None
        if not value or value.isspace():
            return ""
        normal = rule(value)
        if not normal:
            self._invalid[column] += 1
        return normal


Cells = list[str]
Phone = Callable[[str], str]


def _meta(person: _Person, phone: Phone) -> Cells | None:
    email = person.take("email", identifiers.email)
    number = person.take("phone", phone)
    first = person.take("first_name", identifiers.name_without_punctuation)
    last = person.take("last_name", identifiers.name_without_punctuation)
    country = person.take("country", identifiers.country)
    postal_code = person.take("zip", partial(identifiers.short_postal_code, country_code=country))
    advertising_id = person.take("mobile_advertising_id", identifiers.advertising_id)
    user = person.take("meta_user_id", identifiers.user_number)
    # a name alone is that of many people
    if not (email or number or advertising_id or user or (first and last and country and postal_code)):
        return None
    plain = email, number[1:], first, last, "", "", postal_code, country.lower(), "", ""
    return [*map(hashed, plain), advertising_id, user]


def _google(person: _Person, phone: Phone) -> Cells | None:
    address = [
        person.take("first_name", identifiers.name),
        person.take("last_name", identifiers.name),
        person.take("country", identifiers.country),
        person.take("zip", identifiers.postal_code),
    ]
    first, last, country, postal_code = address if all(address) else [""] * len(address)
    plain = person.take("email", identifiers.email), person.take("phone", phone), first, last
    return [*map(hashed, plain), country, postal_code] if any(plain) else None


def _tiktok(person: _Person, phone: Phone) -> Cells | None:
    cells = [
        hashed(person.take("email", identifiers.email_without_suffix)),
        hashed(person.take("phone", phone)[1:]),
        person.take("mobile_advertising_id", identifiers.advertising_id),
    ]
    return cells if any(cells) else None


def _write_list(
    cells_of: Callable[[_Person, Phone], Cells | None],
    header: Sequence[str],
    rows: Iterable[Row],
    columns: Mapping[str, str],
    file: BinaryIO,
    *,
    default_region: str | None = None,
) -> Written:
    if "change" in columns:
        raise UserError(
            "An ad platform's list cannot say who entered and who left: export those who entered and those who left as two lists."
        )
    identifiers.check_region(default_region)
    written = Written()
    person = _Person(columns, written.invalid)
    phone = partial(identifiers.phone, region=default_region)
    blank = [0] * len(header)
    with _lines(file) as lines:
        lines.writerow(header)
        for row in rows:
            person.row = row
            cells = cells_of(person, phone)
            if cells is None:
                written.left_out += 1
                continue
            lines.writerow(cells)
            written.rows += 1
            for position, cell in enumerate(cells):
                if not cell:
                    blank[position] += 1
    written.blank += Counter(dict(zip(header, blank, strict=True)))
    return written


@contextmanager
def _lines(file: BinaryIO) -> Iterator[Any]:
    """A writer of RFC 4180 lines in UTF-8."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield csv.writer(text)
    finally:
        text.detach()  # else the file would be closed with it


_TYPES = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_BOOLEANS = {"t": True, "f": False, "true": True, "false": False, None: None}


def _write_parquet(
    rows: Iterable[Row], columns: Mapping[str, str], file: BinaryIO, *, default_region: str | None = None
) -> Written:
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    written = Written()
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(iter(rows)):
            table = pa.table(list(map(_typed, zip(*group, strict=True), schema)), schema=schema)
            writer.write_table(table)
            written.rows += table.num_rows
            written.blank += Counter({name: table[name].null_count for name in columns})
    return written


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(islice(rows, _GROUP_ROWS)):
        yield group


def _typed(values: tuple[str | None, ...], column: pa.Field) -> pa.Array:
    if pa.types.is_boolean(column.type):
        return pa.array([_BOOLEANS[value] for value in values], column.type)
    try:
        return pa.array(values, pa.string()).cast(column.type)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"Column {column.name} has a value that Parquet cannot hold ({error}): leave it out, or export another format."
        ) from error


def _ad_platform(
    cells_of: Callable[[_Person, Phone], Cells | None], header: Sequence[str], reads: Sequence[str]
) -> Format:
    return Format(".csv", "text/csv; charset=utf-8", True, tuple(reads), partial(_write_list, cells_of, header))


_CONTACT = ("email", "phone")
_ADDRESS = ("first_name", "last_name", "country", "zip")

FORMATS: dict[str, Format] = {
    "meta": _ad_platform(
        _meta,
        ("email", "phone", "fn", "ln", "ct", "st", "zip", "country", "dob", "gen", "madid", "uid"),
        (*_CONTACT, *_ADDRESS, "mobile_advertising_id", "meta_user_id"),
    ),
    "google": _ad_platform(
        _google, ("Email", "Phone", "First Name", "Last Name", "Country", "Zip"), (*_CONTACT, *_ADDRESS)
    ),
    "tiktok": _ad_platform(_tiktok, ("Email_SHA256", "Phone_SHA256", "MAID"), (*_CONTACT, "mobile_advertising_id")),
    "parquet": Format(".parquet", "application/vnd.apache.parquet", False, None, _write_parquet),
}


def is_for_ads(name: str) -> bool:
    """Whether a format is a list for an ad platform: made of some columns alone, to be replaced as a whole."""
    return name in FORMATS and FORMATS[name].reads is not None

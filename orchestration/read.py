"""Event files as blocks of typed rows: newline-JSON, CSV and Parquet, read by a process of its own.

A process, not a thread: a thread would hold the interpreter lock that feeding COPY needs.

Empty text is missing text, blank lines are no rows, a byte order mark is skipped. Columns that the contract does not
know become properties, unless properties have the key. Numbers keep 64-bit precision; a longer integer used as an
identifier is kept digit by digit.

Rejected here: invalid_json, invalid_utf8, nul_character, not_an_object, wrong_column_count, text_expected,
unparsable_time, properties_not_an_object, properties_too_large, line_too_long. The other reasons are the landing
table's rule; here rows are only told apart that it plainly takes (`_is_plain`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import IO, Any

import orjson

from orchestration.errors import UserError

FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv", ".parquet": "parquet"}
NEEDED_COLUMNS = ("org_id", "event_type", "occurred_at")
TEXT_COLUMNS = (
    "event_id", "org_id", "event_type", "anonymous_id", "user_id", "session_id", "url", "referrer", "user_agent",
)  # fmt: skip
# In the order of the COPY text.
COLUMNS = (*TEXT_COLUMNS, "occurred_at", "received_at", "properties")

# One block: what a set-based step takes, and the bound on memory.
BLOCK_ROWS = 20_000
BLOCK_BYTES = 16 << 20
READ_BYTES = 1 << 20
# Below this the reading process costs more than it saves.
AHEAD_MIN_BYTES = 4 << 20
# A longer line is no event but a file without line ends. Its first READ_BYTES are kept as the raw row.
LINE_MAX_BYTES = 64 << 20

_MARK = b"\xef\xbb\xbf"
_PLAIN_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?:Z|\+00:00)", re.ASCII)
_PLAIN_AMOUNT = re.compile(r"\d{1,9}(?:\.\d+)?", re.ASCII)
# A NUL in JSON text: \u0000 behind an even number of backslashes.
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# Characters of all identifiers of a row together, well within what one may have.
_PLAIN_IDENTIFIERS = 250
# The binary form of JSON takes at most 8 bytes for one of its text (an array of digits).
_BINARY_GROWTH = 8


@dataclass(frozen=True)
class Rules:
    """The time of the load as UTC text, and dbt variables."""

    now: str
    earliest_event_date: str
    properties_max_bytes: int


@dataclass
class Block:
    """Rows on their way to the database; COPY text has no line end behind its last row."""

    source_number: int
    row_count: int
    bytes_done: int
    # Rows to land as they are unless their id has landed, and their ids as an array literal.
    fresh: bytes
    fresh_ids: str
    # The others, with the line number as first field: no id, an id repeated in the block, or not plainly usable.
    checked: bytes
    # {line number: raw row} of those not plainly usable.
    raws: dict[int, str]
    # (line number, reason, raw row)
    rejected: list[tuple[int, str, str]]
    repaired: Counter[str]
    user_agents: set[str]


class _Rejected(Exception):
    """A row that cannot be typed; the argument is the reason code."""


class _Inexact(Exception):
    """An identifier was read as a float: more digits may be in the file."""


def read_blocks(sources: Sequence[Source], rules: Rules) -> Iterator[Block]:
    """The blocks of all files, made by a process while the caller uses the last one; small files are read here."""
    if sum(source.size for source in sources) < AHEAD_MIN_BYTES:
        yield from blocks(sources, rules)
        return
    package = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    reader = subprocess.Popen(
        [sys.executable, "-P", "-c", "from orchestration.read import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert reader.stdin and reader.stdout
    try:
        pickle.dump(([source.path for source in sources], rules), reader.stdin)
        reader.stdin.close()
        while (block := pickle.load(reader.stdout)) is not None:
            if isinstance(block, UserError):
                raise block
            yield block
    except (EOFError, pickle.UnpicklingError, BrokenPipeError) as error:
        raise RuntimeError(f"the process that reads the files ended early with code {reader.wait()}") from error
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def _serve() -> None:
    """The reading process: its task from standard input, pickled blocks to standard output, then None or UserError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent stops this process
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not come between
        paths, rules = pickle.load(sys.stdin.buffer)
        end: UserError | None = None
        try:
            for block in blocks(list(map(open_source, paths)), rules):
                pickle.dump(block, out, pickle.HIGHEST_PROTOCOL)
                out.flush()
        except BrokenPipeError:
            os._exit(1)
        except UserError as error:
            end = error
        pickle.dump(end, out)


def blocks(sources: Sequence[Source], rules: Rules) -> Iterator[Block]:
    """At least one row each. Raises UserError when a file turns out to be damaged."""
    done = 0
    for number, source in enumerate(sources):
        try:
            for block in _Typing(number, source, rules).blocks():
                block.bytes_done += done
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(source.path, error) from error
        except OSError as error:
            raise _unreadable(source.path, error) from error
        done += source.size


# Files


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """The readers of files and of the loadable files in folders."""
    if not paths:
        raise UserError("No file to load: name newline-JSON, CSV or Parquet files, or a folder of them.")
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _format(p)) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"No file to load in {path}: none ends in {', '.join(FORMATS)} (or with .gz).")
        files += inside
    return list(map(open_source, files))


def _format(path: Path) -> str | None:
    return FORMATS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def open_source(path: Path) -> Source:
    """The reader of a file, checked as far as its first bytes allow."""
    form = _format(path)
    if form is None:
        raise UserError(f"{path} is no file to load: its name must end in {', '.join(FORMATS)} (or with .gz).")
    try:
        with open(path, "rb") as stored, _unpacked(stored) as file:
            head = file.read(1 << 16)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    source = {"ndjson": _JsonLines, "csv": _Csv, "parquet": _Parquet}[form](path)
    source.check(head.removeprefix(_MARK))
    return source


def _unpacked(stored: IO[bytes]) -> IO[bytes]:
    """The file, through gzip when its first bytes say so."""
    packed = stored.read(2) == b"\x1f\x8b"
    stored.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=stored) if packed else stored, READ_BYTES)  # type: ignore[arg-type]


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged or incomplete ({str(error).strip().rstrip('.')}): nothing was loaded. "
        "Fetch or write it again, then load it."
    )


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror or error}): nothing was loaded. Check the name, the file and its "
        "rights, then load it again."
    )


def storable(text: str) -> str:
    """Text that PostgreSQL takes: bytes that are no UTF-8, lone surrogates and NUL as backslash escapes."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\u0000")


class Source:
    """One file: numbered raw rows, how to decode one into {column: value}, and its text for rejected_rows."""

    def __init__(self, path: Path):
        self.path = path
        self.name = str(path)
        self.size = path.stat().st_size
        self.position: Callable[[], int] = lambda: 0

    def check(self, head: bytes) -> None:
        """Raises UserError when the start of the file shows that it cannot be loaded."""

    def rows(self) -> Iterator[tuple[int, Any, int]]:
        """(line number, raw row, its size in bytes)."""
        raise NotImplementedError

    def decode(self, raw: Any) -> dict[str, Any]:
        """May leave out columns without a value, and gives none of them as None but properties."""
        raise NotImplementedError

    def decode_exactly(self, raw: Any) -> dict[str, Any]:
        return self.decode(raw)

    def text(self, raw: Any) -> str:
        raise NotImplementedError


class _JsonLines(Source):
    """Raw row: the line's bytes."""

    def check(self, head: bytes) -> None:
        if head.lstrip()[:1] == b"[":
            raise UserError(
                f"{self.path} is one JSON array: write one object per line, for example with `jq -c '.[]'`."
            )

    def rows(self) -> Iterator[tuple[int, bytes, int]]:
        with open(self.path, "rb") as stored, _unpacked(stored) as file:
            self.position = stored.tell
            number = 0
            while line := file.readline(LINE_MAX_BYTES):
                number += 1
                rest = line
                while len(rest) == LINE_MAX_BYTES and rest[-1:] != b"\n":
                    rest = file.readline(LINE_MAX_BYTES)
                if number == 1:
                    line = line.removeprefix(_MARK)
                if not line.isspace():
                    yield number, line, len(line)

    def decode(self, raw: bytes) -> dict[str, Any]:
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            if len(raw) >= LINE_MAX_BYTES:
                raise _Rejected("line_too_long") from error
            is_utf8 = "surrogate" not in str(error) and raw.decode(errors="ignore").encode() == raw
            raise _Rejected("invalid_json" if is_utf8 else "invalid_utf8") from error
        if row.__class__ is not dict:
            raise _Rejected("not_an_object")
        return {name: value for name, value in row.items() if value is not None} if None in row.values() else row

    def decode_exactly(self, raw: bytes) -> dict[str, Any]:
        try:
            return json.loads(raw, parse_int=lambda digits: int(digits) if len(digits) < 19 else digits)
        except RecursionError as error:
            raise _Rejected("invalid_json") from error

    def text(self, raw: bytes) -> str:
        kept = raw[:READ_BYTES] if len(raw) >= LINE_MAX_BYTES else raw.removesuffix(b"\n").removesuffix(b"\r")
        return kept.decode("utf-8", "backslashreplace").replace("\0", "\\u0000")


class _Columns(Source):
    """A file whose columns have names."""

    header: list[str]

    def check_header(self, hint: str) -> None:
        if missing := [name for name in NEEDED_COLUMNS if name not in self.header]:
            raise UserError(f"{self.path} has no column {', '.join(missing)}: {hint}.")
        if repeated := [name for name, count in Counter(self.header).items() if count > 1]:
            raise UserError(f"{self.path} has the column {repeated[0]!r} twice: rename or remove one of them.")

    def text(self, raw: Sequence[Any]) -> str:
        names = self.header + [f"column {i}" for i in range(len(self.header) + 1, len(raw) + 1)]
        return storable(json.dumps(dict(zip(names, raw, strict=False)), ensure_ascii=False, default=str))


class _Csv(_Columns):
    """Raw row: the list of fields. Line number: of the record, the header being 1."""

    def check(self, head: bytes) -> None:
        self.header = next(csv.reader(io.StringIO(head.decode("utf-8", "surrogateescape"), newline="")), [])
        if self.header:
            self.check_header("give a comma-separated file whose first line has the names of the event contract")

    def rows(self) -> Iterator[tuple[int, list[str], int]]:
        csv.field_size_limit(LINE_MAX_BYTES)
        with (
            open(self.path, "rb") as stored,
            _unpacked(stored) as file,
            io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text,
        ):
            self.position = stored.tell
            reader = csv.reader(text)
            next(reader, None)
            try:
                for number, fields in enumerate(reader, 2):
                    if fields:
                        yield number, fields, sum(map(len, fields))
            except csv.Error as error:
                raise UserError(
                    f"{self.path} cannot be read as CSV near line {reader.line_num} ({error}): nothing was loaded. "
                    "Look there for a quote that is not closed."
                ) from error

    def decode(self, raw: list[str]) -> dict[str, Any]:
        if len(raw) != len(self.header):
            raise _Rejected("wrong_column_count")
        try:
            "".join(raw).encode()
        except UnicodeEncodeError as error:
            raise _Rejected("invalid_utf8") from error
        row: dict[str, Any] = dict(zip(self.header, raw, strict=True))
        row["properties"] = _properties_of_text(row.get("properties"))
        return row


class _Parquet(_Columns):
    """Raw row: the tuple of values. Line number: of the row, from 1."""

    @cached_property
    def _file(self):
        import pyarrow as arrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.path)
        except (arrow.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error

    def check(self, head: bytes) -> None:
        self.header = self._file.schema_arrow.names
        self.check_header("give the columns the names of the event contract")

    def rows(self) -> Iterator[tuple[int, tuple, int]]:
        import pyarrow as arrow

        number, total = 0, max(self._file.metadata.num_rows, 1)
        self.position = lambda: self.size * number // total
        try:
            for batch in self._file.iter_batches(4096):
                size = batch.nbytes // max(len(batch), 1)
                for raw in zip(*map(_values, batch.columns), strict=True):
                    number += 1
                    yield number, raw, size
        except (arrow.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error
        finally:
            self._file.close()

    def decode(self, raw: tuple) -> dict[str, Any]:
        row = {name: value for name, value in zip(self.header, raw, strict=True) if value is not None}
        properties = row.get("properties")
        if isinstance(properties, str | bytes):
            row["properties"] = _properties_of_text(properties)
        elif isinstance(properties, list):  # a map column
            row["properties"] = {str(key): value for key, value in properties}
        elif isinstance(properties, dict):  # a struct has every field in every row
            row["properties"] = {key: value for key, value in properties.items() if value is not None}
        for values in (row, row.get("properties")):
            for name, value in values.items() if isinstance(values, dict) else ():
                if value.__class__ is bytes:
                    values[name] = _text_of_bytes(value)
                elif value.__class__ is float and not isfinite(value):
                    values[name] = str(value)  # JSON has none: as a number it would become null in silence
        return row


def _values(column: Any) -> list[Any]:
    """An Arrow column as Python values; times as ISO 8601 text, text that is not UTF-8 as bytes."""
    import pyarrow as arrow
    from pyarrow import compute

    kind = column.type
    if arrow.types.is_timestamp(kind):
        micro = column.cast(arrow.timestamp("us", kind.tz and "UTC"), safe=False)
        return compute.strftime(micro, "%Y-%m-%dT%H:%M:%S" + ("Z" if kind.tz else "")).to_pylist()
    if arrow.types.is_date(kind):
        return column.cast(arrow.string()).to_pylist()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(arrow.binary()).to_pylist()


def _text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _Rejected("invalid_utf8") from error


def _properties_of_text(text: str | bytes | None) -> Any:
    if text is None or not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Rejected("properties_not_an_object") from error


# Rows


class _Typing:
    """Types the rows of one file and writes them as lines for COPY, in blocks of bounded size."""

    def __init__(self, number: int, source: Source, rules: Rules):
        self.number = number
        self.source = source
        self.rules = rules
        self._start()

    def _start(self) -> None:
        self.fresh: dict[str, str] = {}  # by event_id
        self.checked: list[str] = []
        self.raws: dict[int, str] = {}
        self.rejected: list[tuple[int, str, str]] = []
        self.repaired: Counter[str] = Counter()
        self.repairs: list[str] = []  # of the row at hand: counted when it is not rejected
        self.user_agents: set[str] = set()

    def blocks(self) -> Iterator[Block]:
        source, add, decode = self.source, self._add, self.source.decode
        rows, raw_bytes = 0, 0
        for number, raw, size in source.rows():
            rows += 1
            raw_bytes += size
            try:
                try:
                    add(number, raw, decode(raw))
                except _Inexact:
                    add(number, raw, source.decode_exactly(raw), exact=True)
            except _Rejected as rejected:
                self.rejected.append((number, rejected.args[0], source.text(raw)))
            if rows == BLOCK_ROWS or raw_bytes >= BLOCK_BYTES:
                yield self._block(rows, min(source.position(), source.size))
                rows, raw_bytes = 0, 0
        if rows:
            yield self._block(rows, source.size)

    def _block(self, rows: int, bytes_done: int) -> Block:
        fresh, checked = ("\n".join(lines).encode() for lines in (self.fresh.values(), self.checked))
        block = Block(
            self.number, rows, bytes_done, fresh, _array(self.fresh), checked, self.raws, self.rejected, self.repaired,
            self.user_agents,
        )  # fmt: skip
        self._start()
        return block

    def _add(self, number: int, raw: Any, row: dict[str, Any], *, exact: bool = False) -> None:
        """Takes a row into the block. Empties `row`. Raises _Rejected or _Inexact."""
        pop = row.pop
        self.repairs.clear()
        texts = [pop(name, "") for name in TEXT_COLUMNS]
        occurred_at, received_at = self._time(pop("occurred_at", "")), self._time(pop("received_at", ""))
        if received_at < self.rules.earliest_event_date:
            received_at = self.rules.now
            self.repairs.append("received_at_from_load")
        properties = self._merged(pop("properties", None), row, exact)
        json_text = self._json(properties)
        try:
            line = "\t".join((*texts, occurred_at, received_at, json_text))
        except TypeError:
            line = "\\"
        # Rare, and only then looked at field by field: what COPY must have escaped, blanks, NUL and what is no text.
        if (
            "\\" in line or "\n" in line or "\r" in line or "\0" in line or "\t " in line or line[:1] == " "
            or line.count("\t") != 11
        ):  # fmt: skip
            texts = [self._text(value, exact) for value in texts]
            line = _escaped((*texts, occurred_at, received_at, json_text))
        event_id = texts[0]
        is_plain = self._is_plain(texts, occurred_at, received_at, properties, json_text)
        if not is_plain:
            self.raws[number] = self.source.text(raw)
        if is_plain and event_id and event_id not in self.fresh:
            self.fresh[event_id] = line
        else:
            self.checked.append(f"{number}\t{line}")
        if texts[8]:
            self.user_agents.add(texts[8])
        if not event_id:
            self.repairs.append("event_id_from_content")
        if self.repairs:
            self.repaired.update(self.repairs)

    def _is_plain(
        self, texts: list[str], occurred_at: str, received_at: str, properties: dict[str, Any], json_text: str
    ) -> bool:
        """Whether the landing table's rule surely takes the row. It has the last word on the others, and on these."""
        event_id, org_id, event_type, anonymous_id, user_id, *_ = texts
        identifiers = f"{event_id}{org_id}{event_type}{anonymous_id}{user_id}"
        if (
            not org_id
            or not event_type
            or occurred_at < self.rules.earliest_event_date
            or occurred_at[:10] > received_at[:10]  # at most a day ahead of its receipt
            or len(identifiers) > _PLAIN_IDENTIFIERS
            or not identifiers.isascii()
            or len(json_text) * _BINARY_GROWTH > self.rules.properties_max_bytes
        ):
            return False
        revenue = properties.get("revenue")
        if revenue.__class__ is str:
            return _PLAIN_AMOUNT.fullmatch(revenue) is not None
        return revenue is None or (revenue.__class__ in (int, float) and 0 <= revenue < 1e9)

    def _time(self, value: Any) -> str:
        """ISO 8601 text in UTC without an offset, empty when missing: such texts sort as their times do."""
        if value == "":
            return ""
        if value.__class__ is not str:
            raise _Rejected("unparsable_time")
        plain = _PLAIN_TIME.fullmatch(value)
        text = value if plain else value.strip()
        # fromisoformat takes dates without dashes and any separator: epoch digits would pass for old dates.
        if not plain and (text[4:5] != "-" or text[10:11] not in ("T", " ", "t", "")):
            raise _Rejected("unparsable_time")
        try:
            moment = datetime.fromisoformat(text)
            if plain:
                return plain[1]
            if moment.tzinfo is None:
                self.repairs.append("utc_assumed")
                return moment.isoformat()
            return moment.astimezone(UTC).replace(tzinfo=None).isoformat()
        except (ValueError, OverflowError) as error:
            raise _Rejected("unparsable_time") from error

    def _merged(self, properties: Any, unknown: dict[str, Any], exact: bool) -> dict[str, Any]:
        if properties is None:
            properties = {}
        elif properties.__class__ is not dict:
            raise _Rejected("properties_not_an_object")
        if unknown:
            known = {key: value for key, value in unknown.items() if value is not None and value != ""}
            properties = known | properties
        if properties.get("order_id").__class__ is float and not exact:
            raise _Inexact
        return properties

    def _json(self, properties: dict[str, Any]) -> str:
        try:
            text = orjson.dumps(properties, default=str, option=orjson.OPT_NON_STR_KEYS)
        except TypeError as error:  # lone surrogates, or deeper than PostgreSQL could read
            raise _Rejected("invalid_json") from error
        if len(text) > self.rules.properties_max_bytes:
            raise _Rejected("properties_too_large")
        return text.decode()

    def _text(self, value: Any, exact: bool) -> str:
        if value is None:
            return ""
        if value.__class__ is str:
            return "" if value.isspace() else value
        if value.__class__ is float and not exact:
            raise _Inexact
        if isinstance(value, dict | list):
            raise _Rejected("text_expected")
        self.repairs.append("text_from_number")
        return str(value).lower() if value.__class__ is bool else str(value)


def _escaped(fields: Sequence[str]) -> str:
    """A line of COPY text. Raises _Rejected for NUL characters."""
    if _NUL_ESCAPE.search(fields[-1]) or any("\0" in value for value in fields):
        raise _Rejected("nul_character")
    return "\t".join(
        value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for value in fields
    )


def _array(texts: dict[str, str]) -> str:
    """The keys as an array literal."""
    joined = "\0".join(texts)
    if not joined:
        return "{}"
    if "\\" in joined or '"' in joined:
        joined = joined.replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + joined.replace("\0", '","') + '"}'

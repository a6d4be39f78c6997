"""Bulk load of event files: newline-JSON, CSV and Parquet into the landing tables, every row accounted for.

One transaction per call: all files land or nothing does. A process of its own reads and types the next block of
rows while the server takes the last one: COPY into a temporary table, then set-based steps. (A thread would hold
the interpreter lock that feeding COPY needs: COPY took twice as long beside it.) The staging table copies the
landing table's generated `rejection_reason`, so one rule judges loaded rows and rows that collectors insert.

What is repaired, and counted in `LoadReport.repaired`:
  event_id_from_content     no event_id: a hash of the row, the one that the landing table gives
  received_at_from_load     no received_at: the time of the load
  text_from_number          an identifier or text given as a number or a boolean: its JSON text
  utc_assumed               a time without an offset: UTC
Empty text is missing text, blank lines are no rows, a byte order mark is skipped. Columns that the contract does not
know become properties, unless properties have the key. Numbers keep 64-bit precision; a longer integer used as an
identifier is kept digit by digit.

What Python rejects, beside the reasons of the landing table's rule: invalid_json, invalid_utf8, nul_character,
not_an_object, wrong_column_count, text_expected, unparsable_time, properties_not_an_object, properties_too_large,
line_too_long.
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
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import md5
from math import isfinite
from pathlib import Path
from typing import IO, Any

import orjson
import psycopg
import yaml
from psycopg import sql

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.settings import project_dir

FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv", ".parquet": "parquet"}
NEEDED_COLUMNS = ("org_id", "event_type", "occurred_at")
# One block: what a set-based step takes, and the bound on memory.
BLOCK_ROWS = 20_000
BLOCK_BYTES = 16 << 20
READ_BYTES = 1 << 20
# Below this the reading process costs more than it saves.
AHEAD_MIN_BYTES = 4 << 20
# A longer line is no event but a file without line ends. Its first READ_BYTES are kept as the raw row.
LINE_MAX_BYTES = 64 << 20

_COPIED_COLUMNS = (
    "line_number", "is_received_given", "event_id", "org_id", "event_type", "occurred_at", "received_at",
    "anonymous_id", "user_id", "session_id", "url", "referrer", "user_agent", "properties",
)  # fmt: skip
_EVENT_COLUMNS = _COPIED_COLUMNS[2:]
_CONTENT_COLUMNS = tuple(name for name in _EVENT_COLUMNS if name not in ("event_id", "org_id", "received_at"))
# PostgreSQL reads this shape as Python does; other shapes of ISO 8601 are written anew.
_PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|\+00:00)?", re.ASCII)
# A NUL in JSON text: \u0000 behind an even number of backslashes.
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True)
class LoadReport:
    """What one load did. received = accepted + rejected + duplicate; rows of all files together.

    `duplicate` counts deliveries of events that have landed: identical ones are dropped, others land as well.
    """

    load_id: int
    received: int
    accepted: int
    rejected: int
    duplicate: int
    rejected_reasons: dict[str, int]
    repaired: dict[str, int]
    seconds: float
    files: list[str]


class _Rejected(Exception):
    """A row that cannot be typed; the argument is the reason code."""


class _Inexact(Exception):
    """An identifier was read as a float: more digits may be in the file."""


@dataclass
class _Block:
    """Rows on their way: COPY text of the typed ones, (line number, reason, raw text) of the others."""

    source_number: int
    row_count: int
    copy_text: bytes
    rejected: list[tuple[int, str, str]]
    repaired: Counter[str]
    user_agents: set[str]
    bytes_done: int
    # {line number: raw row}, pickled: looked at only when the database rejects a row
    raws: bytes


def load_files(paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> LoadReport:
    """Loads files, and the loadable files of folders, in one transaction.

    `progress` is called after every block with the bytes of the files read so far (as stored: compressed) and the
    rows so far. Raises UserError, with nothing written, for input that cannot be read; bad rows never stop a load.
    """
    started = time.monotonic()
    sources = [_source(path) for path in _expand(paths)]
    limits = _project_variables()
    _ensure_tables(limits["landing_schema"])
    received, accepted = 0, 0
    reasons: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    with database.connect(application_name="audience load") as connection:
        landing = _Landing(connection, limits["landing_schema"], limits["properties_max_bytes"])
        landing.open()
        for block in _blocks_ahead(sources, landing.now, landing.properties_max_bytes):
            received += block.row_count
            accepted += landing.write(block, sources[block.source_number], reasons)
            repaired += block.repaired
            if progress:
                progress(block.bytes_done, received)
        rejected = reasons.total()
        duplicate = received - accepted - rejected
        names = [source.name for source in sources]
        load_id = landing.close(names, received, accepted, rejected, duplicate)
    if accepted:
        _analyze(limits["landing_schema"])
    return LoadReport(
        load_id, received, accepted, rejected, duplicate, dict(reasons.most_common()), dict(repaired.most_common()),
        time.monotonic() - started, names,
    )  # fmt: skip


def parse_new_user_agents(connection: psycopg.Connection) -> int:
    """Parses the user agents of landed events that were not parsed yet, or by another parser version.

    Returns the number of texts parsed; the caller commits. Reads every landed event's user agent.
    """
    schema = _project_variables()["landing_schema"]
    seen = sql.SQL("select distinct user_agent from {} where user_agent is not null")
    return _parse_user_agents(connection, schema, seen.format(sql.Identifier(schema, "events")).as_string(connection))


def _project_variables() -> dict[str, Any]:
    variables = yaml.safe_load((project_dir() / "dbt_project.yml").read_text())["vars"]
    return {"landing_schema": str(variables["landing_schema"]),
            "properties_max_bytes": int(variables["properties_max_bytes"])}  # fmt: skip


def _ensure_tables(schema: str) -> None:
    with database.connect(autocommit=True) as connection:
        found = connection.execute("select to_regclass(%s)", [f"{schema}.loads"]).fetchone()
    if found == (None,):
        dbt.prepare()


def _analyze(schema: str) -> None:
    """Statistics for the build that follows: autovacuum may come a minute late."""
    with database.connect(autocommit=True) as connection:
        connection.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, "events")))


def _blocks(sources: Sequence[_Source], now: str, properties_max_bytes: int) -> Iterator[_Block]:
    done = 0
    for number, source in enumerate(sources):
        for block in _Typing(number, source, now, properties_max_bytes).blocks():
            block.bytes_done += done
            yield block
        done += source.size


def _blocks_ahead(sources: Sequence[_Source], now: str, properties_max_bytes: int) -> Iterator[_Block]:
    """The blocks of all files, made by a process while the caller uses the last one; small files are read here."""
    if sum(source.size for source in sources) < AHEAD_MIN_BYTES:
        yield from _blocks(sources, now, properties_max_bytes)
        return
    package = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    reader = subprocess.Popen(
        [sys.executable, "-c", "from orchestration.load import _write_blocks; _write_blocks()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert reader.stdin and reader.stdout
    try:
        pickle.dump(([source.path for source in sources], now, properties_max_bytes), reader.stdin)
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


def _write_blocks() -> None:
    """The reading process: its task from standard input, pickled blocks to standard output, then None or UserError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent stops this process
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not come between
        paths, now, properties_max_bytes = pickle.load(sys.stdin.buffer)
        try:
            for block in _blocks([_source(path) for path in paths], now, properties_max_bytes):
                pickle.dump(block, out, pickle.HIGHEST_PROTOCOL)
                out.flush()
            end = None
        except BrokenPipeError:
            os._exit(1)
        except UserError as error:
            end = error
        pickle.dump(end, out)


# Files


def _expand(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise UserError("No file to load: name newline-JSON, CSV or Parquet files, or a folder of them.")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _extension(p) in FORMATS)
            if not inside:
                raise UserError(
                    f"No file to load in {path}: none ends in {', '.join(FORMATS)} (or with .gz). "
                    "Name the files themselves."
                )
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist: correct the name; the current folder is {Path.cwd()}.")
    return files


def _extension(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]


def _source(path: Path) -> _Source:
    """The reader of a file, by its extension, else by its first bytes; checked as far as the first bytes allow."""
    try:
        with open(path, "rb") as stored, _unpacked(stored) as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file and its rights.") from error
    except (EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    form = FORMATS.get(_extension(path)) or _sniffed(head)
    if form is None:
        raise UserError(
            f"{path} is in no format that can be loaded: give newline-JSON, CSV (either may be gzipped) or Parquet, "
            "with an extension that says which."
        )
    if form != "parquet" and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`.")
    source = {"ndjson": _JsonLines, "csv": _Csv, "parquet": _Parquet}[form](path)
    source.check(head)
    return source


def _sniffed(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:1] in (b"{", b"["):
        return "ndjson"
    header = start.split(b"\n", 1)[0].decode("utf-8", "replace")
    return "csv" if set(NEEDED_COLUMNS) <= set(next(csv.reader([header]), [])) else None


def _unpacked(stored: IO[bytes]) -> IO[bytes]:
    """The file, through gzip when its first bytes say so."""
    packed = stored.read(2) == b"\x1f\x8b"
    stored.seek(0)
    return gzip.GzipFile(fileobj=stored) if packed else stored  # type: ignore[return-value]


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged or incomplete ({str(error).strip().rstrip('.')}): nothing was loaded. "
        "Fetch or write it again, then load it."
    )


def _storable(text: str) -> str:
    """Text that PostgreSQL takes: bytes that are no UTF-8, lone surrogates and NUL as backslash escapes."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\u0000")


class _Source:
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
        raise NotImplementedError

    def decode_exactly(self, raw: Any) -> dict[str, Any]:
        return self.decode(raw)

    def text(self, raw: Any) -> str:
        raise NotImplementedError


class _JsonLines(_Source):
    """Raw row: the line's bytes."""

    def check(self, head: bytes) -> None:
        if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            raise UserError(
                f"{self.path} is one JSON array: write one object per line, for example with `jq -c '.[]'`."
            )

    def rows(self) -> Iterator[tuple[int, bytes, int]]:
        with open(self.path, "rb") as stored, _unpacked(stored) as file:
            self.position = stored.tell
            rest, number, cut = b"", 0, False
            while data := file.read(READ_BYTES):
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                if number == 0:
                    lines, rest = _without_mark(lines, rest)
                for line in lines:
                    number += 1
                    if cut or (line and not line.isspace()):
                        yield number, line, len(line)
                    cut = False
                if len(rest) > LINE_MAX_BYTES:
                    rest, cut = rest[: LINE_MAX_BYTES + 1], True
            if rest.strip():
                yield number + 1, rest, len(rest)

    def decode(self, raw: bytes) -> dict[str, Any]:
        if len(raw) > LINE_MAX_BYTES:
            raise _Rejected("line_too_long")
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise _Rejected(self._fault(raw, str(error))) from error
        if row.__class__ is not dict:
            raise _Rejected("not_an_object")
        return row

    def decode_exactly(self, raw: bytes) -> dict[str, Any]:
        try:
            return json.loads(raw, parse_int=lambda digits: int(digits) if len(digits) < 19 else digits)
        except RecursionError as error:
            raise _Rejected("invalid_json") from error

    @staticmethod
    def _fault(raw: bytes, message: str) -> str:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return "invalid_utf8"
        return "invalid_utf8" if "surrogate" in message else "invalid_json"

    def text(self, raw: bytes) -> str:
        kept = raw[:READ_BYTES] if len(raw) > LINE_MAX_BYTES else raw
        return kept.decode("utf-8", "backslashreplace").replace("\0", "\\u0000")


def _without_mark(lines: list[bytes], rest: bytes) -> tuple[list[bytes], bytes]:
    if lines:
        return [lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]], rest
    return lines, rest.removeprefix(b"\xef\xbb\xbf")


class _Csv(_Source):
    """Raw row: the list of fields. Line number: of the record, the header being 1."""

    header: list[str]

    def check(self, head: bytes) -> None:
        text = head.decode("utf-8-sig", "surrogateescape")
        self.header = columns = next(csv.reader(io.StringIO(text, newline="")), [])
        if not columns:
            return
        missing = [name for name in NEEDED_COLUMNS if name not in columns]
        if missing:
            raise UserError(
                f"{self.path} has no column {', '.join(missing)} in its first line: give a comma-separated file whose "
                "header has the names of the event contract."
            )
        repeated = [name for name, count in Counter(columns).items() if count > 1]
        if repeated:
            raise UserError(f"{self.path} has the column {repeated[0]!r} twice: rename or remove one of them.")

    def rows(self) -> Iterator[tuple[int, list[str], int]]:
        csv.field_size_limit(LINE_MAX_BYTES)
        with (
            open(self.path, "rb") as stored,
            _unpacked(stored) as file,
            io.TextIOWrapper(io.BufferedReader(file, READ_BYTES), "utf-8-sig", "surrogateescape", newline="") as text,
        ):  # fmt: skip
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

    def text(self, raw: list[str]) -> str:
        names = self.header + [f"column {i}" for i in range(len(self.header) + 1, len(raw) + 1)]
        return _storable(json.dumps(dict(zip(names, raw, strict=False)), ensure_ascii=False))


def _properties_of_text(text: str | bytes | None) -> Any:
    if text is None or not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Rejected("properties_not_an_object") from error


class _Parquet(_Source):
    """Raw row: the tuple of values. Line number: of the row, from 1."""

    header: list[str]

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
        missing = [name for name in NEEDED_COLUMNS if name not in self.header]
        if missing:
            raise UserError(
                f"{self.path} has no column {', '.join(missing)}: give the columns the names of the event contract."
            )

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
        row = dict(zip(self.header, raw, strict=True))
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

    def text(self, raw: tuple) -> str:
        return _storable(json.dumps(dict(zip(self.header, raw, strict=True)), ensure_ascii=False, default=str))


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


# Rows


class _Typing:
    """Types the rows of one file and writes them as lines for COPY, in blocks of bounded size."""

    def __init__(self, number: int, source: _Source, now: str, properties_max_bytes: int):
        self.number = number
        self.source = source
        self.now = now
        self.properties_max_bytes = properties_max_bytes
        self._start()

    def _start(self) -> None:
        self.lines: list[str] = []
        self.raws: dict[int, Any] = {}
        self.rejected: list[tuple[int, str, str]] = []
        self.repaired: Counter[str] = Counter()
        self.repairs: list[str] = []  # of the row at hand: counted when it is not rejected
        self.user_agents: set[str] = set()

    def blocks(self) -> Iterator[_Block]:
        """At least one row each. Raises UserError when the file turns out to be damaged."""
        try:
            yield from self._blocks()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(self.source.path, error) from error
        except OSError as error:
            raise UserError(
                f"{self.source.path} cannot be read to its end ({error.strerror or error}): nothing was loaded. "
                "Check the disk and the file, then load it again."
            ) from error

    def _blocks(self) -> Iterator[_Block]:
        source, line_of, decode = self.source, self.line, self.source.decode
        rows, raw_bytes = 0, 0
        for number, raw, size in source.rows():
            rows += 1
            raw_bytes += size
            try:
                try:
                    self.lines.append(line_of(number, decode(raw)))
                except _Inexact:
                    self.lines.append(line_of(number, source.decode_exactly(raw), exact=True))
                self.raws[number] = raw
            except _Rejected as rejected:
                self.rejected.append((number, rejected.args[0], source.text(raw)))
            if rows == BLOCK_ROWS or raw_bytes >= BLOCK_BYTES:
                yield self._block(rows, min(source.position(), source.size))
                rows, raw_bytes = 0, 0
        if rows:
            yield self._block(rows, source.size)

    def _block(self, rows: int, bytes_done: int) -> _Block:
        copy_text = "\n".join(self.lines).encode()
        raws = pickle.dumps(self.raws, pickle.HIGHEST_PROTOCOL)
        block = _Block(
            self.number, rows, copy_text, self.rejected, self.repaired, self.user_agents, bytes_done, raws
        )  # fmt: skip
        self._start()
        return block

    def line(self, number: int, row: dict[str, Any], *, exact: bool = False) -> str:
        """The row as a line of COPY text, null as empty text. Empties `row`. Raises _Rejected or _Inexact."""
        pop = row.pop
        self.repairs.clear()
        event_id, org_id, event_type = pop("event_id", None), pop("org_id", None), pop("event_type", None)
        occurred_at, received_at = self._time(pop("occurred_at", None)), self._time(pop("received_at", None))
        anonymous_id, user_id, session_id = (
            pop("anonymous_id", None),
            pop("user_id", None),
            pop("session_id", None),
        )
        url, referrer, user_agent = pop("url", None), pop("referrer", None), pop("user_agent", None)
        properties = self._properties(pop("properties", None), row, exact)
        ids = (str(number), "t" if received_at else "f")
        times = (occurred_at, received_at or self.now)
        fields = (
            *ids,
            "" if event_id is None else event_id,
            "" if org_id is None else org_id,
            "" if event_type is None else event_type,
            *times,
            "" if anonymous_id is None else anonymous_id,
            "" if user_id is None else user_id,
            "" if session_id is None else session_id,
            "" if url is None else url,
            "" if referrer is None else referrer,
            "" if user_agent is None else user_agent,
            properties,
        )
        try:
            line = "\t".join(fields)
        except TypeError:
            line = "\\"
        # Rare, and only then looked at field by field: what COPY must have escaped, blanks, NUL and what is no text.
        if "\\" in line or "\n" in line or "\r" in line or "\0" in line or "\t " in line or line.count("\t") != 13:
            texts = (
                event_id,
                org_id,
                event_type,
                anonymous_id,
                user_id,
                session_id,
                url,
                referrer,
                user_agent,
            )
            kept = [self._text(value, exact) for value in texts]
            event_id, user_agent = kept[0], kept[-1]
            line = _escaped((*ids, *kept[:3], *times, *kept[3:], properties))
        if user_agent:
            self.user_agents.add(user_agent)
        if not event_id:
            self.repairs.append("event_id_from_content")
        if not received_at:
            self.repairs.append("received_at_from_load")
        if self.repairs:
            self.repaired.update(self.repairs)
        return line

    def _time(self, value: Any) -> str:
        """ISO 8601 text in UTC, empty when missing."""
        if value is None or value == "":
            return ""
        if value.__class__ is not str:
            raise _Rejected("unparsable_time")
        text = value.strip()
        # fromisoformat takes dates without dashes and any separator: epoch digits would pass for old dates.
        if text[4:5] != "-" or text[10:11] not in ("T", " ", "t", ""):
            raise _Rejected("unparsable_time")
        try:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                self.repairs.append("utc_assumed")
            elif moment.tzinfo is not UTC:
                return moment.astimezone(UTC).isoformat()
        except (ValueError, OverflowError) as error:
            raise _Rejected("unparsable_time") from error
        if _PLAIN_TIME.fullmatch(text):
            return text
        return moment.isoformat()

    def _properties(self, properties: Any, unknown: dict[str, Any], exact: bool) -> str:
        if properties is None:
            properties = {}
        elif properties.__class__ is not dict:
            raise _Rejected("properties_not_an_object")
        if unknown:
            known = {key: value for key, value in unknown.items() if value is not None and value != ""}
            properties = known | properties
        if properties.get("order_id").__class__ is float and not exact:
            raise _Inexact
        try:
            text = orjson.dumps(properties, default=str, option=orjson.OPT_NON_STR_KEYS)
        except TypeError as error:  # lone surrogates, or deeper than PostgreSQL could read
            raise _Rejected("invalid_json") from error
        if len(text) > self.properties_max_bytes:
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


# The database


class _Landing:
    """The landing tables inside one transaction: `open`, `write` per block, `close`."""

    def __init__(self, connection: psycopg.Connection, schema: str, properties_max_bytes: int):
        self.connection = connection
        self.schema = schema
        self.properties_max_bytes = properties_max_bytes
        self.now = ""
        self.known_user_agents: set[str] = set()

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor:
        # Never prepared: a plan made while the landing table was small would be kept as it grows.
        names = {
            "events": sql.Identifier(self.schema, "events"),
            "rejected_rows": sql.Identifier(self.schema, "rejected_rows"),
            "loads": sql.Identifier(self.schema, "loads"),
            "columns": sql.SQL(", ").join(map(sql.Identifier, _EVENT_COLUMNS)),
            "content": sql.SQL(", ").join(sql.Identifier("staged", name) for name in _CONTENT_COLUMNS),
            "landed_content": sql.SQL(", ").join(sql.Identifier("landed", name) for name in _CONTENT_COLUMNS),
        }
        return self.connection.execute(sql.SQL(query).format(**names), parameters, prepare=False)

    def open(self) -> None:
        """Waits for another load to end, so that two loads of one file cannot both land it."""
        self.execute("set temp_buffers = '64MB'")
        self.execute("select pg_advisory_xact_lock(hashtextextended('audience load', 42))")
        self.now = self.execute("select to_char(now(), 'YYYY-MM-DD HH24:MI:SS.US+00')").fetchone()[0]
        self.execute(
            "create temporary table staged_events (line_number bigint, is_received_given boolean,"
            " like {events} including generated) on commit drop"
        )
        self.execute("alter table staged_events drop column landing_id, drop column landed_xid")
        # Sorting a block by text costs more than the rest of its comparison, and is what an unanalyzed table gets.
        self.execute("set local enable_mergejoin = off")
        self.execute("create temporary table landed_events on commit drop as select {columns} from {events} limit 0")

    def write(self, block: _Block, source: _Source, reasons: Counter[str]) -> int:
        """Lands a block; returns the rows accepted and counts the rejected ones by reason."""
        self._stage(block.copy_text)
        rejected: list[tuple[int, str, str, str | None]] = [(*row, None) for row in block.rejected]
        judged = self.execute(_TAKE_REJECTED, [self.properties_max_bytes, self.properties_max_bytes]).fetchall()
        if judged:
            raws = pickle.loads(block.raws)
            rejected += [(number, reason, source.text(raws[number]), org_id) for number, reason, org_id in judged]
        if rejected:
            self._keep_rejected(source, rejected)
            reasons.update(row[1] for row in rejected)
        if block.repaired["event_id_from_content"]:
            self.execute(_MAKE_EVENT_IDS)
        self.execute(_DROP_REPEATED)
        self.execute("truncate landed_events")
        if self.execute(_FIND_LANDED).rowcount:
            self.execute(_DROP_LANDED)
        accepted = self.execute(_COUNT_NEW).fetchone()[0]
        self._keep_user_agents(block.user_agents)
        self.execute(_LAND)
        return accepted

    def _stage(self, copy_text: bytes) -> None:
        columns = ", ".join(_COPIED_COLUMNS)
        self.execute("truncate staged_events")
        with self.connection.cursor().copy(f"copy staged_events ({columns}) from stdin (null '')") as copy:
            copy.write(copy_text)

    def _keep_rejected(self, source: _Source, rejected: list[tuple[int, str, str, str | None]]) -> None:
        numbers, reasons, texts, org_ids = map(list, zip(*rejected, strict=True))
        ids = [md5((reason + text).encode(), usedforsecurity=False).hexdigest()
               for reason, text in zip(reasons, texts, strict=True)]  # fmt: skip
        self.execute(
            "insert into {rejected_rows} (rejection_id, org_id, rejection_reason, raw_row, file_name, line_number)"
            " select id, org, reason, raw, %s, line"
            " from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])"
            " as rejected (id, org, reason, raw, line) on conflict do nothing",
            [_storable(source.name), ids, org_ids, reasons, texts, numbers],
        )

    def _keep_user_agents(self, texts: set[str]) -> None:
        texts -= self.known_user_agents
        if len(self.known_user_agents) > 100_000:  # a bound on memory: asking again is harmless
            self.known_user_agents.clear()
        self.known_user_agents |= texts
        if texts:
            _parse_user_agents(self.connection, self.schema, "select unnest(%s::text[])", [list(texts)])

    def close(self, names: list[str], received: int, accepted: int, rejected: int, duplicate: int) -> int:
        return self.execute(
            "insert into {loads} (file_names, received_count, accepted_count, rejected_count, duplicate_count,"
            " finished_at) values (%s, %s, %s, %s, %s, clock_timestamp()) returning load_id",
            [list(map(_storable, names)), received, accepted, rejected, duplicate],
        ).fetchone()[0]


_TAKE_REJECTED = """
delete from staged_events where rejection_reason is not null or pg_column_size(properties) > %s
returning line_number,
    case when pg_column_size(properties) > %s then 'properties_too_large' else rejection_reason end, org_id
"""

# As the landing table's own trigger makes it, so that a row has one id whichever way it comes.
_MAKE_EVENT_IDS = """
update staged_events set event_id = md5(concat_ws('|', org_id, event_type, extract(epoch from occurred_at),
    anonymous_id, user_id, session_id, url, referrer, user_agent, properties))
where event_id is null
"""

# Deliveries in one block that are identical to an earlier one of it.
_DROP_REPEATED = """
with repeated as (
    select org_id, event_id from staged_events group by org_id, event_id having count(*) > 1
),
ordered as (
    select
        line_number,
        is_received_given,
        row_number() over (same_content order by line_number) as content_number,
        row_number() over (
            partition by org_id, event_id, {content}, is_received_given, received_at order by line_number
        ) as delivery_number
    from staged_events as staged join repeated using (org_id, event_id)
    window same_content as (partition by org_id, event_id, {content})
)
delete from staged_events using ordered
where ordered.line_number = staged_events.line_number
    and case when ordered.is_received_given then delivery_number else content_number end > 1
"""

# What has landed under the ids of the block. The lateral query is one look-up in the index per id, whatever the
# statistics say, and a statement of its own: a scan of a hash index keeps the index from growing while rows go in.
_FIND_LANDED = """
insert into landed_events
select landed.*
from (select distinct event_id from staged_events) as staged
cross join lateral (
    select {columns} from {events} as events where events.event_id = staged.event_id offset 0
) as landed
"""

_DROP_LANDED = """
delete from staged_events as staged using landed_events as landed
where staged.org_id = landed.org_id
    and staged.event_id = landed.event_id
    and staged.occurred_at = landed.occurred_at
    and (staged.received_at = landed.received_at or not staged.is_received_given)
    and ({content}) is not distinct from ({landed_content})
"""

_COUNT_NEW = """
select count(*)
from (
    select org_id, event_id from staged_events except select org_id, event_id from landed_events
) as accepted
"""

_LAND = """
insert into {events} ({columns}) select {columns} from staged_events
"""


def _parse_user_agents(connection: psycopg.Connection, schema: str, seen: str, parameters: Sequence[Any] = ()) -> int:
    """Parses the user agents that the query `seen` gives and that are not known by the current parser version."""
    from orchestration.user_agents import parse_user_agent, parser_version

    version = parser_version()
    table = sql.Identifier(schema, "user_agents")
    unknown = connection.execute(
        sql.SQL(
            "select user_agent from ({seen}) as seen (user_agent)"
            " where not exists (select from {table} where user_agent_id = md5(seen.user_agent) and parser_version = %s)"
        ).format(seen=sql.SQL(seen), table=table),
        [*parameters, version],
        prepare=False,
    ).fetchall()
    if not unknown:
        return 0
    parsed = [(text, *parse_user_agent(text), version) for (text,) in unknown]
    connection.execute(
        sql.SQL(
            "insert into {table} (user_agent_id, user_agent, device_type, os, browser, is_bot, bot_reason,"
            " parser_version) select md5(user_agent), * from unnest(%s::text[], %s::text[], %s::text[], %s::text[],"
            " %s::boolean[], %s::text[], %s::text[]) as parsed (user_agent, device_type, os, browser, is_bot,"
            " bot_reason, parser_version)"
            " on conflict (user_agent_id) do update set device_type = excluded.device_type, os = excluded.os,"
            " browser = excluded.browser, is_bot = excluded.is_bot, bot_reason = excluded.bot_reason,"
            " parser_version = excluded.parser_version, landed_xid = case when (user_agents.device_type,"
            " user_agents.os, user_agents.browser, user_agents.is_bot, user_agents.bot_reason) is distinct from"
            " (excluded.device_type, excluded.os, excluded.browser, excluded.is_bot, excluded.bot_reason)"
            " then pg_current_xact_id() else user_agents.landed_xid end"
        ).format(table=table),
        list(map(list, zip(*parsed, strict=True))),
        prepare=False,
    )
    return len(unknown)

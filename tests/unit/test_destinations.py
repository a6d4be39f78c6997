"""Where exports go: folders and stores. Nothing partial is ever visible under a file's name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as drivers

from orchestration.errors import UserError
from orchestration.exports import destinations
from orchestration.exports.delivery import Delivery, excerpt, safe_name

DELIVERY = Delivery(export_id="7", delivery_id="d-1", media_type="text/csv")
CONTENT = b"email\r\n" + b"jane@example.com\r\n" * 5000
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def export(tmp_path):
    """A file that was exported."""
    file = tmp_path / "champions.csv"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    return folder


@pytest.fixture
def memory():
    """The content of memory://, by path; empty before and after."""
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


# Folders


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://localhost{}", "local://{}"])
def test_a_file_is_copied_into_a_folder(export, folder, form):
    url = form.format(folder)
    destinations.check(url)
    assert destinations.deliver(export, url, DELIVERY) == str(folder / "champions.csv")
    assert [file.name for file in folder.iterdir()] == ["champions.csv"]
    assert (folder / "champions.csv").read_bytes() == CONTENT
    assert (folder / "champions.csv").stat().st_mode & 0o777 == 0o600


def test_a_url_of_a_folder_is_decoded(export, folder):
    assert destinations.deliver(export, folder.as_uri(), DELIVERY) == str(folder / "champions.csv")


def test_what_was_delivered_is_not_delivered_again_and_another_file_not_overwritten(export, folder):
    destinations.deliver(export, str(folder), DELIVERY)
    before = (folder / "champions.csv").stat()
    assert destinations.deliver(export, str(folder), DELIVERY) == str(folder / "champions.csv")
    assert (folder / "champions.csv").stat() == before
    export.write_bytes(CONTENT + b"more")
    with pytest.raises(UserError, match=r"There is another .*champions\.csv already: move it away"):
        destinations.deliver(export, str(folder), DELIVERY)
    assert (folder / "champions.csv").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("{}/nowhere", "There is no folder .*nowhere': make it"),
        ("file://server{}", "names a host"),
        ("{}/champions.csv", "There is no folder"),
        ("", "There is no folder ''"),
        ("~nobody/exports", "There is no folder"),
    ],
)
def test_a_folder_that_is_none_is_refused(export, tmp_path, url, sentence):
    for refused in (destinations.check, lambda url: destinations.deliver(export, url, DELIVERY)):
        with pytest.raises(UserError, match=sentence):
            refused(url.format(tmp_path))


def test_a_copy_that_fails_leaves_nothing(export, folder, monkeypatch):
    def full(source, sink):
        sink.write(source.read(10))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(destinations.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"champions\.csv could not be copied .*No space left on device.*: make room"):
        destinations.deliver(export, str(folder), DELIVERY)
    assert not list(folder.iterdir())


def test_a_link_in_the_way_of_a_copy_is_not_followed(export, folder, tmp_path):
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (folder / ".champions.csv.d-1.part").symlink_to(other)
    destinations.deliver(export, str(folder), DELIVERY)
    assert other.read_text() == "of somebody else"
    assert not (folder / "champions.csv").is_symlink()


COPY = """
import sys
from pathlib import Path
from orchestration.exports.delivery import Delivery
from orchestration.exports.destinations import deliver
deliver(Path(sys.argv[1]), sys.argv[2], Delivery("7", "d-1", "text/csv"))
"""


def test_a_copy_that_is_killed_shows_nothing_and_is_completed_by_the_next(folder, tmp_path):
    file = tmp_path / "champions.csv"
    os.mkfifo(file)  # which the copy reads until it is killed
    process = subprocess.Popen([sys.executable, "-c", COPY, str(file), str(folder)], cwd=PROJECT)
    with file.open("wb") as source:
        source.write(CONTENT[:80_000] * 20)  # more than a block of the copy
        source.flush()
        part, until = folder / ".champions.csv.d-1.part", time.monotonic() + 30
        while not part.exists() or not part.stat().st_size:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert [found.name for found in folder.iterdir()] == [part.name]
    file.unlink()
    file.write_bytes(CONTENT)
    destinations.deliver(file, str(folder), DELIVERY)
    assert [found.name for found in folder.iterdir()] == ["champions.csv"]
    assert (folder / "champions.csv").read_bytes() == CONTENT


# Stores


class Recorded(MemoryFileSystem):
    """memory:// that remembers what was put where."""

    store: dict = {}  # noqa: RUF012
    puts: list[str] = []  # noqa: RUF012

    def put_file(self, lpath, rpath, **options):
        self.puts.append(rpath)
        super().put_file(lpath, rpath, **options)


def test_a_file_is_put_into_a_store_under_another_name_and_moved(export, memory, monkeypatch):
    seen = []
    move = MemoryFileSystem.mv

    def watched(self, part, target, **options):
        seen.append((sorted(self.store), part, target))
        move(self, part, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "mv", watched)
    destinations.check("memory://bucket/exports/")
    name = destinations.deliver(export, "memory://bucket/exports/", DELIVERY)
    assert name == "memory://bucket/exports/champions.csv"
    part = "/bucket/exports/.champions.csv.d-1.part"
    assert seen == [([part], part, "/bucket/exports/champions.csv")]
    assert {path: file.getvalue() for path, file in memory.items()} == {"/bucket/exports/champions.csv": CONTENT}


def test_a_store_of_whole_objects_gets_the_file_at_once(export, monkeypatch):
    monkeypatch.setitem(drivers, "s3", Recorded)
    assert destinations.deliver(export, "s3://bucket", DELIVERY) == "s3://bucket/champions.csv"
    assert [Path(put).name for put in Recorded.puts] == ["champions.csv"]
    assert [file.getvalue() for file in Recorded.store.values()] == [CONTENT]


def test_a_store_is_not_overwritten(export, memory):
    destinations.deliver(export, "memory://bucket", DELIVERY)
    destinations.deliver(export, "memory://bucket", DELIVERY)
    export.write_bytes(CONTENT + b"more")
    with pytest.raises(UserError, match=r"There is another memory://bucket/champions\.csv already"):
        destinations.deliver(export, "memory://bucket", DELIVERY)
    assert memory["/bucket/champions.csv"].getvalue() == CONTENT


class Broken(MemoryFileSystem):
    """A store that takes half of a file, and then says too much."""

    store: dict = {}  # noqa: RUF012

    def put_file(self, lpath, rpath, **options):
        self.pipe_file(rpath, Path(lpath).read_bytes()[:1000])
        raise ConnectionError("PUT https://key:hunter2@store.example/x?sig=hunter2 was\ncut")


def test_an_upload_that_fails_leaves_nothing_and_tells_no_secret(export, monkeypatch):
    monkeypatch.setitem(drivers, "broken", Broken)
    with pytest.raises(UserError) as refused:
        destinations.deliver(export, "broken://bucket", DELIVERY)
    assert "ConnectionError: PUT https://store.example/x was cut" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__ and not refused.value.__cause__
    assert not Broken.store


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense://bucket", r"nonsense://bucket is no destination \(Protocol not known: nonsense\)"),
        ("hf://bucket", r"hf:// needs a driver that is not installed \(Install huggingface_hub"),
        ("memory://key:hunter2@bucket/x", "has a password or options in it"),
        ("memory://bucket/x?sig=hunter2", "has a password or options in it"),
        ("memory://bucket/x#hunter2", "has a password or options in it"),
        ("simplecache::memory://bucket", "chains file systems"),
    ],
)
def test_a_store_that_cannot_be_is_refused_without_its_secrets(export, url, sentence):
    for refused in (destinations.check, lambda url: destinations.deliver(export, url, DELIVERY)):
        with pytest.raises(UserError, match=sentence) as found:
            refused(url)
        assert "hunter2" not in str(found.value)


# Names


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/exports/of may?", "/exports/of may?"),
        ("s3://bucket/folder/a@b", "s3://bucket/folder/a@b"),
        ("https://user:hunter2@host.example:8443/hook?token=hunter2#hunter2", "https://host.example:8443/hook"),
        ("https://user:hunter2@evil@host.example/hook", "https://host.example/hook"),
        ("HTTPS://[::1]:8443/hook", "HTTPS://[::1]:8443/hook"),
        ("https://user:hunt/er2@host.example/hook", "https://..."),
        ("https://user:12/hunter2@host.example/hook", "https://..."),
        ("simplecache::s3://key:hunter2@bucket/x", "simplecache::s3://bucket/x"),
        ("https://host.example/a\nb", "https://host.example/a b"),
    ],
)
def test_the_name_of_a_destination_tells_no_secret(url, name):
    assert safe_name(url) == name


def test_a_driver_connects_when_something_is_delivered_and_not_before(export, monkeypatch):
    class Closed(MemoryFileSystem):
        def __init__(self, **_):
            raise ValueError("account key is missing")

    monkeypatch.setitem(drivers, "closed", Closed)
    destinations.check("closed://bucket")
    with pytest.raises(
        UserError, match=r"closed://bucket/champions\.csv could not be written \(ValueError: account key"
    ):
        destinations.deliver(export, "closed://bucket", DELIVERY)


def test_an_excerpt_is_short_and_on_one_line():
    assert excerpt("a\r\n\x1b[31mb" + "c" * 300) == "a   [31mb" + "c" * 191

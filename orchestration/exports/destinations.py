"""Where an export goes: a folder, a store that fsspec knows (s3, gs ...) or a webhook. It arrives whole or not at all."""

from __future__ import annotations

import os
import shutil
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import fsspec

from orchestration.disk import PrivateFile, sync_folder
from orchestration.errors import UserError
from orchestration.exports import webhooks
from orchestration.exports.delivery import Delivery, excerpt, safe_name

_LOCAL = ("", "file", "local")
# Stores in which an object appears when its last byte is there. Elsewhere it gets another name until then.
_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


def check(url: str) -> None:
    """Raises UserError for a destination to which nothing can be delivered; asks no server."""
    scheme = _scheme(url)
    if scheme in ("http", "https"):
        webhooks.check(url)
    elif scheme in _LOCAL:
        _folder(url)
    else:
        _check_store(url)


def deliver(file: Path, url: str, delivery: Delivery) -> str:
    """Brings a file into the folder or to the webhook that the URL names; returns where it is, for the log.

    What is there under its name is not overwritten; if it is the same, the delivery has been done. Raises UserError.
    """
    scheme = _scheme(url)
    if scheme in ("http", "https"):
        webhooks.post(file, url, delivery)
        return safe_name(url)
    if scheme in _LOCAL:
        return _copy(file, _folder(url) / file.name, delivery)
    return _upload(file, url, delivery)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


# A folder


def _folder(url: str) -> Path:
    folder = Path(url)
    if _scheme(url):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{safe_name(url)} names a host: a folder of this machine is file:///folder.")
        folder = Path(unquote(parts.path))
    if not url or not folder.is_dir():
        raise UserError(f"There is no folder {safe_name(url)!r}: make it, or correct the destination.")
    return folder.absolute()


def _copy(file: Path, target: Path, delivery: Delivery) -> str:
    part = target.with_name(f".{target.name}.{delivery.delivery_id}.part")
    try:
        if os.path.lexists(target):
            with target.open("rb") as there:
                return _delivered_before(file, there, str(target))
        part.unlink(missing_ok=True)
        try:
            with PrivateFile(part) as sink, file.open("rb") as source:
                shutil.copyfileobj(source, sink)
                sink.sync()
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(
            f"{file.name} could not be copied into {target.parent} ({error.strerror}): "
            "make room or give the rights, then deliver it again."
        ) from error
    return str(target)


def _delivered_before(file: Path, there: BinaryIO, target: str) -> str:
    """The target, if what is there is the file; else raises UserError."""
    with file.open("rb") as here:
        if file_digest(here, "sha256").digest() != file_digest(there, "sha256").digest():
            raise UserError(f"There is another {target} already: move it away, or deliver to another place.")
    return target


# A store


def _check_store(url: str) -> None:
    name, scheme = safe_name(url), _scheme(url)
    parts = urlsplit(url)
    if "::" in url:
        raise UserError(f"{name} chains file systems: name the one that shall hold the export.")
    if ":" in parts.netloc.rpartition("@")[0] or parts.query or parts.fragment:
        raise UserError(
            f"The destination {name} has a password or options in it, which others would read: leave them out. "
            "The driver reads them from its own environment variables, fsspec from its configuration files."
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{scheme}:// needs a driver that is not installed ({error}): install it with pip.") from error
    except ValueError as error:
        raise UserError(
            f"{name} is no destination ({error}): give a folder, https://, or a URL that fsspec knows, such as s3://bucket/folder."
        ) from error


def _upload(file: Path, url: str, delivery: Delivery) -> str:
    _check_store(url)
    name = f"{safe_name(url).rstrip('/')}/{file.name}"
    try:
        # not one that was kept: its connection and what it knows of the folder may be old
        store, folder = fsspec.url_to_fs(url, skip_instance_cache=True)
        target = f"{folder.rstrip('/')}/{file.name}"
        if store.exists(target):
            with store.open(target, "rb") as there:
                return _delivered_before(file, there, name)
        if _scheme(url) in _WHOLE_OBJECTS:
            store.put_file(str(file), target)
        else:
            _put_and_move(store, file, target, delivery)
    except UserError:
        raise
    except Exception as error:  # each driver has errors of its own
        # their texts may hold signed URLs, so the error itself goes nowhere
        raise UserError(
            f"{name} could not be written ({type(error).__name__}: {excerpt(str(error))}): "
            "correct the destination or the driver's settings, then deliver it again."
        ) from None
    return name


def _put_and_move(store: Any, file: Path, target: str, delivery: Delivery) -> None:
    folder, _, name = target.rpartition("/")
    part = f"{folder}/.{name}.{delivery.delivery_id}.part"
    try:
        store.put_file(str(file), part)
        store.mv(part, target)
    finally:
        if store.exists(part):
            store.rm_file(part)

"""Exports posted to a webhook, signed as Standard Webhooks 1.0 says (standardwebhooks.com).

The address that was checked is the one that is connected to: the name is not resolved again. No proxy, no redirect.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
import socket
import ssl
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import urllib3

from orchestration.errors import UserError
from orchestration.exports.delivery import Delivery, excerpt, safe_name
from orchestration.settings import project_variables

SECRET = "AUDIENCE_WEBHOOK_SECRET"
ALLOWED_HOSTS = "AUDIENCE_WEBHOOK_ALLOWED_HOSTS"

# Sizes of a key that Standard Webhooks allows, in bytes.
_SECRET_BYTES = range(24, 65)
_CHUNK_BYTES = 1 << 20
_IPV6_GLOBAL = ipaddress.ip_network("2000::/3")
# Public by their numbers, but not somebody's server: 6to4, Teredo and other protocols, documentation, and where clouds
# answer their own machines (Azure, Oracle).
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"
    )
]  # fmt: skip


@dataclass(frozen=True)
class Receiver:
    """name: of the URL, for messages. path: with the query, as it is asked for."""

    name: str
    host: str
    port: int
    path: str
    is_encrypted: bool

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_encrypted else 80) else f"{host}:{self.port}"

    @property
    def is_allowed(self) -> bool:
        """Whether its host is named as one that may have an address of a private network."""
        names = os.environ.get(ALLOWED_HOSTS, "").split(",")
        return self.host in {name.strip().lower().rstrip(".") for name in names}


def check(url: str) -> None:
    """Raises UserError for a URL to which nothing is posted, and without a secret to sign with; asks no server."""
    receiver_of(url)
    _key()


def post(file: Path, url: str, delivery: Delivery) -> None:
    """Posts the bytes of a file; returns when the receiver has taken them.

    Tried again while the receiver cannot be reached or answers 429 or 5xx. Raises UserError for any other answer.
    """
    receiver = receiver_of(url)
    key = _key()
    attempts, timeout = patience()
    reason = ""
    for attempt in attempts:
        pause(attempt)
        try:
            with file.open("rb") as body:
                status, answer = send(body, receiver, attempt, timeout, _headers(file, key, delivery))
        except urllib3.exceptions.SSLError as error:
            raise UserError(
                f"{receiver.name} did not prove who it is ({excerpt(str(error))}): nothing was sent. "
                "Correct the URL or the receiver's certificate."
            ) from error
        except (urllib3.exceptions.HTTPError, socket.gaierror) as error:
            reason = f"{type(error).__name__}: {excerpt(str(error))}"
            continue
        if is_taken(status):
            return
        reason = f"it answered {status} {answer}".strip()
        if status != 429 and status < 500:
            break
    raise UserError(f"{receiver.name} did not take the export ({reason}): correct it, then deliver the export again.")


def patience() -> tuple[range, urllib3.Timeout]:
    """The attempts at a receiver, from 0, and how long one may take."""
    variables = project_variables()
    seconds = urllib3.Timeout(
        connect=variables["export_webhook_connect_seconds"], read=variables["export_webhook_answer_seconds"]
    )
    return range(variables["export_webhook_attempts"]), seconds


def pause(attempt: int) -> None:
    """Waits before an attempt: not before the first, then twice as long each time."""
    if attempt:
        variables = project_variables()
        time.sleep(variables["export_webhook_pause_seconds"] * 2 ** (attempt - 1))


def receiver_of(url: str, name: str | None = None) -> Receiver:
    """Whom a URL is of. name: for messages, by default the URL without its query. Raises UserError for a URL that is not used."""
    name = name or safe_name(url)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        # which may quote a password
        raise UserError(f"{name} is no URL: correct its host or port.") from None
    if not url.isascii() or not url.isprintable() or set(url) & set(" \\") or not host:
        raise UserError(f"{name} is no URL of a webhook: give https://host/path in ASCII, without spaces.")
    if "@" in parts.netloc:
        raise UserError(
            f"The URL of {name} has a user or password in it: leave them out. The signature proves who sends."
        )
    is_encrypted = parts.scheme.lower() == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    receiver = Receiver(name, host, port or (443 if is_encrypted else 80), path, is_encrypted)
    if not is_encrypted and not receiver.is_allowed:
        raise UserError(f"{name} is not encrypted: use https://.")
    return receiver


def _key() -> bytes:
    secret = os.environ.get(SECRET, "").strip()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if len(key) not in _SECRET_BYTES:
        raise UserError(
            f"{SECRET} is not set to {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} bytes in base64, with which a webhook is signed: "
            'set it to what `echo "whsec_$(openssl rand -base64 32)"` prints, and give it to the receiver.'
        )
    return key


def _headers(file: Path, key: bytes, delivery: Delivery) -> dict[str, str]:
    """What is sent beside the file. The signature is of `id.timestamp.body`, with the time of this attempt."""
    timestamp = str(int(time.time()))
    signature = hmac.new(key, f"{delivery.delivery_id}.{timestamp}.".encode(), sha256)
    length = 0
    with file.open("rb") as body:
        while chunk := body.read(_CHUNK_BYTES):
            signature.update(chunk)
            length += len(chunk)
    return {
        "content-type": delivery.media_type,
        "content-length": str(length),
        "user-agent": "audience-intelligence",
        "webhook-id": delivery.delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signature.digest()).decode(),
        "audience-export-id": delivery.export_id,
    }


def send(
    body: BinaryIO, receiver: Receiver, attempt: int, timeout: urllib3.Timeout, headers: dict[str, str]
) -> tuple[int, str]:
    """The status of the answer, and the beginning of its text. Raises UserError for an address that is not public."""
    addresses = _addresses(receiver)
    address = addresses[attempt % len(addresses)]
    if receiver.is_encrypted:
        pool = urllib3.HTTPSConnectionPool(
            address, receiver.port, timeout=timeout, ssl_context=ssl.create_default_context(), server_hostname=receiver.host
        )  # fmt: skip
    else:
        pool = urllib3.HTTPConnectionPool(address, receiver.port, timeout=timeout)
    with pool:
        response = pool.urlopen(
            "POST", receiver.path, body=body, headers={"host": receiver.host_header, **headers},
            retries=False, redirect=False, preload_content=False,
        )  # fmt: skip
        with response:
            # what it says to a success is of no use, and may never end
            answer = b"" if is_taken(response.status) else response.read(1_000)
            return response.status, excerpt(answer.decode("utf-8", "replace"))


def is_taken(status: int) -> bool:
    return 200 <= status < 300


def _addresses(receiver: Receiver) -> list[str]:
    """The addresses of a receiver. Raises UserError unless all of them are public, or the host is allowed by its name."""
    try:
        found = socket.getaddrinfo(receiver.host, receiver.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise UserError(f"{receiver.name} names no host that could exist: correct it.") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if receiver.is_allowed:
        refused = (
            [] if receiver.is_encrypted else [one for one in addresses if not ipaddress.ip_address(one).is_loopback]
        )
        if refused:
            raise UserError(f"{receiver.name} is not encrypted, and not on this machine ({refused[0]}): use https://.")
        return addresses
    refused = [one for one in addresses if not _is_public(one)]
    if refused:
        raise UserError(
            f"{receiver.name} is {refused[0]}, which is no public address, so nothing was sent: correct the URL, "
            f"or name its host in {ALLOWED_HOSTS}."
        )
    return addresses


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if address.version == 6 and address not in _IPV6_GLOBAL:
        return False
    is_special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not is_special

"""What a delivery is, and how a destination is named where others read it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.:-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)")
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class Delivery:
    """export_id: of the log. delivery_id: the same each time that the delivery is tried, so that it is taken once.
    media_type: of the file."""

    export_id: str
    delivery_id: str
    media_type: str


def safe_name(url: str) -> str:
    """A destination without user, password and query, for logs and messages. A path stays as it is."""
    parts = _URL.match(url)
    if not parts:
        return _on_one_line(url)
    host = parts["authority"].rpartition("@")[2]
    _, has_port, port = host.rpartition(":")
    # a password with a / in it would end the authority early
    if has_port and not host.endswith("]") and ("@" in parts["path"] or not port.isdigit()):
        return f"{parts['scheme']}://..."
    return _on_one_line(f"{parts['scheme']}://{host}{parts['path']}")


def excerpt(text: str) -> str:
    """The beginning of a text of others, for a message: on one line, and of URLs in it neither user nor query."""
    return _on_one_line(re.sub(r"(?<=://)[^/\s]*@|\?\S+", "", text))[:_EXCERPT_CHARACTERS].strip()


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)

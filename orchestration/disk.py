"""Files for their owner alone, which are on the disk before anything says that they are there."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

BLOCK_BYTES = 1 << 20


class PrivateFile(io.BufferedWriter):
    """A new file of mode 0600 that is written from its begin to its end. Raises FileExistsError when it is there."""

    def __init__(self, path: Path) -> None:
        self._bytes = _Hashed(path)
        super().__init__(self._bytes, BLOCK_BYTES)

    def sync(self) -> str:
        """Waits until the disk has what was written; the sha256 of that, in hex."""
        self.flush()
        os.fsync(self.fileno())
        return self._bytes.sha256.hexdigest()


class _Hashed(io.FileIO):
    """Hashes what is written on the way: reading a list of a million again takes a twentieth of the whole export."""

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        super().__init__(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600))

    def write(self, block: bytes | memoryview) -> int:  # type: ignore[override]
        written = super().write(block)
        self.sha256.update(memoryview(block)[:written])
        return written

    def seekable(self) -> bool:
        return False  # what is written over would be hashed twice


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names of a folder's files: a file that was renamed keeps its name from then on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Erasures that wait for Dagster. Whom they are of is in a file that its owner alone may read, and nowhere in Dagster, which keeps
the configuration of a run and its logs for months."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from uuid import UUID, uuid4

from orchestration.disk import PrivateFile, sync_folder
from orchestration.errors import CheckFailed, UserError
from orchestration.rights import erasure
from orchestration.rights.erasure import Erasure
from orchestration.rights.subjects import Given, NothingHeld
from orchestration.settings import audience_home, target_schema


def ask(org_id: str, given: Given) -> str:
    """Keeps a request for `erase_requested`, after a look at what there is; its id. Raises UserError when nothing is held."""
    erasure.preview(org_id, given)
    name = str(uuid4())
    _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    part = _folder() / f"{name}.part"
    with PrivateFile(part) as file:
        file.write(json.dumps({"org_id": org_id, "given": asdict(given)}).encode())
        file.sync()
    part.rename(_file(name))
    sync_folder(_folder())
    return name


def erase_requested(request: str, confirm: str) -> Erasure:
    """Erases whom a request is of, and removes the request. Nothing that it raises names him.

    Raises UserError without the confirmation, for a request that there is not or of which nothing is held, and when nothing was
    erased: the request stays; CheckFailed when the erasure is to be finished.
    """
    if confirm != target_schema():
        raise UserError(f"An erasure cannot be undone: confirm it with confirm: {target_schema()}.")
    org_id, given = _read(request)
    try:
        done = erasure.erase(org_id, given)
    except NothingHeld:
        _file(request).unlink()
        raise UserError(
            "Nothing is held any more on whom the request names, so it is removed: nothing is to be done."
        ) from None
    except CheckFailed:
        raise CheckFailed(
            "What landed is erased, but the tables do not follow yet: see what audience doctor and the last run of nightly say, "
            "then run audience erase --finish."
        ) from None
    except UserError as error:
        raise UserError(f"Nothing was erased, and the request is kept. {_without(given, str(error))}") from None
    except Exception as error:
        raise CheckFailed(
            f"The erasure ended early ({type(error).__name__}): run audience erase --finish, then start this again."
        ) from None
    _file(request).unlink()
    return done


def _without(given: Given, text: str) -> str:
    """The text, unless it may name somebody."""
    named = [value.casefold() for values in asdict(given).values() for value in values]
    if any(value in text.casefold() for value in named):
        return "The reason names a person, and is not shown here: run audience erase by hand."
    return text


def _folder() -> Path:
    return audience_home() / "erasures"


def _file(request: str) -> Path:
    return _folder() / f"{request}.json"


def _read(request: str) -> tuple[str, Given]:
    try:
        content = json.loads(_file(str(UUID(request))).read_text())
    except (ValueError, FileNotFoundError):
        # what was given is not repeated: somebody may have written an address where the id belongs
        raise UserError(
            f"There is no such request in {_folder()}: give the id that audience erase --later has printed on this machine."
        ) from None
    return content["org_id"], Given(**content["given"])

"""JSON files sealed against changes: a model of settings and results, with a digest of its content."""

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from pitcli.errors import RunError
from pitcli.runs.files import write_file

Sealed = TypeVar("Sealed", bound=BaseModel)


def write_sealed(path: Path, model: BaseModel) -> None:
    write_file(path, json.dumps({**model.model_dump(mode="json"), "seal": _seal(model)}, indent=1))


def read_sealed(path: Path, kind: type[Sealed], damaged: str, remedy: str = "") -> Sealed | None:
    """The model in a sealed file; None if there is no file.

    damaged: the end of the RunError of a file that is not such a model. remedy: the end of that of a changed file.
    """
    if not path.is_file():
        return None
    try:
        sealed = json.loads(path.read_bytes())
        found = sealed.pop("seal")
        model = kind.model_validate(sealed)
    # ValueError: not UTF-8, not JSON, not valid; RecursionError: endless nesting
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: damaged{damaged}") from error
    if found != _seal(model):
        raise RunError(f"{path}: changed since it was written{remedy}")
    return model


def _seal(model: BaseModel) -> str:
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()

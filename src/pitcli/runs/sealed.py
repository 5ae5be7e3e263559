"""JSON files sealed against changes: a model of settings and results, with a digest of its content."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pitcli.errors import RunError
from pitcli.runs.files import write_file

Sealed = TypeVar("Sealed", bound=BaseModel)


def write_sealed(path: Path, model: BaseModel) -> None:
    content = model.model_dump(mode="json")
    write_file(path, json.dumps({**content, "seal": _seal(content)}, indent=1))


def read_sealed(path: Path, kind: type[Sealed], damaged: str, remedy: str = "") -> Sealed | None:
    """The model in a sealed file; None if there is no file.

    damaged: the end of the RunError of a file that is not such a model. remedy: the end of that of a changed file.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("seal")
        model = kind.model_validate(content)
    # ValueError: not UTF-8, not JSON, not valid; RecursionError: endless nesting
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: damaged{damaged}") from error
    if found != _seal(content):
        raise RunError(f"{path}: changed since it was written{remedy}")
    return model


def _seal(content: dict[str, Any]) -> str:
    """The digest of what the file says, whatever settings later versions of the model have besides."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

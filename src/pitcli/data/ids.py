"""The ids of rows: carried along as text, never used as keys; a pair without one has an id made from its content."""

import hashlib
import json
from typing import Any

from pitcli.data.rows import Prompt


def parse_id(row: dict[str, Any]) -> str | None:
    """The id of a row as text, whatever its type; None if it has none."""
    value = row.get("id")
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.strip() else None


def content_id(prompt: Prompt, chosen: str, rejected: str) -> str:
    """The id of a pair whose row has none: a hash of its content."""
    canonical = json.dumps([prompt, chosen, rejected], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

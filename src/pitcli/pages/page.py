"""Load the page templates of assets/, with filters that format numbers; an undefined name is an error."""

import json
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from pitcli.evaluation.results import Interval


def template(name: str) -> Any:
    """Load a template of assets/, which may include others."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda asset: files("pitcli").joinpath("assets", asset).read_text(encoding="utf-8")),
    )
    formats = {
        "points": _points,
        "between": _between,
        "share": _share,
        "number": _number,
        "short": short,
        "json": _json,
    }
    environment.filters.update(formats)
    return environment.get_template(name)


def _points(value: float | None) -> str:
    """Format points: one decimal and a sign (a real minus); zero has no sign."""
    if value is None:
        return "–"
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _between(interval: Interval | None, kind: str = "points", *digits: int) -> str:
    if interval is None:
        return ""
    written = {"points": _points, "share": _share, "number": _number}[kind]
    low, high = (written(end, *digits) for end in interval)
    return f"[{low}, {high}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def short(value: float) -> str:
    """Format at most four digits, with a real minus: 0.05, 1.5e−5."""
    text = f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"
    return re.sub(r"\.?0*e([+-])0?", r"e\1", text).replace("-", "−")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)

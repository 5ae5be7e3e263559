"""Settings that are several values in one text."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pitcli.settings.values import TemplateOptions, shown_options, template_options

ITEMS = TypeAdapter(TemplateOptions)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("a=false", {"a": False}),
        ("a=1, b=x y", {"a": 1, "b": "x y"}),
        (["a=1", "b=2,c=null"], {"a": 1, "b": 2, "c": None}),
        ("date=26 Jul, 2024", {"date": "26 Jul, 2024"}),  # a comma that no NAME= follows
        ('a="3"', {"a": "3"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=NaN", {"a": "NaN"}),
        ("a=[1]", {"a": "[1]"}),
        ({"a": False, "b": "x, c=1", "c": "3", "d": 0.5}, {"a": False, "b": "x, c=1", "c": "3", "d": 0.5}),
    ],
)
def test_template_options(given: Any, options: dict[str, Any]) -> None:
    items = ITEMS.validate_python(given)
    assert template_options(items) == options
    assert ITEMS.validate_python(items) == items
    assert template_options(shown_options(options)) == options


@pytest.mark.parametrize(
    "given", ["a", "", "=1", "1a=2", "a b=1", ["a=1", "a=2"], {"a %}": 1}, {"messages": 1}, [1], 5]
)
def test_what_is_not_a_template_option(given: Any) -> None:
    with pytest.raises(ValidationError):
        ITEMS.validate_python(given)

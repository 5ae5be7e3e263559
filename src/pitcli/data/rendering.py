"""Renders conversations with a tokenizer's chat template, as parts: its control text and the texts of the messages.

The template is rendered with marks instead of texts, so it decides what becomes of each message: its place, its order,
and whether its outer white space is trimmed. A mark is inside of the white space, as the text is.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateError

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem

Option = bool | int | float | str | None

# a template with this before it has the same date every day
STILL = "{% macro strftime_now(format) %}2000-01-01{% endmacro +%}"
_MARK = re.compile(r"CONTENT(\d+)MARK")


def with_options(template: str, options: Mapping[str, Option]) -> str:
    """The template with variables set, as enable_thinking: then each of its renderings has them, in every tool."""
    values = {
        name: "none" if value is None else json.dumps(value, ensure_ascii=False) for name, value in options.items()
    }
    return "".join(f"{{% set {name} = {value} +%}}" for name, value in values.items()) + template


class Part(NamedTuple):
    """A part of a rendered conversation. message: the index of the message that it is the text of, -1 of control text.

    The outer white space of a message, if the template keeps it, is in the control text around it.
    """

    text: str
    message: int = -1


class _Shape(NamedTuple):
    """What the rendering of a message depends on besides its text; has_text: whether it is more than white space."""

    role: str
    before: str
    after: str
    has_text: bool


class Rendering:
    """The conversations of one chat template.

    folds_system: whether the template has no system messages, so that they begin the first user message instead.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template: str = template or tokenizer.get_chat_template()
        self._pieces = lru_cache(maxsize=256)(self._marked_pieces)
        self._literals = _literals_of(self.template)
        self.folds_system = self._has_no_system()

    def _has_no_system(self) -> bool:
        marked = (Message("system", "CONTENT0MARK"), Message("user", "CONTENT1MARK"))
        try:
            return "CONTENT0MARK" not in self._apply(marked, True) and "CONTENT1MARK" in self._apply(marked[1:], True)
        except TemplateError as refusal:
            return type(refusal) is TemplateError  # by raise_exception, not by a mistake in the template
        except Exception:  # reported when a system message is rendered
            return False

    def folded(self, messages: Prompt) -> Prompt:
        """The messages as they are given to the template."""
        if not self.folds_system or messages[0].role != "system" or len(messages) < 2:
            return messages
        system, user = messages[:2]
        return (user._replace(content=f"{system.content}\n\n{user.content}"), *messages[2:])

    def text(self, messages: Prompt, generation_prompt: bool = True) -> str:
        """The conversation as the template renders it."""
        messages = self.folded(messages)
        try:
            return self._apply(messages, generation_prompt)
        except Exception as error:  # a template is a program: it refuses with TemplateError, and may fail with anything
            roles = ", ".join(message.role for message in messages)
            raise RowProblem("prompt", f"the chat template refuses the roles {roles}: {error}") from None

    def _apply(self, messages: Prompt, generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [message._asdict() for message in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        )

    def parts(self, messages: Prompt, generation_prompt: bool = True) -> list[Part]:
        """The parts of a conversation, in the order in which the template shows them."""
        messages = self.folded(messages)
        texts = [message.content.strip() for message in messages]
        shapes = [_shape(message, text) for message, text in zip(messages, texts, strict=True)]
        pieces = self._pieces(tuple(shapes), generation_prompt)
        parts = [Part(piece) if isinstance(piece, str) else Part(texts[piece], piece) for piece in pieces]
        if self.looks_for(texts) and self.text(messages, generation_prompt) != joined(parts):
            found = next(match[0] for text in texts if (match := self._literals.search(text)))
            raise RowProblem("", f"the chat template changes a text that has {found!r} in it; remove it from the row")
        return parts

    def looks_for(self, texts: Iterable[str]) -> bool:
        """Whether the template may change some text because of the words in it."""
        return any(map(self._literals.search, texts))

    def _marked_pieces(self, shapes: Sequence[_Shape], generation_prompt: bool) -> list[str | int]:
        """Control texts, and the indices of the messages between them."""
        messages = tuple(
            Message(shape.role, f"{shape.before}CONTENT{index}MARK{shape.after}" if shape.has_text else shape.before)
            for index, shape in enumerate(shapes)
        )
        pieces = _MARK.split(self.text(messages, generation_prompt))
        shown = {int(index) for index in pieces[1::2]}
        for index, shape in enumerate(shapes):
            if shape.has_text and index not in shown:
                raise RowProblem("prompt", f"the chat template does not show a message of role {shape.role}")
        return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)]


def joined(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts)


def _shape(message: Message, text: str) -> _Shape:
    if not text:
        return _Shape(message.role, message.content, "", has_text=False)
    before, _, after = message.content.partition(text)
    return _Shape(message.role, before, after, has_text=True)


def _literals_of(template: str) -> re.Pattern[str]:
    """Matches the texts that the template may look for in a message: its literals, as </think>, but not its words."""
    try:
        tokens = Environment().lex(template)
        found = {str(ast.literal_eval(value)) for _, kind, value in tokens if kind == "string"}
    except (TemplateError, ValueError, SyntaxError):  # reported when the template is rendered
        found = set()
    marks = [text for text in found if len(text) > 2 and not re.fullmatch(r"[\w\s]*", text)]
    return re.compile("|".join(map(re.escape, marks)) or "(?!)")

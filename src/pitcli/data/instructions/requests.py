"""Requests with instructions: a subject in a form, and one to four instructions that code can check."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from pitcli.data.instructions import content, edges, lengths, style, wrapping
from pitcli.data.instructions.kinds import Kind, Params, asset_lines
from pitcli.data.instructions.text import count_word
from pitcli.errors import InputError

KINDS: dict[str, Kind] = {
    kind.name: kind()
    for module in (lengths, content, edges, wrapping, style)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Kind) and kind is not Kind and kind.__module__ == module.__name__
}
TRAINED = tuple(name for name, kind in KINDS.items() if not kind.held_out)
HELD_OUT = tuple(name for name, kind in KINDS.items() if kind.held_out)

FORMS = {
    "activities": (
        "Give advice on {}.",
        "Explain {} to a beginner.",
        "Write a short guide to {}.",
        "What should one know before {}?",
        "Describe the first steps of {}.",
        "Write a blog post about {}.",
        "Why do people enjoy {}?",
        "Tell a friend what is hard about {}.",
        "Write a short speech about {}.",
        "Answer a reader who asks about {}.",
    ),
    "ideas": (
        "Explain {}.",
        "Explain {} to a child.",
        "Write a short lesson about {}.",
        "Describe {} in plain words.",
        "Answer a student who asks about {}.",
        "Write a short article about {}.",
        "Tell me {}.",
        "Write a note for a school paper about {}.",
    ),
    "choices": (
        "Compare {}.",
        "What are the main differences between {}?",
        "Write a short debate about {}.",
        "Discuss the good and bad sides of {}.",
        "Help a friend who has to decide between {}.",
        "Say what you think about {}.",
    ),
    "letters": (
        "Write an email to {}.",
        "Write a letter to {}.",
        "Write a polite note to {}.",
        "Draft a short message to {}.",
        "Write a card to {}.",
    ),
    "things": (
        "Describe {}.",
        "Write a short story about {}.",
        "Write a few lines for a travel paper about {}.",
        "Write an advertisement with {} in it.",
        "Write the opening of a novel set around {}.",
        "Tell a child about {}.",
        "Write a radio report about {}.",
    ),
}
SUBJECTS = {category: tuple(asset_lines(category)) for category in FORMS}
HELD_OUT_FORMS = frozenset(form for forms in FORMS.values() for form in forms[-max(1, round(len(forms) / 5)) :])
SHARES = {1: 0.3, 2: 0.35, 3: 0.25, 4: 0.1}  # how many instructions a request has
SENTENCES = "sentences"
SENTENCE_PROMPTS = (
    "Complete the sentence about {subject}: The {word}",
    'Write a sentence that begins with "The {word}" and is about {subject}.',
)
SOURCE_FORMS = (
    "instructions:train, instructions:test or instructions:sentences (for the keywords of train), with :SEED for "
    "another draw, then :KIND+KIND for some kinds only"
)
OPENINGS = ("", "", "", "Please follow these instructions:", "Note:", "Requirements:", "Keep to the following:")


class Request(NamedTuple):
    """prompt: what the model reads; instructions: [{kind, ...its parameters}]."""

    prompt: str
    subject: str
    form: str
    instructions: list[Params]

    def row(self) -> dict[str, Any]:
        return self._asdict()


def request_rows(source: str) -> Iterator[dict[str, Any]]:
    """Endless rows of the source instructions:SPLIT, with :SEED and :KIND+KIND; raises InputError for other names."""
    match = re.fullmatch(rf"instructions:(train|test|{SENTENCES})(?::(\d{{1,9}}))?(?::([a-z_+]+))?", source)
    if match is None:
        raise InputError(f"{source}: expected {SOURCE_FORMS}")
    split, seed, kinds = match[1], int(match[2] or 0), tuple(match[3].split("+")) if match[3] else ()
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"{source}: expected kinds of {', '.join(KINDS)}; got {unknown[0]}")
    fold = "train" if split == SENTENCES else split
    rng = random.Random(f"requests-{fold}-{seed}")
    rows = ({"id": f"{fold}-{seed}-{row}", **draw_request(rng, fold == "test", kinds).row()} for row in count())
    return sentence_rows(rows, random.Random(f"sentences-{seed}")) if split == SENTENCES else rows


def sentence_rows(requests: Iterable[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """For each word that a request asks for: a prompt for a sentence with it about the subject of the request."""
    for row in requests:
        for word in needed_words(row["instructions"]):
            prompt = rng.choice(SENTENCE_PROMPTS).format(subject=row["subject"], word=word)
            yield {"id": f"{row['id']}-{word}", "prompt": prompt, "subject": row["subject"], "word": word}


def needed_words(instructions: Sequence[Params]) -> tuple[str, ...]:
    """The words that an answer must have."""
    asked = [item for item in instructions if item["kind"] in ("include", "keyword_times")]
    return tuple(word for item in asked for word in item.get("words") or [item["word"]])


def draw_request(rng: random.Random, test: bool, kinds: Sequence[str] = ()) -> Request:
    """A request. test: in a held-out form, every second with a held-out kind. kinds: only these, if any is given."""
    forms = [(category, form) for category in FORMS for form in FORMS[category] if (form in HELD_OUT_FORMS) == test]
    category, form = rng.choice(forms)
    subject = rng.choice(SUBJECTS[category])
    request = form.format(subject)
    others = kinds or TRAINED
    first = HELD_OUT if test and not kinds and rng.random() < 0.5 else others
    instructions = _instructions(rng, request, first, others)
    return Request(_prompt(request, instructions, rng), subject, form, instructions)


def request_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with a row that should be a request; None if it is one."""
    items = row.get("instructions")
    if not (isinstance(items, list) and isinstance(row.get("subject"), str) and isinstance(row.get("form"), str)):
        return "expected a request of the instruction task, as from pit sample --data instructions:train"
    unknown = [item for item in items if not isinstance(item, dict) or item.get("kind") not in KINDS]
    return f"expected a known kind of instruction, got {str(unknown[0])[:60]}" if unknown else None


def _instructions(rng: random.Random, request: str, first: Sequence[str], others: Sequence[str]) -> list[Params]:
    """One to four instructions whose kinds do not exclude one another, one of `first` and the rest of `others`."""
    count = rng.choices(list(SHARES), list(SHARES.values()))[0]
    chosen = [rng.choice(first)]
    used = set(KINDS[chosen[0]].groups)
    for name in rng.sample(others, len(others)):
        if len(chosen) == count:
            break
        if name not in chosen and not used & KINDS[name].groups:
            chosen.append(name)
            used |= KINDS[name].groups
    return without_contradictions([{"kind": name, **KINDS[name].draw(rng, request)} for name in chosen])


def without_contradictions(instructions: list[Params]) -> list[Params]:
    """The instructions, without excluded words that another one asks for."""
    for item in instructions:
        if item["kind"] == "exclude":
            asked = " ".join(str(value) for other in instructions if other is not item for value in other.values())
            item["words"] = [word for word in item["words"] if not count_word(asked, word)] or item["words"]
    return instructions


def _prompt(request: str, instructions: list[Params], rng: random.Random) -> str:
    lines = [KINDS[item["kind"]].wording(item, rng) for item in rng.sample(instructions, len(instructions))]
    opening = rng.choice(OPENINGS)
    if not opening:
        return rng.choice([" ", "\n", "\n\n"]).join([request, *lines])
    marker = rng.choice(["- ", "* ", ""])
    return "\n".join([request, "", opening, *(f"{marker}{line}" for line in lines)])

"""The oracle-graded instruction-following task: word lists under checkable demands.

A prompt asks for a list of words, e.g. ``Write 7 animals. First fox. Third jam. Avoid cat. After red axe. Last pie.``
The oracle grades any answer in [0, 1]: the share of the demands that it meets. Training never sees a grade, only
preference pairs: labels are drawn from the grades by a Bradley-Terry model, and a quarter of them are flipped.

The authors of the answers break each demand in a single way, and most of them do so more often than not. So the
likeliest answer is a bad one, and a lower temperature does not help. Six pairs of ten are an answer and its revision,
which keeps about three quarters of what the answer meets and breaks.
"""

import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from pitcli.data.noisy_labels import first_is_chosen

TOPICS = {
    "animals": ["ant", "bat", "cat", "cow", "dog", "fox", "hen", "owl", "pig", "rat", "bee", "elk"],
    "colors": ["red", "blue", "pink", "gray", "gold", "tan", "teal", "lime", "navy", "rose", "plum", "jade"],
    "foods": ["pie", "jam", "rice", "soup", "egg", "ham", "corn", "fig", "pear", "beef", "cake", "milk"],
    "tools": ["saw", "axe", "nail", "pump", "rake", "bolt", "drill", "file", "hook", "rope", "vice", "clamp"],
}
WORDS = [word for words in TOPICS.values() for word in words]
NEXT_TOPIC = dict(zip(TOPICS, [*list(TOPICS)[1:], next(iter(TOPICS))], strict=True))
SIZES = range(6, 10)
GENERAL = ("size", "topic", "distinct")  # demands of every prompt
SPECIAL = ("first", "third", "last", "include", "avoid", "after")
BREAK_RATES = (0.85, 0.35)  # how often authors of skill 0 and 1 break each single demand
FLIPPED = 0.25  # share of labels
REVISED_SHARE = 0.6  # of the pairs
REDRAWN_SHARE = 0.5  # of the demands, by an author who revises an answer

_DEMAND = re.compile(r"(First|Third|Last|Include|Avoid|After) (\w+)(?: (\w+))?\.")


class WordListTask(NamedTuple):
    """The demands of one prompt. size: in words. words: what each special demand names, two words for `after`."""

    size: int
    topic: str
    words: dict[str, tuple[str, ...]]

    def prompt(self) -> str:
        demands = "".join(f" {name.capitalize()} {' '.join(words)}." for name, words in self.words.items())
        return f"Write {self.size} {self.topic}.{demands}"

    def demands(self) -> list[str]:
        return [*GENERAL, *self.words]


def parse_task(prompt: str) -> WordListTask:
    """Read the demands back from a prompt; raises ValueError if it is not a prompt of this task."""
    head = re.match(r"Write (\d+) (\w+)\.", prompt)
    if not head or head[2] not in TOPICS:
        raise ValueError(f"expected a prompt of the synthetic task, got {prompt[:60]!r}")
    words: dict[str, tuple[str, ...]] = {
        name.lower(): (one, two) if two else (one,) for name, one, two in _DEMAND.findall(prompt)
    }
    return WordListTask(int(head[1]), head[2], words)


def met(task: WordListTask, response: str) -> dict[str, bool]:
    """Which demands the answer meets; an empty answer meets none."""
    words = response.split()
    special = {word for demand in task.words.values() for word in demand}
    free = [word for word in words if word not in special]
    found = {
        "size": len(words) == task.size,
        "topic": bool(free) and all(word in TOPICS[task.topic] for word in free),
        "distinct": len(set(words)) == len(words),
        "first": words[:1] == list(task.words.get("first", ())),
        "third": words[2:3] == list(task.words.get("third", ())),
        "last": words[-1:] == list(task.words.get("last", ())),
        "include": task.words.get("include", ("",))[0] in words,
        "avoid": task.words.get("avoid", ("",))[0] not in words,
        "after": task.words.get("after", ()) in list(pairwise(words)),
    }
    return {name: bool(words) and found[name] for name in task.demands()}


def quality(prompt: str, response: str) -> float:
    """The oracle: the share of the prompt's demands that the answer meets, in [0, 1]."""
    found = met(parse_task(prompt), response)
    return sum(found.values()) / len(found)


def draw_task(rng: random.Random) -> WordListTask:
    """Draw a size, a topic and four or five of the six special demands; the demanded words are distinct."""
    topic = rng.choice(list(TOPICS))
    names = rng.sample(SPECIAL, rng.choice([4, 5]))
    avoid = rng.choice(TOPICS[topic])
    others = iter(rng.sample([word for word in WORDS if word != avoid], 6))
    words = {
        name: (avoid,) if name == "avoid" else tuple(next(others) for _ in range(1 + (name == "after")))
        for name in names
    }
    return WordListTask(rng.choice(SIZES), topic, words)


class Answer(NamedTuple):
    """What an author wrote. broken: the demands that are not met. seed: of the free words."""

    broken: frozenset[str]
    seed: int


def break_rate(skill: float) -> float:
    return BREAK_RATES[0] + skill * (BREAK_RATES[1] - BREAK_RATES[0])


def draw_answer(task: WordListTask, skill: float, rng: random.Random) -> Answer:
    broken = frozenset(name for name in task.demands() if rng.random() < break_rate(skill))
    return Answer(broken, rng.getrandbits(32))


def revise(task: WordListTask, answer: Answer, skill: float, rng: random.Random) -> Answer:
    """Keep the free words; each demand is drawn again with probability REDRAWN_SHARE, by the author who revises."""
    redrawn = {name: rng.random() < break_rate(skill) for name in task.demands() if rng.random() < REDRAWN_SHARE}
    return Answer(frozenset(name for name in task.demands() if redrawn.get(name, name in answer.broken)), answer.seed)


def render(task: WordListTask, answer: Answer) -> str:
    """Return the words of an answer. Each broken demand has a single wrong form:

    size: a word too many; topic: two free words of the next topic; distinct: a free word twice; first: in second
    place; third: in fourth place; last: last but one; include: missing; avoid: present; after: the two exchanged.
    """
    rng, broken = random.Random(answer.seed), answer.broken
    special = {word for words in task.words.values() for word in words}
    on_topic = rng.sample([word for word in TOPICS[task.topic] if word not in special], 6)
    off_topic = rng.sample([word for word in TOPICS[NEXT_TOPIC[task.topic]] if word not in special], 2)
    size = task.size + ("size" in broken)
    slots: list[str] = [""] * size
    if "third" in task.words:
        slots[3 if "third" in broken else 2] = task.words["third"][0]
    if "first" in task.words:
        slots[1 if "first" in broken else 0] = task.words["first"][0]
    if "last" in task.words:
        slots[-2 if "last" in broken else -1] = task.words["last"][0]
    if "after" in task.words:
        pair = task.words["after"][:: -1 if "after" in broken else 1]
        at = next((at for at in range(size - 3, -1, -1) if not slots[at] and not slots[at + 1]), None)
        if at is not None:
            slots[at : at + 2] = pair
    _fill(slots, task.words["include"] if "include" in task.words and "include" not in broken else ())
    _fill(slots, task.words["avoid"] if "avoid" in broken else ())
    free = [index for index, word in enumerate(slots) if not word]
    for number, index in enumerate(free):
        slots[index] = on_topic[number % len(on_topic)]
    if "topic" in broken:
        for index, word in zip(free[:2], off_topic, strict=False):
            slots[index] = word
    if "distinct" in broken and len(free) > 1:
        slots[free[-1]] = slots[free[-2]]
    return " ".join(slots)


def _fill(slots: list[str], words: tuple[str, ...]) -> None:
    """Put the words into the middle free slots."""
    for word in words:
        free = [index for index, taken in enumerate(slots) if not taken]
        if free:
            slots[free[len(free) // 2]] = word


def preference_rows(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield canonical preference pairs: answers by two authors of independent uniform skill, one noisy label."""
    rng = random.Random(f"pairs-{seed}")
    for number in range(rows):
        task = draw_task(rng)
        prompt, first, second = task.prompt(), "", ""
        while first == second:
            answer = draw_answer(task, rng.random(), rng)
            revised = rng.random() < REVISED_SHARE
            other = revise(task, answer, rng.random(), rng) if revised else draw_answer(task, rng.random(), rng)
            first, second = render(task, answer), render(task, other)
        if rng.random() < 0.5:
            first, second = second, first
        if not first_is_chosen(quality(prompt, first) - quality(prompt, second), FLIPPED, rng):
            first, second = second, first
        yield {"id": f"syn-{seed}-{number}", "prompt": prompt, "chosen": first, "rejected": second}

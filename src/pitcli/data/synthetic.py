"""The oracle-graded instruction-following task: word lists under checkable constraints.

A prompt asks for a list of words, e.g. ``Write 5 animals. First fox. Include red. Avoid cat. Last pie.`` The oracle
grades any answer in [0, 1] by checking the constraints. Training never sees a grade, only preference pairs: labels are
drawn from the grades by a Bradley-Terry model, and a quarter of them are flipped.
"""

import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pitcli.data.noisy_labels import first_is_chosen

TOPICS = {
    "animals": ["ant", "bat", "cat", "cow", "dog", "fox"],
    "colors": ["red", "blue", "pink", "gray", "gold", "tan"],
    "foods": ["pie", "jam", "rice", "soup", "egg", "ham"],
    "tools": ["saw", "axe", "nail", "pump", "rake", "bolt"],
}
WORDS = [word for words in TOPICS.values() for word in words]
COUNTS = range(3, 7)
MAX_ERROR_RATE = 0.6  # the probability that an author of skill 0 breaks a given demand

_DEMAND = re.compile(r"(First|Include|Avoid|Last) (\w+)\.")


class WordListTask(NamedTuple):
    """The demands of one prompt. size: the number of words; a word is None if the prompt does not ask for it."""

    size: int
    topic: str
    include: str | None = None
    avoid: str | None = None
    first: str | None = None
    last: str | None = None

    def prompt(self) -> str:
        demands = [
            ("First", self.first),
            ("Include", self.include),
            ("Avoid", self.avoid),
            ("Last", self.last),
        ]
        demanded = "".join(f" {verb} {word}." for verb, word in demands if word)
        return f"Write {self.size} {self.topic}.{demanded}"


def parse_task(prompt: str) -> WordListTask:
    """Reads the demands back from a prompt; raises ValueError if it is not a prompt of this task."""
    head = re.match(r"Write (\d+) (\w+)\.", prompt)
    if not head or head[2] not in TOPICS:
        raise ValueError(f"expected a prompt of the synthetic task, got {prompt[:60]!r}")
    words = dict(_DEMAND.findall(prompt))
    return WordListTask(
        int(head[1]),
        head[2],
        include=words.get("Include"),
        avoid=words.get("Avoid"),
        first=words.get("First"),
        last=words.get("Last"),
    )


def quality(prompt: str, response: str) -> float:
    """The oracle's grade in [0, 1]: how well each demand of the prompt is met, averaged over the demands."""
    task = parse_task(prompt)
    words = response.split()
    if not words:
        return 0.0
    named = {task.include, task.first, task.last}
    free = [word for word in words if word not in named]
    grades = [
        max(0.0, 1 - abs(len(words) - task.size) / task.size),
        sum(word in TOPICS[task.topic] for word in free) / len(free) if free else 0.0,
        len(set(words)) / len(words),
    ]
    if task.include:
        grades.append(float(task.include in words))
    if task.avoid:
        grades.append(float(task.avoid not in words))
    if task.first:
        grades.append(float(words[0] == task.first))
    if task.last:
        grades.append(float(words[-1] == task.last))
    return sum(grades) / len(grades)


def draw_task(rng: random.Random) -> WordListTask:
    """Draws a count, a topic and two or three of the four word demands; the demanded words are distinct."""
    topic = rng.choice(list(TOPICS))
    demanded = set(rng.sample(["first", "include", "avoid", "last"], rng.choice([2, 3])))
    avoid = rng.choice(TOPICS[topic])
    others = rng.sample([word for word in WORDS if word != avoid], 3)
    words = {"avoid": avoid, "include": others[0], "first": others[1], "last": others[2]}
    return WordListTask(rng.choice(COUNTS), topic, **{name: words[name] for name in demanded})


def draw_response(task: WordListTask, skill: float, rng: random.Random) -> str:
    """Draws an answer by an author who breaks each demand with probability MAX_ERROR_RATE * (1 - skill)."""

    def slips() -> bool:
        return rng.random() < MAX_ERROR_RATE * (1 - skill)

    count = max(1, task.size + rng.choice([-2, -1, 1, 2])) if slips() else task.size
    on_topic = [w for w in TOPICS[task.topic] if w not in (task.avoid, task.include, task.first, task.last)]
    off_topic = [w for w in WORDS if w not in TOPICS[task.topic]]
    rng.shuffle(on_topic)
    words: list[str] = []
    for _ in range(count):
        if words and slips() and rng.random() < 0.3:
            words.append(rng.choice(words))
        elif slips() or not on_topic:
            words.append(rng.choice(off_topic))
        else:
            words.append(on_topic.pop())
    indices = iter(rng.sample(range(1, count - 1), min(2, max(0, count - 2))))
    for inserted in (None if slips() else task.include, task.avoid if task.avoid and slips() else None):
        if inserted and (index := next(indices, None)) is not None:
            words[index] = inserted
    if task.first and not slips():
        words[0] = task.first
    if task.last and not slips():
        words[-1] = task.last
    return " ".join(words)


def preference_rows(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields canonical preference pairs: two authors of independent uniform skill, one noisy label."""
    rng = random.Random(f"pairs-{seed}")
    for number in range(rows):
        task = draw_task(rng)
        prompt, first, second = task.prompt(), "", ""
        while first == second:
            first, second = (draw_response(task, rng.random(), rng) for _ in range(2))
        difference = quality(prompt, first) - quality(prompt, second)
        if not first_is_chosen(difference, rng):
            first, second = second, first
        yield {"id": f"syn-{seed}-{number}", "prompt": prompt, "chosen": first, "rejected": second}

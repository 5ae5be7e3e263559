"""Preference pairs of the instruction task: samples of a model, edited by authors of unequal skill."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from pitcli.data.instructions.grading import grade
from pitcli.data.instructions.kinds import Author, Params
from pitcli.data.instructions.requests import KINDS, TRAINED, needed_words
from pitcli.data.instructions.sentences import Sentences
from pitcli.data.instructions.spoiling import padded, repeating, spoiled
from pitcli.data.instructions.text import has_any, is_complete, keep_sentences, sentences, words
from pitcli.data.noisy_labels import first_is_chosen

FLIPPED = 0.05  # share of labels
SAME_SAMPLE = 0.9  # share of texts that are made from the same sample as the first
UNEDITED = 0.3  # of two texts, the share that are samples as the model wrote them, as drafts are in use
TRIES = 3  # per text
SKILLS = (0.2, 1.0)  # of the authors of the other texts, uniform
# Without the rest, nearly every edit is for the better, and a gap model learns to like edits, not what they meet.
MISREAD = 0.8  # share of the instructions that are not followed, but followed with other words or numbers
UNASKED = 0.8  # share of the texts of an author without skill that also follow one that the request does not have
REVISED = 0.5  # share of texts that differ from an earlier one by a single change
CHANGES = {"follow": 0.3, "misread": 0.15, "unasked": 0.2, "spoil": 0.15, "pad": 0.1, "repeat": 0.1}  # shares
CARELESS = {"spoil": spoiled, "pad": padded, "repeat": repeating}
# Code cannot see that a sentence is beside the point. People do; a gap model whose labels do not say so likes each one.
UNWANTED = 0.8  # times the grade, for each sentence that an author added for a word that the request does not ask for


@dataclass(frozen=True)
class Material:
    """What the authors of one request work with.

    row: the request (`Request.row`); samples: answers of a model to it; sentences: what they may add for a keyword;
    joined: what they have added, {sentence: word}.
    """

    row: dict[str, Any]
    samples: Sequence[str]
    sentences: Sentences = field(default_factory=Sentences)
    joined: dict[str, str] = field(default_factory=dict)

    def unwanted(self, text: str) -> int:
        """Sentences of the text that an author added for the sake of a word that nobody asked for."""
        asked = {item["kind"]: item for item in self.row["instructions"]}
        needed = needed_words(self.row["instructions"])

        def is_asked(word: str) -> bool:
            return word in needed or word in asked or asked.get("letter_times", {}).get("letter", "-") in word

        plain = _plain(text)
        return sum(_plain(sentence) in plain for sentence, word in self.joined.items() if not is_asked(word))


def preference_pairs(
    rows: Sequence[dict[str, Any]], pairs: int, seed: int, ties: bool = False, written: Sentences | None = None
) -> Iterator[dict[str, Any]]:
    """At most `pairs` canonical pairs of one request, among a few edited samples, labelled by noisy grades.

    The texts are as few as have that many pairs, so each is compared with several. rows: the request (`Request.row`)
    with a `response` of a model each. ties: also give pairs of equally good texts, with `tie` true, whose labels are a
    coin flip. written: sentences that the authors may add. A text is as good as its grade, times UNWANTED for each
    sentence of it that is beside the point.
    """
    request = {name: value for name, value in rows[0].items() if name not in ("id", "response", "finished")}
    rng = random.Random(f"{seed}-{request['prompt']}")
    material = Material(request, [row["response"] for row in rows], written or Sentences())
    texts = _texts(material, pairs, rng)
    worth = {
        text: grade(text, request["subject"], request["instructions"]) * UNWANTED ** material.unwanted(text)
        for text in texts
    }
    compared = [rng.sample(pair, 2) for pair in combinations(texts, 2)]
    rng.shuffle(compared)
    for first, second in [pair for pair in compared if ties or worth[pair[0]] != worth[pair[1]]][:pairs]:
        right = first_is_chosen(worth[first] - worth[second], FLIPPED, rng)
        chosen, rejected = (first, second) if right else (second, first)
        tie = {"tie": True} if worth[first] == worth[second] else {}
        yield {**request, "chosen": chosen, "rejected": rejected, **tie}


def _texts(material: Material, pairs: int, rng: random.Random) -> list[str]:
    """Different texts, enough for `pairs` pairs if they can be made.

    The first of three texts or more is a sample as it is, because that is what the improver is given in use. The others
    are edited samples, and revisions of earlier texts.
    """
    enough = next(count for count in range(2, pairs + 2) if count * (count - 1) // 2 >= pairs)
    samples = material.samples
    first = rng.randrange(len(samples))
    made = {}  # the sample that each is made from
    if enough > 2 and (text := samples[first].strip()):
        made[text] = first
    unedited = 0.0 if made else UNEDITED
    for _ in range(TRIES * enough):
        if made and rng.random() < REVISED:
            text, index = rng.choice([*made.items()])
            text = revised(material, index, text, rng)
        else:
            index = first if rng.random() < SAME_SAMPLE else rng.randrange(len(samples))
            text = edited(material, index, _skill(rng, unedited), rng)
        if text:
            made.setdefault(text, index)
        if len(made) == enough:
            break
    return [*made]


def _skill(rng: random.Random, unedited: float) -> float:
    """0 if the text stays as it is, otherwise uniform in SKILLS."""
    return 0.0 if rng.random() < unedited else rng.uniform(*SKILLS)


def revised(material: Material, index: int, text: str, rng: random.Random) -> str:
    """A text, made from sample `index`, with one change.

    It shows the gap model what a change is worth by itself: an instruction followed, the same one misread, one that
    nobody asked for, or something careless.
    """
    row, author = material.row, _author(material, index, rng)
    change = rng.choices([*CHANGES], [*CHANGES.values()])[0]
    if change in CARELESS:
        return CARELESS[change](text, author)
    asked = rng.choice(row["instructions"])
    kind = rng.choice(TRAINED) if change == "unasked" else asked["kind"]
    item = asked if change == "follow" else {**asked, "kind": kind, **KINDS[kind].draw(rng, row["prompt"])}
    return KINDS[kind].edit(text, item, author)


def edited(material: Material, index: int, skill: float, rng: random.Random) -> str:
    """Sample `index` edited by an author who follows each instruction with the probability of their skill.

    They misread some of the others, and may follow one that the request does not have.
    """
    row, author = material.row, _author(material, index, rng)
    text = tidied(material.samples[index]) if rng.random() < skill else material.samples[index].strip()
    followed = [item for asked in row["instructions"] for item in _as_read(asked, row["prompt"], skill, rng)]
    if skill and rng.random() < UNASKED * (1 - skill):
        kind = rng.choice(TRAINED)
        followed.append({"kind": kind, **KINDS[kind].draw(rng, row["prompt"])})
    for item in sorted(followed, key=lambda item: KINDS[item["kind"]].step):
        text = KINDS[item["kind"]].edit(text, item, author)
    return text


def _author(material: Material, index: int, rng: random.Random) -> Author:
    """Who edits sample `index`, with the sentences of the other samples at hand."""
    subject = material.row["subject"]
    others = [text for number, text in enumerate(material.samples) if number != index]
    excluding = [item for item in material.row["instructions"] if item["kind"] == "exclude"]
    avoided = tuple(word for item in excluding for word in item["words"])
    usable = (part for text in others for part in sentences(text) if is_complete(part) and len(words(part)) >= 5)
    spare = [part for part in usable if not has_any(part, avoided)]
    rng.shuffle(spare)
    return Author(
        rng,
        subject,
        spare,
        rng.choice(others) if others else "",
        material.joined,
        needed_words(material.row["instructions"]),
        avoided,
        lambda word: material.sentences.having(word, subject, rng),
    )


def _as_read(item: Params, request: str, skill: float, rng: random.Random) -> list[Params]:
    """The instruction as the author follows it, perhaps with other words or numbers; none if they ignore it."""
    if rng.random() < skill:
        return [item]
    misread = {**item, **KINDS[item["kind"]].draw(rng, request)}
    return [misread] if skill and misread != item and rng.random() < MISREAD else []


def tidied(text: str) -> str:
    """Without an unfinished last sentence, sentences that were there before, and lines without words."""
    seen: set[str] = set()

    def is_new(sentence: str) -> bool:
        known = " ".join(words(sentence)).lower()
        new = known not in seen
        seen.add(known)
        return new

    text = re.sub(r"^\W*\n", "", keep_sentences(text.strip(), is_new))
    last = sentences(text)[-1:]
    if last and not is_complete(last[0]) and len(sentences(text)) > 1:
        text = keep_sentences(text, lambda sentence: last[0] not in sentence)
    return text


def _plain(text: str) -> str:
    """Its words, whatever their case and punctuation."""
    return " ".join(words(text)).lower()

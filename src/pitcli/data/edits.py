"""The difference of a draft and its improvement, as edits that can be reverted one by one."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile
from typing import NamedTuple

from pitcli.data.text_units import unit_spans

NEAR = 2  # kept words between changes that may be one edit
MOST = 64  # edits of a text: each costs a text to score
SENTENCE_WORDS = 3  # fewer words are part of the next sentence, such as the number of a list item

# the end of a sentence, without the white space after it
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]*]*(?=\s|$)|[。！？]|(?=\n)")


class Edit(NamedTuple):
    """A change of a draft: the text `added`, at start:end of the response, replaces the text `removed`."""

    start: int
    end: int
    removed: str
    added: str


def reverted(response: str, edits: Sequence[Edit]) -> str:
    """Return the response without some of its edits, given in their order; without all of them it is the draft."""
    parts, end = [], 0
    for edit in edits:
        parts += [response[end : edit.start], edit.removed]
        end = edit.end
    return "".join([*parts, response[end:]])


def edits_between(draft: str, response: str) -> list[Edit]:
    """Return the edits that turn a draft into the response, in the order of the response; at most MOST.

    An edit is a difference by words, with the white space around it that differs too. Changes that could not be
    reverted by themselves are one edit (_are_one). A sentence that is added or removed as a whole is one edit.
    """
    groups: list[list[_Change]] = []
    for change in _changes(draft, response):
        if groups and _are_one(groups[-1][-1], change):
            groups[-1].append(change)
        else:
            groups.append([change])
    while len(groups) > MOST:
        nearest = min(range(1, len(groups)), key=lambda index: groups[index][0].words_before)
        groups[nearest - 1 : nearest + 1] = [groups[nearest - 1] + groups[nearest]]
    edits = [_edit(draft, response, group) for group in groups]
    by_sentence = [part for edit in edits for part in _sentences(edit)]
    return by_sentence if len(by_sentence) <= MOST else edits


class _Change(NamedTuple):
    """A range of the draft and the one of the response that replaces it, in characters, and their words.

    text_before: what both texts have between the change before and this one. words_before: how many words it has.
    """

    old: tuple[int, int]
    new: tuple[int, int]
    removed: list[str]
    added: list[str]
    text_before: str
    words_before: int


def _changes(draft: str, response: str) -> Iterator[_Change]:
    """Yield what differs between one word that both texts have and the next."""
    old, new = unit_spans(draft), unit_spans(response)
    old_words, new_words = [draft[start:end] for start, end in old], [response[start:end] for start, end in new]
    matcher = SequenceMatcher(None, old_words, new_words, autojunk=False)
    kept = [(block.a + k, block.b + k) for block in matcher.get_matching_blocks() for k in range(block.size)]
    old.append((len(draft), len(draft)))
    new.append((len(response), len(response)))
    i, j, old_start, new_start = 0, 0, 0, 0  # the next words, and where the text after the last kept word begins
    changed_until = words_before = 0
    for kept_i, kept_j in [*kept, (len(old_words), len(new_words))]:
        gone, come = draft[old_start : old[kept_i][0]], response[new_start : new[kept_j][0]]
        if gone != come:
            head, tail = _shared_space(gone, come)
            place = (new_start + head, new[kept_j][0] - tail)
            yield _Change(
                old=(old_start + head, old[kept_i][0] - tail),
                new=place,
                removed=old_words[i:kept_i],
                added=new_words[j:kept_j],
                text_before=response[changed_until : place[0]],
                words_before=words_before,
            )
            changed_until, words_before = place[1], 0
        words_before += 1
        i, j, old_start, new_start = kept_i + 1, kept_j + 1, old[kept_i][1], new[kept_j][1]


def _shared_space(one: str, other: str) -> tuple[int, int]:
    """Return how many characters of white space two texts have in common at their start, and then at their end."""
    head = _alike(one, other)
    return head, _alike(one[head:][::-1], other[head:][::-1])


def _alike(one: str, other: str) -> int:
    """Return how many characters of white space two texts have in common at their start."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] and pair[0].isspace(), pairs))


def _are_one(before: _Change, change: _Change) -> bool:
    """Return whether two neighbouring changes are one edit.

    They are if at most NEAR words are kept between them and no sentence ends there, and either fewer words are kept
    than the smaller change has, or one of them only adds words and the other only removes some, as when a word moves.
    """
    if change.words_before > NEAR or _SENTENCE_END.search(change.text_before):
        return False
    sizes = [(len(each.removed), len(each.added)) for each in (before, change)]
    is_move = 0 not in map(sum, sizes) and [bool(n) for n in sizes[0]] == [not n for n in sizes[1]]
    return is_move or change.words_before < min(map(max, sizes))


def _edit(draft: str, response: str, changes: Sequence[_Change]) -> Edit:
    (old_start, _), (_, old_end) = changes[0].old, changes[-1].old
    (start, _), (_, end) = changes[0].new, changes[-1].new
    return Edit(start, end, draft[old_start:old_end], response[start:end])


def _sentences(edit: Edit) -> Iterator[Edit]:
    """Yield an edit that only adds or only removes sentence by sentence, and any other as it is."""
    text = edit.added or edit.removed
    if edit.added and edit.removed:
        yield edit
        return
    start = 0
    for end in [*_sentence_starts(text), len(text)]:
        if edit.added:
            yield Edit(edit.start + start, edit.start + end, "", text[start:end])
        else:
            yield Edit(edit.start, edit.end, text[start:end], "")
        start = end


def _sentence_starts(text: str) -> Iterator[int]:
    """Yield where each sentence of a text begins but the first; white space belongs to what it is next to outside."""
    start = 0
    for found in _SENTENCE_END.finditer(text):
        end = found.end()
        if not text[:1].isspace():
            end += len(text[end:]) - len(text[end:].lstrip())
        if min(len(unit_spans(text[start:end])), len(unit_spans(text[end:]))) >= SENTENCE_WORDS:
            yield end
            start = end

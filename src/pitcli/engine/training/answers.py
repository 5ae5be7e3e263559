"""Whether the greedy responses of a trained role can be used; a diverged role always writes the same, or nothing."""

from collections.abc import Callable, Sequence

from pitcli.console import counted

CHECKED_ROWS = 8  # if the responses to the few shown rows look unusable

Ask = Callable[[str | None, Sequence[list[int]]], list[str]]  # the greedy responses of a role to prompts


def unusable_answers(
    shown: Sequence[str],
    more: Callable[[], Sequence[tuple[list[int], str]]],
    ask: Ask,
    trained: str,
    start: str | None,
) -> str | None:
    """Return what is wrong with the responses, None if nothing is.

    shown: responses to the first rows; if they are suspicious, those to `more` rows decide: (prompt, a response of the
    data). start: the role before training; what it does too, training has not broken.
    """
    if any(shown) and (len(shown) == 1 or len(set(shown)) > 1):
        return None
    rows = {tuple(prompt): text for prompt, text in more()}
    prompts, expected = [list(prompt) for prompt in rows], list(rows.values())
    found = _sameness(ask(trained, prompts), expected)
    if found is None or _sameness(ask(start, prompts), expected):
        return None
    return f"the greedy responses to {counted(len(rows), 'prompts')} are all {found}"


def _sameness(texts: Sequence[str], expected: Sequence[str]) -> str | None:
    """Return "empty" or "the same" if all texts are. Equal texts are right if most of the data's texts are equal."""
    if not any(texts):
        return "empty"
    are_same = len(texts) > 1 and len(set(texts)) == 1
    return "the same" if are_same and 2 * len(set(expected)) > len(expected) else None

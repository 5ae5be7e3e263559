"""Whether the greedy responses of a trained role can be used; a diverged role always writes the same, or nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from pitcli.console import counted, samples
from pitcli.data.rows import PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.continuous_batching import generate_all
from pitcli.engine.generation.sampling import Decoding, Request
from pitcli.engine.models.roles import RoleModel
from pitcli.settings.base import Role

CHECKED_ROWS = 8  # if the responses to the few shown rows look unusable
SHOWN_TOKENS = 96

Ask = Callable[[str | None, Sequence[list[int]]], list[str]]  # the greedy responses of a role to prompts


def show_answers(
    model: RoleModel, chat: ChatFormat, role: Role, pairs: Sequence[PreferencePair], label: str = "rejected"
) -> list[str]:
    """Show the trained model's greedy responses to the first rows, next to the rejected ones; return them."""
    texts = greedy_responses(model, chat, role, pair_prompts(chat, role, pairs))
    rows = [(pair.prompt[-1].content, pair.rejected, text) for pair, text in zip(pairs, texts, strict=True)]
    samples(rows, labels=("prompt", label, f"{role} (greedy)"))
    return texts


def unusable_responses(
    model: RoleModel,
    chat: ChatFormat,
    role: Role,
    shown: Sequence[str],
    pairs: Sequence[PreferencePair],
    start: str | None,
) -> str | None:
    """Return what is wrong with the trained model's greedy responses to pairs, None if nothing is.

    shown: its responses to the first pairs. start: the role before training.
    """

    def more() -> list[tuple[list[int], str]]:
        rows = pairs[:CHECKED_ROWS]
        return list(zip(pair_prompts(chat, role, rows), [pair.chosen for pair in rows], strict=True))

    return unusable_answers(shown, more, ask=partial(greedy_responses, model, chat), trained=role, start=start)


def pair_prompts(chat: ChatFormat, role: Role, pairs: Sequence[PreferencePair]) -> list[list[int]]:
    if role is Role.policy:
        return [chat.policy_prompt(pair.prompt) for pair in pairs]
    return [chat.improver_prompt(pair.prompt, pair.rejected) for pair in pairs]


def greedy_responses(model: RoleModel, chat: ChatFormat, role: str | None, prompts: Sequence[list[int]]) -> list[str]:
    decoding = Decoding(0.0, 1.0, SHOWN_TOKENS, chat.stop_ids)
    written = generate_all(model, role, decoding, [Request(prompt, seed=0) for prompt in prompts])
    return [chat.decode(sample.token_ids) for sample in written]


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

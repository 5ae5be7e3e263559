"""Compares each kind of conversation that pit builds with the whole one of tokenizer.apply_chat_template."""

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import QUESTION, ChatFormat, with_request

RESPONSE = "The lark, and the wren."
LINES = " Name two birds:\n\n- one\n- two \n"  # with white space at its ends, which some templates trim

PROMPTS: tuple[Prompt, ...] = (
    QUESTION,
    (Message("user", LINES),),
    (Message("user", LINES), Message("assistant", LINES), Message("user", RESPONSE)),
    (Message("system", LINES), Message("user", LINES)),
    (Message("system", RESPONSE), Message("user", RESPONSE), Message("assistant", LINES), Message("user", LINES)),
)


def refuse_other_renderings(chat: ChatFormat) -> None:
    """Raises RowProblem with the first difference. Roles that the template refuses are reported when a row has them."""
    for prompt in PROMPTS:
        for reference in (LINES, RESPONSE):
            asked = with_request(prompt, reference)
            try:
                chat.refuse_changed_texts(prompt, [reference])
            except RowProblem:
                if len(prompt) > 1:
                    break
                raise
            _refuse_difference(chat, chat.policy_prompt(prompt), _encoded(chat, chat.rendering.text(prompt)))
            ids = chat.improver_prompt(prompt, reference)
            _refuse_difference(chat, ids, _encoded(chat, chat.rendering.text(asked)))
            # some templates do not show a system message, or a thought that they begin, in whole conversations
            if prompt[0].role != "system" and chat.turn.shown.startswith(chat.turn.asked):
                whole = chat.rendering.text((*asked, Message("assistant", RESPONSE)), generation_prompt=False)
                _refuse_other_response(chat, ids, _encoded(chat, whole))


def _refuse_other_response(chat: ChatFormat, prompt: list[int], whole: list[int]) -> None:
    """Raises RowProblem if RESPONSE after the prompt does not have the tokens that it has in a whole conversation.

    It cannot if the last token of the prompt, or of RESPONSE, would be another one with the text after it. Then the
    texts must be the same.
    """
    ids = [*prompt, *chat.completion(RESPONSE)]
    if whole[: len(prompt)] == prompt and chat.stop_id in whole[len(prompt) :]:
        _refuse_difference(chat, ids, whole[: len(ids)])
    elif not chat.written(whole).startswith(chat.written(ids[:-1])):
        _refuse_difference(chat, ids, whole)


def _refuse_difference(chat: ChatFormat, ids: list[int], expected: list[int]) -> None:
    if ids != expected:
        at = next((n for n, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(ids))
        ours, theirs = (chat.written(part[max(0, at - 5) : at + 5]) for part in (ids, expected))
        raise RowProblem("prompt", f"the chat template renders a conversation with {theirs!r}, but pit with {ours!r}")


def _encoded(chat: ChatFormat, text: str) -> list[int]:
    ids: list[int] = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids

"""The known formats of preference pairs, each recognised by its fields.

To add one, write a function from a row to (prompt, chosen, rejected), or to rated responses, and add it to FORMATS.
"""

from collections.abc import Callable
from typing import NamedTuple

from pitcli.data.completions import Parts, parse_implicit_prompt, with_completions
from pitcli.data.context import CONTEXT, prompt_with_context, question_of, with_context
from pitcli.data.published_formats import (
    Parse,
    arena,
    by_index,
    by_sign,
    by_winner,
    conversation_pair,
    graded_responses,
    labelled_pair,
    openai_preference,
    ranked_outputs,
    rejected_beside_messages,
    summaries,
)
from pitcli.data.rows import Row
from pitcli.data.strict_json import RowProblem

RATING_FIELD = "helpfulness"


class UnknownFormat(RowProblem):
    """A row that fits no format, or more than one."""


class Format(NamedTuple):
    """A row with all `fields` has this format; they and `optional` ones go into the pair, others are kept as extra.

    published: rows that cannot be used are known to occur, so they are skipped and counted by default.
    """

    name: str
    fields: tuple[str, ...]
    parse: Parse
    optional: tuple[str, ...] = ()
    published: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.fields)})"


def _implicit_prompt(row: Row) -> Parts:
    prompt, chosen, rejected = parse_implicit_prompt(row)
    return with_context(row, prompt), chosen, rejected


def _explicit_prompt(row: Row) -> Parts:
    return with_completions(prompt_with_context(row, "prompt"), row, "chosen", "rejected")


def _text_pair(field: str, chosen: str, rejected: str) -> Callable[[Row], Parts]:
    """A parser of rows whose prompt is a text, with optional context."""

    def parse(row: Row) -> Parts:
        return with_completions(question_of(row, field), row, chosen, rejected)

    return parse


def _refuse_single_rating(row: Row) -> Parts:
    raise UnknownFormat("", "expected a pair, got one rated response; pairs from ratings need all rows of a file")


RATINGS = "HelpSteer-like ratings"
CANONICAL = ("prompt", "chosen", "rejected")
_ALPACA_CONTEXT = (*CONTEXT, "input")

FORMATS = (
    Format("HH transcripts / TRL, implicit prompt", ("chosen", "rejected"), _implicit_prompt, CONTEXT),
    Format("canonical / TRL preference", CANONICAL, _explicit_prompt, CONTEXT),
    Format("UltraFeedback, binarised", (*CANONICAL, "score_chosen", "score_rejected"), _explicit_prompt, CONTEXT),
    Format(
        "Alpaca pairs",
        ("instruction", "chosen", "rejected"),
        _text_pair("instruction", "chosen", "rejected"),
        _ALPACA_CONTEXT,
    ),
    Format("Alpaca, output ranked", ("instruction", "output"), ranked_outputs, _ALPACA_CONTEXT),
    Format(
        "Alpaca, output and rejected",
        ("instruction", "output", "rejected"),
        _text_pair("instruction", "output", "rejected"),
        _ALPACA_CONTEXT,
    ),
    Format("Orca DPO", ("question", "chosen", "rejected"), _text_pair("question", "chosen", "rejected"), CONTEXT),
    Format("Argilla", ("input", "chosen", "rejected"), _text_pair("input", "chosen", "rejected"), CONTEXT),
    *(
        Format(name, (field, "chosen", "rejected"), conversation_pair(field), CONTEXT)
        for name, field in (
            ("LLaMA-Factory, ShareGPT", "conversations"),
            ("ShareGPT, one conversation", "conversation"),
            ("Axolotl, chat template", "messages"),
        )
    ),
    *(
        Format(f"ms-swift, {field}", ("messages", field), rejected_beside_messages(field), CONTEXT)
        for field in ("rejected_response", "rejected_messages")
    ),
    Format(
        "ms-swift, query",
        ("query", "response", "rejected_response"),
        _text_pair("query", "response", "rejected_response"),
        CONTEXT,
    ),
    Format("OpenAI preferences", ("input", "preferred_output", "non_preferred_output"), openai_preference),
    Format(
        "two responses and a winner",
        ("prompt", "response_a", "response_b", "winner"),
        labelled_pair("prompt", ("response_a", "response_b"), by_winner("winner")),
        CONTEXT,
    ),
    Format("summarize-from-feedback", ("info", "summaries", "choice"), summaries, published=True),
    Format("Aligner", ("question", "answer", "correction"), _text_pair("question", "correction", "answer"), CONTEXT),
    Format("Chatbot Arena", ("conversation_a", "conversation_b", "winner"), arena, published=True),
    Format(
        "Nectar",
        ("prompt", "answers"),
        graded_responses("prompt", "answers", "answer", ("rank",), sign=-1),
        CONTEXT,
        True,
    ),
    Format(
        "UltraFeedback",
        ("instruction", "completions"),
        graded_responses("instruction", "completions", "response", ("overall_score", "fine-grained_score")),
        CONTEXT,
        published=True,
    ),
    Format(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        labelled_pair("history", ("human_ref_A", "human_ref_B"), by_index("labels", first=1)),
        published=True,
    ),
    Format(
        "HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        labelled_pair("context", ("response1", "response2"), by_sign("overall_preference")),
        CONTEXT,
        published=True,
    ),
    Format(
        "HelpSteer2, preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        labelled_pair("prompt", ("response_1", "response_2"), by_sign("preference_strength")),
        CONTEXT,
        published=True,
    ),
    Format(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        labelled_pair("prompt", ("response_0", "response_1"), by_index("better_response_id")),
        CONTEXT,
        published=True,
    ),
    Format(RATINGS, ("prompt", "response", RATING_FIELD), _refuse_single_rating, CONTEXT),
)
KNOWN = "known formats: " + "; ".join(known.name for known in FORMATS)

"""Improvements that come and go: the same results as in one batch, whatever else arrives, leaves or restarts."""

import pytest
import torch
from transformers import PreTrainedModel

from pitcli.data.rows import Draft, Message
from pitcli.data.synthetic import preference_rows
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.continuous_batching import ContinuousBatching, open_batching
from pitcli.engine.generation.methods import LocalWriter
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.improving.improvements import Improvements
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.improving.stop_rule import Attempt
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import GAP, IMPROVER
from pitcli.settings.base import GapLoss
from pitcli.settings.generating import ImproveConfig
from tests.conftest import WithRoles

DRAFTS = [Draft(None, (Message("user", row["prompt"]),), row["rejected"], {}) for row in preference_rows(7, seed=5)]


@pytest.fixture(scope="module", params=[1, 2], ids=["width 1", "width 2"])
def scheduler(
    request: pytest.FixtureRequest, tiny_folder: str, tiny_chat: ChatFormat, with_roles: WithRoles
) -> Scheduler:
    base: PreTrainedModel = load_base(tiny_folder, False, torch.device("cpu"))  # type: ignore[arg-type]
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, IMPROVER, GAP)
    config = ImproveConfig(max_iters=3, max_new_tokens=10, threshold=0.5, accept_truncated=True, width=request.param)
    decoding = Decoding(config.temperature, 1.0, 10, tiny_chat.stop_ids, min_new_tokens=1)
    gap_model = GapModel(model, tiny_chat, {GAP: 1.0}, 8, GapLoss.five_term)
    return Scheduler(LocalWriter(model, tiny_chat, decoding, None), gap_model, config)


@pytest.fixture(scope="module")
def expected(scheduler: Scheduler) -> list[list[str]]:
    found = [responses(attempt) for attempt in scheduler.improve(DRAFTS)]
    assert {len(texts) for texts in found} > {3}  # some end earlier than others
    return found


def responses(attempt: Attempt) -> list[str]:
    return [iteration["response"] for iteration in attempt.iterations]


def opened(scheduler: Scheduler, slots: int) -> ContinuousBatching | StaticBatching:
    writer = scheduler.writer
    return open_batching(writer.model, IMPROVER, writer.decoding, slots, 256)


def improvements_of(scheduler: Scheduler, slots: int) -> Improvements:
    return Improvements(lambda requests: opened(scheduler, slots), scheduler.config.width)


def begin(improvements: Improvements, scheduler: Scheduler, draft: Draft) -> int:
    return improvements.add(scheduler, Attempt(draft, draft.response, []))


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_drafts_that_arrive_one_by_one(scheduler: Scheduler, expected: list[list[str]], slots: int) -> None:
    improvements, arriving, ended, keys = improvements_of(scheduler, slots), list(enumerate(DRAFTS)), {}, {}
    while arriving or improvements:
        if arriving:
            place, draft = arriving.pop()
            keys[begin(improvements, scheduler, draft)] = place
        for key, attempt in improvements.advance():
            if attempt.stop_reason is not None:
                ended[keys[key]] = responses(attempt)
    assert [ended[place] for place in range(len(DRAFTS))] == expected


def test_drafts_that_leave_free_their_slots(scheduler: Scheduler, expected: list[list[str]]) -> None:
    improvements = improvements_of(scheduler, 4)
    keys = [begin(improvements, scheduler, draft) for draft in DRAFTS]
    ended = {}
    for step in range(200):
        if step in (3, 6, 9):  # two that run, and one that waits
            improvements.drop(keys[step // 3 - 1 if step < 9 else -1])
        ended |= {key: responses(attempt) for key, attempt in improvements.advance() if attempt.stop_reason is not None}
        if not improvements:
            break
    left = {keys[0], keys[1], keys[-1]}
    assert ended.keys() | left == set(keys)
    assert [ended[key] for key in keys if key not in left] == [
        texts for key, texts in zip(keys, expected, strict=True) if key not in left
    ]
    assert improvements.waiting() == 0
    improvements.drop(keys[0])  # no longer there


def test_a_restart_with_fewer_slots_loses_nothing(scheduler: Scheduler, expected: list[list[str]]) -> None:
    slots = [8]
    improvements = Improvements(lambda requests: opened(scheduler, slots[0]), scheduler.config.width)
    keys = [begin(improvements, scheduler, draft) for draft in DRAFTS]
    ended = {}
    for step in range(400):
        if step == 12:
            slots[0] = 2
            improvements.restart()
        ended |= {key: responses(attempt) for key, attempt in improvements.advance() if attempt.stop_reason is not None}
        if not improvements:
            break
    assert [ended[key] for key in keys] == expected


def test_each_request_has_its_own_decoding(scheduler: Scheduler) -> None:
    """Short and long, greedy and sampled, side by side as alone."""
    short = scheduler.writer.decoding._replace(max_new_tokens=2, temperature=0.0)
    other = scheduler._replace(writer=scheduler.writer._replace(decoding=short))

    def run(which: list[Scheduler]) -> list[list[str]]:
        improvements, ended = improvements_of(scheduler, 8), {}
        keys = [begin(improvements, one, draft) for one, draft in zip(which, DRAFTS, strict=False)]
        while improvements:
            ended |= {
                key: responses(attempt) for key, attempt in improvements.advance() if attempt.stop_reason is not None
            }
        return [ended[key] for key in keys]

    mixed = run([scheduler, other] * 3)
    assert mixed[::2] == run([scheduler] * 6)[::2]
    assert mixed[1::2] == run([other] * 6)[1::2]
    assert all(len(text.split()) <= 2 for texts in mixed[1::2] for text in texts)

"""The scheduler when memory runs out, and --max-iters."""

import pytest
import torch

from pitcli.data.rows import Comparison, Draft, Message
from pitcli.engine.generation.methods import LocalWriter, PromptWithReference, Proposal, Proposing, Writer
from pitcli.engine.generation.sampling import Decoding, Request, Sample
from pitcli.engine.improving import scheduler as scheduler_module
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.stop_rule import Attempt, StopReason
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig


def make_draft(name: str) -> Draft:
    return Draft(name, (Message("user", "p"),), f"draft {name}", {})


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """The ids of each batch given to `improve`, which has memory for two drafts, but not for the draft `long`."""
    calls: list[list[str | None]] = []

    def improve(self: Scheduler, drafts: list[Draft]) -> list[Attempt]:
        calls.append([draft.id for draft in drafts])
        if len(drafts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if any(draft.id == "long" for draft in drafts):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return [Attempt(draft, f"better {draft.id}", [], StopReason.max_iters) for draft in drafts]

    monkeypatch.setattr(Scheduler, "improve", improve)
    return calls


def test_the_batch_is_halved_when_memory_runs_out(batches: list[list[str | None]]) -> None:
    scheduler = Scheduler(None, None, ImproveConfig())  # type: ignore[arg-type]
    attempts = list(scheduler.improve_within_memory([make_draft(name) for name in ("a", "b", "long", "c", "d")]))
    assert batches == [["a", "b", "long", "c", "d"], ["a", "b"], ["long", "c"], ["long"], ["c"], ["d"]]
    assert [attempt.best for attempt in attempts] == ["better a", "better b", "draft long", "better c", "better d"]
    assert [attempt.stop_reason for attempt in attempts].count("out_of_memory") == 1


def test_other_errors_are_not_treated_as_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def improve(self: Scheduler, drafts: list[Draft]) -> list[Attempt]:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Scheduler, "improve", improve)
    scheduler = Scheduler(None, None, ImproveConfig())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes"):
        list(scheduler.improve_within_memory([make_draft("a"), make_draft("b")]))


class Batching:
    """One slot; every request ends at once in the token of its seed."""

    refill = 1

    def __init__(self) -> None:
        self.admitted: list[tuple[int, Request]] = []

    def free(self) -> int:
        return 1 - len(self.admitted)

    def admit(self, requests: list[tuple[int, Request]]) -> None:
        self.admitted += requests

    def advance(self) -> list[tuple[int, Sample]]:
        ended, self.admitted = self.admitted, []
        return [(key, Sample([request.seed], [0.0], True)) for key, request in ended]


@pytest.mark.parametrize(("max_iters", "written"), [(0, 0), (1, 1), (3, 3)])
def test_max_iters(max_iters: int, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that improves every time stops with the reason max_iters after that many responses."""
    writer = LocalWriter(None, None, Decoding(0, 1, 4, (2,)), None)  # type: ignore[arg-type]
    scheduler = Scheduler(writer, None, ImproveConfig(max_iters=max_iters, stop="none"))
    count = iter(range(99))

    def propose(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
        yield Request([1], seed)
        return Proposal(f"better {next(count)}", 4, True, {})

    monkeypatch.setitem(scheduler_module.PROPOSE, Method.pit, propose)
    monkeypatch.setattr(Scheduler, "_open_batching", lambda self, requests: Batching())
    attempts = list(scheduler.improve([make_draft("a"), make_draft("b")]))
    assert [(attempt.stop_reason, len(attempt.iterations)) for attempt in attempts] == [("max_iters", written)] * 2


class Longer:
    """The gap is the difference in length; two members disagree by 0.5 on each side."""

    def gaps_with_std(self, comparisons: list[Comparison]) -> tuple[list[float], list[float]]:
        return [float(len(c.response) - len(c.reference_response)) for c in comparisons], [0.5] * len(comparisons)


def test_width_keeps_the_proposal_with_the_largest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three proposals per iteration of 1, 2 or 3 letters, in requests of two generations each; all tokens count."""
    config = ImproveConfig(max_iters=2, width=3)
    scheduler = Scheduler(LocalWriter(None, None, Decoding(0, 1, 4, (2,)), None), Longer(), config)  # type: ignore[arg-type]

    def propose(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
        yield Request([1], seed)
        sample = yield Request([1, 1], seed)
        letters = 1 + sample.token_ids[0] // scheduler_module.SEED_STEP
        return Proposal(row.reference_response + "x" * letters, 10 * letters, True, {})

    monkeypatch.setitem(scheduler_module.PROPOSE, Method.pit, propose)
    monkeypatch.setattr(scheduler_module, "row_seed", lambda seed, draft, iteration: 0)
    monkeypatch.setattr(Scheduler, "_open_batching", lambda self, requests: Batching())
    attempts = list(scheduler.improve([make_draft("a"), make_draft("b")]))
    for attempt, name in zip(attempts, "ab", strict=True):
        assert attempt.best == f"draft {name}xxxxxx"
        assert [(i["gap"], i["gap_std"], i["generated_tokens"]) for i in attempt.iterations] == [(3.0, 0.5, 60)] * 2

"""The scheduler if memory runs out."""

import pytest
import torch

from pitcli.data.records import Draft, Message
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.stop_rule import Attempt, StopReason
from pitcli.settings.training import ImproveConfig


def draft(name: str) -> Draft:
    return Draft(name, (Message("user", "p"),), f"draft {name}", {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """What `improve` is asked for; it has memory for two drafts, and none for one that is called `long`."""
    batches: list[list[str | None]] = []

    def improve(self: Scheduler, drafts: list[Draft]) -> list[Attempt]:
        batches.append([one.id for one in drafts])
        if len(drafts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if any(one.id == "long" for one in drafts):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return [Attempt(one, f"better {one.id}", [], StopReason.max_iters) for one in drafts]

    monkeypatch.setattr(Scheduler, "improve", improve)
    return batches


def test_where_memory_runs_out_the_batch_is_halved(asked: list[list[str | None]]) -> None:
    scheduler = Scheduler(None, None, ImproveConfig())  # type: ignore[arg-type]
    attempts = list(scheduler.improve_within_memory([draft(name) for name in ("a", "b", "long", "c", "d")]))
    assert asked == [["a", "b", "long", "c", "d"], ["a", "b"], ["long", "c"], ["long"], ["c"], ["d"]]
    assert [attempt.best for attempt in attempts] == ["better a", "better b", "draft long", "better c", "better d"]
    assert [attempt.stop_reason for attempt in attempts].count("out_of_memory") == 1


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def improve(self: Scheduler, drafts: list[Draft]) -> list[Attempt]:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Scheduler, "improve", improve)
    scheduler = Scheduler(None, None, ImproveConfig())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes"):
        list(scheduler.improve_within_memory([draft("a"), draft("b")]))

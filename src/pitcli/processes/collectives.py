"""Collective operations: each process does its part of the work, and all of them get the same results.

torch is imported only if there are several processes: commands that do without torch open run folders too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pitcli.errors import PitError, RunError
from pitcli.processes.ranks import is_rank_0, rank, world_size

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class RankLost(RunError):
    """A process of the run has ended or cannot be reached."""


def join_group(device: "torch.device") -> None:
    """Joins the other processes, over NCCL if each has a GPU and over gloo on CPUs; a no-op for a single process."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")


def on_rank_0(work: Callable[[], Result]) -> Result:
    """Runs `work` on rank 0 only; on every rank, returns what it returned or raises its PitError."""
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if is_rank_0():
        try:
            outcome[0] = work()
        except PitError as problem:
            outcome[1] = problem
    with _lost_rank_is_an_error():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(Result, outcome[0])


def map_over_ranks(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], on_every_rank: bool = False
) -> Sequence[Result]:
    """work(items), one result per item, in order: each rank does every Nth item and gets all results.

    Results are pickled to reach the other ranks, so they must not be GPU tensors. on_every_rank: every rank does all
    items, which a model needs whose layers are sharded over the ranks.
    """
    count = world_size()
    if count == 1 or on_every_rank:
        return work(items)
    mine = items[rank() :: count]
    parts = all_gather(list(work(mine)) if mine else [])
    return [parts[index % count][index // count] for index in range(len(items))]


def all_reduce_gradients(parameters: Iterable["torch.Tensor"]) -> None:
    """Sums the gradients of all ranks, on every rank; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    import torch

    listed = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in listed])
    with _lost_rank_is_an_error():
        torch.distributed.all_reduce(flat)
    for parameter, part in zip(listed, flat.split([p.numel() for p in listed]), strict=True):
        parameter.grad = part.view_as(parameter)


def all_reduce_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of all ranks summed by name, on every rank."""
    every = all_gather(metrics)
    return {
        name: sum(metrics.get(name, 0.0) for metrics in every)
        for name in dict.fromkeys(key for metrics in every for key in metrics)
    }


def barrier() -> None:
    """Waits until every rank is here."""
    all_gather(None)


def leave_group() -> None:
    """Leaves the process group at the end of a command that succeeded."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _lost_rank_is_an_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RankLost(f"another process ended or cannot be reached ({reason}); use --resume to continue") from error


def all_gather(item: Result) -> list[Result]:
    """The items of all ranks, on every rank, by rank."""
    every = [item] * world_size()
    if len(every) > 1:
        import torch.distributed as dist

        with _lost_rank_is_an_error():
            dist.all_gather_object(every, item)
    return every

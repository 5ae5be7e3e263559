"""More than one process: each does its part, and all of them come to the same results.

torch is imported where there are others to meet: run folders are opened by commands that do without it.
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
    """A process that belongs to the run is gone."""


def join_group(device: "torch.device") -> None:
    """Meet the other processes, over NCCL where each has a GPU and over gloo on CPUs; nothing where there are none."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")


def on_rank_0(work: Callable[[], Result]) -> Result:
    """What `work` returns, or the PitError that it raises, in the first process; the others wait for it."""
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if is_rank_0():
        try:
            outcome[0] = work()
        except PitError as problem:
            outcome[1] = problem
    with _every_rank_answers():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(Result, outcome[0])


def map_over_ranks(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], alike: bool = False
) -> Sequence[Result]:
    """work(items), one result for each item, in their order: each process does every Nth of them and gets them all.

    A result goes from process to process as a pickle, so it may be no tensor of a GPU. alike: every process does all of
    them, as a model must whose parts are in all processes.
    """
    count = world_size()
    if count == 1 or alike:
        return work(items)
    mine = items[rank() :: count]
    parts = all_gather(list(work(mine)) if mine else [])
    return [parts[index % count][index // count] for index in range(len(items))]


def all_reduce_gradients(parameters: Iterable["torch.Tensor"]) -> None:
    """The gradients of all processes added up, in every process; where one has none, it is zero."""
    if world_size() == 1:
        return
    import torch

    listed = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in listed])
    with _every_rank_answers():
        torch.distributed.all_reduce(flat)
    for parameter, part in zip(listed, flat.split([p.numel() for p in listed]), strict=True):
        parameter.grad = part.view_as(parameter)


def all_reduce_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of all processes added up by name, in every process."""
    every = all_gather(metrics)
    return {
        name: sum(metrics.get(name, 0.0) for metrics in every)
        for name in dict.fromkeys(key for metrics in every for key in metrics)
    }


def barrier() -> None:
    """Until every process is here."""
    all_gather(None)


def leave_group() -> None:
    """Leave the others, at the end of a command that came to its end."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _every_rank_answers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RankLost(f"another process ended or cannot be reached ({reason}); --resume goes on") from error


def all_gather(item: Result) -> list[Result]:
    """What each process has, in every process, by their indices."""
    every = [item] * world_size()
    if len(every) > 1:
        import torch.distributed as dist

        with _every_rank_answers():
            dist.all_gather_object(every, item)
    return every

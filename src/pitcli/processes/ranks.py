"""The rank of this process, from the environment that the launcher (torchrun, accelerate launch) sets."""

import os


def world_size() -> int:
    """The number of processes that run this command; 1 if no launcher started it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The rank among all processes, on all machines; rank 0 writes and prints for all."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """The rank among the processes of this machine: the index of the GPU to use."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_rank_0() -> bool:
    return rank() == 0

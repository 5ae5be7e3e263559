"""Which of several processes this one is, as the launcher (torchrun, accelerate launch) says in the environment."""

import os


def world_size() -> int:
    """How many processes run this command; 1 if no launcher started it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Among all processes, on all machines; rank 0 writes and speaks for them all."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Among the processes of this machine: which of its GPUs is this one's."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_rank_0() -> bool:
    return rank() == 0

"""Which of the processes that a launcher (torchrun, accelerate launch) started this one is."""

import os


def process_count() -> int:
    """1 where no launcher started this process."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Among all processes, on all machines; 0 writes and speaks for them all."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def local_index() -> int:
    """Among the processes of this machine: which of its GPUs is this one's."""
    return int(os.environ.get("LOCAL_RANK", "0")) if process_count() > 1 else 0


def is_first() -> bool:
    return process_index() == 0

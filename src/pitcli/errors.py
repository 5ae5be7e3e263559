"""The errors that a user can cause, with their exit codes."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PitError(Exception):
    """One or more problems, one line each: the place, the problem, and the remedy."""

    exit_code = 3

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InputError(PitError):
    """Unusable data; each problem names file:line:field."""

    exit_code = 2


class SettingsError(PitError):
    """Unusable settings; each problem names the flag."""

    exit_code = 2


class RunError(PitError):
    """An unusable run folder, model or machine: locked, corrupt, wrong base, diverged."""

    exit_code = 3


class NothingToDo(PitError):
    """The requested result exists already."""

    exit_code = 0


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file or folder in the error of a full disk, which names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK_FULL:
            error.filename = str(path)
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host or the device is out of memory.

    Compares names and texts, because importing torch for its classes would take seconds.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error) for sign in ("out of memory", "can't allocate memory", "ALLOC_FAILED"))

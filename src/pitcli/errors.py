"""Every error that a user can cause, with the exit code that it ends in."""

from collections.abc import Sequence


class PitError(Exception):
    """One or more problems, each a line that says where, what and how to mend it."""

    exit_code = 3

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InputError(PitError):
    """Data that cannot be used; problems name file:line:field."""

    exit_code = 2


class SettingsError(PitError):
    """Settings that cannot be used; problems name the flag."""

    exit_code = 2


class RunError(PitError):
    """A run folder, a model or the machine does not serve: locked, corrupt, wrong base, diverged."""

    exit_code = 3


class NothingToDo(PitError):
    """What was asked for is there already."""

    exit_code = 0


def is_out_of_memory(error: Exception) -> bool:
    """Of the host or of the device. By name and text: importing torch to ask for its classes would cost seconds."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error) for sign in ("out of memory", "can't allocate memory"))

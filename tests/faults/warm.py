"""A warm interpreter: it imports pit once, and every command runs in a fork of it, with a fault if one is given.

The faults are defined here, none in pit. `python warm.py` reads one request per line on stdin and answers on stdout.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Fault = dict[str, Any]


class Ended(NamedTuple):
    """A command that has ended; a signal that killed it is a negative code, as in subprocess."""

    code: int
    out: str
    err: str


class Command(NamedTuple):
    """A command that runs in a fork."""

    warm: "Warm"
    pid: int
    folder: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def written(self) -> str:
        """The stdout of the command until now."""
        out = self.folder / f".out-{self.pid}"
        return out.read_text(errors="replace") if out.exists() else ""

    def wait(self) -> Ended:
        code = self.warm.ask({"wait": self.pid})
        out, err = (self.folder / f".{stream}-{self.pid}" for stream in ("out", "err"))
        ended = Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"))
        out.unlink()
        err.unlink()
        return ended


class Warm:
    """One interpreter with its own hash seed."""

    def __init__(self, hash_seed: int = 0) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(
        self,
        folder: Path,
        *arguments: str,
        fault: Fault | None = None,
        stdin: str = os.devnull,
        environment: dict[str, str] | None = None,
        processes: int = 0,
    ) -> Command:
        """processes: if not 0, the fork launches this many real processes, as `pit run` does."""
        request = {
            "start": arguments,
            "folder": str(folder),
            "fault": fault or {},
            "stdin": stdin,
            "environment": environment or {},
            "processes": processes,
        }
        return Command(self, self.ask(request), folder)

    def run(self, folder: Path, *arguments: str, fault: Fault | None = None, stdin: str = os.devnull) -> Ended:
        return self.start(folder, *arguments, fault=fault, stdin=stdin).wait()

    def together(
        self, folder: Path, *arguments: str, faults: dict[int, Fault] | None = None, second: Sequence[str] = ()
    ) -> list[Ended]:
        """Runs the command as two processes, as torchrun does. faults: by rank; second: extra arguments of rank 1."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        commands = [
            self.start(
                folder,
                *arguments,
                *(second if rank else ()),
                fault=(faults or {}).get(rank),
                environment={**both, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        return [command.wait() for command in commands]

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def serve() -> None:
    """Forks for each command; this process itself never computes, so no thread is lost in a fork."""
    from pitcli import cli
    from pitcli.stages import distill, dpo, improve, rl, sample, serve, sft, train_reward, verify  # noqa: F401

    cli.LINGER = 0.0  # no launcher is waiting to end the other processes
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif not (answer := os.fork()):
            become(cli.main, request)
        print(answer, flush=True)


def become(main: Callable[[list[str]], int], request: dict[str, Any]) -> None:
    """Runs in the fork: sets up the streams, the folder and the fault, then runs `pit`."""
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f".{name}-{os.getpid()}", os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in request["fault"].items():
        FAULTS[name](value)
    try:
        if request["processes"]:
            from pitcli.processes.launch import launch

            code = launch(request["start"], request["processes"])
        else:
            code = main(request["start"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # as the interpreter reports a bug, so that the test sees a traceback
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_event(number: int) -> None:
    """SIGKILL just before this file event (counted from 1) of the save that begins with the second checkpoint."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not (changes := file_change(event, arguments)):
            return
        if seen or "step-000004" in changes:
            seen += 1
        if seen == number:
            die()

    sys.addaudithook(watch)


def file_change(event: str, arguments: tuple[Any, ...]) -> str:
    """The path that an audit event changes in the file system, or an empty text if it changes none."""
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return str(arguments[0]) if writes else ""
    return str(arguments[0]) if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") else ""


def kill_after_step(step: int) -> None:
    """SIGKILL when the step is in the metrics, before a checkpoint is saved."""
    from pitcli.runs.folder import RunFolder

    original = RunFolder.log

    def log(self: RunFolder, now: int, values: dict[str, float]) -> None:
        original(self, now, values)
        if now == step:
            die()

    RunFolder.log = log  # type: ignore[method-assign]


def kill_in_backward(count: int) -> None:
    """SIGKILL after this many backward passes: between the micro-batches of a step."""
    import torch

    original, left = torch.Tensor.backward, [count]

    def backward(self: torch.Tensor, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)  # type: ignore[no-untyped-call]
        left[0] -= 1
        if not left[0]:
            die()

    torch.Tensor.backward = backward  # type: ignore[method-assign]


def kill_before_publishing(role: str) -> None:
    """SIGKILL between the last step and the final folder."""
    from pitcli.runs.folder import RunFolder

    RunFolder.publish = lambda self, role, write: die()  # type: ignore[method-assign, assignment]


def signal_in_step(at: tuple[str, int, int]) -> None:
    """(role, step, number): the command sends itself this signal before that step of training that role."""
    from pitcli.engine.training import loop

    role, step, number = at
    original = loop._one_step

    def one_step(training: Any, batch: Any, now: int) -> dict[str, float]:
        if (training.task.role, now) == (role, step):
            os.kill(os.getpid(), number)
        return original(training, batch, now)

    loop._one_step = one_step


def kill_at_row(count: int) -> None:
    """SIGKILL before `pit improve` writes this row, counted from 1."""
    from pitcli.runs.growing_rows import GrowingRows

    original, left = GrowingRows.write, [count]

    def write(*arguments: Any) -> None:
        left[0] -= 1
        if not left[0]:
            die()
        original(*arguments)

    GrowingRows.write = write  # type: ignore[method-assign]


def kill_before_loading(module: str) -> None:
    """SIGKILL when a stage is about to open its base model."""
    from importlib import import_module

    import_module(f"pitcli.stages.{module}").open_base = lambda *arguments: die()  # type: ignore[attr-defined]


def stub_model(_: bool) -> None:
    """Replaces the model and the tokenizer by stubs."""
    from stub_model import install  # next to this file, which runs as a script

    install()


def poison(what: str) -> None:
    """Makes the loss NaN, the gradient infinite or the reward NaN in the third step."""
    import torch

    from pitcli.engine.improving.scoring import GapModel
    from pitcli.engine.training import loop

    one_step, gaps = loop._one_step, GapModel.member_gaps
    steps_done = [0]

    def poisoned_step(training: Any, batch: Any, step: int) -> dict[str, float]:
        steps_done[0] = step + 1
        if step == 2 and what == "loss":
            loss = training.task.loss
            task = training.task._replace(loss=lambda micro_batch: (loss(micro_batch)[0] * torch.nan, {}))
            training = training._replace(task=task)
        if step == 2 and what == "gradient":
            for parameter in training.parameters.values():
                parameter.register_hook(lambda gradient: gradient * torch.inf)
        return one_step(training, batch, step)

    def poisoned_gaps(self: GapModel, comparisons: Any) -> Any:
        return gaps(self, comparisons) * (torch.nan if steps_done == [2] and what == "reward" else 1)

    loop._one_step = poisoned_step
    GapModel.member_gaps = poisoned_gaps  # type: ignore[method-assign]


def slow(seconds: float) -> None:
    """Makes every step this much longer, so that a signal arrives in the middle of the run."""
    import time

    from pitcli.engine.training import loop

    original = loop._one_step

    def slowly(*arguments: Any) -> dict[str, float]:
        time.sleep(seconds)
        return original(*arguments)

    loop._one_step = slowly


def slow_save(seconds: float) -> None:
    """Makes every save this much longer."""
    import time

    from pitcli.engine.training import checkpoints

    original = checkpoints.write_tensors

    def slowly(*arguments: Any) -> None:
        time.sleep(seconds)
        original(*arguments)

    checkpoints.write_tensors = slowly


def slow_generate(seconds: float) -> None:
    """Makes every batch of improvements this much longer."""
    import time

    from pitcli.engine.generation.continuous_batching import ContinuousBatching

    original = ContinuousBatching.run

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return original(*arguments)

    ContinuousBatching.run = slowly  # type: ignore[method-assign]


def slow_pass(seconds: float) -> None:
    """Makes every pass of a server's improvements this much longer."""
    import time

    from pitcli.engine.improving.improvements import Improvements

    original = Improvements.advance

    def slowly(self: Improvements) -> Any:
        time.sleep(seconds)
        return original(self)

    Improvements.advance = slowly  # type: ignore[method-assign]


def fit_scores(most: int) -> None:
    """Makes scoring in a server run out of memory with more than this many sequences at a time."""
    from pitcli.serving import engine

    original = engine.score

    def score(gap_model: Any, candidates: Any) -> Any:
        if gap_model.micro_batch_size > most:
            raise MemoryError
        return original(gap_model, candidates)

    engine.score = score


def client_limits(seconds: float) -> None:
    """Makes a server wait only this long for clients that neither read nor write."""
    from pitcli.serving import guard
    from pitcli.stages import serve

    guard.READ_S = serve.STALLED_S = seconds


def fail_pass(number: int) -> None:
    """Makes this pass of a server's improvements, counted from 1, run out of memory, and the next one fail."""
    from pitcli.engine.improving.improvements import Improvements

    original, passes = Improvements.advance, [0]

    def advance(self: Improvements) -> Any:
        passes[0] += 1
        if passes[0] == number:
            raise MemoryError
        if passes[0] == number + 1:
            raise ValueError("a bug")
        return original(self)

    Improvements.advance = advance  # type: ignore[method-assign]


def nan_gap_of_draft(name: str) -> None:
    """Makes the gap NaN for every improvement of one draft."""
    from pitcli.engine.improving import improvements

    original = improvements.after_proposal

    def after_proposal(attempt: Any, proposal: Any, gap: float | None, config: Any) -> Any:
        return original(attempt, proposal, float("nan") if attempt.draft.id == name else gap, config)

    improvements.after_proposal = after_proposal


FAULTS: dict[str, Callable[[Any], None]] = {
    "signal_in_step": signal_in_step,
    "kill_at_row": kill_at_row,
    "kill_before_loading": kill_before_loading,
    "stub_model": stub_model,
    "kill_at_event": kill_at_event,
    "kill_after_step": kill_after_step,
    "kill_in_backward": kill_in_backward,
    "kill_before_publishing": kill_before_publishing,
    "poison": poison,
    "nan_gap_of_draft": nan_gap_of_draft,
    "slow": slow,
    "slow_save": slow_save,
    "slow_generate": slow_generate,
    "slow_pass": slow_pass,
    "fail_pass": fail_pass,
    "fit_scores": fit_scores,
    "client_limits": client_limits,
}

if __name__ == "__main__":
    serve()
    os._exit(0)  # taking torch down would take seconds

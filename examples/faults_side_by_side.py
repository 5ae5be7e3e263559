"""Faults side by side: transformers Trainer + peft, and pit, on the same tiny base and the same preference pairs.

`python examples/faults_side_by_side.py` prints one markdown table; every figure in it is measured in that run. Both
sides save at every step and otherwise keep their defaults.

An audit hook kills the run at every file event from its second save to its end: before a folder is made, a path is
renamed, something is removed or a file is opened for writing, and just after a file was opened, when it is empty. Torch
and safetensors open files without an audit event, so this script raises one; files of tokenizers are not covered.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import peft
import safetensors.torch as tensor_files
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.trainer import Trainer
from transformers.training_args import TrainingArguments
from transformers.utils.logging import disable_progress_bar

from pitcli.cli import main as pit
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.bases import resolve_base
from pitcli.stages import improve, sft  # noqa: F401  (improve: imported once, before processes are forked)

PAIRS, DRAFTS, OTHER_BASE, LOG = "pairs.jsonl", "drafts.jsonl", "other_base", "log"
STEPS = 3
LONG = 20  # steps of the two runs that must overlap in time
PIT_SFT = f"sft --model tiny --data {PAIRS} --epochs 9 --save-every 1 --lora-rank 4 --batch-size 8 --micro-batch-size 4"
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
report = partial(print, file=sys.stderr, flush=True)


class Stack(NamedTuple):
    """One side: how it trains, how it loads its adapter on a base, and the names of its files."""

    name: str
    run: Callable[..., int | None]  # (out, resume=False, nan=False, steps=STEPS) -> exit status
    on_base: Callable[[str, str], int | None]
    checkpoint: str
    weights: str
    adapter: str

    def final(self, out: str) -> Path:
        return Path(out, self.adapter, "adapter_model.safetensors")


def poison(owner: object, name: str, now: Callable[[], bool]) -> None:
    """Make a method return NaN while `now()` is true."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **options: original(*arguments, **options) * (torch.nan if now() else 1))


def trainer_run(out: str, resume: bool = False, nan: bool = False, steps: int = STEPS) -> None:
    """Train a LoRA adapter as the documentation of transformers and peft shows it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("tiny"))
    base = AutoModelForCausalLM.from_pretrained(resolve_base("tiny"))
    rows = [json.loads(line) for line in Path(PAIRS).read_text().splitlines()]
    trainer = Trainer(
        peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")),
        TrainingArguments(
            out, max_steps=steps, save_steps=1, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
        ),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        [tokenizer(f"{row['prompt']} {row['chosen']}") for row in rows],
    )
    if nan:
        poison(trainer, "compute_loss", lambda: trainer.state.global_step == 1)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(f"{out}/final")


def peft_on_base(run: str, base: str) -> None:
    warnings.simplefilter("always")
    peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{run}/final")


def pit_run(out: str, resume: bool = False, nan: bool = False, steps: int = STEPS) -> int:
    if nan:
        saved = Path(out, "checkpoints")
        poison(sft, "completion_logprobs", lambda: [path.name for path in saved.glob("s*")] == ["step-000001"])
    return pit([*shlex.split(PIT_SFT), "--max-steps", str(steps), "--out", out, *(["--resume"] if resume else [])])


def pit_on_base(run: str, base: str) -> int:
    return pit(shlex.split(f"improve --run {run} --model {base} --stop none --input {DRAFTS} --output improved.jsonl"))


STACKS = {
    "trainer": Stack("trainer", trainer_run, peft_on_base, "checkpoint-{}", "adapter_model.safetensors", "final"),
    "pit": Stack("pit", pit_run, pit_on_base, "checkpoints/step-{:06}", "parameters.safetensors", "improver"),
}


def in_child(function: Callable[..., object], *arguments: Any, **options: Any) -> tuple[int, str]:
    """Run a function in a forked process; return its exit status (-9: killed) and its stdout and stderr."""

    def redirected() -> None:
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.exit(function(*arguments, **options))  # type: ignore[arg-type]

    process = multiprocessing.get_context("fork").Process(target=redirected)
    process.start()
    process.join()
    return int(process.exitcode or 0), Path(LOG).read_text(errors="replace")


def killed_run(stack: Stack, out: str, save: int, point: int) -> int | None:
    """Run and kill itself at a file event; event 1 is the beginning of the save of step `save`."""
    for module, name in ((tensor_files, "serialize_file"), (torch, "save")):
        setattr(module, name, with_audit_event(getattr(module, name)))
    sys.addaudithook(killer(point, Path(stack.checkpoint.format(save)).name))
    return stack.run(out)


def with_audit_event(write: Callable[..., None]) -> Callable[..., None]:
    def audited(content: object, path: object, *rest: Any, **options: Any) -> None:
        sys.audit("open", path, "wb", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write(content, path, *rest, **options)

    return audited


def killer(point: int, begin: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that sends SIGKILL at a file event, counted from the first one whose path contains `begin`."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        opens = event == "open" and bool((arguments[2] or 0) & WRITING)
        changes = opens or (event in CHANGES and not (event == "os.mkdir" and os.path.isdir(arguments[0])))
        if not changes or not (seen or begin in str(arguments[:2])):
            return
        for moment in ("before", "just after")[: 1 + opens]:
            seen += 1
            if seen == point:
                if moment == "just after":
                    os.open(arguments[0], arguments[2], 0o666)
                os.write(2, f"\nkilled {moment} {event} of {arguments[0]}".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def message(text: str, *words: str) -> str:
    """The first line that contains one of the words."""
    lines = (line.strip() for line in text.splitlines() if any(word in line for word in words))
    return f"prints `{line}`" if (line := next(lines, "")) else "prints nothing about it"


def outcome(stack: Stack, out: str, status: int, undisturbed: str) -> str:
    """How a run ended, and whether its weights are byte for byte those of an undisturbed run."""
    if status:
        return f"exit {status}"
    equal = "equal" if stack.final(out).read_bytes() == stack.final(undisturbed).read_bytes() else "differ from"
    return f"exit 0, final weights {equal} those of an undisturbed run"


def every_kill(stack: Stack, undisturbed: str) -> str:
    """Kill a run at each file event, one run per event, and resume it in a new process."""
    points = lost = different = 0
    while True:
        out = f"{stack.name}-{points + 1}"
        status, killed = in_child(killed_run, stack, out, save=2, point=points + 1)
        if status != -signal.SIGKILL:
            assert status == 0, killed
            return f"{points} kills: {lost} runs cannot be resumed, {different} resume to different weights"
        status, output = in_child(stack.run, out, resume=True)
        resumed = outcome(stack, out, status, undisturbed)
        points, lost, different = points + 1, lost + (status != 0), different + ("differ" in resumed)
        report(f"{killed.splitlines()[-1]}: resume: {resumed} {output.splitlines()[-1] if status else ''}")
        shutil.rmtree(out)


def flipped_byte(stack: Stack, undisturbed: str) -> str:
    """Kill a run when its third save begins, and flip a byte in the middle of the tensors of the second save."""
    out = f"{stack.name}-flipped"
    status, output = in_child(killed_run, stack, out, save=3, point=1)
    assert status == -signal.SIGKILL, output
    path = Path(out, stack.checkpoint.format(2), stack.weights)
    content = bytearray(path.read_bytes())
    tensors = 8 + int.from_bytes(content[:8], "little")
    content[(tensors + len(content)) // 2] ^= 0xFF
    path.write_bytes(content)
    status, output = in_child(stack.run, out, resume=True)
    return f"resume: {outcome(stack, out, status, undisturbed)}; {message(output, stack.weights)}"


def nan_loss(stack: Stack, undisturbed: str) -> str:
    """Make the loss of step 2 NaN, check every saved tensor, then resume without the fault."""
    out = f"{stack.name}-nan"
    status, output = in_child(stack.run, out, nan=True)
    files = Path(out).rglob("*.safetensors")
    finite = {path: [bool(t.isfinite().all()) for t in tensor_files.load_file(path).values()] for path in files}
    every, final = [flag for flags in finite.values() for flag in flags], finite.get(stack.final(out), [])
    text = f"exit {status}; {message(output, 'nan', 'error:')}; not finite: {every.count(False)} of {len(every)} saved"
    text += f" tensors, {final.count(False)} of {len(final)} in the final adapter; resume without the fault: "
    return text + outcome(stack, out, in_child(stack.run, out, resume=True)[0], undisturbed)


def two_at_once(stack: Stack, undisturbed: str) -> str:
    """Start the same run twice at the same time, with the same output folder."""
    out, alone = f"{stack.name}-shared", f"{stack.name}-alone"
    status, output = in_child(stack.run, alone, steps=LONG)
    assert status == 0, output
    command = [sys.executable, os.path.abspath(__file__), stack.name, out]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "12"]
    output = "".join(process.communicate()[1] for process in both)
    codes = " and ".join(str(process.returncode) for process in both)
    weights = outcome(stack, out, 0, alone).removeprefix("exit 0, ")
    return f"exits {codes}; {message(output, 'error:', 'Error')}; {weights}"


def wrong_base(stack: Stack, undisturbed: str) -> str:
    """Load the adapter on another base of the same shape; ignore lines that the right base causes too."""
    status, usual = in_child(stack.on_base, undisturbed, str(resolve_base("tiny")))
    assert status == 0, usual
    status, output = in_child(stack.on_base, undisturbed, OTHER_BASE)
    output = "\n".join(line for line in output.splitlines() if line not in usual)
    return f"exit {status}; {message(output, 'warning', 'Warning', 'error:')}"


FAULTS = {
    "SIGKILL at every file event, from the second save to the end": every_kill,
    "a byte flipped in the weights of the newest checkpoint": flipped_byte,
    "the loss of step 2 is NaN": nan_loss,
    "two runs at once in one folder": two_at_once,
    "an adapter on another base of the same shape": wrong_base,
}


def write_inputs() -> None:
    """Write pairs, a draft, and a base with tiny's shape and other weights."""
    rows = list(preference_rows(40, seed=3))
    Path(PAIRS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(DRAFTS).write_text(json.dumps({"prompt": rows[0]["prompt"], "response": rows[0]["rejected"]}) + "\n")
    shutil.copytree(resolve_base("tiny"), OTHER_BASE)
    weights = tensor_files.load_file(resolve_base("tiny") / "model.safetensors")
    flipped = {name: tensor.flip(0).contiguous() for name, tensor in weights.items()}
    tensor_files.save_file(flipped, f"{OTHER_BASE}/model.safetensors", metadata={"format": "pt"})


def side_by_side() -> None:
    in_child(write_inputs)
    cells: dict[str, list[str]] = {fault: [] for fault in FAULTS}
    for stack in STACKS.values():
        undisturbed = f"{stack.name}-undisturbed"
        status, output = in_child(stack.run, undisturbed)
        assert status == 0, output
        for fault, measure in FAULTS.items():
            start = time.monotonic()
            cells[fault].append(measure(stack, undisturbed))
            report(f"[{time.monotonic() - start:.0f} s] {stack.name}: {fault}: {cells[fault][-1]}\n")
    print("| fault | transformers Trainer + peft | pit |\n|---|---|---|")
    for fault, texts in cells.items():
        print(f"| {fault} | {' | '.join(texts)} |")


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    if len(sys.argv) == 3:  # one of the runs that two_at_once starts
        sys.exit(STACKS[sys.argv[1]].run(sys.argv[2], steps=LONG))
    start = time.monotonic()
    # Imported once here, not in every forked process; freeze keeps their garbage collection from copying the memory.
    for module in ("peft.tuners.lora.bnb", "rich.console", "transformers.models.llama.modeling_llama"):
        importlib.import_module(module)
    get_checkpoint_conversion_mapping("llama")
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        side_by_side()
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch", "pitcli"))
    print(f"\n{versions}; {time.monotonic() - start:.0f} s, {sum(os.times()[:4]):.0f} s of CPU time")


if __name__ == "__main__":
    main()

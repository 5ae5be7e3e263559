"""pit's side: its stages as `pit` runs them, with a gate at the beginning of every step.

It uses pit's settings and the `run` of its stages. It changes only the beginning of a step (Task.batch) and, for RL,
the length of samples, which is fixed so that both sides generate the same number of tokens.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from gate import Figures, Gate, Spec
from measuring import distance
from torch import Tensor
from workloads import ADAM_EPSILON, BETA, ITERATIONS, LONGEST_IMPROVEMENT, NEW_TOKENS, RESPONSES, SAMPLES, Sizes

from pitcli.data.formats import parse_draft
from pitcli.data.rows import Comparison
from pitcli.engine.models.adapters import save_role
from pitcli.engine.models.batches import Batch, length_sorted_chunks
from pitcli.engine.models.roles import IMPROVER, RoleModel
from pitcli.engine.models.trees import Tree, separate_batch
from pitcli.engine.training.loop import StepBatch, Task, train
from pitcli.settings.base import Role
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.exporting import ExportConfig
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.scoring import ScoreConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig
from pitcli.stages import dpo, export, improve, rl, score, sft, train_reward

THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
FOREVER = 100_000  # epochs: the learning rate stays constant until the parent process ends the run


def run(spec: Spec, side: str, gate: Gate) -> None:
    runs = {"sft": run_sft, "gap": run_gap, "rl": run_rl, "improve": run_improve, "endpoint": run_improve}
    runs |= {"dpo-improver": run_dpo, "dpo-policy": run_dpo}
    (runs | dict.fromkeys(RESPONSES, run_score))[spec["trains"]](spec, side, gate)


def common(spec: Spec) -> dict[str, Any]:
    """Return the settings that all commands share."""
    return {
        "model": spec["model"],
        "device": spec["device"],
        "load_in_4bit": spec["load_in_4bit"],
        "dtype": spec["dtype"],
        "max_length": spec["sizes"]["max_length"],
    }


def training(spec: Spec, side: str) -> dict[str, Any]:
    """Return the settings that the training commands share."""
    return {
        **common(spec),
        "data": spec["pairs"],
        "batch_size": Sizes(**spec["sizes"]).rows_of(spec["trains"]),
        "micro_batch_size": spec["sizes"]["rl_micro" if spec["trains"] == "rl" else "micro"],
        "learning_rate": spec["learning_rate"],
        "warmup_share": 0.0,
        "epochs": FOREVER,
        "save_every": FOREVER,
        "out": Path(spec["scratch"], f"run-{side}"),
        "overwrite": True,
    }


def run_sft(spec: Spec, side: str, gate: Gate) -> None:
    replace(sft, train=gated(spec, side, gate))
    sft.run(SftConfig(**training(spec, side), identity_share=0.0))


def run_gap(spec: Spec, side: str, gate: Gate) -> None:
    replace(train_reward, train=gated(spec, side, gate))
    train_reward.run(RewardConfig(**training(spec, side)))


def run_dpo(spec: Spec, side: str, gate: Gate) -> None:
    replace(dpo, train=gated(spec, side, gate))
    role = Role(spec["trains"].removeprefix("dpo-"))
    dpo.run(DpoConfig(**training(spec, side), role=role, beta=BETA, from_base=True))


def run_rl(spec: Spec, side: str, gate: Gate) -> None:
    """Run pit rl with fixed-length samples; all reference responses come from the data."""
    decoding_of, task_of = rl.rollout_decoding, rl.rl_task

    def fixed_length_decoding(*arguments: Any) -> Any:
        return decoding_of(*arguments)._replace(stop_ids=())  # no token ends a response

    def with_check(config: RlConfig, curriculum: Any, reward: Any) -> Task:
        compared = []
        for row in spec["checked"]:
            draft = parse_draft({"prompt": row["messages"][:-2], "response": row["response"]}, "", 0)
            compared.append(Comparison(draft.prompt, row["response"], row["messages"][-2]["content"]))
        improver = curriculum.model.role_parameters(IMPROVER).values()
        before = [parameter.detach().clone() for parameter in improver]
        gate.check = lambda: {
            "rewards": reward(compared, len(compared)).tolist(),
            "moved": distance(before, improver),
        }
        return task_of(config, curriculum, reward)

    replace(torch.optim, AdamW=partial(torch.optim.AdamW, eps=ADAM_EPSILON))
    replace(rl, rollout_decoding=fixed_length_decoding, rl_task=with_check, train=gated(spec, side, gate))
    rl.run(
        RlConfig(
            **training(spec, side),
            sft=Path(spec["sft_run"]),
            reward=Path(spec["reward_run"]),
            samples_per_prompt=SAMPLES,
            rollout_max_new_tokens=NEW_TOKENS,
            missing_eos_penalty=0.0,
            max_truncated_share=1.0,
            force=True,  # the gap model has seen few steps
        )
    )


def replace(module: ModuleType, **functions: Callable[..., Any]) -> None:
    """Replace functions of a module by name."""
    for name, function in functions.items():
        getattr(module, name)  # AttributeError if pit no longer has it
        setattr(module, name, function)


def gated(spec: Spec, side: str, gate: Gate) -> Callable[..., Any]:
    """Wrap pit's `train` with the gate before every step; the initial adapter is saved for the other side."""

    def wrapped(model: RoleModel, task: Task, config: Any, folder: Any) -> Any:
        if side == "separate":
            read_separately(model)
        if spec["trains"] != "rl":
            save_role(model, task.role, made_folder(Path(spec["scratch"], "initial")))
        tokens = []

        def batch(index: int) -> StepBatch:
            gate.arrive()
            step_batch = task.batch(index)
            tokens.append(step_batch.micro_batches[0].tokens if spec["trains"] == "rl" else 0)
            return step_batch

        def figures(steps: int) -> Figures:
            lines = (folder.path / "metrics.jsonl").read_text().splitlines()[-steps:]
            rows = [json.loads(line) for line in lines]
            return {
                "losses": [row["loss"] for row in rows],
                **{name: [row[name] for row in rows] for name in ("kl", "gap", "grad_norm") if name in rows[0]},
                "tokens": tokens[-steps:],
            }

        gate.figures = figures
        return train(model, task._replace(batch=batch), config, folder)

    return wrapped


def read_separately(model: RoleModel) -> None:
    """Make training read one conversation per row, in passes of similar length: the fastest separate passes."""
    scores = train_reward.scores

    def separate_scores(model: RoleModel, batch: Batch) -> Tensor:
        lengths_N = batch.columns_N + 1
        chunks = length_sorted_chunks(lengths_N.tolist(), len(lengths_N), model.device)
        found = [scores(model, select_rows(batch, torch.tensor(chunk, device=model.device))) for chunk in chunks]
        return torch.cat(found)[torch.tensor([row for chunk in chunks for row in chunk]).argsort()]

    def select_rows(batch: Batch, rows_N: Tensor) -> Batch:
        width = int(batch.columns_N[rows_N].max()) + 1
        return batch._replace(
            input_ids_BT=batch.input_ids_BT[rows_N, :width],
            branches_BS2=batch.branches_BS2[rows_N.cpu()],
            rows_N=torch.arange(len(rows_N), device=model.device),
            columns_N=batch.columns_N[rows_N],
        )

    def one_per_row(model: RoleModel, trees: Sequence[Tree]) -> Batch:
        return separate_batch(trees, model.pad_id).to(model.device)

    replace(train_reward, tree_batch=one_per_row, scores=separate_scores)


def made_folder(folder: Path) -> Path:
    """Create a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_improve(spec: Spec, side: str, gate: Gate) -> None:
    """Run `pit improve` repeatedly; the model stays loaded, and the clock of a run starts after loading."""
    output = Path(spec["scratch"], f"improved-{side}.jsonl")
    config = ImproveConfig(
        **common(spec),
        run=Path(spec["sft_run"]),
        reward=Path(spec["reward_run"]),
        input=spec["drafts"],
        output=str(output),
        overwrite=True,
        max_iters=ITERATIONS,
        temperature=0.0,
        max_new_tokens=LONGEST_IMPROVEMENT,
        accept_truncated=True,  # as the loop does
        sample_batch_size=spec["sizes"]["drafts_at_once"],
        **(served_by_llama_cpp(spec) if side == "llama.cpp" else {}),
    )
    open_scheduler = improve.open_scheduler
    loaded: list[Any] = []
    opened = ExitStack()

    @contextmanager
    def open_once(*arguments: Any) -> Iterator[Any]:
        if not loaded:
            loaded.append(opened.enter_context(open_scheduler(*arguments)))
        gate.begin()
        yield loaded[0]

    def figures(steps: int) -> Figures:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        written = [[iteration["response"] for iteration in row["iterations"]] for row in rows]
        return {"written": written, "reasons": [row["stop_reason"] for row in rows]}

    gate.figures = figures
    replace(improve, open_scheduler=open_once)
    while True:
        gate.arrive()
        improve.run(config)


def served_by_llama_cpp(spec: Spec) -> dict[str, Any]:
    """Serve the improver by llama.cpp, with the same weights in the same dtype; return the settings of its writer.

    The server ends with this process, whose pipe it reads.
    """
    folder, at_once = Path(spec["scratch"], "improver"), spec["sizes"]["drafts_at_once"]
    export.run(ExportConfig(run=Path(spec["sft_run"]), out=folder, dtype="fp32", overwrite=True))
    server = Path(__file__).with_name("llama_server.py")
    options = ["--gguf", str(folder.with_suffix(".gguf")), "--slots", str(at_once), "--threads", str(THREADS)]
    options += ["--type", spec["dtype"], "--context", str(spec["sizes"]["max_length"]), "--until-stdin-closes"]
    options += spec["llama_cpp"]
    command = [sys.executable, str(server), str(folder), *options]
    folder.with_suffix(".gguf").unlink(missing_ok=True)
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    return {"writer": "openai:improver", "base_url": started.stdout.readline().strip(), "concurrency": at_once}


def run_score(spec: Spec, side: str, gate: Gate) -> None:
    """Run `pit score` repeatedly; the model stays loaded, and the clock of a run starts after loading."""
    output = Path(spec["scratch"], "scored.jsonl")
    config = ScoreConfig(
        **{**common(spec), "max_length": None},  # a row has responses of two pairs, which may be longer together
        reward=Path(spec["reward_run"]),
        input=spec[f"{spec['trains']}_rows"],
        against="all",
        output=str(output),
        overwrite=True,
    )
    load = score.load_gap_model
    loaded: list[Any] = []

    def load_once(*arguments: Any) -> Any:
        if not loaded:
            loaded.append(load(*arguments))
        gate.begin()
        return loaded[0]

    def figures(steps: int) -> Figures:
        matrices = [json.loads(line)["gaps"] for line in output.read_text().splitlines()]
        return {"gaps": [[[gap * spec["gap_temperature"] for gap in row] for row in matrix] for matrix in matrices]}

    gate.figures = figures
    replace(score, load_gap_model=load_once)
    while True:
        gate.arrive()
        score.run(config)

"""The scales of the studies: their models, data and settings."""

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pitcli.settings.base import LoraSettings


class StudyScale(NamedTuple):
    """Size and settings of a study: the tiny model on the synthetic task, or a real model on a task or on real pairs.

    data: the commands that make the pairs, without their seed. tuned: settings that tuning.py chose for a way of
    ways.py. reward_data, dpo_data, rl_data: the pairs of the gap model, of DPO after SFT, and of RL. questions: what
    drafts are written for. rl_questions: what the drafts are written for that RL and distillation improve ("": the
    prompts of the pairs of RL, drafted as it goes). policy: the run that writes drafts ("" if the base itself does).
    improver: the run that is distilled. judge: settings of the judge, trained on its whole fold (None: the oracle
    judges).
    """

    name: str
    model: str
    data: tuple[str, ...]
    drafts: str
    sft: str
    reward: str
    rl: str
    far: str  # extra RL settings of the over-optimisation study, which train long enough to show it
    decoding: str
    dpo: str
    own_best: str  # SFT on the best of several improvements of its own, after the first SFT
    distill: str
    on_policy: str  # pit distill --method on-policy
    temperature: float = 0.5  # of drafts, references in RL, and every method: otherwise the gain is mostly temperature
    tuned: Mapping[str, str] = {}
    reward_data: str = "data/reward.jsonl"
    dpo_data: str = "data/reward.jsonl"
    rl_data: str = "data/rl.jsonl"
    questions: str = "data/test.jsonl"
    rl_questions: str = ""
    draft_decoding: str = ""  # if it is not that of the methods, which need room for what they add
    policy: str = "runs/policy"
    improver: str = "runs/rl"
    judge: str | None = None

    @property
    def rank(self) -> int:
        """The rank of the adapters."""
        return int(setting_of(self.sft, "--lora-rank") or LoraSettings().lora_rank)

    @property
    def gap_loss(self) -> str:
        """The loss of the gap model."""
        return setting_of(self.reward, "--gap-loss") or "five-term"


def setting_of(command: str, flag: str) -> str | None:
    """The value of a flag of a command line, or None."""
    words = command.split()
    return words[words.index(flag) + 1] if flag in words else None


TINY = StudyScale(
    name="tiny",
    model="tiny",
    data=("pit prepare --synthetic 8000 --folds sft=1,reward=2,rl=1,test=0.4 --out data",),
    drafts="--max-rows 500",
    sft="--batch-size 32 --micro-batch-size 64",
    reward="--batch-size 64 --micro-batch-size 64 --gap-loss five-term",
    rl="--max-steps 120 --updates-per-rollout 2 --batch-size 32 --micro-batch-size 128 --learning-rate 2e-3"
    " --rollout-temperature 0.6 --rollout-max-new-tokens 16",
    far="--max-steps 240 --learning-rate 4e-3",
    decoding="--max-new-tokens 16",
    dpo="--batch-size 32 --micro-batch-size 64",
    own_best="--batch-size 32 --micro-batch-size 64 --epochs 2",
    distill="--batch-size 32 --micro-batch-size 64 --epochs 2",
    on_policy="--batch-size 32 --micro-batch-size 128 --epochs 2 --max-steps 80 --learning-rate 2e-3"
    " --rollout-max-new-tokens 16",
    tuned={way: "--epochs 2" for way in ("dpo", "ipo", "kto", "sft-dpo", "sft-ipo")},  # sft-kto: as it is
)


INSTRUCTION_PAIRS = "pit prepare --data samples.jsonl,sentences.jsonl --task instructions --pairs-per-prompt 28"
ENGLISH = StudyScale(
    name="english",
    model="smollm2",
    # as in examples/recipes/english.yaml: ties are for the gap model alone
    data=(
        "pit sample --data instructions:train --max-rows 900 --draws 2 --temperature 0.7 --max-new-tokens 128"
        " --model smollm2 --output samples.jsonl",
        "pit sample --data instructions:sentences --max-rows 700 --draws 4 --temperature 0.7 --max-new-tokens 32"
        " --model smollm2 --output sentences.jsonl",
        f"{INSTRUCTION_PAIRS} --folds sft=1 --out data",
        f"{INSTRUCTION_PAIRS} --folds reward=1 --ties-in reward --out data-gap",
    ),
    reward_data="data-gap/reward.jsonl",
    dpo_data="data/sft.jsonl",
    rl_data="data/sft.jsonl",  # for its first stage; the second has new requests
    questions="instructions:test:51",  # chosen for nothing before
    rl_questions="instructions:train:100 --max-rows 600",
    draft_decoding="--max-new-tokens 128",
    drafts="--max-rows 120",
    sft="--max-length 768 --lora-rank 8 --lora-alpha 16 --learning-rate 2e-3 --identity-share 0 --target best"
    " --max-steps 240 --save-every 20",
    reward="--max-length 768 --lora-rank 8 --lora-alpha 16 --gap-loss pointwise --pairs-together 28 --batch-size 4"
    " --micro-batch-size 24 --epochs 1 --save-every 20",
    rl="--max-length 768 --max-steps 60 --learning-rate 2e-4 --rollout-temperature 0.7 --rollout-max-new-tokens 200"
    " --save-every 10",
    far="--max-steps 120",
    decoding="--max-new-tokens 200",
    dpo="--max-length 768 --lora-rank 8 --lora-alpha 16 --max-steps 200 --save-every 20",
    own_best="--max-length 768 --lora-rank 8 --lora-alpha 16 --learning-rate 5e-4 --identity-share 0 --epochs 2"
    " --save-every 20",
    distill="--max-length 768 --save-every 20",
    on_policy="--max-length 768 --max-steps 60 --rollout-max-new-tokens 128 --save-every 10",
    policy="",
    improver="runs/sft",  # RL has not made it better yet
)
EXAMPLES = Path(__file__).resolve().parents[1]
VERIFIER = f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(EXAMPLES / 'oracle_grades.py'))}"


def real(args: argparse.Namespace) -> StudyScale:
    """Default settings for real pairs; the judge is trained on a separate fold."""
    judge = f"--max-length {args.max_length}" if args.max_length else ""
    limits = judge + (f" --max-steps {args.steps}" if args.steps else "")
    # split with the same seed for all seeds: no gap model of any seed may have seen the judge's fold
    pairs = f"pit prepare --seed 0 --data {shlex.quote(str(Path(args.data).resolve()))}"
    return StudyScale(
        name="real",
        model=args.model,
        data=(f"{pairs} --folds sft=1,reward=1,rl=1,judge=1,test=0.4 --out data",),
        drafts=f"--max-rows {args.rows}",
        sft=limits,
        reward=limits,
        rl=f"{limits} --rollout-max-new-tokens {args.max_new_tokens}",
        far="",  # --steps sets the number of steps
        decoding=f"--max-new-tokens {args.max_new_tokens}",
        dpo=limits,
        own_best=limits,
        distill=limits,
        on_policy=f"{limits} --rollout-max-new-tokens {args.max_new_tokens}",
        judge=judge,
    )

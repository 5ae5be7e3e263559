"""The scales of the studies: their models, data and settings."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import NamedTuple


class StudyScale(NamedTuple):
    """Size and settings of a study: the tiny model on the synthetic task, or a real model on a task or on real pairs.

    samples: settings of the samples from which pairs are made, if they are not data already. questions: what drafts are
    written for. rl_questions: what the drafts are written for that RL and distillation improve ("": the prompts of the
    pairs of RL, drafted as it goes). policy: the run that writes drafts ("" if the base itself does). improver: the run
    that is distilled. judge: settings of the judge, trained on its whole fold (None: the oracle judges).
    """

    model: str
    prepare: str
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
    samples: str = ""
    questions: str = "data/test.jsonl"
    rl_questions: str = ""
    draft_decoding: str = ""  # if it is not that of the methods, which need room for what they add
    policy: str = "runs/policy"
    improver: str = "runs/rl"
    judge: str | None = None


TINY = StudyScale(
    model="tiny",
    prepare="--synthetic 8000 --folds sft=1,reward=2,rl=1,test=0.4",
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
)


ENGLISH = StudyScale(
    model="smollm2",
    samples="--data instructions:train --max-rows 1200 --draws 2 --temperature 0.7 --max-new-tokens 128",
    prepare="--data samples.jsonl --task instructions --pairs-per-prompt 28 --folds sft=5,reward=5,rl=1"
    " --ties-in reward",
    questions="instructions:test",
    rl_questions="instructions:train:100 --max-rows 600",
    draft_decoding="--max-new-tokens 128",
    drafts="--max-rows 120",
    sft="--max-length 768 --lora-rank 8 --lora-alpha 16 --learning-rate 2e-3 --identity-share 0 --target best"
    " --max-steps 400 --save-every 20",
    reward="--max-length 768 --lora-rank 8 --lora-alpha 16 --gap-loss pointwise --pairs-together 28 --batch-size 4"
    " --micro-batch-size 24 --epochs 2 --save-every 20",
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
    return StudyScale(
        model=args.model,
        prepare=f"--data {shlex.quote(str(Path(args.data).resolve()))} --folds sft=1,reward=1,rl=1,judge=1,test=0.4",
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

"""Details of other RL methods, each put in place of a part of pit's; none of them is a setting.

If you edit one, delete its run: what is neither a setting nor an input does not make a step run again.

Prints the quality after each of three iterations without a stop rule, and what it is more or less than pit's own.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from graded import Graded, write_figures, written_family
from project import Study, run_steps, run_study
from scales import StudyScale
from steps import improve, rl
from torch import Tensor

from pitcli.console import table
from pitcli.data.rows import Comparison
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.training import rollouts
from pitcli.engine.training.rollouts import Layout, RolloutMicroBatch, group_gaps
from pitcli.runs.metrics import read_metrics

ITERATIONS = 3
THREE = f"--stop none --max-iters {ITERATIONS}"
FIELDS = ("clip_ratio", "zero_spread_share")
Loss = tuple[Tensor, Tensor]  # and the number of tokens whose gradient is clipped


def clip_higher(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, clip_range: float) -> Loss:
    """A ratio may rise by 0.28 and fall by clip_range (DAPO, arXiv 2503.14476)."""
    ratio_N = torch.exp(logprobs_N - old_N)
    unclipped_N, clipped_N = (r * advantages_N for r in (ratio_N, ratio_N.clamp(1 - clip_range, 1.28)))
    return -torch.minimum(unclipped_N, clipped_N).sum(), (clipped_N < unclipped_N).sum()


def sequence_ratio(most: float, logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, clip_range: float) -> Loss:
    """One ratio per response, the mean over its tokens in logs (GSPO, arXiv 2507.18071), clipped at `most`."""
    lengths: list[int] = old_N.lengths  # type: ignore[attr-defined]
    ratios = [part.mean().exp().expand(len(part)) for part in (logprobs_N - old_N).split(lengths)]
    ratio_N = torch.cat(ratios)
    unclipped_N, clipped_N = (r * advantages_N for r in (ratio_N, ratio_N.clamp(1 - most, 1 + most)))
    return -torch.minimum(unclipped_N, clipped_N).sum(), (clipped_N < unclipped_N).sum()


def with_lengths(layout: Layout, *args: Any) -> list[RolloutMicroBatch]:
    """Hang the length of each response on the log-probs, for sequence_ratio."""
    made = MICRO_BATCHES(layout, *args)
    for micro_batch, lengths in zip(made, layout.lengths, strict=True):
        micro_batch.old_logprobs_N.lengths = lengths  # type: ignore[attr-defined]
    return made


def without_equal_groups(layout: Layout, *args: Any) -> list[RolloutMicroBatch]:
    """Prompts whose samples have equal rewards do not count in the mean over tokens; DAPO draws others for them."""
    made = MICRO_BATCHES(layout, *args)
    tokens = sum(int((micro_batch.advantages_N.abs() > EQUAL).sum()) for micro_batch in made)
    return [micro_batch._replace(tokens=max(1, tokens)) for micro_batch in made]


def tournament(gap_model: GapModel, comparisons: Sequence[Comparison], k: int) -> Tensor:
    """The mean gap of a sample over the other samples of its prompt, in place of the gap over the reference."""
    groups = [comparisons[start : start + k] for start in range(0, len(comparisons), k)]
    against = [
        sample._replace(reference_response=other.response)
        for group in groups
        for other in group
        for sample in group
        if sample is not other
    ]
    gaps = iter(group_gaps(gap_model, against, k - 1).tolist())
    total_PK = torch.zeros(len(groups), k)
    for row in total_PK:
        for other in range(k):
            for sample in range(k):
                row[sample] += 0.0 if sample == other else next(gaps)
    return total_PK.flatten() / (k - 1)


EQUAL = 1e-6  # rewards in fp32 that are equal may differ by rounding
MICRO_BATCHES = Layout.micro_batches
LOSS = "pitcli.engine.training.rollouts.clipped_policy_loss"
DETAILS: dict[str, list[Callable[[], Any]]] = {
    "clip-higher": [lambda: patch(LOSS, clip_higher)],
    **{
        f"sequence-ratio-{most}": [
            lambda most=most: patch(LOSS, partial(sequence_ratio, most)),
            lambda: patch.object(rollouts.Layout, "micro_batches", with_lengths),
        ]
        for most in (0.2, 0.01)
    },
    "without-equal-groups": [lambda: patch.object(rollouts.Layout, "micro_batches", without_equal_groups)],
    "tournament": [lambda: patch("pitcli.stages.rl.group_gaps", tournament)],
}


@contextmanager
def changed(detail: str) -> Iterator[None]:
    """Run RL with one part of it replaced."""
    patches = [made() for made in DETAILS[detail]]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def make_details(folder: Path, seed: int, scale: StudyScale) -> None:
    """Train one improver per detail and improve the drafts three times."""
    for name in DETAILS:
        with changed(name):
            run_steps(folder, seed, [f"{rl(scale, seed, f'rl-{name}', '--curriculum')} --keep-diverged"])
        run_steps(folder, seed, [improve(scale, seed, f"detail@{name}", f"--run runs/rl-{name} {THREE}")])


def report(out: Path, seeds: list[int], scale: StudyScale) -> None:
    graded = Graded(out, seeds)
    own = graded.rows("pit-3")
    runs = {"pit-3": "rl", **{f"detail@{name}": f"rl-{name}" for name in DETAILS}}
    found = {name: graded.iterated(name, own, ITERATIONS) for name in runs}
    less = written_family({name: system.less for name, system in found.items()})
    lines, figures = [], {}
    for name, system in found.items():
        metrics = [line for seed in seeds for line in read_metrics(out / f"seed-{seed}" / "runs" / runs[name])]
        means = {field: float(np.mean([line[field] for line in metrics])) for field in FIELDS}
        figures[name] = {**system._asdict(), **means}
        lines.append([name, *system.quality, less[name], *(f"{means[field]:.1%}" for field in FIELDS)])
    columns = ["detail", "drafts", *map(str, range(1, ITERATIONS + 1)), "3, less pit's own [95%]"]
    title = f"One part of RL replaced, {len(own)} rows, judged by the oracle"
    table(title, [*columns, "tokens clipped", "groups of equal samples"], lines)
    write_figures(out / "rl_details.json", figures)


def study(scale: StudyScale) -> Study:
    if scale.name != "tiny":
        # one update per rollout: no ratio differs from 1; a pointwise gap: a tournament only scales the advantages
        sys.exit(
            "rl_details: with the settings of this scale, most of the details change nothing; expected --model tiny"
        )
    return Study(["pit-3"], more=make_details, report=report)


if __name__ == "__main__":
    run_study(__doc__, study)

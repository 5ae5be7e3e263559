"""Ways to train an improver: SFT; DPO, IPO and KTO alone and after SFT; RLOO on a gap model, or on the oracle.

Prints one table: the quality after each of five iterations, the harm, the quality and the harm with one learned stop
rule for all, and what the trainings took, from the base model on. A second table has one response of the policies that
were distilled from an improver. For exact seconds, run one seed at a time (--jobs 1).

The settings of RL were chosen among five on another seed. Those of DPO, IPO and KTO are the defaults, so the table
is no ranking of losses.
"""

import json
from pathlib import Path

import numpy as np
from graded import Graded, written
from project import Cost, costs_of, run_study
from scales import StudyScale
from systems import system_steps
from ways import ITERATIONS, WAYS, ways

from pitcli.console import table

OTHER = "way@rloo-five-term"  # what the others are compared with
DISTILLED = ("distill@sft", "distill@on-policy")
COLUMNS = (
    *("way", "drafts", *map(str, range(1, ITERATIONS + 1)), f"{ITERATIONS}, less RLOO's [95%]", "made worse"),
    *("learned stop", "made worse", "tokens", "seconds", "MiB"),
)


def report(out: Path, seeds: list[int], scale: StudyScale) -> None:
    graded = Graded(out, seeds)
    other = graded.rows(OTHER)
    lines, figures = [], {}
    for name in WAYS:
        found = graded.iterated(f"way@{name}", other, ITERATIONS)
        rows = graded.rows(f"way@{name}-stop")
        stopped_N, drafts_N = (graded.grades((rows[key] for key in other), count) for count in (None, 0))
        stopped, harm = float(stopped_N.mean()), float((stopped_N < drafts_N).mean())
        cost = mean_cost(out, {seed: ways(scale, seed)[name].trainings for seed in seeds})
        figures[name] = {**found._asdict(), "learned_stop": stopped, "learned_stop_harm": harm, **cost._asdict()}
        lines.append(
            [
                *(name, *found.quality, written(found.less), f"{found.harm:.1%}", stopped, f"{harm:.1%}"),
                *(round(found.tokens), round(cost.seconds), round(cost.peak_mib)),
            ]
        )
    table(f"Ways to train an improver, {len(other)} rows, judged by the oracle", list(COLUMNS), lines)
    lines = []
    for name in DISTILLED:
        found = graded.iterated(name, other, 1)
        cost = mean_cost(out, {seed: system_steps(scale, seed, name)[:-1] for seed in seeds})
        figures[name] = {**found._asdict(), **cost._asdict()}
        lines.append([name, found.quality[-1], written(found.less), round(cost.seconds), round(cost.peak_mib)])
    columns = ["policy", "quality", "less RLOO's first improvement [95%]", "seconds", "MiB"]
    table("One response of a distilled policy", columns, lines)
    (out / "ways_to_train.json").write_text(json.dumps(figures, indent=1))


def mean_cost(out: Path, steps: dict[int, list[str]]) -> Cost:
    """Return what the steps of each seed took, the mean over the seeds."""
    costs = [costs_of(out / f"seed-{seed}", of_seed) for seed, of_seed in steps.items()]
    return Cost(*np.mean(costs, axis=0).tolist())


if __name__ == "__main__":
    run_study(__doc__, [*(f"way@{name}" for name in WAYS), *DISTILLED], [], report)

"""Ways to train an improver: SFT; DPO, IPO and KTO alone and after SFT; RLOO on a gap model, or on the oracle.

Prints one table: the quality after each of five iterations, the harm, the quality and the harm with one learned stop
rule for all, and what the trainings took, from the base model on, without the policy that writes the drafts and the
gap model of the stop rule. A second table has one response of the policies that were distilled from an improver.
Seconds can be compared only if one seed runs at a time in a new folder (--jobs 1 --out NEW).

The stop rule's gap model has a seed of its own, but the pairs of the others: its errors are like those of their
rewards. The oracle as the reward also judges. The settings of RL on a gap model were chosen among five on another seed;
those of the other ways are in scales.py if tuning.py found better ones than the defaults.
"""

from pathlib import Path

import numpy as np
from graded import Graded, write_figures, written, written_family
from project import Cost, Study, costs_of, run_study
from scales import StudyScale
from steps import gap_model, sft_improver
from systems import system_steps
from ways import ITERATIONS, ways

from pitcli.console import table
from pitcli.runs.divergence import DIVERGED
from pitcli.runs.manifest import load_manifest

DISTILLED = ("distill@sft", "distill@on-policy")
COLUMNS = (
    *("way", "drafts", *map(str, range(1, ITERATIONS + 1)), f"{ITERATIONS}, less RLOO's [95%]", "made worse"),
    *("learned stop", "less RLOO's [95%]", "made worse", "tokens", "seconds", "MiB"),
)


def report(out: Path, seeds: list[int], scale: StudyScale) -> None:
    graded = Graded(out, seeds)
    rloo = f"rloo-{scale.gap_loss}"  # what the others are compared with
    other, other_stop = graded.rows(f"way@{rloo}"), graded.rows(f"way@{rloo}-stop")
    found, stops, lines, figures = {}, {}, [], {}
    names = list(ways(scale, seeds[0]))
    for name in names:
        found[name] = graded.iterated(f"way@{name}", other, ITERATIONS)
        stops[name] = graded.iterated(f"way@{name}-stop", other_stop, None)
    less, stop_less = (written_family({name: all_of[name].less for name in names}) for all_of in (found, stops))
    for name in names:
        way, stop = found[name], stops[name]
        cost = mean_cost(out, {seed: ways(scale, seed)[name].trainings for seed in seeds})
        run = ways(scale, seeds[0])[name].run
        shown = f"{name} (diverged)" if any(diverged(out / f"seed-{seed}" / "runs" / run) for seed in seeds) else name
        figures[name] = {"iterations": way._asdict(), "learned_stop": stop._asdict(), **cost._asdict()}
        lines.append(
            [
                *(shown, *way.quality, less[name], f"{way.harm:.1%}"),
                *(stop.quality[-1], stop_less[name], f"{stop.harm:.1%}"),
                *(round(stop.tokens), round(cost.seconds), round(cost.peak_mib)),
            ]
        )
    table(f"Ways to train an improver, {len(other)} rows, judged by the oracle", list(COLUMNS), lines)
    base = {seed: [make(scale, seed) for make in (sft_improver, gap_model)] for seed in seeds}
    lines = []
    for name in DISTILLED:
        one = graded.iterated(name, other, 1)
        cost = mean_cost(out, {seed: [*base[seed], *system_steps(scale, seed, name)[:-1]] for seed in seeds})
        figures[name] = {**one._asdict(), **cost._asdict()}
        lines.append([name, one.quality[-1], written(one.less), round(cost.seconds), round(cost.peak_mib)])
    columns = ["policy", "quality", "less RLOO's first improvement [95%]", "seconds", "MiB"]
    table("One response of a distilled policy", columns, lines)
    write_figures(out / "ways_to_train.json", figures)


def diverged(run: Path) -> bool:
    return DIVERGED in load_manifest(run, "").results


def mean_cost(out: Path, steps: dict[int, list[str]]) -> Cost:
    """Return what the steps of each seed took, the mean over the seeds."""
    costs = [costs_of(out / f"seed-{seed}", of_seed) for seed, of_seed in steps.items()]
    return Cost(*np.mean(costs, axis=0).tolist())


def study(scale: StudyScale) -> Study:
    return Study([*(f"way@{name}" for name in ways(scale, 0)), *DISTILLED], report=report)


if __name__ == "__main__":
    run_study(__doc__, study)

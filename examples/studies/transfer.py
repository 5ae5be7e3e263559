"""Transfer: an improver learns on drafts of one source; how well does it improve those of another?

Prints a matrix of the gain in quality with the learned stop rule. A row is an improver: after SFT, or after RL whose
references come from the pairs, or from the policy at a temperature. A column is a source of drafts: the policy at a
temperature, the worse responses of held-out pairs (on the synthetic task), or the policy of plain RLHF.
"""

import json
from functools import partial
from pathlib import Path

from graded import Graded, mean_with_interval, written
from project import in_processes, run_steps, run_study
from scales import StudyScale
from steps import improve, policy_steps, rl, sample

from pitcli.console import table
from pitcli.data.conversations import written_prompt
from pitcli.data.pair_reading import load_pairs
from pitcli.data.reading import write_row

JOBS = 2  # seeds at once
MAX_PAIRS = 500
PAIRS, RLHF = "pairs", "rlhf"
TEMPERATURES = (0.2, 0.5, 1.0)
POLICY = {f"policy@{heat}": heat for heat in TEMPERATURES}
IMPROVERS = {
    PAIRS: "--curriculum-stages dataset",
    **{name: f"--curriculum-stages policy --reference-temperature {heat}" for name, heat in POLICY.items()},
}


def sources(scale: StudyScale) -> list[str]:
    """Return the sources of drafts; English pairs have no held-out fold."""
    return [*POLICY, *([] if scale.rl_questions else [PAIRS]), RLHF]


def matrix_steps(scale: StudyScale, seed: int) -> list[str]:
    """Return the commands that make transfer@IMPROVER@SOURCE.jsonl of each improver and each source."""
    questions = f"{scale.questions} {scale.drafts}"
    drafts = [sample(scale, seed, f"drafts-{name}", heat, questions) for name, heat in POLICY.items()]
    *rlhf, _ = policy_steps(scale, seed, "rlhf")["rlhf"]
    of_rlhf = f"{sample(scale, seed, f'drafts-{RLHF}', scale.temperature, questions)} --policy runs/rlhf"
    trainings = [rl(scale, seed, f"rl-on-{name}", settings) for name, settings in IMPROVERS.items()]
    runs = {"sft": "runs/sft --reward runs/reward", **{name: f"runs/rl-on-{name}" for name in IMPROVERS}}
    improvements = [
        improve(scale, seed, f"transfer@{name}@{source}", f"--run {run} --max-iters 5", f"drafts-{source}")
        for name, run in runs.items()
        for source in sources(scale)
    ]
    return [*drafts, *rlhf, of_rlhf, *trainings, *improvements]


def make_matrix(folder: Path, seed: int, scale: StudyScale) -> None:
    if PAIRS in sources(scale):
        with (folder / f"drafts-{PAIRS}.jsonl").open("w") as file:
            for pair in load_pairs(folder / "data" / "test.jsonl")[:MAX_PAIRS]:
                write_row({"prompt": written_prompt(pair.prompt), "response": pair.rejected}, file)
    run_steps(folder, seed, matrix_steps(scale, seed))


def report(out: Path, seeds: list[int], scale: StudyScale) -> None:
    in_processes(partial(make_matrix, scale=scale), {seed: out / f"seed-{seed}" for seed in seeds}, JOBS)
    graded = Graded(out, seeds)
    figures: dict[str, dict[str, object]] = {"drafts": {}}
    for name in ("sft", *IMPROVERS):
        figures[name] = {}
        for source in sources(scale):
            rows = list(graded.rows(f"transfer@{name}@{source}").values())
            drafts_N, final_N = (graded.grades(rows, count) for count in (0, None))
            figures["drafts"][source] = f"{drafts_N.mean():.3f}"
            figures[name][source] = written(mean_with_interval(rows, final_N - drafts_N))
    lines = [[name, *of_source.values()] for name, of_source in figures.items()]
    table("Gain by improver and source of drafts [95%]", ["improver", *sources(scale)], lines)
    (out / "transfer.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    run_study(__doc__, [], [], report)

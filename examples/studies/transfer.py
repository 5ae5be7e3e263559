"""Transfer: an improver learns on drafts of one source; how well does it improve those of another?

Prints a matrix of the gain in quality with the learned stop rule, and the share made worse. A row is an improver: after
SFT, or after RL whose references come from the pairs, or from the policy at a temperature. A column is a source of
drafts: the policy at a temperature, the worse responses of held-out pairs (on the synthetic task), or the policy of
plain RLHF. All write at one temperature, so for hot drafts a part of the gain is a cooler draw: the row `fresh draw` is
one response of the column's policy at that temperature. A second matrix has each gain less that of the improver that
learned on the same source.
"""

from pathlib import Path

from graded import Graded, mean_with_interval, write_figures, written, written_family
from project import Study, run_steps, run_study
from scales import StudyScale
from steps import ONCE, improve, policy_steps, rl, sample

from pitcli.console import table
from pitcli.data.conversations import written_prompt
from pitcli.data.pair_reading import load_pairs
from pitcli.data.reading import write_row

MAX_PAIRS = 500
PAIRS, RLHF, FRESH = "pairs", "rlhf", "fresh draw"
TEMPERATURES = (0.2, 0.5, 1.0)
POLICY = {f"policy@{heat}": heat for heat in TEMPERATURES}
IMPROVERS = {
    PAIRS: "--curriculum-stages dataset",
    **{name: f"--curriculum-stages policy --reference-temperature {heat}" for name, heat in POLICY.items()},
}


def sources(scale: StudyScale) -> list[str]:
    """Return the sources of drafts; English pairs have no held-out fold."""
    return [*POLICY, *([] if scale.rl_questions else [PAIRS]), RLHF]


def file_of(improver: str, source: str) -> str:
    return f"transfer@{improver.replace(' ', '-')}@{source}"


def matrix_steps(scale: StudyScale, seed: int) -> list[str]:
    """Return the commands that make transfer@IMPROVER@SOURCE.jsonl of each improver and each source."""
    questions = f"{scale.questions} {scale.drafts}"
    drafts = [sample(scale, seed, f"drafts-{name}", heat, questions) for name, heat in POLICY.items()]
    *rlhf, _ = policy_steps(scale, seed, "rlhf")["rlhf"]
    of_rlhf = f"{sample(scale, seed, f'drafts-{RLHF}', scale.temperature, questions)} --policy runs/rlhf"
    trainings = [rl(scale, seed, f"rl-on-{name}", settings) for name, settings in IMPROVERS.items()]
    runs = {"sft": "runs/sft --reward runs/reward", **{name: f"runs/rl-on-{name}" for name in IMPROVERS}}
    improvements = [
        improve(scale, seed, file_of(name, source), f"--run {run} --max-iters 5", f"drafts-{source}")
        for name, run in runs.items()
        for source in sources(scale)
    ]
    again = [
        improve(scale, seed, file_of(FRESH, source), f"--method resample {ONCE}{policy}", f"drafts-{source}")
        for source in sources(scale)
        for policy in [" --policy runs/rlhf" if source == RLHF else ""]
    ]
    return [*drafts, *rlhf, of_rlhf, *trainings, *improvements, *again]


def make_matrix(folder: Path, seed: int, scale: StudyScale) -> None:
    if PAIRS in sources(scale):
        with (folder / f"drafts-{PAIRS}.jsonl").open("w") as file:
            for pair in load_pairs(folder / "data" / "test.jsonl")[:MAX_PAIRS]:
                write_row({"prompt": written_prompt(pair.prompt), "response": pair.rejected}, file)
    run_steps(folder, seed, matrix_steps(scale, seed))


def report(out: Path, seeds: list[int], scale: StudyScale) -> None:
    graded = Graded(out, seeds)
    improvers = ("sft", *IMPROVERS)
    figures: dict[str, dict[str, object]] = {name: {} for name in ("drafts", FRESH, *improvers)}
    cells: dict[str, dict[str, str]] = {name: {} for name in figures}
    compared = {}
    for source in sources(scale):
        systems = {name: graded.rows(file_of(name, source)) for name in (FRESH, *improvers)}
        rows = list(systems["sft"].values())
        drafts_N = graded.grades(rows, 0)
        gains = {name: graded.grades(mine[key] for key in systems["sft"]) - drafts_N for name, mine in systems.items()}
        figures["drafts"][source], cells["drafts"][source] = float(drafts_N.mean()), f"{drafts_N.mean():.3f}"
        for name, gain_N in gains.items():
            estimate, harm = mean_with_interval(rows, gain_N), float((gain_N < 0).mean())
            figures[name][source] = {"gain": estimate, "harm": harm}
            cells[name][source] = f"{written(estimate)}, {harm:.1%}"
            if source in IMPROVERS and name in IMPROVERS and name != source:
                compared[f"{name} on {source}"] = mean_with_interval(rows, gain_N - gains[source])
    lines = [[name, *of_source.values()] for name, of_source in cells.items()]
    table("Gain by improver and source of drafts [95%], made worse", ["improver", *sources(scale)], lines)
    lines = [[name, text] for name, text in written_family(compared).items()]
    table("Less the improver that learned on that source", ["improver", "difference [95%]"], lines)
    write_figures(out / "transfer.json", {**figures, "less_matched": compared})


STUDY = Study(more=make_matrix, report=report)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)

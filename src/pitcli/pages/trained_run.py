"""Read a run folder, finished or not, and list possible problems of the run."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pitcli.console import counted
from pitcli.errors import InputError, RunError
from pitcli.runs.divergence import DIVERGED, divergence
from pitcli.runs.folder import is_busy
from pitcli.runs.manifest import MANIFEST, Manifest, read_manifest
from pitcli.runs.metrics import METRICS, read_metrics

SOME_STEPS = 10  # the first and last values of a metric are means over this many steps
FEW_PAIRS = 100
OVERFITTED = 0.15
LONGER, SHORTER = 1.5, 0.5
COLLAPSED = 0.3
# metrics of the last steps: the largest share that is not a concern, and what a larger share means
SHARES = (
    ("truncated_share", 0.1, "of the rollouts have no end token: --rollout-max-new-tokens truncates them"),
    ("copy_rate", 0.2, "of the rollouts copy their reference response"),
    (
        "zero_spread_share",
        0.3,
        "of the prompts got the same reward for all their samples, so they have no effect on training",
    ),
    ("repetition", 0.2, "of the word triples repeat an earlier one in the same rollout"),
    ("clip_ratio", 0.2, "of the tokens are clipped, so the updates are too large; lower --learning-rate"),
)


class TrainedRun(NamedTuple):
    """A run folder, finished or not.

    rows: one dict of metrics per step. busy: whether a process has its lock. problem: why there is no manifest.
    """

    name: str
    manifest: Manifest | None
    rows: list[dict[str, float]]
    busy: bool
    problem: str = ""

    @property
    def state(self) -> str:
        if self.manifest and self.manifest.complete:
            return "finished"
        unknown = "state unknown" if self.manifest is None else "not finished"
        return "still running" if self.busy else unknown

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def setting(self, name: str) -> object:
        return self.manifest.config.get(name) if self.manifest else None

    def result(self, name: str) -> float | None:
        value = self.manifest.results.get(name) if self.manifest else None
        return float(value) if isinstance(value, int | float) else None

    def stages(self) -> list[tuple[str, list[dict[str, float]]]]:
        """The curriculum stages by name, each with its rows; without a curriculum, one stage without a name."""
        names = self.setting("curriculum_stages")
        stages = []
        for number, rows in groupby(self.rows, lambda row: int(row.get("stage", -1))):
            known = isinstance(names, list) and 0 <= number < len(names)
            name = str(names[number]) if known else f"stage {number + 1}" if number >= 0 else ""  # type: ignore[index]
            stages.append((name, list(rows)))
        return stages


def read_run(folder: Path) -> TrainedRun:
    """Read a run. Raises InputError if the folder is not a training run, RunError if its metrics are damaged."""
    if not (folder / METRICS).is_file() and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: contains neither {METRICS} nor {MANIFEST}; name a run folder such as runs/rl")
    manifest, problem = None, f"no {MANIFEST}"
    try:
        manifest = read_manifest(folder)
    except RunError as error:  # e.g. from another version of pit
        problem = str(error)
    return TrainedRun(
        name=str(folder), manifest=manifest, rows=read_metrics(folder), busy=is_busy(folder), problem=problem
    )


def concerns(run: TrainedRun) -> list[str]:
    """Possible problems of a run, the most serious first."""
    about_pairs = [*_about_pairs(run, "", "held-out pairs"), *_about_pairs(run, "eval_", "pairs of --eval-data")]
    about_training: Iterable[str] = ()
    if run.rows:
        has_rollouts = "kl" in run.rows[-1] and "reward_margin" not in run.rows[-1]
        about_training = _about_rollouts(run) if has_rollouts else _about_fitting(run)
    return [*_about_divergence(run), *_about_state(run), *about_pairs, *about_training]


def _about_divergence(run: TrainedRun) -> Iterator[str]:
    """The result of training, or, for a run that has none, what its metrics show so far."""
    if run.manifest is None:
        return
    results, rate = run.manifest.results, run.setting("learning_rate")
    problem = results.get(DIVERGED)
    if problem is None and not results.get("stopped"):
        problem = divergence(run.manifest.kind, run.manifest.config, run.rows)
    if problem:
        remedy = f"train again with a lower --learning-rate than {rate:g}" if isinstance(rate, float) else ""
        yield f"training diverged: {problem}; {remedy or 'train again with a lower --learning-rate'}"


def _about_state(run: TrainedRun) -> Iterator[str]:
    if run.manifest is None:
        yield f"{run.problem}; only logged metrics are shown"
    elif not run.manifest.complete:
        remedy = "it was interrupted; run the same command with --resume"
        if DIVERGED in run.manifest.results:
            remedy = "use --resume --keep-diverged to keep its model all the same"
        state = "it is still running" if run.busy else remedy
        yield f"this run is not finished: {state}"
    elif stopped := run.manifest.results.get("stopped"):
        yield f"training stopped early and kept its best checkpoint: {stopped}"
    if not run.rows:
        yield "no steps were logged"


def _about_pairs(run: TrainedRun, prefix: str, pairs: str) -> Iterator[str]:
    def result(name: str) -> float:
        return run.result(prefix + name) or 0.0

    accuracy = run.result(f"{prefix}accuracy")
    if accuracy is None:
        return
    if result("accuracy_low") <= 0.5:
        interval = f"[{result('accuracy_low'):.1%}, {result('accuracy_high'):.1%}]"
        yield f"accuracy on the {pairs} {accuracy:.1%} {interval}: not shown to be better than chance"
    longer, shorter = result("longer_wins_accuracy"), result("shorter_wins_accuracy")
    if accuracy <= max(longer, shorter):
        which = "longer" if longer > shorter else "shorter"
        yield f"no better than always choosing the {which} response of the {pairs}: {max(longer, shorter):.1%}"
    if abs(result("length_correlation")) >= 0.3:
        yield f"the gap correlates with the length difference on the {pairs}: {result('length_correlation'):+.2f}"
    if result("swap_flip_rate") > 0.2:
        yield f"{result('swap_flip_rate'):.0%} of the {pairs} get another winner if the two responses are swapped"
    if result("pairs") < FEW_PAIRS:
        yield f"only {counted(int(result('pairs')), pairs)}"


def _about_rollouts(run: TrainedRun) -> Iterator[str]:
    last = _last_means(run.rows)
    limit = run.setting("max_kl")
    if isinstance(limit, int | float) and last["kl"] > limit / 2:
        yield f"KL {last['kl']:.1f} at the end, --max-kl {limit:g}: the gap model may be exploited"
    for name, most, meaning in SHARES:
        if last.get(name, 0.0) > most:
            yield f"{last[name]:.0%} {meaning} ({name})"
    ratio = last.get("length_ratio", 1.0)
    if not SHORTER <= ratio <= LONGER:
        yield f"rollouts are {ratio:.2g} times as long as their reference responses: length itself may be rewarded"
    name, rows = run.stages()[-1]
    if (gap := _trend(rows, "gap")) and gap.last <= gap.first:
        yield f"the gap did not rise{f' in the curriculum stage {name}' if name else ''}: {gap}"
    if (entropy := _trend(run.rows, "entropy")) and entropy.last < COLLAPSED * entropy.first:
        yield f"the entropy collapsed: {entropy}; raise --kl-coef or lower --learning-rate"


def _about_fitting(run: TrainedRun) -> Iterator[str]:
    last, held_out = _last_means(run.rows), run.result("accuracy")
    if (loss := _trend(run.rows, "loss")) and loss.last >= loss.first:
        yield f"the loss did not fall: {loss}"
    beyond = max((held_out or 0.0) + OVERFITTED, run.result("accuracy_high") or 0.0)
    if held_out is not None and last.get("accuracy", 0.0) > beyond:
        yield f"accuracy {last['accuracy']:.0%} on training pairs, {held_out:.0%} on held-out pairs: overfitted"


class _Trend(NamedTuple):
    """Means of a metric over its first and last SOME_STEPS steps."""

    first: float
    last: float

    def __str__(self) -> str:
        return f"{self.first:.3g} in the first {SOME_STEPS} steps, {self.last:.3g} in the last"


def _trend(rows: Sequence[dict[str, float]], name: str) -> _Trend | None:
    """The trend of a metric; None if there are too few steps."""
    values = [row[name] for row in rows if name in row]
    if len(values) < 2 * SOME_STEPS:
        return None
    return _Trend(fmean(values[:SOME_STEPS]), fmean(values[-SOME_STEPS:]))


def _last_means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    last = rows[-SOME_STEPS:]
    return {name: fmean(row[name] for row in last if name in row) for name in last[-1]}

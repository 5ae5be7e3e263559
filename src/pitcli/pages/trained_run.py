"""Read a run folder, finished or not, and list what may be wrong with the run."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pitcli.errors import InputError, RunError
from pitcli.runs.folder import is_busy
from pitcli.runs.manifest import MANIFEST, Manifest, read_manifest
from pitcli.runs.metrics import METRICS, read_metrics

SOME_STEPS = 10  # at either end: a metric's first and last values are means over these
FEW_PAIRS = 100
OVERFITTED = 0.15
LONGER, SHORTER = 1.5, 0.5
COLLAPSED = 0.3
# metrics of the last steps: the greatest share that is no concern, and what more means
SHARES = (
    ("truncated_share", 0.1, "of the rollouts have no end: --rollout-max-new-tokens cuts them off"),
    ("copy_rate", 0.2, "of the rollouts are their reference, word for word"),
    ("zero_spread_share", 0.3, "of the prompts got the same reward for all their samples: these teach nothing"),
    ("repetition", 0.2, "of the word triples stood before in the same rollout: it repeats itself"),
    ("clip_ratio", 0.2, "of the tokens are clipped: the updates are too large; lower --learning-rate"),
)


class TrainedRun(NamedTuple):
    """rows: its metrics, a dict a step; busy: whether a process holds its lock; trouble: why there is no manifest."""

    name: str
    manifest: Manifest | None
    rows: list[dict[str, float]]
    busy: bool
    trouble: str = ""

    @property
    def state(self) -> str:
        if self.manifest and self.manifest.complete:
            return "finished"
        unknown = "whether finished is unknown" if self.manifest is None else "not finished"
        return "still going" if self.busy else unknown

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def setting(self, name: str) -> object:
        return self.manifest.config.get(name) if self.manifest else None

    def result(self, name: str) -> float | None:
        value = self.manifest.results.get(name) if self.manifest else None
        return float(value) if isinstance(value, int | float) else None

    def stages(self) -> list[tuple[str, list[dict[str, float]]]]:
        """The stages of a curriculum by name, each with its rows; without a curriculum, one stage without a name."""
        names = self.setting("curriculum_stages")
        stages = []
        for number, rows in groupby(self.rows, lambda row: int(row.get("stage", -1))):
            known = isinstance(names, list) and 0 <= number < len(names)
            name = str(names[number]) if known else f"stage {number + 1}" if number >= 0 else ""  # type: ignore[index]
            stages.append((name, list(rows)))
        return stages


def read_run(folder: Path) -> TrainedRun:
    """InputError if the folder is not of a training run, RunError if its metrics are damaged."""
    if not (folder / METRICS).is_file() and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: neither {METRICS} nor {MANIFEST} is there; name the run folder of a training")
    manifest, trouble = None, f"there is no {MANIFEST}"
    try:
        manifest = read_manifest(folder)
    except RunError as error:  # as of another version of pit
        trouble = str(error)
    return TrainedRun(
        name=str(folder), manifest=manifest, rows=read_metrics(folder), busy=is_busy(folder), trouble=trouble
    )


def concerns(run: TrainedRun) -> list[str]:
    """What may be wrong with a run, the gravest first."""
    about_pairs = [*_about_pairs(run, "", "held-out pairs"), *_about_pairs(run, "eval_", "--eval-data")]
    about_training: Iterable[str] = ()
    if run.rows:
        about_training = _about_rollouts(run) if "kl" in run.rows[-1] else _about_fitting(run)
    return [*_about_state(run), *about_pairs, *about_training]


def _about_state(run: TrainedRun) -> Iterator[str]:
    if run.manifest is None:
        yield f"{run.trouble}; what the run is cannot be told, only what it logged"
    elif not run.manifest.complete:
        going = "it is still going" if run.busy else "it was interrupted, and the same command with --resume goes on"
        yield f"this run is not finished: {going}"
    elif stopped := run.manifest.results.get("stopped"):
        yield f"training stopped by itself and kept its best checkpoint: {stopped}"
    if not run.rows:
        yield "no step was logged"


def _about_pairs(run: TrainedRun, prefix: str, pairs: str) -> Iterator[str]:
    def result(name: str) -> float:
        return run.result(prefix + name) or 0.0

    accuracy = run.result(f"{prefix}accuracy")
    if accuracy is None:
        return
    if result("accuracy_low") <= 0.5:
        interval = f"[{result('accuracy_low'):.1%}, {result('accuracy_high'):.1%}]"
        yield f"right on {accuracy:.1%} {interval} of the {pairs}: not shown to be better than a coin"
    longer, shorter = result("longer_wins_accuracy"), result("shorter_wins_accuracy")
    if accuracy <= max(longer, shorter):
        which = "longer" if longer > shorter else "shorter"
        yield f"no better than choosing always the {which} of the {pairs}, which is right on {max(longer, shorter):.1%}"
    if abs(result("length_correlation")) >= 0.3:
        yield f"the gap goes with the length difference on the {pairs}: correlation {result('length_correlation'):+.2f}"
    if result("swap_flip_rate") > 0.2:
        yield f"{result('swap_flip_rate'):.0%} of the {pairs} get another winner when the two responses swap places"
    if result("pairs") < FEW_PAIRS:
        yield f"the {pairs} are few: {result('pairs'):.0f}"


def _about_rollouts(run: TrainedRun) -> Iterator[str]:
    last = _last_means(run.rows)
    limit = run.setting("max_kl")
    if isinstance(limit, int | float) and last["kl"] > limit / 2:
        yield f"KL {last['kl']:.1f} at the end, where --max-kl is {limit:g}: the gap model may be exploited"
    for name, most, meaning in SHARES:
        if last.get(name, 0.0) > most:
            yield f"{last[name]:.0%} {meaning} ({name})"
    ratio = last.get("length_ratio", 1.0)
    if not SHORTER <= ratio <= LONGER:
        yield f"rollouts are {ratio:.2g} times as long as their references: length may be what is rewarded"
    name, rows = run.stages()[-1]
    if (gap := _trend(rows, "gap")) and gap.last <= gap.first:
        yield f"the gap did not rise{f' in the stage {name}' if name else ''}: {gap}"
    if (entropy := _trend(run.rows, "entropy")) and entropy.last < COLLAPSED * entropy.first:
        yield f"the entropy collapsed: {entropy}; raise --kl-coef or lower --learning-rate"


def _about_fitting(run: TrainedRun) -> Iterator[str]:
    last, held_out = _last_means(run.rows), run.result("accuracy")
    if (loss := _trend(run.rows, "loss")) and loss.last >= loss.first:
        yield f"the loss did not fall: {loss}"
    beyond = max((held_out or 0.0) + OVERFITTED, run.result("accuracy_high") or 0.0)
    if held_out is not None and last.get("accuracy", 0.0) > beyond:
        yield f"right on {last['accuracy']:.0%} of the training pairs, and on {held_out:.0%} of others: overfitted"


class _Trend(NamedTuple):
    """Means of a metric over its first and its last SOME_STEPS steps."""

    first: float
    last: float

    def __str__(self) -> str:
        return f"{self.first:.3g} in the first {SOME_STEPS} steps, {self.last:.3g} in the last"


def _trend(rows: Sequence[dict[str, float]], name: str) -> _Trend | None:
    """None if there are too few steps to tell."""
    values = [row[name] for row in rows if name in row]
    if len(values) < 2 * SOME_STEPS:
        return None
    return _Trend(fmean(values[:SOME_STEPS]), fmean(values[-SOME_STEPS:]))


def _last_means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    last = rows[-SOME_STEPS:]
    return {name: fmean(row[name] for row in last if name in row) for name in last[-1]}

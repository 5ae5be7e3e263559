"""Render the page of pit report: possible problems of training runs, their results, curves and settings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pitcli import __version__
from pitcli.console import counted, visible
from pitcli.pages.curves import curves, legend_of
from pitcli.pages.figures import plotting
from pitcli.pages.page import short, template
from pitcli.pages.trained_run import TrainedRun, concerns
from pitcli.runs.manifest import Manifest

MISSING = "–"
KINDS = {
    "sft": "Supervised fine-tuning of the",
    "reward": "Training of the",
    "rl": "Reinforcement learning of the",
    "dpo": "Preference optimisation of the",
    "distill": "Distillation of the improver into the",
}
SHARES = {"accuracy", "longer_wins_accuracy", "shorter_wins_accuracy", "swap_flip_rate"}
# results of train-reward on held-out pairs
HELD_OUT = {
    "pairs": "pairs",
    "accuracy": "accuracy: ranked like their label",
    "longer_wins_accuracy": "accuracy of always choosing the longer",
    "shorter_wins_accuracy": "accuracy of always choosing the shorter",
    "length_correlation": "correlation of the gap with the length difference",
    "swap_residual": "mean |r(a,b) + r(b,a)|, in units of the gap",
    "swap_flip_rate": "another winner if the responses are swapped",
    "log_loss": "log loss of the calibrated gap",
}
WITH_ACCURACY = {"accuracy_low", "accuracy_high"}  # shown in the same cell as the accuracy


class RunTable(NamedTuple):
    """Facts about runs side by side. rows: a label, one cell per column, and whether the cells differ."""

    columns: list[str]
    rows: list[tuple[str, list[str], bool]]


def render(runs: Sequence[TrainedRun]) -> str:
    """Render the page, which is self-contained."""
    with plotting():
        drawn = curves(runs)
    page = template("run_report.html.jinja").render(
        version=__version__,
        runs=runs,
        what=[f"{_title(run.manifest)} on {run.manifest.base.name}" if run.manifest else "" for run in runs],
        concerns=[(run.name, concerns(run)) for run in runs],
        legend=legend_of([run.name for run in runs]),
        facts=_table(runs, [_facts(run) for run in runs]),
        held_out=_held_out(runs),
        results=_table(runs, [_results(run) for run in runs]),
        curves=drawn,
        settings=_table(runs, [_texts(run.manifest.config) if run.manifest else {} for run in runs]),
    )
    # Names of runs and data are untrusted: bidirectional overrides could change how the page reads.
    return visible(page.lstrip())


def _table(runs: Sequence[TrainedRun], by_run: Sequence[dict[str, str]]) -> RunTable:
    labels = dict.fromkeys(label for texts in by_run for label in texts)
    cells = {label: [texts.get(label, MISSING) for texts in by_run] for label in labels}
    return RunTable([run.name for run in runs], [(label, row, len(set(row)) > 1) for label, row in cells.items()])


def _facts(run: TrainedRun) -> dict[str, str]:
    state = {"state": run.state, "steps": str(run.steps)}
    return state if run.manifest is None else {"what": _title(run.manifest), **state, **_origin(run.manifest)}


def _title(manifest: Manifest) -> str:
    return f"{KINDS[manifest.kind]} {manifest.role}{' model' if manifest.kind == 'reward' else ''}"


def _origin(manifest: Manifest) -> dict[str, str]:
    base, data = manifest.base, manifest.data
    versions = {"pit": manifest.pit_version, **manifest.versions}
    inputs = {f"starts from {role}": f"adapter {digest[:12]}" for role, digest in manifest.inputs.items()}
    return {
        "base": f"{base.name}, {'in 4-bit' if base.load_in_4bit else 'not quantised'} ({base.digest[:12]})",
        "data": f"{data.path}, {counted(data.rows, 'rows')} ({data.digest[:12]})",
        **inputs,
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _held_out(runs: Sequence[TrainedRun]) -> RunTable:
    """A table with a column for the held-out pairs of each gap model, and one for its --eval-data."""
    columns = [
        (f"{run.name}, {pairs}" if len(runs) > 1 else pairs, run, prefix)
        for run in runs
        for prefix, pairs in (("", "held out"), ("eval_", str(run.setting("eval_data"))))
        if run.result(f"{prefix}accuracy") is not None
    ]
    rows = [
        (label, [_measured(run, prefix, name) for _, run, prefix in columns], False) for name, label in HELD_OUT.items()
    ]
    return RunTable([label for label, _, _ in columns], rows if columns else [])


def _measured(run: TrainedRun, prefix: str, name: str) -> str:
    value = run.result(prefix + name)
    if value is None:
        return MISSING
    text = f"{value:.1%}" if name in SHARES else _text(value)
    low, high = (run.result(f"{prefix}{name}_{end}") for end in ("low", "high"))
    return text if low is None or high is None else f"{text} [{low:.1%}, {high:.1%}]"


def _results(run: TrainedRun) -> dict[str, str]:
    """The results in the manifest that the table of held-out pairs does not show."""
    results = run.manifest.results if run.manifest else {}
    shown = {
        name: value
        for name, value in results.items()
        if name.removeprefix("eval_") not in HELD_OUT.keys() | WITH_ACCURACY
    }
    return _texts(shown)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return short(value) if isinstance(value, float) else str(value)

"""Check a judge: does it agree with human labels, and has it seen the training data of the reward?"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pitcli.console import counted, note, warn
from pitcli.data.pair_reading import load_pairs, options_of
from pitcli.data.rows import Comparison, PreferencePair
from pitcli.data.splits import prompt_key, prompt_sketch
from pitcli.errors import RunError, SettingsError
from pitcli.evaluation.ask_judge import JudgeVerdicts, ask
from pitcli.evaluation.judge import ORACLE, Judge
from pitcli.evaluation.results import Validation
from pitcli.evaluation.statistics import Bootstrap, BootstrapSettings, mean_of
from pitcli.evaluation.systems import System
from pitcli.runs.manifest import DataIdentity
from pitcli.settings.tools import EvaluateConfig


class Independence(NamedTuple):
    """Whether a judge has seen none of the rows that the reward was trained on, and the text for evaluation.json."""

    text: str
    independent: bool


class LabelledPairs(NamedTuple):
    """A file of --validate-on and its pairs."""

    file: str
    pairs: list[PreferencePair]


def load_labelled(config: EvaluateConfig) -> list[LabelledPairs]:
    """Read the files of --validate-on; InputError if a row of one cannot be used."""
    labelled = []
    for number, file in enumerate(config.validate_on):
        notes: Counter[str] = Counter()
        labelled.append(LabelledPairs(file, load_pairs(file, notes=notes, options=options_of(config, number > 0))))
        for text, count in notes.items():
            note(f"{file}: {counted(count, text)}")
    return labelled


def refuse_known_prompts(name: str, labelled: Sequence[LabelledPairs], trained_on: DataIdentity | None) -> None:
    """Raise SettingsError if a judge was trained on prompts of --validate-on. trained_on: see independence."""
    for file, pairs in labelled:
        if trained_on and set(prompt_sketch(pairs)) & set(trained_on.prompts):
            raise SettingsError(
                f"--validate-on: {name} was trained on prompts of {file}; give pairs with other prompts"
            )


def validate(judge: Judge, labelled: LabelledPairs, by: str | None, settings: BootstrapSettings) -> list[Validation]:
    """Validate a judge on labelled pairs: does it agree with the labels more often than "longest" and "shortest" do?

    by: a field; its values are validated separately too.
    """
    file, pairs = labelled
    judged = ask(judge, (Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in pairs))
    groups = {"all": pairs}
    if by is not None:
        for pair in pairs:
            if (value := str(pair.extra.get(by, ""))) != "all":
                groups.setdefault(value, []).append(pair)
    validations = [
        _validation(judged, file=file, dataset=name, pairs=group, settings=settings) for name, group in groups.items()
    ]
    if validations[0] is None:
        raise RunError(f"{judge.name}: no verdict on any pair of {file}")
    return [validation for validation in validations if validation]


def _validation(
    judged: JudgeVerdicts, file: str, dataset: str, pairs: Sequence[PreferencePair], settings: BootstrapSettings
) -> Validation | None:
    """None if the judge gave no verdict on any of the pairs."""
    signs = np.array([judged.sign(Comparison(pair.prompt, pair.chosen, pair.rejected)) for pair in pairs])
    has_verdict = np.isfinite(signs)
    if not has_verdict.any():
        return None
    agreement_N = (signs[has_verdict] + 1) / 2
    longer = np.sign([len(pair.chosen) - len(pair.rejected) for pair in pairs])[has_verdict]
    longest_N, shortest_N = (longer + 1) / 2, (1 - longer) / 2
    prompts = [prompt_key(pair) for pair, keep in zip(pairs, has_verdict, strict=True) if keep]
    bootstrap = Bootstrap(prompts, draws=settings.draws, seed=settings.seed)
    over_longest = bootstrap.interval(mean_of(agreement_N - longest_N))
    over_shortest = bootstrap.interval(mean_of(agreement_N - shortest_N))
    return Validation(
        file=file,
        dataset=dataset,
        rows=len(agreement_N),
        agreement=float(agreement_N.mean()),
        agreement_ci=bootstrap.interval(mean_of(agreement_N)),
        longest=float(longest_N.mean()),
        shortest=float(shortest_N.mean()),
        over_longest_ci=over_longest,
        over_shortest_ci=over_shortest,
        beats_length=min(over_longest[0], over_shortest[0]) > 0,
    )


def independence(
    name: str,
    trained_on: DataIdentity | None,
    systems: Sequence[System],
    controls: Sequence[System],
    allow_reward_as_judge: bool,
) -> Independence:
    """Check that a judge has not rewarded the systems in RL, nor seen the rows of their gap models; or SettingsError.

    trained_on: the judge's training data, None if pit did not train it.
    """
    text = ""
    if rewarded := [system.name for system in [*systems, *controls] if name in system.reward_commands()]:
        text = f"{name} was the reward of RL of {', '.join(rewarded)}"
    elif trained_on is None:
        return Independence(
            "grades by code of pit's own tasks: the truth there, and no more than that"
            if name == ORACLE
            else "not trained by pit",
            True,
        )
    elif sharing := systems_sharing_prompts(trained_on, [*systems, *controls]):
        text = f"{name} was trained on rows of the gap model that {', '.join(sharing)} used in RL or in the stop rule"
    if text:
        if not allow_reward_as_judge:
            remedy = "use another judge" if rewarded else "train a judge on a separate fold"
            raise SettingsError(f"--judge: {text}; {remedy}, or use --allow-reward-as-judge")
        warn(text)
        return Independence(f"NOT INDEPENDENT: {text}", False)
    if unknown := systems_of_unknown_origin(systems):
        return Independence(
            f"not known: no manifest next to the rows of {', '.join(unknown)} shows the data of their gap models", False
        )
    return Independence("not known to share training prompts with any of the gap models used here", True)


def systems_sharing_prompts(trained_on: DataIdentity, systems: Sequence[System]) -> list[str]:
    """The systems whose gap models (in RL or in the stop rule) have seen prompts that a judge was trained on."""
    prompts = set(trained_on.prompts)
    return [
        system.name
        for system in systems
        if any(
            data["digest"] == trained_on.digest or prompts & set(data["prompts"])
            for origin in system.origins()
            for data in origin.get("gap_data", [])
        )
    ]


def systems_of_unknown_origin(systems: Sequence[System]) -> list[str]:
    """The systems without a manifest that shows what their gap models were trained on."""
    return [system.name for system in systems if {} in system.origins()]

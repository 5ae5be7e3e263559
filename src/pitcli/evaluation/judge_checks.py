"""May a judge be used? Whether it agrees with human labels, and whether it has seen the data of the reward."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pitcli.console import warn
from pitcli.data.formats import load_pairs
from pitcli.data.rows import Comparison, PreferencePair
from pitcli.data.splits import prompt_key, prompt_sketch
from pitcli.errors import RunError, SettingsError
from pitcli.evaluation.ask_judge import JudgeVerdicts, ask
from pitcli.evaluation.judge import ORACLE, Judge
from pitcli.evaluation.results import Validation
from pitcli.evaluation.statistics import Bootstrap, BootstrapSettings, mean_of
from pitcli.evaluation.systems import System
from pitcli.runs.manifest import DataIdentity


class Independence(NamedTuple):
    """Whether a judge has seen none of the rows that the reward was trained on, and how evaluation.json says it."""

    text: str
    independent: bool


def validate(
    judge: Judge, file: str, by: str | None, settings: BootstrapSettings, trained_on: Sequence[str] = ()
) -> list[Validation]:
    """A judge on labelled pairs: does it agree with the labels more than "longest" and "shortest" do?

    by: the field whose values are also validated one by one. trained_on: hashes of the prompts that the judge was
    trained on; it is an error if the file has any of them.
    """
    pairs = load_pairs(file)
    if set(prompt_sketch(pairs)) & set(trained_on):
        raise SettingsError(
            f"--validate-on: {judge.name} was trained on prompts of {file}; give pairs that are new to it"
        )
    judged = ask(judge, (Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in pairs))
    groups = {"all": pairs}
    if by is not None:
        for pair in pairs:
            groups.setdefault(str(pair.extra.get(by, "")), []).append(pair)
    validations = [
        _validation(judged, file=file, dataset=name, pairs=group, settings=settings) for name, group in groups.items()
    ]
    if validations[0] is None:
        raise RunError(f"{judge.name}: no verdict on any pair of {file}")
    return [validation for validation in validations if validation]


def _validation(
    judged: JudgeVerdicts, file: str, dataset: str, pairs: Sequence[PreferencePair], settings: BootstrapSettings
) -> Validation | None:
    """None if there is no verdict on any of the pairs."""
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
    """SettingsError if the judge has seen the rows of a gap model and that is not allowed.

    trained_on: the judge's own training data, None if pit did not train it.
    """
    if trained_on is None:
        return Independence(
            "the task's truth; it says nothing about language" if name == ORACLE else "not trained by pit", True
        )
    if sharing := systems_sharing_prompts(trained_on, [*systems, *controls]):
        text = f"{name} was trained on rows of the gap model that {', '.join(sharing)} used in RL or to stop"
        if not allow_reward_as_judge:
            raise SettingsError(f"--judge: {text}; train one on a fold of its own, or --allow-reward-as-judge")
        warn(text)
        return Independence(f"NOT INDEPENDENT: {text}", False)
    if unknown := systems_of_unknown_origin(systems):
        return Independence(
            f"not known: nothing beside the rows of {', '.join(unknown)} says what their gap models have seen", False
        )
    return Independence("no prompt that a gap model here was trained on is known to be among its own", True)


def systems_sharing_prompts(trained_on: DataIdentity, systems: Sequence[System]) -> list[str]:
    """The systems whose gap models (of RL, or of stopping) have seen prompts that a judge was trained on."""
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
    """The systems without a record of what their gap models were trained on."""
    return [system.name for system in systems if {} in system.origins()]

"""Asking a judge: each comparison once, in either order, and whether the judge may be asked at all."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pitcli.console import note, progress
from pitcli.data.formats import load_pairs
from pitcli.data.records import Comparison, PreferencePair, Prompt
from pitcli.data.splits import prompt_key, prompt_sketch
from pitcli.errors import RunError, SettingsError
from pitcli.evaluation.results import Validation
from pitcli.evaluation.statistics import Bootstrap, mean_of
from pitcli.evaluation.systems import System
from pitcli.evaluation.verdicts import Judge, Verdict

AT_ONCE = 64


class Judged(NamedTuple):
    """What a judge said of all comparisons that it was asked, and its grades of single responses if it has such."""

    judge: Judge
    verdicts: dict[Comparison, Verdict]
    grades: dict[tuple[Prompt, str], float]

    def p_better(self, comparison: Comparison) -> float | None:
        """P(better); of a copy 0.5, of a comparison that was asked the other way round the rest to 1."""
        if comparison.response == comparison.reference_response:
            return 0.5
        if verdict := self.verdicts.get(comparison):
            return verdict.p_better
        other = self.verdicts[_reversed(comparison)].p_better
        return None if other is None else 1 - other

    def sign(self, comparison: Comparison) -> float:
        """1 for a win, 0 for a tie, -1 for a loss, NaN where there is no verdict."""
        p_better = self.p_better(comparison)
        return float("nan") if p_better is None else float(np.sign(p_better - 0.5))

    def consistency(self) -> float | None:
        """How often both orders named the same winner, where the judge has orders."""
        known = [verdict.consistent for verdict in self.verdicts.values() if verdict.consistent is not None]
        return sum(known) / len(known) if known else None

    def failed(self) -> int:
        return sum(verdict.p_better is None for verdict in self.verdicts.values())


def _reversed(comparison: Comparison) -> Comparison:
    return Comparison(comparison.prompt, comparison.reference_response, comparison.response)


def ask(judge: Judge, comparisons: Iterable[Comparison]) -> Judged:
    """Every comparison once: not the copies, nor those that are there the other way round."""
    wanted: dict[Comparison, None] = {}
    for comparison in comparisons:
        if comparison.response != comparison.reference_response and _reversed(comparison) not in wanted:
            wanted[comparison] = None
    verdicts: dict[Comparison, Verdict] = {}
    # long ones together: a batch then holds little padding
    ordered = sorted(wanted, key=lambda c: -len(c.response) - len(c.reference_response))
    note(f"{judge.name}: {len(ordered)} comparisons to judge")
    with progress(f"asking {judge.name}", len(ordered)) as advance:
        for start in range(0, len(ordered), AT_ONCE):
            chunk = ordered[start : start + AT_ONCE]
            verdicts |= zip(chunk, judge.verdicts(chunk), strict=True)
            advance(len(chunk))
    return Judged(judge, verdicts, {})


def with_grades(judged: Judged, responses: Iterable[tuple[Prompt, str]]) -> Judged:
    """As judged, with the judge's grades of single responses; the same where it has none."""
    if judged.judge.grades is None:
        return judged
    wanted = list(dict.fromkeys(responses))
    return judged._replace(grades=dict(zip(wanted, judged.judge.grades(wanted), strict=True)))


def validate(
    judge: Judge, file: str, by: str | None, draws: int, seed: int, trained_on: Sequence[str] = ()
) -> list[Validation]:
    """A judge on labelled pairs: does it agree with the labels more than "longest" and "shortest" do?

    trained_on: hashes of prompts that it was trained on, none of which may be in the file.
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
    found = [_validation(judged, file, name, group, draws, seed) for name, group in groups.items()]
    if found[0] is None:
        raise RunError(f"{judge.name}: no verdict on any pair of {file}")
    return [one for one in found if one]


def _validation(
    judged: Judged, file: str, dataset: str, pairs: Sequence[PreferencePair], draws: int, seed: int
) -> Validation | None:
    signs = np.array([judged.sign(Comparison(pair.prompt, pair.chosen, pair.rejected)) for pair in pairs])
    kept = np.isfinite(signs)
    if not kept.any():
        return None
    agreement_N = (signs[kept] + 1) / 2
    longer = np.sign([len(pair.chosen) - len(pair.rejected) for pair in pairs])[kept]
    longest_N, shortest_N = (longer + 1) / 2, (1 - longer) / 2
    bootstrap = Bootstrap([prompt_key(pair) for pair, keep in zip(pairs, kept, strict=True) if keep], None, draws, seed)
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


def shared_rows(trained_on: Any, systems: Sequence[System]) -> list[str]:
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


def unknown_origin(systems: Sequence[System]) -> list[str]:
    """The systems of which nothing says what their gap models were trained on."""
    return [system.name for system in systems if {} in system.origins()]

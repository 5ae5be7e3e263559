"""pit evaluate: is a system better than the originals, and than the others? By judges that training never saw."""

import json
import random
from collections.abc import Sequence
from typing import NamedTuple

from pitcli import __version__
from pitcli.console import note, warn
from pitcli.errors import SettingsError
from pitcli.evaluation import results
from pitcli.evaluation.claims import claim, control_result, corrected
from pitcli.evaluation.comparing import Draws, Versus, against, against_originals, comparison_result, parts
from pitcli.evaluation.iterations import iteration_comparisons, iterations_result, most_steps
from pitcli.evaluation.judges import Seated, check_name, seat
from pitcli.evaluation.judging import Judged, ask, shared_rows, unknown_origin, validate, with_grades
from pitcli.evaluation.systems import MADE, ORIGINAL, Key, Row, System, align, load_systems, made_controls
from pitcli.evaluation.tables import print_evaluation
from pitcli.evaluation.verdicts import ORACLE
from pitcli.pages.evaluation_report import render
from pitcli.runs.files import write_file
from pitcli.settings.tools import EvaluateConfig


class Field(NamedTuple):
    """All that is compared: systems and controls with their rows in the same order."""

    systems: list[System]
    controls: list[System]
    keys: list[Key]

    def rows(self, system: System) -> list[Row]:
        return system.at(self.keys)

    def versus(self) -> list[Versus]:
        """Each system against the originals, and the first against each other one."""
        if not self.systems:
            return []
        first, *others = self.systems
        mine = self.rows(first)
        return [against_originals(system.name, self.rows(system)) for system in self.systems] + [
            against(first.name, mine, other.name, self.rows(other)) for other in others
        ]

    def controlled(self) -> list[Versus]:
        """Each control against what it must not beat."""
        named = {system.name: system for system in self.systems}
        return [
            against_originals(control.name, self.rows(control))
            if control.baseline == ORIGINAL
            else against(control.name, self.rows(control), control.baseline, self.rows(named[control.baseline]))
            for control in self.controls
        ]


def run(config: EvaluateConfig) -> None:
    """Ask every judge about everything once; print the tables, and write JSON, report and verdicts to --out."""
    field = load(config)
    config.out.mkdir(parents=True, exist_ok=True)
    how = Draws(config.draws, config.seed)
    judges: list[results.JudgeResult] = []
    comparisons: list[results.Comparison] = []
    iterations: list[results.Iterations] = []
    controls: list[results.Control] = []
    verdicts: list[Judged] = []
    for name in config.judge:
        seated = seat(name, config)
        independence, independent = check_independence(seated, field, config)
        seen = seated.trained_on.prompts if seated.trained_on else []
        validation = [
            one
            for file in config.validate_on
            for one in validate(seated.judge, file, config.by, config.draws, config.seed, seen)
        ]
        judged = ask_all(seated, field, config)
        judges.append(judge_result(seated, judged, independence, independent, validation))
        found = [
            comparison_result(part, judged, dataset, seed, how)
            for versus in field.versus()
            for part, dataset, seed in parts(versus)
        ]
        comparisons += [one for one in found if one]
        for versus in field.controlled():
            if one := comparison_result(versus, judged, "all", None, how):
                controls.append(control_result(versus.system, versus.baseline, one))
        iterations += [
            iterations_result(system, rows, judged, config.rank_iterations, how)
            for system in field.systems
            if iterates(system, rows := field.rows(system))
        ]
        verdicts.append(judged)
    comparisons = corrected(comparisons)
    evaluation = results.Evaluation(
        pit_version=__version__,
        settings=config.model_dump(mode="json"),
        judges=judges,
        systems=[system_result(system, field) for system in field.systems],
        comparisons=comparisons,
        iterations=iterations,
        controls=controls,
        claims=[
            claim(system, field.systems, judges, comparisons, controls, config.harm_cap) for system in field.systems[:1]
        ],
        samples=samples_of(field, verdicts, config),
    )
    write(evaluation, verdicts, config)
    print_evaluation(evaluation)
    note(f"evaluation.json, report.html and verdicts.jsonl are in {config.out}")


def load(config: EvaluateConfig) -> Field:
    """All rows, and the names of the judges, checked before one is loaded."""
    for name in config.judge:
        check_name(name)
    if len(set(config.judge)) < len(config.judge):
        raise SettingsError("--judge: one is named twice")
    if not config.input:
        return Field([], [], [])
    systems = load_systems(config.input, "--input", config.by, config.max_rows)
    given = load_systems(config.control, "--control", None, config.max_rows)
    names = [system.name for system in (*systems, *given)]
    if taken := {name for name in names if names.count(name) > 1} | ({ORIGINAL, *MADE} & set(names)):
        raise SettingsError(f"--input: the name {', '.join(sorted(taken))} is taken; give NAME=FILE")
    for control in given:
        if control.baseline not in {ORIGINAL, *(system.name for system in systems)}:
            raise SettingsError(f"--control: {control.name}: no system {control.baseline} in --input")
    keys = align([*systems, *given])
    return Field(systems, [*given, *made_controls(systems[0], config.seed)], keys)


def check_independence(seated: Seated, field: Field, config: EvaluateConfig) -> tuple[str, bool]:
    """A judge that has seen what a gap model here was trained on is no judge: what is said of that, and whether not."""
    name = seated.judge.name
    if seated.trained_on is None:
        return ("the task's truth; it says nothing about language" if name == ORACLE else "not trained by pit"), True
    if seen := shared_rows(seated.trained_on, [*field.systems, *field.controls]):
        text = f"{name} was trained on rows of the gap model that {', '.join(seen)} used in RL or to stop"
        if not config.allow_reward_as_judge:
            raise SettingsError(f"--judge: {text}; train one on a fold of its own, or --allow-reward-as-judge")
        warn(text)
        return f"NOT INDEPENDENT: {text}", False
    if unknown := unknown_origin(field.systems):
        return f"not known: nothing beside the rows of {', '.join(unknown)} says what their gap models have seen", False
    return "no prompt that a gap model here was trained on is known to be among its own", True


def iterates(system: System, rows: Sequence[Row]) -> bool:
    """Whether its steps build on one another; the draws of best-of-n do not."""
    return most_steps(rows) > 1 and system.method() != "best-of-n"


def ask_all(seated: Seated, field: Field, config: EvaluateConfig) -> Judged:
    """Every comparison that any result needs, in one go."""
    wanted = [c for versus in (*field.versus(), *field.controlled()) for c in versus.comparisons()]
    for system in field.systems:
        if iterates(system, rows := field.rows(system)):
            wanted += iteration_comparisons(rows, config.rank_iterations)
    judged = ask(seated.judge, wanted)
    if failed := judged.failed():
        warn(f"{seated.judge.name}: no verdict on {failed} of {len(judged.verdicts)} comparisons; they are left out")
    texts = ((c.prompt, text) for c in wanted for text in (c.response, c.reference_response))
    return with_grades(judged, texts)


def judge_result(
    seated: Seated, judged: Judged, independence: str, independent: bool, validation: list[results.Validation]
) -> results.JudgeResult:
    return results.JudgeResult(
        name=seated.judge.name,
        identity=seated.identity,
        independence=independence,
        independent=independent,
        validation=validation,
        consistency=judged.consistency(),
        failed=judged.failed(),
    )


def system_result(system: System, field: Field) -> results.System:
    record = {name: part for name, part in system.record().items() if name != "origin"}
    return results.System(
        name=system.name, files=list(system.files), rows=len(field.keys), record=record, training=system.training()
    )


def p_of_response(row: Row) -> float | None:
    """What the gap model said of the response over the original: known where one improvement made it."""
    taken = [step for step in row.steps if step.standing != step.before]
    return taken[0].p_better if len(taken) == 1 else None


def samples_of(field: Field, verdicts: Sequence[Judged], config: EvaluateConfig) -> list[results.Sample]:
    """Rows of the first system drawn at random, with what its gap model and the first judge said."""
    if not field.systems:
        return []
    first = field.systems[0]
    drawn = random.Random(config.seed).sample(field.keys, min(config.shown, len(field.keys)))
    return [
        results.Sample(
            system=first.name,
            prompt="\n\n".join(message.content for message in row.prompt),
            original_response=row.original,
            response=row.response,
            p_better=p_of_response(row),
            judged=verdicts[0].p_better(row.against_original()),
        )
        for row in first.at(drawn)
    ]


def write(evaluation: results.Evaluation, verdicts: Sequence[Judged], config: EvaluateConfig) -> None:
    write_file(config.out / "evaluation.json", evaluation.model_dump_json(indent=1) + "\n")
    write_file(config.out / "report.html", render(evaluation))
    lines = [
        {
            "judge": judged.judge.name,
            "prompt": [message._asdict() for message in asked.prompt],
            "original_response": asked.reference_response,
            "response": asked.response,
            "p_better": verdict.p_better,
            "consistent": verdict.consistent,
        }
        for judged in verdicts
        for asked, verdict in judged.verdicts.items()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_file(config.out / "verdicts.jsonl", text)

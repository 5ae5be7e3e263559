"""pit evaluate: compares improved rows with the originals and with other systems, by judges that training never saw."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pitcli import __version__
from pitcli.console import note, warn
from pitcli.data.rows import Comparison
from pitcli.data.strict_json import encode
from pitcli.errors import SettingsError
from pitcli.evaluation.aligned import AlignedSystems, load_aligned
from pitcli.evaluation.answers import answers
from pitcli.evaluation.ask_judge import JudgeVerdicts, ask, with_grades
from pitcli.evaluation.claims import claim, control_result, corrected
from pitcli.evaluation.compare_iterations import compare_iterations, iteration_comparisons, most_steps
from pitcli.evaluation.compare_systems import (
    compare_rows,
    parts,
)
from pitcli.evaluation.judge import Judge
from pitcli.evaluation.judge_checks import (
    Independence,
    LabelledPairs,
    independence,
    load_labelled,
    refuse_known_prompts,
    validate,
)
from pitcli.evaluation.load_judge import LoadedJudge, check_judge, fields_for, load_judge
from pitcli.evaluation.results import (
    Control,
    EvaluatedSystem,
    Evaluation,
    JudgeResult,
    ShownRow,
    SystemComparison,
    SystemIterations,
    Validation,
)
from pitcli.evaluation.statistics import BootstrapSettings
from pitcli.evaluation.systems import (
    ImprovedRow,
    System,
)
from pitcli.evaluation.tables import print_evaluation
from pitcli.pages.evaluation_report import render
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.files import write_files
from pitcli.settings.tools import EvaluateConfig

RESULTS = "evaluation.json"


class CheckedJudge(NamedTuple):
    """A judge that can be asked, as far as can be seen without loading it. run: if pit trained it."""

    name: str
    run: EarlierRun | None
    independence: Independence


class JudgeFindings(NamedTuple):
    """All results of one judge, before Holm's correction."""

    judge: JudgeResult
    comparisons: list[SystemComparison]
    controls: list[Control]
    iterations: list[SystemIterations]
    verdicts: JudgeVerdicts


def run(config: EvaluateConfig) -> int:
    """Ask every judge once about every comparison, write the results to --out and print them, the answers on stdout.

    Return 1 if a judge gave no verdict on some comparisons, otherwise 0.
    """
    refuse_overwriting(config)
    aligned, labelled = load_aligned(config), load_labelled(config)
    # of all judges, before the first of them is asked for hours
    checked = [check(name, aligned, labelled, config) for name in config.judge]
    config.out.mkdir(parents=True, exist_ok=True)
    findings = [findings_of_judge(judge, aligned, labelled, config) for judge in checked]
    judges = [finding.judge for finding in findings]
    comparisons = corrected([comparison for finding in findings for comparison in finding.comparisons])
    controls = [control for finding in findings for control in finding.controls]
    verdicts = [finding.verdicts for finding in findings]
    claims = [
        claim(
            system,
            systems=aligned.systems,
            judges=judges,
            comparisons=comparisons,
            controls=controls,
            harm_cap=config.harm_cap,
        )
        for system in aligned.systems[:1]
    ]
    evaluation = Evaluation(
        pit_version=__version__,
        settings=config.model_dump(mode="json"),
        answers=[answers(claimed, aligned.systems, judges, comparisons) for claimed in claims],
        judges=judges,
        systems=[evaluated_system(system, aligned) for system in aligned.systems],
        comparisons=comparisons,
        iterations=[iterations for finding in findings for iterations in finding.iterations],
        controls=controls,
        claims=claims,
        samples=rows_to_show(aligned, verdicts, config),
    )
    write(evaluation, verdicts, config)
    print_evaluation(evaluation)
    for answered in evaluation.answers:
        print(answered.model_dump_json())
    note(f"report: {config.out / 'report.html'} (next to evaluation.json and verdicts.jsonl)")
    return 1 if any(judged.failed() for judged in verdicts) else 0


def refuse_overwriting(config: EvaluateConfig) -> None:
    if config.out.exists() and not config.out.is_dir():
        raise SettingsError(f"--out: expected a folder, got the file {config.out}")
    if (config.out / RESULTS).exists() and not config.overwrite:
        raise SettingsError(f"--out: {config.out} has an evaluation; use --overwrite to replace it, or another folder")


def check(
    name: str, aligned: AlignedSystems, labelled: Sequence[LabelledPairs], config: EvaluateConfig
) -> CheckedJudge:
    """Check what can be checked of a judge without loading it. Raises SettingsError or RunError."""
    if config.judge.count(name) > 1:
        raise SettingsError(f"--judge: {name} is given twice")
    run = check_judge(name, config)
    trained_on = run.manifest.data if run else None
    refuse_known_prompts(name, labelled, trained_on)
    independent = independence(
        name,
        trained_on,
        systems=aligned.systems,
        controls=aligned.controls,
        allow_reward_as_judge=config.allow_reward_as_judge,
    )
    return CheckedJudge(name, run, independent)


def findings_of_judge(
    checked: CheckedJudge, aligned: AlignedSystems, labelled: Sequence[LabelledPairs], config: EvaluateConfig
) -> JudgeFindings:
    """Load and validate the judge, then ask it about all systems and controls."""
    name, run, independent = checked
    fields = fields_for(name, config.input, [pair for _, pairs in labelled for pair in pairs])
    loaded = load_judge(name, config, fields, cache=config.out / "openai-cache.sqlite", run=run)
    settings = BootstrapSettings(config.bootstrap_draws, config.seed)
    validation = validate_on_files(loaded, labelled, config, settings)
    judged = ask_all(loaded.judge, aligned, config)
    comparisons = [compare_rows(part, judged, settings) for pair in aligned.system_pairs() for part in parts(pair)]
    controls = [compare_rows(pair, judged, settings) for pair in aligned.control_pairs()]
    return JudgeFindings(
        judge=JudgeResult(
            name=name,
            identity=loaded.identity,
            independence=independent.text,
            independent=independent.independent,
            validation=validation,
            consistency=judged.consistency(),
            failed=judged.failed(),
        ),
        comparisons=[comparison for comparison in comparisons if comparison],
        controls=[control_result(control) for control in controls if control],
        iterations=[
            compare_iterations(system, rows, judged=judged, every_pair=config.rank_iterations, settings=settings)
            for system in aligned.systems
            if builds_on_steps(system, rows := aligned.rows(system))
        ],
        verdicts=judged,
    )


def validate_on_files(
    loaded: LoadedJudge, labelled: Sequence[LabelledPairs], config: EvaluateConfig, settings: BootstrapSettings
) -> list[Validation]:
    """Validate the judge on every file of --validate-on."""
    return [
        validation for file in labelled for validation in validate(loaded.judge, file, by=config.by, settings=settings)
    ]


def builds_on_steps(system: System, rows: Sequence[ImprovedRow]) -> bool:
    """Whether the system's steps build on one another; the draws of best-of-n do not."""
    return most_steps(rows) > 1 and system.method() != "best-of-n"


def ask_all(judge: Judge, aligned: AlignedSystems, config: EvaluateConfig) -> JudgeVerdicts:
    """Get the verdicts on every comparison that any result needs."""
    pairs = [*aligned.system_pairs(), *aligned.control_pairs()]
    comparisons: list[Comparison] = [comparison for pair in pairs for comparison in pair.comparisons()]
    for system in aligned.systems:
        if builds_on_steps(system, rows := aligned.rows(system)):
            comparisons += iteration_comparisons(rows, config.rank_iterations)
    judged = ask(judge, comparisons)
    if failed := judged.failed():
        warn(f"judge {judge.name}: no verdict on {failed:,} of {len(judged.verdicts):,} comparisons, which are skipped")
    texts = ((c.prompt, text) for c in comparisons for text in (c.response, c.reference_response))
    return with_grades(judge, judged, texts)


def evaluated_system(system: System, aligned: AlignedSystems) -> EvaluatedSystem:
    record = {name: part for name, part in system.record().items() if name != "origin"}
    return EvaluatedSystem(
        name=system.name, files=list(system.files), rows=len(aligned.keys), record=record, training=system.training()
    )


def rows_to_show(aligned: AlignedSystems, verdicts: Sequence[JudgeVerdicts], config: EvaluateConfig) -> list[ShownRow]:
    """Draw rows of the first system at random, with P(better) by its gap model and by the first judge."""
    if not aligned.systems:
        return []
    first = aligned.systems[0]
    drawn = random.Random(config.seed).sample(aligned.keys, min(config.shown, len(aligned.keys)))
    return [
        ShownRow(
            system=first.name,
            prompt="\n\n".join(message.content for message in row.prompt),
            original_response=row.original,
            response=row.response,
            p_better=row.p_better if row.response != row.original else None,
            judged=verdicts[0].p_better(row.against_original()),
            edits=[edit.fields() for edit in row.edits],
        )
        for row in first.at(drawn)
    ]


def write(evaluation: Evaluation, verdicts: Sequence[JudgeVerdicts], config: EvaluateConfig) -> None:
    lines = [
        {
            "judge": judged.judge,
            "prompt": [message._asdict() for message in comparison.prompt],
            "original_response": comparison.reference_response,
            "response": comparison.response,
            "p_better": verdict.p_better,
            "consistent": verdict.consistent,
        }
        for judged in verdicts
        for comparison, verdict in judged.verdicts.items()
    ]
    write_files(
        {
            config.out / RESULTS: evaluation.model_dump_json(indent=1) + "\n",
            config.out / "report.html": render(evaluation),
            config.out / "verdicts.jsonl": "".join(f"{encode(line)}\n" for line in lines),
        }
    )

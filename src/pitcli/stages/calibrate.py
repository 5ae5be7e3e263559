"""pit calibrate: chooses the threshold of the stop rule whose harm rate is certified, and writes it to the run."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pitcli.console import counted, error, next_command, note, table, warn
from pitcli.data.improved_rows import gap_of, improved_draft
from pitcli.data.reading import load_rows
from pitcli.data.strict_json import RowProblem
from pitcli.engine.generation.methods import Proposal
from pitcli.engine.models.roles import IMPROVER
from pitcli.engine.training.finish import use_command
from pitcli.errors import RunError, SettingsError
from pitcli.evaluation.ask_judge import ask
from pitcli.evaluation.claims import rows_seen_in_training
from pitcli.evaluation.harm import THRESHOLDS, Chain, Tested, certify, clopper_pearson_upper, rows_for_certificate
from pitcli.evaluation.judge_checks import independence
from pitcli.evaluation.load_judge import LABELS, check_judge, fields_for, load_judge
from pitcli.evaluation.systems import load_systems
from pitcli.runs.calibration import CALIBRATION, Calibration, read_calibration, write_calibration
from pitcli.runs.earlier import EarlierRun, required_run
from pitcli.runs.files import file_digest
from pitcli.runs.growing_rows import is_incomplete, manifest_of
from pitcli.settings.base import Method, Role, StopRule
from pitcli.settings.default_runs import IMPROVER_RUN
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.judging import CalibrateConfig


def run(config: CalibrateConfig) -> int:
    """Write the calibration; return 1, and write nothing, if no threshold can be certified."""
    judge_run = check_judge(config.judge, config, others=[LABELS])
    improver = required_run(config.run, IMPROVER_RUN)
    if not config.overwrite and read_calibration(improver.folder):
        raise SettingsError(f"--run: {improver.folder} has a calibration already; use --overwrite to replace it")
    (system,) = load_systems([config.input], "--input", by=None, max_rows=None)
    made = settings_of_rows(config.input, system.record())
    refuse_unusable(config.input, made, system.record(), improver)
    if known := rows_seen_in_training(system):
        warn(f"{config.input}: {counted(known, 'rows')} with prompts of training: no evidence about new prompts")
    chains = load_rows(config.input, parse_chain)
    warn_of_repeated_prompts(chains)
    trained_on = judge_run.manifest.data if judge_run else None
    allowed = config.allow_reward_as_judge
    independence(config.judge, trained_on, systems=[system], controls=[], allow_reward_as_judge=allowed)
    tested = harm_by_threshold(chains, made, judge_run, config)
    index = certify([round(t.harm * len(chains)) for t in tested], len(chains), config.max_harm, config.confidence)
    shown = sorted({0, len(tested) - 1} | ({index, min(index + 1, len(tested) - 1)} if index is not None else set()))
    columns = ["threshold", "changed", "worse", "upper bound"]
    table(f"drafts changed and made worse, by {config.judge}", columns, [tested[number] for number in shown])
    if index is None:
        error(not_certified(config, tested[0], len(chains)))
        return 1
    chosen = tested[index]
    calibration = Calibration(
        threshold=chosen.threshold,
        harm=chosen.harm,
        bound=chosen.bound,
        rows=len(chains),
        max_harm=config.max_harm,
        confidence=config.confidence,
        judge=config.judge,
        process=made.process(),
        adapters=system.record()["adapters"],
        input=config.input,
        input_digest=file_digest(Path(config.input)),
    )
    write_calibration(improver.folder, calibration)
    print(calibration.model_dump_json())
    note(f"{calibration.certificate()}; saved in {improver.folder / CALIBRATION}")
    next_command(use_command(Role.improver, improver.folder, f"--max-iters {made.max_iters}"))
    return 0


def not_certified(config: CalibrateConfig, strictest: Tested, rows: int) -> str:
    """Return what is missing: rows, or another gap model."""
    needed = rows_for_certificate(strictest.harm, config.max_harm, config.confidence)
    remedy = (
        f"about {needed} rows would be needed"
        if needed
        else "more rows would not help; train a better gap model (pit train-reward --members), or raise --max-harm"
    )
    return (
        f"a harm rate of at most {config.max_harm:.1%} cannot be certified with {counted(rows, 'rows')}: the strictest "
        f"threshold, {strictest.threshold:g}, makes {strictest.harm:.1%} of them worse, so at most "
        f"{strictest.bound:.1%} of all drafts with {config.confidence:.0%} confidence; {remedy}"
    )


def settings_of_rows(file: str, record: dict[str, Any]) -> ImproveConfig:
    """Return the settings of pit improve in the manifest next to the rows."""
    if not record:
        raise SettingsError(f"--input: {manifest_of(file)} is missing; write the rows with pit improve --output")
    try:
        return ImproveConfig.model_validate(record.get("settings"))
    except ValidationError as problem:
        raise RunError(f"{manifest_of(file)}: damaged, or written by another version of pit") from problem


def refuse_unusable(file: str, made: ImproveConfig, record: dict[str, Any], improver: EarlierRun) -> None:
    """Raise SettingsError if not every threshold can be replayed from the rows, or if they are of another improver."""
    problems = []
    if is_incomplete(record):
        problems.append("not whole: the command that writes it was stopped, or still runs; --resume continues it")
    if made.method is not Method.pit:
        problems.append(f"expected rows of --method pit, got {made.method}")
    if made.stop is StopRule.none and (made.prune_edits or made.width > 1):
        problems.append("expected rows of --stop gap, as --width and --prune-edits are used; got --stop none")
    if record.get("gap_temperature") is None:
        problems.append("the rows have no gaps; give pit improve a gap model with --reward")
    digest = improver.manifest.adapter_digest(IMPROVER)
    if not isinstance(adapters := record.get("adapters"), dict) or adapters.get(IMPROVER) != digest:
        problems.append(f"the rows were made with another improver than that of {improver.folder}")
    if problems:
        raise SettingsError([f"--input: {file}: {problem}" for problem in problems])


def parse_chain(row: dict[str, Any], file: str, line: int) -> Chain:
    draft = improved_draft(row, file, line)
    try:
        proposals = tuple((proposal_of(step), gap_of(step)) for step in row["iterations"])
    except (KeyError, TypeError):
        raise RowProblem("iterations", "not in the format that pit improve writes") from None
    return Chain(draft, proposals)


def proposal_of(step: dict[str, Any]) -> Proposal:
    unpruned = {name: step[name] for name in ("unpruned_response",) if name in step}  # the stop rule reads it
    return Proposal(step["response"], step["generated_tokens"], step["finished"] is not False, unpruned)


def warn_of_repeated_prompts(chains: Sequence[Chain]) -> None:
    prompts = Counter(chain.draft.prompt for chain in chains)
    if repeated := len(chains) - len(prompts):
        repeats = counted(repeated, "rows")
        warn(f"{repeats} with the prompt of an earlier row; the certificate assumes that rows are drawn independently")


def harm_by_threshold(
    chains: Sequence[Chain], made: ImproveConfig, judge_run: EarlierRun | None, config: CalibrateConfig
) -> list[Tested]:
    """Replay every threshold on every row and judge what it keeps; a missing verdict counts as worse."""
    fields = fields_for(config.judge, [config.input])
    cache = Path(config.input).parent / "openai-cache.sqlite"
    loaded = load_judge(config.judge, config, fields, cache=cache, run=judge_run)
    kept = [[chain.kept(made, threshold) for chain in chains] for threshold in THRESHOLDS]
    comparisons = [c.against_draft(text) for texts in kept for c, text in zip(chains, texts, strict=True)]
    judged = ask(loaded.judge, comparisons)
    if failed := judged.failed():
        warn(f"judge {config.judge}: no verdict on {counted(failed, 'comparisons')}, which count as worse")
    tested = []
    for threshold, texts in zip(THRESHOLDS, kept, strict=True):
        compared = [chain.against_draft(text) for chain, text in zip(chains, texts, strict=True)]
        changed = sum(c.response != c.reference_response for c in compared)
        worse = sum(not judged.sign(c) >= 0 for c in compared)
        bound = clopper_pearson_upper(worse, len(chains), config.confidence)
        tested.append(Tested(threshold, changed / len(chains), worse / len(chains), bound))
    return tested

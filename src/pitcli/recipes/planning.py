"""Plans a recipe: finds what each stage reads and writes, and checks the whole recipe before anything runs."""

from pathlib import Path
from typing import NamedTuple

from pitcli.data.splits import parse_shares
from pitcli.errors import SettingsError
from pitcli.recipes.paths import PathFinder, PlannedStage, relative_to, with_paths
from pitcli.recipes.recipe import Entry, read_recipe, validated
from pitcli.runs.growing_rows import manifest_of
from pitcli.settings.base import DEFAULT_MODEL, Method, Role, Settings
from pitcli.settings.default_runs import GAP_MODELS_RUN, GAP_RUN, IMPROVER_RUN, POLICY_RUN, SFT_POLICY_RUN, SFT_RUN
from pitcli.settings.distill import Distillation, DistillConfig
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.exporting import ExportConfig
from pitcli.settings.facts import Fact
from pitcli.settings.generating import ImproveConfig, SampleConfig
from pitcli.settings.pairs import DataSettings
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.scoring import ScoringSettings
from pitcli.settings.tools import EvaluateConfig, LabelConfig, PipelineConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig, TrainingConfig
from pitcli.settings.values import shown_options

DATA = DataSettings.named(Fact.handed_on)  # the data, and how it is read


class Plan(NamedTuple):
    out: Path
    stages: list[PlannedStage]
    processes: int  # of each command that can run as several


def plan(config: PipelineConfig) -> Plan:
    """The stages in order; raises one SettingsError that lists all problems of the recipe."""
    problems: list[str] = []
    out, entries, processes = read_recipe(config, problems)
    configs = [validated(entry, problems) for entry in entries]
    written = [
        tuple(relative_to(out, path) for path in _written(entry, config_of_entry, problems))
        for entry, config_of_entry in zip(entries, configs, strict=True)
    ]
    finder = PathFinder(out, problems)
    stages = []
    for number, (entry, config_of_entry) in enumerate(zip(entries, configs, strict=True)):
        finder.begin(entry, [(other.name, *paths) for other, paths in zip(entries, written, strict=True)][number:])
        filled = _filled(finder, config_of_entry)
        settings = with_paths(finder, config_of_entry.model_copy(update=filled))
        given = tuple(name for name in type(config_of_entry).model_fields if name in entry.settings or name in filled)
        stage = PlannedStage(
            entry.name,
            entry.command,
            config=settings,
            given=given,
            reads=(*finder.reads,),
            bases=(*finder.bases,),
            writes=written[number],
        )
        finder.add(stage)
        stages.append(stage)
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return Plan(out, stages, processes)


def _written(entry: Entry, config: Settings, problems: list[str]) -> tuple[str, ...]:
    if getattr(config, "output", None) == "-":
        problems.append(entry.problem("output", "name a file; a stage of a recipe cannot write to stdout"))
        return ()
    try:
        return writes_of(config)
    except SettingsError as error:
        problems += [entry.problem("folds", problem) for problem in error.problems]
        return ()


def writes_of(config: Settings) -> tuple[str, ...]:
    """The files, or the folder, that a command writes."""
    match config:
        case PrepareConfig():
            return tuple(str(config.out / f"{fold}.jsonl") for fold in parse_shares(config.folds))
        case TrainingConfig():
            return (str(config.run_folder),)
        case SampleConfig() | LabelConfig():
            return (config.output,)
        case ImproveConfig() | ScoringSettings():
            return (config.output, str(manifest_of(config.output)))
        case EvaluateConfig():
            return tuple(str(config.out / name) for name in ("evaluation.json", "report.html", "verdicts.jsonl"))
        case ExportConfig():
            return (str(config.out),)
    raise TypeError(config)


def _filled(finder: PathFinder, config: Settings) -> dict[str, object]:
    """Values for settings that were not given, as the command would find them by itself."""
    found: dict[str, object] = {}
    match config:
        case SftConfig():
            found = _inherited_from_gap_model(finder, finder.earlier_run(GAP_RUN), config)
            if config.model is not None:  # another base has its own number type and template
                found = {name: value for name, value in found.items() if name in DATA}
            found["model"] = found.get("model") or (None if config.init else DEFAULT_MODEL)
            _require_data(finder, config, found)
        case RewardConfig():
            found["model"] = None if config.init else DEFAULT_MODEL
            _require_data(finder, config, found)
        case SampleConfig():
            found["policy"] = config.policy or finder.default_run(POLICY_RUN, needed=False)
            found["model"] = None if found["policy"] else DEFAULT_MODEL
            found = {} if config.writer else found
        case RlConfig():
            found = _filled_rl(finder, config)
        case DpoConfig():
            named = config.sft or config.from_base
            found["sft"] = None if named else finder.default_run(config.start_run, needed=True)
            found["model"] = DEFAULT_MODEL if config.from_base else None
            if config.from_base:  # otherwise its data is that of the start
                _require_data(finder, config, found)
        case DistillConfig():
            found = _filled_distill(finder, config)
        case ImproveConfig() | ScoringSettings():
            found = _filled_use(finder, config)
    return {name: value for name, value in found.items() if value is not None and getattr(config, name) is None}


def _filled_distill(finder: PathFinder, config: DistillConfig) -> dict[str, object]:
    found: dict[str, object] = {"policy": config.policy or finder.default_run(POLICY_RUN, needed=False)}
    if config.method is Distillation.on_policy:
        found["run"] = config.run or finder.default_run(IMPROVER_RUN, needed=True)
    if not any(found.values()):
        found["model"] = DEFAULT_MODEL
    _require_data(finder, config, found)
    return found


def _require_data(finder: PathFinder, config: TrainingConfig, found: dict[str, object]) -> None:
    if not (config.data or found.get("data")):
        finder.add_problem("data", "must be given")


def _filled_rl(finder: PathFinder, config: RlConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    improver = config.role is Role.improver
    if improver:
        found["sft"] = config.sft or finder.default_run(SFT_RUN, needed=True)
    found["policy"] = config.policy or finder.default_run(SFT_POLICY_RUN, needed=not improver)
    reward = config.reward or finder.default_run(GAP_RUN, needed=True)
    if not isinstance(reward, str):
        inherited = _inherited_from_gap_model(finder, reward, config)
        found |= {"reward": reward, **{name: inherited[name] for name in DATA & inherited.keys()}}
    return found


def _inherited_from_gap_model(finder: PathFinder, run: Path | None, config: TrainingConfig) -> dict[str, object]:
    """The settings that a later stage inherits from the gap model's run; not its data if the stage has its own."""
    excluded = DATA if config.data is not None else set()
    return {name: value for name, value in _of_gap_model(finder, run).items() if name not in excluded}


def _of_gap_model(finder: PathFinder, run: Path | None) -> dict[str, object]:
    """The settings that later stages inherit from the gap model's run, planned or existing."""
    if run is None:
        return {}
    if maker := finder.maker(run):
        if maker.command != "train-reward":
            return {}
        return {name: getattr(maker.config, name) for name in type(maker.config).named(Fact.handed_on)}
    manifest = finder.manifest("reward", run, GAP_RUN.remedy)
    if manifest is None or manifest.kind != "reward":
        return {}
    return {
        "data": manifest.data.path if manifest.data.can_be_read_again else None,
        "skip_bad": manifest.data.skip_bad,
        "fields": manifest.data.fields,
        "model": manifest.base.name,
        "load_in_4bit": manifest.base.load_in_4bit,
        "template_option": tuple(shown_options(manifest.base.template_options)) or None,
    }


def _filled_use(finder: PathFinder, config: ImproveConfig | ScoringSettings) -> dict[str, object]:
    if isinstance(config, ScoringSettings):
        return {"reward": config.reward or finder.default_run(GAP_MODELS_RUN, needed=True)}
    pit = config.method is Method.pit
    run = IMPROVER_RUN if pit or config.writer else POLICY_RUN
    writer = getattr(config, run.setting) or finder.default_run(run, needed=pit and not config.writer)
    has_gap_model = writer and not config.reward and finder.has_gap_model(run.setting, writer)
    # of a run behind an endpoint that writes, only the gap model is used
    found: dict[str, object] = {} if config.writer and not has_gap_model else {run.setting: writer}
    if config.reward or has_gap_model:
        return found
    return {**found, "reward": finder.default_run(GAP_RUN, needed=config.needs_gap_model())}

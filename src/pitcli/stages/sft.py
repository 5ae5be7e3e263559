"""pit sft: supervised fine-tuning of a policy (x -> y_w) or of an improver (x, y_l -> y_w)."""

import shlex
from pathlib import Path

from accelerate.utils import set_seed

from pitcli.console import counted, next_command, note
from pitcli.data.examples import sft_examples
from pitcli.data.rankings import towards_best
from pitcli.engine.models.adapters import start_from
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.training.answers import show_answers, unusable_responses
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged, rl_command
from pitcli.engine.training.inputs import new_manifest, open_init, open_pairs, with_learning_rate
from pitcli.engine.training.loop import train
from pitcli.engine.training.supervised import sft_task
from pitcli.runs.earlier import EarlierRun, find_run
from pitcli.runs.folder import open_run
from pitcli.runs.metrics import change
from pitcli.settings.base import Role
from pitcli.settings.default_runs import GAP_RUN, REWARD_FOLDER
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import SftConfig, SftTarget

SHOWN_ROWS = 2


def run(config: SftConfig) -> None:
    """Train the adapter that `config.role` names and write it to the run folder."""
    init = open_init(config)
    # --data and --model default to those of the reward run
    needs_data = config.data is None or config.model is None
    reward = find_run(None, GAP_RUN) if needs_data else None
    earlier: list[EarlierRun] = [reward] if reward else []
    base = open_base(config, [*init, *(earlier if config.model is None else [])])
    pairs, data = open_pairs(config, base, earlier)
    if config.target is SftTarget.best:
        pairs = towards_best(pairs)
        note(f"--target best: {counted(len(pairs), 'pairs')} of the best response to each prompt and another")
    examples = sft_examples(pairs, base.chat, config.role, config.identity_share, config.seed)
    config = with_learning_rate(config, base)
    manifest = new_manifest("sft", config.role, config, base, data, earlier=init)
    if config.dry_run:
        first_row = [(base.chat.written(examples[0].prompt), False), (base.chat.written(examples[0].completion), True)]
        plan = DryRunPlan(lambda model: sft_task(model, config.role, examples, config), roles=1, first_row=first_row)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        model.add_role(config.role, lora_config(config))
        for start in init:
            start_from(model, config.role, start.adapter)
        result = train(model, sft_task(model, config.role, examples, config), config, folder)
        note(f"loss per token in nats: {change(config.run_folder, 'loss')}")
        shown = show_answers(model, base.chat, config.role, pairs[:SHOWN_ROWS])
        problem = divergence_of(folder, result) or unusable_responses(
            model, base.chat, config.role, shown, pairs, start=None
        )
        finish(model, folder, [config.role], result._asdict() | refuse_diverged(folder, config, problem))
    note(f"{config.role} saved in {config.run_folder}")
    suggest_next(config, data.path)


def suggest_next(config: SftConfig, data: str) -> None:
    """Print the next command; it needs no --data and --model if a gap model's run supplies them."""
    has_gap_model = Path(REWARD_FOLDER).exists()
    if config.role is Role.policy:
        trained, command = "the improver", "pit sft --role improver"
    elif has_gap_model:
        trained, command = "the improver further, by RL", rl_command(data, sft=config.run_folder)
    else:
        trained, command = "the gap model, which RL and the stop rule need", "pit train-reward"
    if not has_gap_model:
        how_it_is_read = f" --fields {shlex.quote(config.fields)}" if config.fields else ""
        if config.role is Role.improver and (fold := Path(data).with_name("reward.jsonl")).is_file():
            data, how_it_is_read = str(fold), ""  # the fold that pit prepare made for it
        model = f" --model {shlex.quote(config.model)}" if config.model else ""
        command += f" --data {shlex.quote(data)}{how_it_is_read}{model}"
        command += "".join(f" --template-option {shlex.quote(item)}" for item in config.template_option or ())
    note(f"to train {trained}:")
    next_command(command)

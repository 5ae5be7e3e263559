"""pit dpo: trains an improver or a policy on preference pairs by DPO, IPO or KTO, without a gap model and sampling.

An improver has two contexts per pair: y_l as the response to improve, and y_w. In the first it should write y_w and not
the copy y_l, in the second the copy y_w and not y_l (equations.dpo_loss). The four conversations are one tree, which
reads x once and each response to improve once; for a policy a tree has both responses. The reference is the role as
training begins; its log-probs are computed before each step.
"""

from accelerate.utils import set_seed

from pitcli.console import next_command, note
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.roles import REFERENCE, RoleModel
from pitcli.engine.models.trees import preference_tree
from pitcli.engine.training.answers import show_answers, unusable_responses
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged, use_command
from pitcli.engine.training.inputs import new_manifest, open_pairs, with_learning_rate, with_lora_of
from pitcli.engine.training.loop import Task, train
from pitcli.engine.training.preferences import PreferenceTask
from pitcli.equations import unchanged_preference_loss
from pitcli.errors import InputError
from pitcli.runs.earlier import EarlierRun, find_run
from pitcli.runs.folder import open_run
from pitcli.runs.metrics import change
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.flags import settings_yaml

SHOWN_ROWS = 2


def run(config: DpoConfig) -> None:
    """Train the role of `config.role` and write its adapter to the run folder."""
    start = find_start(config)
    earlier = [start] if start else []
    base = open_base(config, earlier)
    pairs, data = open_pairs(config, base, earlier)
    config = with_learning_rate(with_lora_of(config, start), base)
    reference = REFERENCE if start else None

    def task_on(model: RoleModel) -> Task:
        return PreferenceTask(model, base.chat, config.role, pairs, config, reference).task()

    manifest = new_manifest("dpo", config.role, config, base, data, earlier=earlier)
    if config.dry_run:
        prompt, completion = preference_tree(pairs[0], base.chat, config.role).examples()[0]
        first_row = [(base.chat.written(prompt), False), (base.chat.written(completion), True)]
        plan = DryRunPlan(task_on, 2, first_row)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load({config.role: start.adapter, REFERENCE: start.adapter} if start else {})
        if start is None:
            model.add_role(config.role, lora_config(config))
        result = train(model, task_on(model), config, folder)
        unchanged = unchanged_preference_loss(config.loss, config.beta)
        note(f"loss per pair: {change(config.run_folder, 'loss')}; {unchanged:.3g} for the start")
        note(f"share of the pairs whose chosen response is preferred: {change(config.run_folder, 'accuracy')}")
        shown = show_answers(model, base.chat, config.role, pairs[:SHOWN_ROWS])
        problem = divergence_of(folder, result) or unusable_responses(
            model, base.chat, config.role, shown, pairs, start=reference
        )
        finish(model, folder, [config.role], result._asdict() | refuse_diverged(folder, config, problem))
    note(f"{config.role} saved in {config.run_folder}")
    next_command(use_command(config.role, config.run_folder, "--stop none --max-iters 1"))


def find_start(config: DpoConfig) -> EarlierRun | None:
    """Return the run to start from, None with --from-base; InputError if there is none."""
    if config.from_base:
        return None
    start = find_run(config.sft, config.start_run)
    if start is None:
        raise InputError(f"{config.start_run.missing}, or use --from-base")
    return start

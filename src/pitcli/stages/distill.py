"""pit distill: trains the policy, x -> y, to write at once what the improver makes of its drafts.

--method sft and dpo learn from rows of pit improve: to write the improvements, or to prefer them to the drafts. They
are the tasks of pit sft and pit dpo. --method on-policy needs neither improvements nor a gap model: the policy writes
y, and the improver, which has seen a draft of x, is the teacher. Its log-prob of each token less that of the policy is
the advantage of the token (equations.distillation_advantages) in the loss of pit rl.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import set_seed
from torch import tensor

from pitcli.console import next_command, note
from pitcli.data.examples import pairs_digest, sft_examples
from pitcli.data.formats import iter_drafts, iter_questions
from pitcli.data.improved_rows import FIELDS, check_improved
from pitcli.data.pair_reading import options_of
from pitcli.data.rows import Comparison, Draft, PreferencePair, RowError
from pitcli.data.splits import prompt_sketch
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.models.batches import padding_share
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import IMPROVER, POLICY, REFERENCE, RoleModel
from pitcli.engine.training.answers import show_answers, unusable_responses
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged, use_command
from pitcli.engine.training.inputs import (
    new_manifest,
    open_drafts,
    open_pairs,
    with_learning_rate,
    with_lora_of,
)
from pitcli.engine.training.loop import StepBatch, Task, step_seed, train
from pitcli.engine.training.preferences import PreferenceTask
from pitcli.engine.training.rollouts import (
    lay_out,
    longest_rollouts,
    policy_loss,
    role_logprobs,
    rollout_decoding,
    sample_groups,
    sample_texts,
    sampling_logprobs,
    text_metrics,
    truncated,
)
from pitcli.engine.training.schedule import rollouts_by_stage, rows_of_step
from pitcli.engine.training.supervised import sft_task
from pitcli.equations import distillation_advantages
from pitcli.errors import SettingsError
from pitcli.runs.earlier import EarlierRun, find_run, required_run
from pitcli.runs.folder import open_run
from pitcli.runs.growing_rows import refuse_other_output
from pitcli.runs.manifest import DataIdentity
from pitcli.runs.metrics import change
from pitcli.settings.base import Role
from pitcli.settings.default_runs import IMPROVER_RUN, POLICY_RUN
from pitcli.settings.distill import Distillation, DistillConfig
from pitcli.settings.flags import settings_yaml
from pitcli.settings.values import split_commas

SHOWN_ROWS = 2


class Runs(NamedTuple):
    """The policy to start from (None: the base), and the improver that teaches (None: rows of pit improve do)."""

    start: EarlierRun | None
    teacher: EarlierRun | None

    def all(self) -> list[EarlierRun]:
        return [run for run in self if run]

    def adapters(self, config: DistillConfig) -> dict[str, Path]:
        """Return the adapter folders by role."""
        adapters: dict[str, Path] = {POLICY: self.start.adapter} if self.start else {}
        if self.start and config.method is Distillation.dpo:
            adapters[REFERENCE] = self.start.adapter
        return {**adapters, IMPROVER: self.teacher.adapter} if self.teacher else adapters


def run(config: DistillConfig) -> None:
    """Train the policy and write its adapter to the run folder."""
    if config.data is None:
        raise SettingsError("--data: expected a file of rows that pit improve wrote, or of drafts for on-policy")
    for file in split_commas(config.data):
        refuse_other_output(file)
    runs = find_runs(config)
    base = open_base(config, runs.all())
    pairs, data = open_rows(config, base)
    config = with_learning_rate(with_lora_of(config, runs.start), base)
    manifest = new_manifest("distill", config.role, config, base, data, earlier=runs.all())
    task_on = partial(distill_task, config, runs, base.chat, pairs)
    if config.dry_run:
        return dry_run(config, manifest, lora=config, base=base, plan=plan_of(config, base.chat, pairs, task_on))
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load(runs.adapters(config))
        if runs.start is None:
            model.add_role(POLICY, lora_config(config))
        result = train(model, task_on(model), config, folder)
        metric = "KL to the improver in nats" if runs.teacher else "loss"
        note(f"{metric}: {change(config.run_folder, 'kl' if runs.teacher else 'loss')}")
        shown = show_answers(model, base.chat, config.role, pairs[:SHOWN_ROWS], label="draft")
        problem = divergence_of(folder, result) or unusable_responses(
            model, base.chat, config.role, shown, pairs, start=None
        )
        finish(model, folder, [POLICY], result._asdict() | refuse_diverged(folder, config, problem))
    note(f"policy saved in {config.run_folder}")
    next_command(use_command(Role.policy, config.run_folder))
    return None


def find_runs(config: DistillConfig) -> Runs:
    start = find_run(config.policy, POLICY_RUN)
    if config.method is not Distillation.on_policy:
        return Runs(start, None)
    return Runs(start, required_run(config.run, IMPROVER_RUN))


def open_rows(config: DistillConfig, base: Base) -> tuple[list[PreferencePair], DataIdentity]:
    """Return the improvements as pairs: chosen over the draft. For on-policy both texts of a pair are the draft."""
    assert config.data is not None  # see run
    if config.method is not Distillation.on_policy:
        check = partial(check_improved, min_p_better=config.min_p_better)
        pairs, data = open_pairs(config, base, [], options=options_of(config)._replace(fields=FIELDS, check=check))
        cut = [pair.chosen_truncated or pair.extra.get("finished") is False for pair in pairs]
        return [replace(pair, chosen_truncated=is_cut) for pair, is_cut in zip(pairs, cut, strict=True)], data
    read_rows = iter_questions if config.sample_drafts else original_drafts
    files, room = split_commas(config.data), config.rollout_max_new_tokens
    drafts = [draft for file in files for draft in open_drafts(file, base, room, read_rows)][: config.max_rows]
    pairs = [PreferencePair("", draft.prompt, draft.response, draft.response, {}) for draft in drafts]
    identity = DataIdentity(path=config.data, digest=pairs_digest(pairs), rows=len(pairs), prompts=prompt_sketch(pairs))
    return pairs, identity


def original_drafts(
    path: str, on_error: Callable[[RowError], None], notes: Counter[str]
) -> Iterator[tuple[int, Draft]]:
    """Yield the drafts of a file; of rows of pit improve those that were improved."""
    for line, draft in iter_drafts(path, on_error, notes):
        original = draft.row.get("original_response")
        yield line, replace(draft, response=original) if isinstance(original, str) and original.strip() else draft


def plan_of(
    config: DistillConfig, chat: ChatFormat, pairs: Sequence[PreferencePair], task_on: Callable[[RoleModel], Task]
) -> DryRunPlan:
    response = (chat.written(chat.completion(pairs[0].chosen)), True)
    if config.method is Distillation.on_policy:
        response = (f"(up to {config.rollout_max_new_tokens} sampled tokens)", True)
    return DryRunPlan(
        task_on,
        roles=1 if config.method is Distillation.sft else 2,
        first_row=[(chat.written(chat.policy_prompt(pairs[0].prompt)), False), response],
        left_out=["sampling the drafts"] if config.sample_drafts else [],
    )


def distill_task(
    config: DistillConfig, runs: Runs, chat: ChatFormat, pairs: Sequence[PreferencePair], model: RoleModel
) -> Task:
    """Return the task of pit sft, that of pit dpo, or on-policy distillation."""
    match config.method:
        case Distillation.sft:
            return sft_task(model, Role.policy, sft_examples(pairs, chat, Role.policy, 0.0, config.seed), config)
        case Distillation.dpo:
            reference = REFERENCE if runs.start else None
            return PreferenceTask(model, chat, Role.policy, pairs, config, reference).task()
        case Distillation.on_policy:
            return OnPolicy(config, model, chat, pairs).task()


class OnPolicy(NamedTuple):
    """On-policy distillation. pairs: prompts with a draft as both texts, or without one for --sample-drafts."""

    config: DistillConfig
    model: RoleModel
    chat: ChatFormat
    pairs: Sequence[PreferencePair]

    def task(self) -> Task:
        """Return the task of the loop; each rollout is used for updates_per_rollout steps."""
        config = self.config
        rollouts = rollouts_by_stage(config, [len(self.pairs)])
        drafts = [PromptWithReference(pair.prompt, pair.rejected) for pair in self.pairs]
        return Task(
            POLICY,
            phases=[count * config.updates_per_rollout for count in rollouts],
            batch=self.roll_out,
            loss=partial(policy_loss, config, self.model),
            planned_rows=lambda: longest_rollouts(
                config, self.model, self.policy_prompts(drafts), sum(rollouts), self.improver_prompts(drafts)
            ),
            steps_per_batch=config.updates_per_rollout,
            runaway=partial(truncated, config),
            patience=config.runaway_patience,
            score="advantage",
        )

    def roll_out(self, index: int) -> StepBatch:
        """Sample k responses per prompt; compute the log-probs of both roles, and from these the advantages."""
        config, model, chat, k = self.config, self.model, self.chat, self.config.samples_per_prompt
        step = index * config.updates_per_rollout
        rows = rows_of_step(index, len(self.pairs), config.batch_size, config.seed)
        drafts = self.drafts([self.pairs[row] for row in rows], step)
        prompts, decoding = self.policy_prompts(drafts), rollout_decoding(config, chat)
        samples = sample_groups(model, POLICY, prompts, decoding, step_seed(config.seed, step), k)
        responses = [sample.token_ids for sample in samples]
        layout = lay_out(model, prompts, responses, config)
        logprobs = sampling_logprobs(model, POLICY, layout, samples, decoding.temperature)
        taught = lay_out(model, self.improver_prompts(drafts), responses, config)
        of_teacher = role_logprobs(model, IMPROVER, taught.batches, decoding.temperature)
        of_teacher = layout.values_of(taught, of_teacher)
        advantages = [distillation_advantages(theirs, ours) for theirs, ours in zip(of_teacher, logprobs, strict=True)]
        tokens = sum(map(len, responses))
        comparisons = [
            Comparison(drafts[number // k].prompt, chat.decode(ids), drafts[number // k].reference_response)
            for number, ids in enumerate(responses)
        ]
        metrics = {
            "padding_share": padding_share(layout.batches),
            "advantage": sum(float(advantages_N.sum()) for advantages_N in advantages) / tokens,
            "kl": float(layout.sequence_kl(logprobs, of_teacher).mean()),
            "truncated_share": float((~tensor([sample.finished for sample in samples])).float().mean()),
            **text_metrics(samples, comparisons),
        }
        return StepBatch(layout.micro_batches(logprobs, advantages, model.device), metrics)

    def drafts(self, pairs: Sequence[PreferencePair], step: int) -> list[PromptWithReference]:
        """Return the drafts of the rows, or with --sample-drafts new ones of the policy."""
        drafts = [PromptWithReference(pair.prompt, pair.rejected) for pair in pairs]
        if not self.config.sample_drafts:
            return drafts
        decoding = rollout_decoding(self.config, self.chat)._replace(temperature=self.config.reference_temperature)
        seed = step_seed(self.config.seed, step, 1)
        texts = sample_texts(self.model, POLICY, self.chat, self.policy_prompts(drafts), decoding, seed)
        return [draft._replace(reference_response=text) for draft, text in zip(drafts, texts, strict=True)]

    def policy_prompts(self, drafts: Sequence[PromptWithReference]) -> list[list[int]]:
        return [self.chat.policy_prompt(draft.prompt) for draft in drafts]

    def improver_prompts(self, drafts: Sequence[PromptWithReference]) -> list[list[int]]:
        return [self.chat.improver_prompt(*draft) for draft in drafts]

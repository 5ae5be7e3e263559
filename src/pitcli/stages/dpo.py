"""pit dpo: trains an improver or a policy on preference pairs by DPO, IPO or KTO, without a gap model and sampling.

An improver has two contexts per pair: y_l as the response to improve, and y_w. In the first it should write y_w and not
the copy y_l, in the second the copy y_w and not y_l (equations.dpo_loss). The four conversations are one tree, which
reads x once and each response to improve once; for a policy a tree has both responses. The reference is the role as
training begins; its log-probs are computed before each step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from pitcli.console import next_command, note
from pitcli.data.rows import PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import hidden_states
from pitcli.engine.models.loading import lora_config, saved_lora
from pitcli.engine.models.logprobs import next_token_kl, token_logprobs
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import REFERENCE, RoleModel
from pitcli.engine.models.trees import Tree, preference_tree
from pitcli.engine.training.answers import show_answers, unusable_responses
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged
from pitcli.engine.training.inputs import new_manifest, open_pairs, with_learning_rate
from pitcli.engine.training.loop import PlannedRows, RolloutCost, StepBatch, Task, task_over_rows, train
from pitcli.engine.training.schedule import planned_steps
from pitcli.equations import (
    kto_reference_point,
    log_ratios,
    preference_loss,
    preference_margins,
    unchanged_preference_loss,
)
from pitcli.errors import InputError, SettingsError
from pitcli.processes.collectives import map_over_ranks
from pitcli.runs.earlier import EarlierRun, find_run
from pitcli.runs.folder import open_run
from pitcli.runs.metrics import change
from pitcli.settings.base import PreferenceLoss, Role
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.flags import settings_yaml

SHOWN_ROWS = 2
KL_STRIDE = 16  # the KL in the metrics is estimated from every 16th token of a response


def run(config: DpoConfig) -> None:
    """Train the role of `config.role` and write its adapter to the run folder."""
    start = find_start(config)
    earlier = [start] if start else []
    base = open_base(config, earlier)
    pairs, data = open_pairs(config, base, earlier)
    config = with_learning_rate(with_lora_of(config, start), base)
    manifest = new_manifest("dpo", config.role, config, base, data, earlier=earlier)
    if config.dry_run:
        prompt, completion = preference_tree(pairs[0], base.chat, config.role).examples()[0]
        first_row = [(base.chat.written(prompt), False), (base.chat.written(completion), True)]
        plan = DryRunPlan(lambda model: PreferenceTask(model, base.chat, pairs, config, start).task(), 2, first_row)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load({config.role: start.adapter, REFERENCE: start.adapter} if start else {})
        if start is None:
            model.add_role(config.role, lora_config(config))
        result = train(model, PreferenceTask(model, base.chat, pairs, config, start).task(), config, folder)
        unchanged = unchanged_preference_loss(config.loss, config.beta)
        note(f"loss per pair: {change(config.run_folder, 'loss')}; {unchanged:.3g} for the start")
        note(f"share of the pairs whose chosen response is preferred: {change(config.run_folder, 'accuracy')}")
        shown = show_answers(model, base.chat, config.role, pairs[:SHOWN_ROWS])
        problem = divergence_of(folder, result) or unusable_responses(
            model, base.chat, config.role, shown, pairs, start=REFERENCE if start else None
        )
        finish(model, folder, [config.role], result._asdict() | refuse_diverged(folder, config, problem))
    note(f"{config.role} saved in {config.run_folder}")
    suggest_next(config)


def find_start(config: DpoConfig) -> EarlierRun | None:
    """Return the run to start from, None with --from-base; InputError if there is none."""
    if config.from_base:
        return None
    start = find_run(config.sft, config.start_run)
    if start is None:
        raise InputError(f"{config.start_run.missing}, or use --from-base")
    return start


def with_lora_of(config: DpoConfig, start: EarlierRun | None) -> DpoConfig:
    """Return the settings with the LoRA rank and alpha of the start; SettingsError if others are given."""
    if start is None:
        return config
    saved = saved_lora(start.adapter)
    found = {"lora_rank": saved.r, "lora_alpha": saved.lora_alpha}
    for name in found.keys() & config.model_fields_set:
        if getattr(config, name) != found[name]:
            flag = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{flag}: expected {found[name]}, as in {start.folder}, got {getattr(config, name)}")
    return config.model_copy(update=found)


class Reading(NamedTuple):
    """What a role says of a micro-batch: log p of its N targets, and the K states from which the KL is estimated."""

    logprobs_N: Tensor
    states_KD: Tensor


class PreferenceMicroBatch(NamedTuple):
    """Pairs of a step. rows: their indices. lengths: tokens of each leaf. reference: what the reference says.

    columns_K, weights_K: see kl_columns. pairs: of the whole step, which normalises the loss. reference_point: of KTO.
    """

    batch: Batch
    rows: Sequence[int]
    lengths: list[int]
    columns_K: Tensor
    weights_K: Tensor
    reference: Reading
    pairs: int
    reference_point: float = 0.0


class PreferenceTask(NamedTuple):
    """The task: its model, data and settings. start: the reference (None: the base)."""

    model: RoleModel
    chat: ChatFormat
    pairs: Sequence[PreferencePair]
    config: DpoConfig
    start: EarlierRun | None

    @property
    def contexts(self) -> int:
        return 2 if self.config.role is Role.improver else 1

    def task(self) -> Task:
        """Return the task of the loop: the reference reads each step before it is trained on."""
        trees = [preference_tree(pair, self.chat, self.config.role) for pair in self.pairs]
        lengths = [tokens_read(self.model, tree) for tree in trees]

        def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
            return self.step_batch([[trees[row] for row in chunk] for chunk in chunks], chunks)

        passes = 3 if self.config.loss is PreferenceLoss.kto else 1  # without gradient
        read = passes * sum(lengths) * planned_steps(len(lengths), self.config) * self.config.batch_size / len(lengths)
        at_once = max(1, self.config.micro_batch_size // (2 * self.contexts))
        rows = PlannedRows(lengths, at_once, build, rollout_cost=RolloutCost(0, 0, 0, forward_tokens=read))
        task = task_over_rows([self.config.role], rows, self.loss, self.config, self.model.device)
        return task._replace(batch=lambda index: self.with_reference(task.batch(index)))

    def step_batch(self, trees: Sequence[Sequence[Tree]], rows: Sequence[Sequence[int]]) -> StepBatch:
        """Lay out a step, with zeros in place of what the reference says."""
        device, width = self.model.device, self.model.base.config.get_text_config().hidden_size
        pairs = sum(map(len, rows))
        micro_batches = []
        for chunk, rows_of_chunk in zip(trees, rows, strict=True):
            batch = tree_batch(self.model, chunk, of_tokens=True)
            lengths = [length for tree in chunk for length in tree.completion_lengths()]
            columns_K, weights_K = (torch.tensor(values, device=device) for values in kl_columns(lengths))
            nothing = Reading(
                torch.zeros(len(batch.targets_N), device=device), torch.zeros(len(columns_K), width, device=device)
            )
            micro_batches.append(
                PreferenceMicroBatch(batch, rows_of_chunk, lengths, columns_K, weights_K, nothing, pairs)
            )
        lengths = [length for micro_batch in micro_batches for length in micro_batch.lengths]
        chosen, rejected = lengths[::2], lengths[1::2]
        metrics = {
            "padding_share": padding_share([micro_batch.batch for micro_batch in micro_batches]),
            "chosen_tokens": sum(chosen) / len(chosen),
            "rejected_tokens": sum(rejected) / len(rejected),
        }
        return StepBatch(micro_batches, metrics)

    @property
    def output_layer(self) -> nn.Module:
        layer: nn.Module = self.model.base.get_output_embeddings()
        return layer

    @property
    def reference_role(self) -> str | None:
        return REFERENCE if self.start else None

    def with_reference(self, step: StepBatch) -> StepBatch:
        """Return the step with what the reference says of it, and the reference point of KTO."""
        readings = self.readings(self.reference_role, step.micro_batches)
        point = self.reference_point(step) if self.config.loss is PreferenceLoss.kto else 0.0
        micro_batches = [
            micro_batch._replace(reference=reading, reference_point=point)
            for micro_batch, reading in zip(step.micro_batches, readings, strict=True)
        ]
        return step._replace(micro_batches=micro_batches)

    def reference_point(self, step: StepBatch) -> float:
        """Return KTO's estimate of the KL, from the responses of each pair in the contexts of the next one of the step.

        Both roles read them without gradient.
        """
        rows = [row for micro_batch in step.micro_batches for row in micro_batch.rows]
        following = dict(zip(rows, [*rows[1:], rows[0]], strict=True))
        trees = [
            [
                preference_tree(self.pairs[row], self.chat, self.config.role, rated=self.pairs[following[row]])
                for row in micro_batch.rows
            ]
            for micro_batch in step.micro_batches
        ]
        mismatched = self.step_batch(trees, [micro_batch.rows for micro_batch in step.micro_batches]).micro_batches
        ours, theirs = (self.readings(role, mismatched) for role in (self.config.role, self.reference_role))
        ratios = [
            log_ratios(mine.logprobs_N, other.logprobs_N, micro_batch.lengths)
            for mine, other, micro_batch in zip(ours, theirs, mismatched, strict=True)
        ]
        return kto_reference_point(torch.cat(ratios))

    def readings(self, role: str | None, micro_batches: Sequence[PreferenceMicroBatch]) -> list[Reading]:
        """Return what a role says of micro-batches, without gradient, on the device. The ranks share them."""

        @torch.no_grad()
        def of(indices: Sequence[int]) -> list[Reading]:
            with self.model.role(role):
                return [Reading(*(part.cpu() for part in self.read(micro_batches[index]))) for index in indices]

        shared = map_over_ranks(range(len(micro_batches)), of, self.model.sharded)
        return [Reading(*(part.to(self.model.device) for part in reading)) for reading in shared]

    def read(self, micro_batch: PreferenceMicroBatch) -> Reading:
        """Return what the role in use says of a micro-batch; only the log-probs have a gradient."""
        states_ND = hidden_states(self.model, micro_batch.batch)
        logprobs_N = token_logprobs(states_ND, self.output_layer, micro_batch.batch.targets_N, temperature=1.0)
        return Reading(logprobs_N, states_ND.detach()[micro_batch.columns_K])

    def loss(self, micro_batch: PreferenceMicroBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss over both responses in each context, averaged over the pairs of the step; and the metrics."""
        config, reference = self.config, micro_batch.reference
        reading = self.read(micro_batch)
        ratios_L = log_ratios(reading.logprobs_N, reference.logprobs_N, micro_batch.lengths)
        ratios_BC2 = ratios_L.view(-1, self.contexts, 2)
        share = len(ratios_BC2) / micro_batch.pairs
        loss = preference_loss(config.loss, ratios_BC2, config.beta, micro_batch.reference_point) * share
        seen_BC2 = ratios_BC2.detach()
        chosen, rejected = (config.beta * float(seen_BC2[..., side].mean()) for side in (0, 1))
        kl_K = next_token_kl(reading.states_KD, reference.states_KD, self.output_layer)
        metrics = {
            "accuracy": float((preference_margins(seen_BC2) > 0).float().mean()),
            "reward_margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "kl": float(kl_K @ micro_batch.weights_K) / len(micro_batch.lengths),
        }
        return loss, {name: value * share for name, value in metrics.items()}


def kl_columns(lengths: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return which targets the KL is estimated from, and how many tokens each of them represents.

    lengths: of responses, whose targets are one after another. One of KL_STRIDE tokens of each response, at least one.
    """
    columns, weights, start = list[int](), list[float](), 0
    for length in lengths:
        chosen = range(start + min(KL_STRIDE, length) // 2, start + length, KL_STRIDE)
        columns += chosen
        weights += [length / len(chosen)] * len(chosen)
        start += length
    return columns, weights


def suggest_next(config: DpoConfig) -> None:
    next_command(
        f"pit improve --run {config.run_folder} --input drafts.jsonl --stop none --max-iters 1"
        if config.role is Role.improver
        else f"pit sample --policy {config.run_folder} --output drafts.jsonl < prompts.jsonl"
    )

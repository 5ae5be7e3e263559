"""The task of preference optimisation: the loss of both responses of a pair, in each context, against a reference.

The reference is the role as training begins; its log-probs are computed before each step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pitcli.data.rows import PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import hidden_states
from pitcli.engine.models.logprobs import next_token_kl, token_logprobs
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, preference_tree
from pitcli.engine.training.loop import PlannedRows, RolloutCost, StepBatch, Task, task_over_rows
from pitcli.engine.training.schedule import planned_steps
from pitcli.equations import kto_reference_point, log_ratios, preference_loss, preference_margins
from pitcli.processes.collectives import map_over_ranks
from pitcli.settings.base import PreferenceLoss, Role
from pitcli.settings.dpo import PreferenceSettings

KL_STRIDE = 16  # the KL in the metrics is estimated from every 16th token of a response


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
    """The task: its model, data and settings. reference_role: None for the base."""

    model: RoleModel
    chat: ChatFormat
    role: Role
    pairs: Sequence[PreferencePair]
    config: PreferenceSettings
    reference_role: str | None

    @property
    def contexts(self) -> int:
        return 2 if self.role is Role.improver else 1

    def task(self) -> Task:
        """Return the task of the loop: the reference reads each step before it is trained on."""
        trees = [preference_tree(pair, self.chat, self.role) for pair in self.pairs]
        lengths = [tokens_read(self.model, tree) for tree in trees]

        def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
            return self.step_batch([[trees[row] for row in chunk] for chunk in chunks], chunks)

        passes = 3 if self.config.loss is PreferenceLoss.kto else 1  # without gradient
        read = passes * sum(lengths) * planned_steps(len(lengths), self.config) * self.config.batch_size / len(lengths)
        at_once = max(1, self.config.micro_batch_size // (2 * self.contexts))
        rows = PlannedRows(lengths, at_once, build, rollout_cost=RolloutCost(0, 0, 0, forward_tokens=read))
        task = task_over_rows([self.role], rows, self.loss, self.config, self.model.device)
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
        if len(rows) == 1:  # the last step of an epoch: no other prompt, so no estimate
            return 0.0
        following = dict(zip(rows, [*rows[1:], rows[0]], strict=True))
        trees = [
            [
                preference_tree(self.pairs[row], self.chat, self.role, rated=self.pairs[following[row]])
                for row in micro_batch.rows
            ]
            for micro_batch in step.micro_batches
        ]
        mismatched = self.step_batch(trees, [micro_batch.rows for micro_batch in step.micro_batches]).micro_batches
        ours, theirs = (self.readings(role, mismatched) for role in (self.role, self.reference_role))
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

"""The task of supervised fine-tuning: the log-probs of completions."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pitcli.data.templates import Example
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import completion_batch
from pitcli.engine.training.loop import PlannedRows, StepBatch, Task, task_over_rows
from pitcli.settings.base import OptimSettings, Role


class CompletionMicroBatch(NamedTuple):
    """tokens: completion tokens of the whole step, which normalise the loss."""

    batch: Batch
    tokens: int


def sft_task(model: RoleModel, role: Role, examples: Sequence[Example], config: OptimSettings) -> Task:
    """Minimise -log p(completion given prompt), averaged over the completion tokens of a step."""

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        tokens = sum(len(examples[row].completion) for chunk in chunks for row in chunk)
        batches = [completion_batch([examples[row] for row in chunk], model.pad_id) for chunk in chunks]
        micro_batches = [CompletionMicroBatch(batch.to(model.device), tokens) for batch in batches]
        return StepBatch(micro_batches, {"tokens": float(tokens), "padding_share": padding_share(batches)})

    def loss(micro_batch: CompletionMicroBatch) -> tuple[Tensor, dict[str, float]]:
        return -completion_logprobs(model, micro_batch.batch).sum() / micro_batch.tokens, {}

    lengths = [len(example.prompt) + len(example.completion) for example in examples]
    rows = PlannedRows(lengths, config.micro_batch_size, build)
    return task_over_rows([role], rows, loss, config, model.device)

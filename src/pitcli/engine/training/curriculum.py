"""The curriculum of RL: where (x, y_ref) come from, stage by stage, and how many rollouts each stage gets."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pitcli.console import note
from pitcli.data.examples import Limit, check_conversation
from pitcli.data.formats import iter_drafts
from pitcli.data.reading import file_label, listed
from pitcli.data.rows import PreferencePair, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import IMPROVER, RoleModel
from pitcli.engine.training.loop import step_seed
from pitcli.engine.training.rollouts import sample_texts
from pitcli.engine.training.schedule import rows_of_step, steps_per_epoch
from pitcli.errors import InputError
from pitcli.settings.base import Role, Stage
from pitcli.settings.training import RlConfig

References = list[PromptWithReference]


class Curriculum(NamedTuple):
    """The stages and what they draw from.

    drafts: of the policy, from a file, in place of sampling; policy_role: the policy's adapter (None: the base).
    """

    config: RlConfig
    model: RoleModel
    chat: ChatFormat
    pairs: Sequence[PreferencePair]
    drafts: Sequence[PromptWithReference] | None
    policy_role: str | None

    def rollouts(self) -> list[int]:
        """How many each stage gets."""
        return rollouts_by_stage(self.config, [self.rows(stage) for stage in self.config.curriculum_stages])

    def rows(self, stage: Stage) -> int:
        return len(self.pairs) if stage is Stage.dataset or self.drafts is None else len(self.drafts)

    def references(self, rollout: int) -> tuple[int, References]:
        """The stage that a rollout belongs to, by its index, and the (x, y_ref) of its prompts."""
        number, within = stage_of(rollout, self.rollouts())
        stage, config = self.config.curriculum_stages[number], self.config
        rows = rows_of_step(within, self.rows(stage), config.batch_size, config.seed)
        progress = within / self.rollouts()[number]
        return number, self.of_stage(stage, rows, rollout * config.updates_per_rollout, progress)

    def of_stage(self, stage: Stage, rows: Sequence[int], step: int, progress: float) -> References:
        """step: seeds what is sampled; progress: the share of the stage that is done."""
        if stage is Stage.dataset:
            return self.from_dataset(rows, step, progress)
        return self.from_policy(rows, step) if stage is Stage.policy else self.from_self(rows, step)

    def from_dataset(self, rows: Sequence[int], step: int, progress: float) -> References:
        """Easy first: y_l, and from the middle of the stage on y_w for half of the prompts. Plain RLHF: always y_w."""
        pairs = [self.pairs[row] for row in rows]
        if self.config.role is Role.policy:
            return [PromptWithReference(pair.prompt, pair.chosen) for pair in pairs]
        rng = random.Random(step_seed(self.config.seed, step))
        hard = [progress >= 0.5 and rng.random() < 0.5 for _ in pairs]
        return [
            PromptWithReference(pair.prompt, pair.chosen if is_hard else pair.rejected)
            for pair, is_hard in zip(pairs, hard, strict=True)
        ]

    def from_policy(self, rows: Sequence[int], step: int) -> References:
        """What the policy writes, or wrote into --drafts: what will be improved in use."""
        if self.drafts is not None:
            return [self.drafts[row] for row in rows]
        prompts = [self.chat.policy_prompt(self.pairs[row].prompt) for row in rows]
        texts = self.sampled(self.policy_role, prompts, step_seed(self.config.seed, step, 1))
        return [
            PromptWithReference(self.pairs[row].prompt, text or self.pairs[row].rejected)
            for row, text in zip(rows, texts, strict=True)
        ]

    def from_self(self, rows: Sequence[int], step: int) -> References:
        """What the improver made of the policy's drafts: what its second iteration will be given."""
        drafts = self.from_policy(rows, step)
        prompts = [self.chat.improver_prompt(*draft) for draft in drafts]
        texts = self.sampled(IMPROVER, prompts, step_seed(self.config.seed, step, 2))
        return [
            PromptWithReference(draft.prompt, text or draft.reference_response)
            for draft, text in zip(drafts, texts, strict=True)
        ]

    def sampled(self, role: str | None, prompts: Sequence[list[int]], seed: int) -> list[str]:
        return sample_texts(self.model, role, self.chat, prompts, rollout_decoding(self.config, self.chat), seed)


def rollout_decoding(config: RlConfig, chat: ChatFormat) -> Decoding:
    return Decoding(config.rollout_temperature, 1.0, config.rollout_max_new_tokens, chat.stop_id)


def rollouts_by_stage(config: RlConfig, rows: Sequence[int]) -> list[int]:
    """How many rollouts each stage gets: its epochs, or an equal part of --max-steps. rows: of each stage."""
    full = [steps_per_epoch(count, config.batch_size) * config.epochs for count in rows]
    if config.max_steps is None:
        return full
    total = max(len(rows), config.max_steps // config.updates_per_rollout)
    even = [total * (index + 1) // len(rows) - total * index // len(rows) for index in range(len(rows))]
    return [min(most, share) for most, share in zip(full, even, strict=True)]


def stage_of(rollout: int, rollouts: Sequence[int]) -> tuple[int, int]:
    """(stage, rollout within it)."""
    for stage, count in enumerate(rollouts):
        if rollout < count:
            return stage, rollout
        rollout -= count
    raise ValueError("beyond the last rollout")


def load_drafts(path: str, base: Base, room: int) -> References:
    """Drafts of the policy from a file; each leaves room for what is sampled. All errors in one InputError."""
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    limit = Limit(base.chat, base.max_length, room)
    drafts = []
    for line, draft in iter_drafts(path, errors.append, notes):
        drafts.append(PromptWithReference(draft.prompt, draft.response))
        try:
            check_conversation(draft.prompt, {"response": draft.response}, limit, notes)
        except RowProblem as problem:
            errors.append(RowError(file_label(path), line, problem.field, problem.reason))
    if errors or not drafts:
        raise InputError(listed(errors) or f"{path}: no rows")
    for what, count in notes.items():
        note(f"{file_label(path)}: {count} {what}")
    return drafts

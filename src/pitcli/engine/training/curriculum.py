"""The curriculum of RL: where the reference responses of each rollout come from."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pitcli.data.rows import PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.models.roles import IMPROVER, RoleModel
from pitcli.engine.training.loop import step_seed
from pitcli.engine.training.rollouts import role_prompts, rollout_decoding, sample_texts
from pitcli.engine.training.schedule import rollouts_by_stage, rows_of_step, stage_of
from pitcli.settings.base import Role, Stage
from pitcli.settings.training import RlConfig

References = list[PromptWithReference]


class Curriculum(NamedTuple):
    """Supplies (x, y_ref) for each stage.

    drafts: the policy's drafts from a file, instead of sampling.
    policy_role: the policy's adapter (None: the base).
    """

    config: RlConfig
    model: RoleModel
    chat: ChatFormat
    pairs: Sequence[PreferencePair]
    drafts: Sequence[PromptWithReference] | None
    policy_role: str | None

    def rollouts(self) -> list[int]:
        """Return the number of rollouts of each stage."""
        return rollouts_by_stage(self.config, [self.rows(stage) for stage in self.config.curriculum_stages])

    def rows(self, stage: Stage) -> int:
        return len(self.pairs) if stage is Stage.dataset or self.drafts is None else len(self.drafts)

    def references(self, rollout: int) -> tuple[int, References]:
        """Return the stage (its index) that a rollout belongs to, and the (x, y_ref) of the rollout's prompts."""
        rollouts = self.rollouts()
        number, within = stage_of(rollout, rollouts)
        stage, config = self.config.curriculum_stages[number], self.config
        rows = rows_of_step(within, self.rows(stage), config.batch_size, config.seed)
        return number, self.of_stage(stage, rows, rollout * config.updates_per_rollout, within / rollouts[number])

    def of_stage(self, stage: Stage, rows: Sequence[int], step: int, progress: float) -> References:
        """Return the (x, y_ref) of these rows. step: seeds the sampling; progress: the finished share of the stage."""
        if stage is Stage.dataset:
            return self.from_dataset(rows, step, progress)
        return self.from_policy(rows, step) if stage is Stage.policy else self.from_self(rows, step)

    def from_dataset(self, rows: Sequence[int], step: int, progress: float) -> References:
        """Easy first: y_l; from the middle of the stage, y_w for about half of the prompts. Plain RLHF: always y_w."""
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
        """Outputs of the policy, from --drafts or sampled: what the improver will be given in use."""
        if self.drafts is not None:
            return [self.drafts[row] for row in rows]
        prompts = [self.chat.policy_prompt(self.pairs[row].prompt) for row in rows]
        texts = self.sampled(self.policy_role, prompts, step_seed(self.config.seed, step, 1))
        return [
            PromptWithReference(self.pairs[row].prompt, text or self.pairs[row].rejected)
            for row, text in zip(rows, texts, strict=True)
        ]

    def from_self(self, rows: Sequence[int], step: int) -> References:
        """The improver's outputs on the policy's drafts: what its second iteration will be given."""
        drafts = self.from_policy(rows, step)
        prompts = [self.chat.improver_prompt(*draft) for draft in drafts]
        texts = self.sampled(IMPROVER, prompts, step_seed(self.config.seed, step, 2))
        return [
            PromptWithReference(draft.prompt, text or draft.reference_response)
            for draft, text in zip(drafts, texts, strict=True)
        ]

    def longest_prompts(self) -> list[list[int]]:
        """Return the longest prompt per row: with its draft, or with the longer response of the pair."""
        rows = self.drafts or [PromptWithReference(p.prompt, longer_response(p)) for p in self.pairs]
        return role_prompts(self.config.role, self.chat, rows)

    def sampled(self, role: str | None, prompts: Sequence[list[int]], seed: int) -> list[str]:
        return sample_texts(self.model, role, self.chat, prompts, self.reference_decoding(), seed)

    def reference_decoding(self) -> Decoding:
        return rollout_decoding(self.config, self.chat)._replace(temperature=self.config.reference_temperature)


def longer_response(pair: PreferencePair) -> str:
    return max(pair.chosen, pair.rejected, key=len)

"""pit rl: maximise the quality gap over y_ref by RLOO, starting from and anchored to the SFT improver.

Departures from the paper (PPO-like policy gradient on TPUs, details unpublished): k samples for each (x, y_ref)
with a leave-one-out baseline instead of a value model; the gap is symmetrised and divided by its calibrated
temperature, so reward and beta are in logits of P(better); references of the policy stage are sampled as the
rollouts need them; stage 1 takes y_l only in its first half and y_l or y_w in its second; a third stage, self,
takes the improver's own outputs.

--role policy is plain RLHF, to compare with: the policy is shown x alone and rewarded by its gap over y_w.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import next_command, note, samples
from pitcli.data.examples import check_conversation
from pitcli.data.formats import iter_drafts
from pitcli.data.records import PreferencePair, RowError, file_label
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import Asked
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.models.batches import rows_of_step, steps_per_epoch
from pitcli.engine.models.roles import GAP, IMPROVER, POLICY, REFERENCE, RoleModel
from pitcli.engine.models.trees import group_tree
from pitcli.engine.training.dry_run import Work, completion_logprob, rehearse
from pitcli.engine.training.inputs import (
    Base,
    EarlierRun,
    find_run,
    gap_temperature,
    new_manifest,
    open_base,
    open_pairs,
)
from pitcli.engine.training.loop import Task, finish, step_seed, train
from pitcli.engine.training.rollouts import Judge, RolloutBatch, asked_prompts, roll_out, sample_texts
from pitcli.equations import clipped_policy_loss
from pitcli.errors import InputError
from pitcli.runs.folder import open_run
from pitcli.settings.base import LoraSettings, Role, Stage
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import RlConfig

SHOWN = 3
PASSES = 3  # the two passes of training take about three times as long as one forward
SCORED_TOKENS = 1.5  # that the gap model reads for each token of a sampled conversation, with both orders


class Source(NamedTuple):
    """Rows that one stage of the curriculum draws from, and how a row becomes (x, y_ref)."""

    stage: Stage
    rows: int
    references: Callable[[list[int], int, float], list[Asked]]  # (rows, step, how far the stage is)


def run(config: RlConfig) -> None:
    """Run the curriculum and write what it trained, with the gap model that it was trained on, to the run folder."""
    start, reward, policy = find_runs(config)
    earlier = [reward, start, *([policy] if policy else [])]
    base = open_base(config, earlier)
    pairs, data = open_pairs(config, base, earlier, config.rollout_max_new_tokens)
    drafts = load_drafts(config.drafts, base, config.rollout_max_new_tokens) if config.drafts else None
    manifest = new_manifest("rl", config.role, config, base, data, earlier)
    if config.dry_run:
        return rehearse(config, manifest, lora_of(start), base, rl_work(config, base.chat, pairs, drafts, bool(policy)))
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        model.load_role(config.role, start.adapter)
        model.load_role(REFERENCE, start.adapter)
        model.load_role(GAP, reward.adapter)
        if policy:
            model.load_role(POLICY, policy.adapter)
        judge = Judge(model, base.chat, gap_temperature(reward.manifest), config.micro_batch_size)
        sources = curriculum(config, model, base, pairs, drafts, POLICY if policy else None)
        task = rl_task(config, judge, sources)
        result = train(model, task, config, folder)
        finish(model, folder, [config.role, GAP], {**result._asdict(), "gap_temperature": judge.gap_temperature})
    note(f"{result.steps} steps through {', '.join(config.curriculum_stages)}; saved in {config.run_folder}")
    asked = sources[-1].references(list(range(min(SHOWN, sources[-1].rows))), 0, 1.0)
    prompts = asked_prompts(config.role, base.chat, asked)
    greedy = rollout_decoding(config, base.chat)._replace(temperature=0.0)
    written = sample_texts(model, config.role, base.chat, prompts, greedy, 0)
    samples([(row.prompt[-1].content, row.reference_response, text) for row, text in zip(asked, written, strict=True)])
    next_command(
        "pit improve --input drafts.jsonl --max-iters 5"
        if config.role is Role.improver
        else f"pit sample --policy {config.run_folder} --output drafts.jsonl < prompts.jsonl"
    )


def find_runs(config: RlConfig) -> tuple[EarlierRun, EarlierRun, EarlierRun | None]:
    """The SFT run that RL starts from, the gap model, and the policy that references are sampled from, if any."""
    policy = find_run(config.policy, "runs/policy", ("sft",), POLICY, "pit sft --role policy makes one")
    improver = config.role is Role.improver
    sft = (
        find_run(config.sft, "runs/sft", ("sft",), IMPROVER, "pit sft --role improver makes one") if improver else None
    )
    start = sft if improver else policy
    reward = find_run(config.reward, "runs/reward", ("reward",), GAP, "pit train-reward makes one")
    if start is None or reward is None:
        name = "sft" if improver else "policy"
        missing = [
            f"--{name}: no run in runs/{name}; pit sft --role {config.role} makes one" if start is None else "",
            "--reward: no run in runs/reward; pit train-reward makes one" if reward is None else "",
        ]
        raise InputError([problem for problem in missing if problem])
    return start, reward, policy if improver else None


def lora_of(start: EarlierRun) -> LoraSettings:
    """The rank that the run was trained with."""
    return LoraSettings(lora_rank=start.manifest.config["lora_rank"], lora_alpha=start.manifest.config["lora_alpha"])


def rollout_decoding(config: RlConfig, chat: ChatFormat) -> Decoding:
    return Decoding(config.rollout_temperature, 1.0, config.rollout_max_new_tokens, chat.stop_id)


def load_drafts(path: str, base: Base, room: int) -> list[Asked]:
    """Drafts of the policy from a file, as references of the policy stage; each leaves room for what is sampled."""
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    asked = []
    for line, draft in iter_drafts(path, errors.append, notes):
        asked.append(Asked(draft.prompt, draft.response))
        try:
            check_conversation(draft.prompt, {"response": draft.response}, base.chat, base.max_length, notes, room)
        except RowProblem as problem:
            errors.append(RowError(file_label(path), line, problem.field, problem.reason))
    if errors or not asked:
        raise InputError([str(error) for error in errors[:20]] or f"{path}: no rows")
    for what, count in notes.items():
        note(f"{file_label(path)}: {count} {what}")
    return asked


def curriculum(
    config: RlConfig,
    model: RoleModel,
    base: Base,
    pairs: Sequence[PreferencePair],
    drafts: Sequence[Asked] | None,
    policy_role: str | None,
) -> list[Source]:
    """The stages in their order. References come with the prompts, from the policy, or from the improver itself."""
    chat, decoding = base.chat, rollout_decoding(config, base.chat)

    def from_dataset(rows: list[int], step: int, progress: float) -> list[Asked]:
        if config.role is Role.policy:
            return [Asked(pairs[row].prompt, pairs[row].chosen) for row in rows]
        rng = random.Random(step_seed(config.seed, step))
        hard = [progress >= 0.5 and rng.random() < 0.5 for _ in rows]
        return [
            Asked(pairs[row].prompt, pairs[row].chosen if chosen else pairs[row].rejected)
            for row, chosen in zip(rows, hard, strict=True)
        ]

    def from_policy(rows: list[int], step: int, progress: float) -> list[Asked]:
        if drafts is not None:
            return [drafts[row] for row in rows]
        prompts = [chat.policy_prompt(pairs[row].prompt) for row in rows]
        texts = sample_texts(model, policy_role, chat, prompts, decoding, step_seed(config.seed, step, 1))
        return [Asked(pairs[row].prompt, text or pairs[row].rejected) for row, text in zip(rows, texts, strict=True)]

    def from_self(rows: list[int], step: int, progress: float) -> list[Asked]:
        asked = from_policy(rows, step, progress)
        prompts = [chat.improver_prompt(*row) for row in asked]
        texts = sample_texts(model, IMPROVER, chat, prompts, decoding, step_seed(config.seed, step, 2))
        return [Asked(row.prompt, text or row.reference_response) for row, text in zip(asked, texts, strict=True)]

    policy_rows = len(drafts) if drafts is not None else len(pairs)
    known = {
        Stage.dataset: Source(Stage.dataset, len(pairs), from_dataset),
        Stage.policy: Source(Stage.policy, policy_rows, from_policy),
        Stage.self_: Source(Stage.self_, policy_rows, from_self),
    }
    return [known[stage] for stage in config.curriculum_stages]


def rl_task(config: RlConfig, judge: Judge, sources: Sequence[Source]) -> Task:
    """RLOO with PPO's clip on rollouts of the improver; each rollout serves updates_per_rollout steps."""
    rollouts = rollouts_by_stage(config, [source.rows for source in sources])
    model, decoding = judge.model, rollout_decoding(config, judge.chat)
    held: list[RolloutBatch] = []

    def micro_batches(step: int) -> list[RolloutBatch]:
        rollout, update = divmod(step, config.updates_per_rollout)
        if update == 0:
            stage, place = stage_of(rollout, rollouts)
            source = sources[stage]
            rows = rows_of_step(place, source.rows, config.batch_size, config.seed)
            asked = source.references(rows, step, place / rollouts[stage])
            held[:] = roll_out(judge, asked, decoding, step_seed(config.seed, step), config)
            held[0].metrics["stage"] = float(stage)
        return held

    def loss(micro_batch: RolloutBatch) -> tuple[Tensor, dict[str, float]]:
        logprobs_N = model.completion_logprobs(micro_batch.batch, config.rollout_temperature)
        total, clipped = clipped_policy_loss(
            logprobs_N, micro_batch.old_logprobs_N, micro_batch.advantages_N, config.clip_range
        )
        shares = {"clip_ratio": float(clipped.detach()) / micro_batch.tokens}
        return total / micro_batch.tokens, {**micro_batch.metrics, **shares}

    def runaway(metrics: dict[str, float]) -> str | None:
        if metrics["kl"] > config.max_kl:
            return f"KL {metrics['kl']:.1f} beyond --max-kl"
        if metrics["truncated_share"] > config.max_truncated_share:
            return f"{metrics['truncated_share']:.0%} of the rollouts lack an EOS"
        return None

    total_steps = sum(rollouts) * config.updates_per_rollout
    return Task(
        config.role,
        total_steps,
        micro_batches,
        loss,
        runaway,
        config.runaway_patience,
        score="reward",
        checkpoint_multiple=config.updates_per_rollout,
    )


def rl_work(
    config: RlConfig, chat: ChatFormat, pairs: Sequence[PreferencePair], drafts: Sequence[Asked] | None, policy: bool
) -> Work:
    """What is rehearsed: rollouts that never end early, over the longer response of each pair or the drafts."""
    k, new = config.samples_per_prompt, config.rollout_max_new_tokens
    of_pairs = [Asked(pair.prompt, max(pair.chosen, pair.rejected, key=len)) for pair in pairs]
    prompts = asked_prompts(config.role, chat, drafts if drafts is not None else of_pairs)
    stage_rows = [len(pairs) if stage is Stage.dataset else len(prompts) for stage in config.curriculum_stages]
    rollouts = sum(rollouts_by_stage(config, stage_rows))
    together = min(k, config.micro_batch_size)
    parts = -(-k // together)  # micro-batches that the samples of one prompt are in

    def run(model: RoleModel, rows: Sequence[int]) -> Tensor:
        trees = [group_tree(prompts[row], [[0] * new] * together) for row in rows]
        return completion_logprob(model, model.tree_batch(trees, of_tokens=True))

    def besides(seconds_per_token: float) -> float:
        """Per rollout: new tokens, each as dear as a pass forward or a hundredth of a second, gaps, KL."""
        forward = seconds_per_token / PASSES
        prompt = sum(map(len, prompts)) / len(prompts)
        sampling = new * max(0.01, config.batch_size * k * forward)
        scored = k * (prompt + new) * SCORED_TOKENS + parts * prompt + k * new
        return rollouts * (sampling + config.batch_size * scored * forward)

    return Work(
        config.role,
        lengths=[parts * (len(prompt) + together * new) for prompt in prompts],
        at_once=max(1, config.micro_batch_size // together),
        steps=rollouts * config.updates_per_rollout,
        roles=4 if policy else 3,
        logit_rows=lambda rows: len(rows) * together * new,
        run=run,
        first=[(chat.written(prompts[0]), False), (f"(up to {new} sampled tokens)", True)],
        share=1 / parts,
        besides=besides,
    )


def rollouts_by_stage(config: RlConfig, rows: Sequence[int]) -> list[int]:
    """How many rollouts each stage gets: its epochs, or an equal part of --max-steps. rows: of each stage's source."""
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

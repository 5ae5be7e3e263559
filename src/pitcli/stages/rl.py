"""pit rl: maximises the quality gap over y_ref by RLOO, starting from the SFT improver, with a KL penalty towards it.

Departures from the paper (PPO-like policy gradient on TPUs, details unpublished): k samples per (x, y_ref) with a
leave-one-out baseline instead of a value model; the gap is symmetrised and divided by its calibrated temperature,
so reward and beta are in logits of P(better); the policy stage samples its references when a rollout needs them;
stage 1 uses y_l in its first half, and y_l or y_w in its second; a third stage, self, uses the improver's own outputs.

--role policy is plain RLHF, for comparison: the policy sees x alone, and its reward is its gap over y_w.

--reward cmd:COMMAND replaces the gap by the difference of two scores of a program, such as a verifier.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial

from accelerate.utils import set_seed
from torch import tensor

from pitcli.console import counted, next_command, note
from pitcli.console import samples as show_samples
from pitcli.data.rows import Comparison, PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.batches import padding_share
from pitcli.engine.models.loading import lora_settings
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import POLICY, REFERENCE, RoleModel
from pitcli.engine.training.answers import CHECKED_ROWS, unusable_answers
from pitcli.engine.training.curriculum import Curriculum, longer_response
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged, use_command
from pitcli.engine.training.inputs import new_manifest, open_drafts, open_pairs, with_learning_rate
from pitcli.engine.training.loop import StepBatch, Task, step_seed, train
from pitcli.engine.training.rl_runs import check_before_sft, find_runs, is_improver_missing, note_known_prompts
from pitcli.engine.training.rollouts import (
    Reward,
    group_gaps,
    identical_share,
    lay_out,
    longest_rollouts,
    policy_loss,
    reward_metrics,
    role_logprobs,
    role_prompts,
    rollout_decoding,
    runaway,
    sample_groups,
    sample_texts,
    sampling_logprobs,
    text_metrics,
)
from pitcli.equations import (
    as_the_worst,
    group_spread,
    leave_one_out_advantages,
    rl_rewards,
)
from pitcli.evaluation.command_judge import SCALE, Fields, command_grade, score_differences
from pitcli.evaluation.systems import fields_of
from pitcli.processes.collectives import on_rank_0
from pitcli.processes.ranks import is_rank_0
from pitcli.runs.earlier import EarlierRun, gap_loss_of, gap_results, gap_temperatures
from pitcli.runs.folder import open_run
from pitcli.settings.base import Stage
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import RlConfig
from pitcli.settings.values import is_command
from pitcli.stages import start

SHOWN_ROWS = 3
ONCE = "--stop none --max-iters 1"  # to improve without a gap model


def run(config: RlConfig) -> int:
    """Run the curriculum; write the trained role, and the gap model that rewarded it, to the run folder."""
    check_before_sft(config)
    if code := train_missing_improver(config):
        return code
    if config.dry_run and is_improver_missing(config):
        note("that was the dry run of the SFT; the dry run of RL needs a finished runs/sft")
        return 0
    runs = find_runs(config)
    base = open_base(config, runs.all())
    pairs, data = open_pairs(config, base, runs.all(), config.rollout_max_new_tokens)
    note_known_prompts(runs.gap, data)
    read = open_drafts(config.drafts, base, config.rollout_max_new_tokens) if config.drafts else []
    drafts = [PromptWithReference(draft.prompt, draft.response) for draft in read] or None
    fields = fields_of(pairs, read)
    try_program(config, pairs[0], fields)
    config = with_learning_rate(config, base)
    manifest = new_manifest("rl", config.role, config, base, data, earlier=runs.all())

    def curriculum_of(model: RoleModel) -> Curriculum:
        return Curriculum(config, model, base.chat, pairs, drafts, POLICY if runs.policy else None)

    def task_of(curriculum: Curriculum) -> Task:
        return rl_task(config, curriculum, reward_of(config, runs.gap, fields, curriculum.model, base.chat))

    if config.dry_run:
        first = (drafts or [PromptWithReference(pairs[0].prompt, longer_response(pairs[0]))])[0]
        plan = DryRunPlan(
            task_on=lambda model: task_of(curriculum_of(model)),
            roles=len(runs.adapters(config.role)),
            first_row=shown_row(config, base, first),
            left_out=untimed(config),
        )
        dry_run(config, manifest, lora=lora_settings(runs.start.adapter), base=base, plan=plan)
        return 0
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        curriculum = curriculum_of(model := base.load(runs.adapters(config.role)))
        result = train(model, task_of(curriculum), config, folder)
        problem = show_last_stage(config, curriculum) or divergence_of(folder, result)
        gap_models = runs.gap.gap_models() if runs.gap else {}
        passed_on = gap_results(runs.gap.manifest) if runs.gap else {}
        results = result._asdict() | passed_on | refuse_diverged(folder, config, problem)
        finish(model, folder, [config.role, *gap_models], results)
    stages = ", ".join(config.curriculum_stages)
    note(f"{counted(result.steps, 'steps')} over the stages {stages}; {config.role} saved in {config.run_folder}")
    next_command(use_command(config.role, config.run_folder, "--max-iters 5" if runs.gap else ONCE))
    return 0


def shown_row(config: RlConfig, base: Base, row: PromptWithReference) -> list[tuple[str, bool]]:
    """Return the parts of a row of a rollout as text, and whether the loss is computed over each."""
    prompt = base.chat.written(*role_prompts(config.role, base.chat, [row]))
    return [(prompt, False), (f"(up to {config.rollout_max_new_tokens} sampled tokens)", True)]


def untimed(config: RlConfig) -> list[str]:
    """Return the work of a rollout that the dry run does not time."""
    sampled = [stage for stage in config.curriculum_stages if stage is not Stage.dataset]
    if config.drafts:
        sampled = [stage for stage in sampled if stage is not Stage.policy]
    return [
        *(["the program of --reward"] if isinstance(config.reward, str) else []),
        *([f"sampling the reference responses of {', '.join(sampled)}"] if sampled else []),
    ]


def try_program(config: RlConfig, pair: PreferencePair, fields: Fields) -> None:
    """If a program is the reward, score the first pair, so that one that fails does so before a model loads."""
    if not is_command(name := config.reward):
        return
    grade = command_grade(name, fields)
    chosen, rejected = on_rank_0(lambda: grade([(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]))
    note(f"{name}: scores of the first pair: chosen {chosen:g}, rejected {rejected:g}")


def train_missing_improver(config: RlConfig) -> int:
    """Train the SFT improver with the same settings if none is named and none is finished; return its exit code."""
    if not is_improver_missing(config):
        return 0
    sft = config.sft_settings()
    most = f" (at most {counted(sft.max_steps, 'steps')}, by --max-steps)" if sft.max_steps else ""
    note(f"no --sft and no finished runs/sft: training the improver by SFT first{most}, then by RL")
    # of a dry run, stdout is the settings of RL alone
    with redirect_stdout(sys.stderr) if config.dry_run else nullcontext():
        code = start("sft", sft.model_copy(update={"resume": sft.run_folder.exists()}))
    if config.dry_run and not code and is_rank_0():
        print(settings_yaml(config), end="", flush=True)
    return code


def reward_of(config: RlConfig, gap: EarlierRun | None, fields: Fields, model: RoleModel, chat: ChatFormat) -> Reward:
    """Return the reward: the gap by a gap model or an ensemble; without one, the difference of a program's scores.

    fields: the other fields of the rows by prompt.
    """
    if gap is not None:
        temperatures, loss = gap_temperatures(gap.manifest), gap_loss_of(gap.manifest)
        return partial(group_gaps, GapModel(model, chat, temperatures, config.micro_batch_size, loss, config.gap_bound))
    grade = command_grade(str(config.reward), fields)
    # rank 0 runs the program
    return lambda comparisons, k: tensor(on_rank_0(lambda: score_differences(grade, comparisons)))


def rl_task(config: RlConfig, curriculum: Curriculum, reward: Reward) -> Task:
    """RLOO with PPO's clipping; each rollout is used for updates_per_rollout steps."""
    return Task(
        config.role,
        phases=[rollouts * config.updates_per_rollout for rollouts in curriculum.rollouts()],
        batch=partial(roll_out, config, curriculum, reward),
        loss=partial(policy_loss, config, curriculum.model),
        planned_rows=lambda: longest_rollouts(
            config, curriculum.model, curriculum.longest_prompts(), sum(curriculum.rollouts())
        ),
        steps_per_batch=config.updates_per_rollout,
        runaway=partial(runaway, config),
        patience=config.runaway_patience,
        score="reward",
    )


def roll_out(config: RlConfig, curriculum: Curriculum, reward: Reward, index: int) -> StepBatch:
    """Sample k responses per (x, y_ref); compute rewards, advantages and the log-probs at sampling time.

    Axis B: all samples of the rollout; the k samples of a prompt are adjacent.
    """
    model, chat, k = curriculum.model, curriculum.chat, config.samples_per_prompt
    stage, rows = curriculum.references(index)
    prompts = role_prompts(config.role, chat, rows)
    decoding = rollout_decoding(config, chat)
    seed = step_seed(config.seed, index * config.updates_per_rollout)
    samples = sample_groups(model, config.role, prompts, decoding, seed, k)
    comparisons = [
        Comparison(rows[number // k].prompt, chat.decode(sample.token_ids), rows[number // k].reference_response)
        for number, sample in enumerate(samples)
    ]
    # the gap model has never seen an empty response, and pit improve never keeps one
    empty_B = tensor([not comparison.response.strip() for comparison in comparisons])
    gaps_B = as_the_worst(reward(comparisons, k), empty_B, k)
    layout = lay_out(model, prompts, [sample.token_ids for sample in samples], config)
    old_logprobs = sampling_logprobs(model, config.role, layout, samples, decoding.temperature)
    reference_logprobs = role_logprobs(model, REFERENCE, layout.batches, decoding.temperature)
    kl_B = layout.sequence_kl(old_logprobs, reference_logprobs)
    finished_B = tensor([sample.finished for sample in samples]) & ~empty_B
    eos_penalty = config.missing_eos_penalty * group_spread(gaps_B.view(-1, k))
    rewards_B = rl_rewards(gaps_B, kl_B, finished_B, config.kl_coef, eos_penalty)
    advantages_B = leave_one_out_advantages(rewards_B.view(-1, k)).view(-1)
    metrics = {
        "padding_share": padding_share(layout.batches),
        **reward_metrics(rewards_B, gaps_B, kl_B, finished_B, SCALE if isinstance(config.reward, str) else 1.0),
        "zero_spread_share": identical_share(samples, k),
        **text_metrics(samples, comparisons),
        "stage": float(stage),
    }
    return StepBatch(layout.micro_batches(old_logprobs, layout.by_token(advantages_B), model.device), metrics)


def show_last_stage(config: RlConfig, curriculum: Curriculum) -> str | None:
    """Show greedy responses of the trained role for a few prompts of the last stage; return what is wrong with them."""
    stage, chat = config.curriculum_stages[-1], curriculum.chat
    decoding = rollout_decoding(config, chat)._replace(temperature=0.0)

    def rows_of(count: int) -> list[PromptWithReference]:
        return curriculum.of_stage(stage, range(min(count, curriculum.rows(stage))), step=0, progress=1.0)

    def ask(role: str | None, prompts: Sequence[list[int]]) -> list[str]:
        return sample_texts(curriculum.model, role, chat, prompts, decoding=decoding, seed=0)

    def more() -> list[tuple[list[int], str]]:
        rows = rows_of(CHECKED_ROWS)
        return list(zip(role_prompts(config.role, chat, rows), [row.reference_response for row in rows], strict=True))

    rows = rows_of(SHOWN_ROWS)
    texts = ask(config.role, role_prompts(config.role, chat, rows))
    shown = [(row.prompt[-1].content, row.reference_response, text) for row, text in zip(rows, texts, strict=True)]
    show_samples(shown, labels=("prompt", "reference", f"{config.role} (greedy)"))
    return unusable_answers(texts, more, ask, trained=config.role, start=REFERENCE)

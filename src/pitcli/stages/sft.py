"""pit sft: supervised fine-tuning of a policy (x -> y_w) or of an improver (x, y_l -> y_w)."""

from collections.abc import Sequence

from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import next_command, note, samples
from pitcli.data.examples import sft_examples
from pitcli.data.records import PreferencePair
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.generation.sampling import Decoding, generate
from pitcli.engine.models.batches import Batch, micro_batch_rows, padding_shares, planned_steps
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import completion_batch
from pitcli.engine.training.dry_run import Work, completion_logprob, rehearse
from pitcli.engine.training.inputs import EarlierRun, find_run, new_manifest, open_base, open_pairs
from pitcli.engine.training.loop import Task, finish, train
from pitcli.runs.folder import open_run
from pitcli.settings.base import Role
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import SftConfig

SHOWN = 2
SHOWN_TOKENS = 96


def run(config: SftConfig) -> None:
    """Train the adapter that `config.role` names and write it to the run folder."""
    # without --data or --model, those of the reward run
    needs_data = config.data is None or config.model is None
    reward = find_run(None, "runs/reward", ("reward",), "gap", "pit train-reward makes one") if needs_data else None
    earlier: list[EarlierRun] = [reward] if reward else []
    base = open_base(config, earlier if config.model is None else [])
    pairs, data = open_pairs(config, base, earlier)
    examples = sft_examples(pairs, base.chat, config.role, config.identity_share, config.seed)
    manifest = new_manifest("sft", config.role, config, base, data)
    if config.dry_run:
        return rehearse(config, manifest, config, base, sft_work(examples, base.chat, config))
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        model.add_role(config.role, lora_config(config))
        result = train(model, sft_task(model, examples, config), config, folder)
        finish(model, folder, [config.role], result._asdict())
    note(
        f"loss {result.first_loss:.3f} -> {result.last_loss:.3f} in {result.steps} steps; saved in {config.run_folder}"
    )
    show_samples(model, base.chat, config.role, pairs[:SHOWN])
    next_command("pit train-reward" if config.role is Role.improver else "pit sft --role improver")


def sft_task(model: RoleModel, examples: list[Example], config: SftConfig) -> Task:
    """-log p(completion given prompt), the mean over the completion tokens of a step."""
    lengths = [len(example.prompt) + len(example.completion) for example in examples]

    def micro_batches(step: int) -> list[tuple[Batch, int, float]]:
        chunks = micro_batch_rows(step, lengths, config, config.micro_batch_size, model.device)
        tokens = sum(len(examples[row].completion) for chunk in chunks for row in chunk)
        batches = [completion_batch([examples[row] for row in chunk], model.pad_id) for chunk in chunks]
        shares = padding_shares(batches)
        return [(batch.to(model.device), tokens, share) for batch, share in zip(batches, shares, strict=True)]

    def loss(micro_batch: tuple[Batch, int, float]) -> tuple[Tensor, dict[str, float]]:
        batch, tokens, padding = micro_batch
        metrics = {"tokens": float(len(batch.targets_N)), "padding_share": padding}
        return -model.completion_logprobs(batch).sum() / tokens, metrics

    return Task(config.role, planned_steps(len(examples), config), micro_batches, loss)


def sft_work(examples: Sequence[Example], chat: ChatFormat, config: SftConfig) -> Work:
    """What is rehearsed."""

    return Work(
        config.role,
        lengths=[len(example.prompt) + len(example.completion) for example in examples],
        at_once=config.micro_batch_size,
        steps=planned_steps(len(examples), config),
        roles=1,
        logit_rows=lambda rows: sum(len(examples[row].completion) for row in rows),
        run=lambda model, rows: completion_logprob(
            model, completion_batch([examples[row] for row in rows], model.pad_id)
        ),
        first=[(chat.written(examples[0].prompt), False), (chat.written(examples[0].completion), True)],
    )


def show_samples(model: RoleModel, chat: ChatFormat, role: Role, pairs: list[PreferencePair]) -> None:
    """What the trained model writes for the first rows, greedily."""
    decoding = Decoding(0.0, 1.0, SHOWN_TOKENS, chat.stop_id)
    if role is Role.policy:
        prompts = [chat.policy_prompt(pair.prompt) for pair in pairs]
    else:
        prompts = [chat.improver_prompt(pair.prompt, pair.rejected) for pair in pairs]
    written = generate(model, role, prompts, [0] * len(prompts), decoding)
    samples(
        [
            (pair.prompt[-1].content, pair.rejected, chat.decode(sample.token_ids))
            for pair, sample in zip(pairs, written, strict=True)
        ]
    )

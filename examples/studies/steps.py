"""The `pit` commands of the studies: those of the shared runs of a seed, and those of the systems that most compare."""

import shlex

from scales import VERIFIER, StudyScale

RL_DRAFTS = "rl-drafts-policy"


def base_steps(scale: StudyScale, seed: int) -> list[str]:
    """The commands that make the data, the policy, the SFT improver, the gap model, and drafts of held-out prompts."""
    steps = [
        *(step if "--seed" in step else f"{step} --seed {seed}" for step in scale.data),
        *([sft_policy(scale, seed)] if scale.policy else []),
        sft_improver(scale, seed),
        gap_model(scale, seed),
        sample(scale, seed, "drafts", scale.temperature),
        *([sample(scale, seed, RL_DRAFTS, scale.temperature, scale.rl_questions)] if scale.rl_questions else []),
    ]
    if scale.judge is not None:
        # the judge's seed and rows differ from those of the gap model that RL and the stop rule use
        steps.append(
            f"pit train-reward --data data/judge.jsonl --model {scale.model} --seed {seed + 1000} --out runs/judge"
            f" {scale.judge}"
        )
    return steps


def sft_improver(scale: StudyScale, seed: int) -> str:
    return f"pit sft --role improver --data data/sft.jsonl --model {scale.model} --seed {seed} {scale.sft}"


def gap_model(scale: StudyScale, seed: int, settings: str = "") -> str:
    """The command that trains a gap model; settings: changes, with an --out of their own."""
    model = f"--model {scale.model} --seed {seed}"
    return f"pit train-reward --data {scale.reward_data} {model} {scale.reward} {settings}".strip()


def sft_policy(scale: StudyScale, seed: int) -> str:
    folder = scale.policy or "runs/sft-policy"
    model = f"--model {scale.model} --seed {seed}"
    return f"pit sft --role policy --data data/sft.jsonl {model} --out {folder} {scale.sft}"


def sample(scale: StudyScale, seed: int, name: str, temperature: float | str, questions: str = "") -> str:
    model = "" if scale.policy else f"--model {scale.model} "
    shared = f"{model}--seed {seed} {scale.draft_decoding or scale.decoding} --temperature {temperature}"
    return f"pit sample --data {questions or f'{scale.questions} {scale.drafts}'} --output {name}.jsonl {shared}"


def rl(scale: StudyScale, seed: int, name: str, settings: str) -> str:
    references = f"--reference-temperature {scale.temperature}"
    improves_drafts = "--role policy" not in settings and "--curriculum-stages dataset " not in f"{settings} "
    if scale.rl_questions and improves_drafts and "--reference-temperature" not in settings:
        references += f" --drafts {RL_DRAFTS}.jsonl"
    return f"pit rl --data {scale.rl_data} --out runs/{name} --seed {seed} {scale.rl} {references} {settings}"


def improve(scale: StudyScale, seed: int, name: str, settings: str, drafts: str = "drafts") -> str:
    temperature = "" if "--temperature" in settings else f"--temperature {scale.temperature} "
    shared = f"--seed {seed} {scale.decoding} {temperature}{settings}"
    return f"pit improve --input {drafts}.jsonl --output {name}.jsonl {shared}"


ONCE = "--stop none --max-iters 1"
BEST_OF_4 = "--method best-of-n --max-iters 4"


def improver_steps(scale: StudyScale, seed: int, name: str) -> dict[str, list[str]]:
    """The commands of the systems that improve a draft, and of those that draw again from the policy of the drafts."""
    trained = rl(scale, seed, "rl", "--curriculum")
    verified = rl(scale, seed, "rl-verifier", f"--curriculum --reward {shlex.quote(VERIFIER)}")
    pit = [trained, improve(scale, seed, "pit", f"--run runs/rl {ONCE}")]
    pit_stop = [trained, improve(scale, seed, "pit-stop", "--run runs/rl --max-iters 5")]
    return {
        "pit": pit,
        "pit-stop": pit_stop,
        "pit-3": [trained, improve(scale, seed, name, "--run runs/rl --stop none --max-iters 3")],
        "pit-5": [trained, improve(scale, seed, name, "--run runs/rl --stop none --max-iters 5")],
        "pit-pruned": [trained, improve(scale, seed, name, f"--run runs/rl {ONCE} --prune-edits")],
        "pit-stop-pruned": [trained, improve(scale, seed, name, "--run runs/rl --max-iters 5 --prune-edits")],
        "pit-explained": [*pit, "pit explain --input pit.jsonl --output pit-explained.jsonl --reward runs/rl"],
        "verifier": [verified, improve(scale, seed, name, f"--run runs/rl-verifier {ONCE}")],
        "sft-stop": [improve(scale, seed, name, "--run runs/sft --reward runs/reward --max-iters 5")],
        "sft-only": [improve(scale, seed, name, f"--run runs/sft {ONCE}")],
        "resample": [improve(scale, seed, name, f"--method resample {ONCE}")],
        "self-refine": [improve(scale, seed, name, f"--method self-refine {ONCE}")],
        "best-of-4": [improve(scale, seed, name, BEST_OF_4)],
        "best-of-n": [*pit, improve(scale, seed, name, "--method best-of-n --equal-tokens pit.jsonl")],
        "best-of-n-stop": [*pit_stop, improve(scale, seed, name, "--method best-of-n --equal-tokens pit-stop.jsonl")],
        "shuffled": [
            *shuffled_reward(scale, seed),
            rl(scale, seed, "rl-shuffled", "--curriculum --reward runs/reward-shuffled --force"),
            improve(scale, seed, name, f"--run runs/rl-shuffled {ONCE}"),
        ],
        "shuffled-best-of-n": [
            *shuffled_reward(scale, seed),
            improve(scale, seed, name, f"--reward runs/reward-shuffled {BEST_OF_4}"),
        ],
    }


def policy_steps(scale: StudyScale, seed: int, name: str) -> dict[str, list[str]]:
    """The commands of the systems with a policy that was trained on the same pairs, by SFT or RLHF."""
    policy = scale.policy or "runs/sft-policy"
    trained = [] if scale.policy else [sft_policy(scale, seed)]
    rlhf = [*trained, rl(scale, seed, "rlhf", f"--role policy --policy {policy}")]
    pit = rl(scale, seed, "rl", "--curriculum")
    pit_stop = improve(scale, seed, "pit-stop", "--run runs/rl --max-iters 5")
    drafts = f"{sample(scale, seed, 'drafts-rlhf', scale.temperature)} --policy runs/rlhf"
    equal_tokens = "--method best-of-n --equal-tokens pit-stop.jsonl"
    return {
        "sft-policy": [*trained, improve(scale, seed, name, f"--method resample --policy {policy} {ONCE}")],
        "rlhf": [*rlhf, improve(scale, seed, name, f"--method resample --policy runs/rlhf {ONCE}")],
        "rlhf-best-of-n": [*rlhf, pit, pit_stop, improve(scale, seed, name, f"--policy runs/rlhf {equal_tokens}")],
        "pit-on-rlhf": [
            *(*rlhf, pit, drafts),
            improve(scale, seed, name, "--run runs/rl --max-iters 5", "drafts-rlhf"),
        ],
    }


def shuffled_reward(scale: StudyScale, seed: int) -> list[str]:
    """The commands that train a gap model on shuffled labels."""
    return [
        f"pit prepare --data {scale.reward_data} --shuffle-labels --seed {seed} --out data-shuffled --folds reward=1",
        f"pit train-reward --data data-shuffled/reward.jsonl --model {scale.model} --seed {seed}"
        f" --out runs/reward-shuffled {scale.reward}",
    ]

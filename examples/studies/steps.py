"""The `pit` commands of the studies: those of the shared runs of a seed, and those of the rows of each system."""

import shlex

from changes import CHANGES, Change
from scales import VERIFIER, StudyScale

RL_DRAFTS = "rl-drafts-policy"


def base_steps(scale: StudyScale, seed: int) -> list[str]:
    """The commands that make the data, the policy, the SFT improver, the gap model, and drafts of held-out prompts."""
    model = f"--model {scale.model} --seed {seed}"
    samples = f"pit sample {scale.samples} {model} --output samples.jsonl"
    # real pairs are split with the same seed for all: no gap model of any seed may have seen the judge's fold
    steps = [
        *([samples] if scale.samples else []),
        f"pit prepare {scale.prepare} --seed {seed if scale.judge is None else 0} --out data",
        *([sft_policy(scale, seed)] if scale.policy else []),
        f"pit sft --role improver --data data/sft.jsonl {model} {scale.sft}",
        f"pit train-reward --data data/reward.jsonl {model} {scale.reward}",
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
    if scale.rl_questions and "--role policy" not in settings:
        references += f" --drafts {RL_DRAFTS}.jsonl"
    return f"pit rl --data data/rl.jsonl --out runs/{name} --seed {seed} {scale.rl} {references} {settings}"


def improve(scale: StudyScale, seed: int, name: str, settings: str, drafts: str = "drafts") -> str:
    temperature = "" if "--temperature" in settings else f"--temperature {scale.temperature} "
    shared = f"--seed {seed} {scale.decoding} {temperature}{settings}"
    return f"pit improve --input {drafts}.jsonl --output {name}.jsonl {shared}"


ONCE = "--stop none --max-iters 1"
BEST_OF_4 = "--method best-of-n --max-iters 4"


def system_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make NAME.jsonl, the rows of one system."""
    kind, _, value = name.partition("@")
    if kind == "change":
        return changed_steps(scale, seed, name, CHANGES[value])
    if kind == "distill":
        return distilled_steps(scale, seed, value)
    if kind in ("stage", "loss", "beta"):
        return variant_steps(scale, seed, kind, value)
    if value:
        return steps_at(scale, seed, kind, value)
    return {**improver_steps(scale, seed, name), **policy_steps(scale, seed, name)}[kind]


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


def distilled_steps(scale: StudyScale, seed: int, value: str) -> list[str]:
    """The commands that make distill@VALUE.jsonl: what a distilled policy writes.

    VALUE: a method of pit distill, one response per prompt; twice: of a second round of sft, on improved drafts of the
    first; best-of-n: of the policy of sft, with the tokens of pit-stop; improved: the improver on its drafts.
    """

    def round_from(policy: str, out: str) -> list[str]:
        shared = f"{scale.decoding} --temperature {scale.temperature} --seed {seed}"
        return [
            f"pit sample --data data/rl.jsonl --policy runs/{policy} --output own-{policy}.jsonl {shared}",
            improve(scale, seed, f"improved-{policy}", "--run runs/rl --max-iters 5", f"own-{policy}"),
            f"pit distill --data improved-{policy}.jsonl --policy runs/{policy} --out runs/{out} --seed {seed}"
            f" {scale.distill}",
        ]

    def written(run: str, settings: str) -> str:
        return improve(scale, seed, f"distill@{value}", f"--policy runs/{run} {settings}")

    once, one = f"--method resample {ONCE}", "distill-sft"
    first, shared = round_from("policy", one), f"--policy runs/policy --seed {seed}"
    best_of_n = written(one, "--method best-of-n --equal-tokens pit-stop.jsonl")
    drafts = f"{sample(scale, seed, 'drafts-distill', scale.temperature)} --policy runs/{one}"
    following = {
        "sft": [written(one, once)],
        "dpo": [
            f"pit distill --method dpo --data improved-policy.jsonl --out runs/distill-dpo {shared} {scale.distill}",
            written("distill-dpo", once),
        ],
        "on-policy": [
            f"pit distill --method on-policy --data own-policy.jsonl --out runs/distill-on-policy {shared}"
            f" --run runs/rl {scale.on_policy}",
            written("distill-on-policy", once),
        ],
        "twice": [*round_from(one, "distill-twice"), written("distill-twice", once)],
        "best-of-n": [*system_steps(scale, seed, "pit-stop"), best_of_n],
        "improved": [drafts, improve(scale, seed, "distill@improved", "--run runs/rl --max-iters 5", "drafts-distill")],
    }
    return [rl(scale, seed, "rl", "--curriculum"), *first, *following[value]]


def shuffled_reward(scale: StudyScale, seed: int) -> list[str]:
    """The commands that train a gap model on shuffled labels."""
    return [
        f"pit prepare --data data/reward.jsonl --shuffle-labels --seed {seed} --out data-shuffled --folds reward=1",
        f"pit train-reward --data data-shuffled/reward.jsonl --model {scale.model} --seed {seed}"
        f" --out runs/reward-shuffled {scale.reward}",
    ]


def variant_steps(scale: StudyScale, seed: int, kind: str, value: str) -> list[str]:
    """The commands that make the rows of a system named KIND@VALUE, which differs from `pit` in one setting."""
    name = f"{kind}@{value}"
    if kind == "stage":
        run = f"rl-{value}"
        steps = [rl(scale, seed, run, f"--curriculum-stages {value.replace('+', ',')}")]
    elif kind == "loss":
        run = f"rl-{value}"
        steps = [
            f"pit train-reward --data data/reward.jsonl --model {scale.model} --seed {seed} --gap-loss {value}"
            f" --out runs/reward-{value} {scale.reward}",
            rl(scale, seed, run, f"--curriculum --reward runs/reward-{value}"),
        ]
    else:
        run = f"rl-beta-{value}"
        steps = [rl(scale, seed, run, f"--curriculum --kl-coef {value} {scale.far}")]
    return [*steps, improve(scale, seed, name, f"--run runs/{run} {ONCE}")]


def changed_steps(scale: StudyScale, seed: int, name: str, change: Change) -> list[str]:
    """The commands that make NAME.jsonl, three iterations of each draft, and NAME-stop.jsonl, with the learned stop."""
    kind = name.partition("@")[2]
    sft = f"runs/sft-{kind}" if change.sft else "runs/sft"
    reward = f"runs/{change.reward_run()}"
    run = f"rl-{kind}" if change.sft or change.reward or change.rl or change.labels else "rl"
    model = f"--model {scale.model} --seed {seed}"
    steps, data = [], "data/reward.jsonl"
    if change.labels:
        steps += own_pairs(scale, seed)
        data += ",pairs-own.jsonl"
    if change.sft:
        steps.append(f"pit sft --role improver --data data/sft.jsonl {model} --out {sft} {scale.sft} {change.sft}")
    if reward != "runs/reward":
        steps.append(f"pit train-reward --data {data} {model} --out {reward} {scale.reward} {change.reward}")
    stages = "" if "--curriculum-stages" in change.rl else "--curriculum"
    earlier = "" if run == "rl" else f" --sft {sft} --reward {reward} {change.rl}"
    use = f"--run runs/{run} {change.use}"
    return [
        *steps,
        rl(scale, seed, run, f"{stages}{earlier}"),
        improve(scale, seed, name, f"{use} --stop none --max-iters 3"),
        improve(scale, seed, f"{name}-stop", f"{use} --max-iters 5"),
    ]


def own_pairs(scale: StudyScale, seed: int) -> list[str]:
    """The commands that make pairs-own.jsonl: improvements of drafts for prompts of RL, labelled by the oracle."""
    drafts = f"--max-rows 300 --output rl-drafts.jsonl --seed {seed} {scale.decoding} --temperature {scale.temperature}"
    return [
        rl(scale, seed, "rl", "--curriculum"),
        f"pit sample --data data/rl.jsonl {drafts}",
        improve(scale, seed, "rl-improved", "--run runs/rl --stop none --max-iters 3", "rl-drafts"),
        "pit label --judge oracle --input rl-improved.jsonl --output pairs-own.jsonl",
    ]


def steps_at(scale: StudyScale, seed: int, kind: str, temperature: str) -> list[str]:
    """The commands that make the rows of KIND@TEMPERATURE: drafts and method at this temperature."""
    drafts = f"drafts@{temperature}"
    settings = {
        "pit": f"--run runs/rl {ONCE}",
        "resample": f"--method resample {ONCE}",
        "best-of-n": f"--method best-of-n --equal-tokens pit@{temperature}.jsonl",
    }
    kinds = ["pit"] if kind == "pit" else ["pit", kind]  # best-of-n reads the rows of pit
    return [
        rl(scale, seed, "rl", "--curriculum"),
        sample(scale, seed, drafts, temperature),
        *(
            improve(scale, seed, f"{k}@{temperature}", f"{settings[k]} --temperature {temperature}", drafts)
            for k in kinds
        ),
    ]

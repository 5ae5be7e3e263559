"""The `pit` commands that make the rows of the systems that studies compare."""

from changes import CHANGES, Change, ranks
from distilled import distilled_steps
from scales import StudyScale
from steps import ONCE, gap_model, improve, improver_steps, policy_steps, rl, sample, sft_improver
from ways import way_steps


def system_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make NAME.jsonl, the rows of one system."""
    kind, _, value = name.partition("@")
    if kind == "change":
        return changed_steps(scale, seed, name, {**CHANGES, **ranks(scale.rank)}[value])
    if kind == "way":
        return way_steps(scale, seed, value)
    if kind == "distill":
        return distilled_steps(scale, seed, value)
    if kind in ("stage", "loss", "beta"):
        return variant_steps(scale, seed, kind, value)
    if value:
        return steps_at(scale, seed, kind, value)
    return {**improver_steps(scale, seed, name), **policy_steps(scale, seed, name)}[kind]


def variant_steps(scale: StudyScale, seed: int, kind: str, value: str) -> list[str]:
    """The commands that make the rows of a system named KIND@VALUE, which differs from `pit` in one setting."""
    name = f"{kind}@{value}"
    if kind == "stage":
        run = f"rl-{value}"
        steps = [rl(scale, seed, run, f"--curriculum-stages {value.replace('+', ',')}")]
    elif kind == "loss":
        run = f"rl-loss-{value}"
        steps = [
            gap_model(scale, seed, f"--out runs/reward-{value} --gap-loss {value}"),
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
    run = f"rl-change-{kind}" if change.sft or change.reward or change.rl or change.labels else "rl"
    steps, labels = [], ""
    if change.labels:
        steps += own_pairs(scale, seed)
        labels = f"--data {scale.reward_data},pairs-own.jsonl"
    if change.sft:
        steps.append(f"{sft_improver(scale, seed)} --out {sft} {change.sft}")
    if reward != "runs/reward":
        steps.append(gap_model(scale, seed, f"--out {reward} {change.reward} {labels}"))
    earlier = "" if run == "rl" else f" --sft {sft} --reward {reward} {change.rl}"
    use = f"--run runs/{run} {change.use}"
    return [
        *steps,
        rl(scale, seed, run, f"--curriculum{earlier}"),
        improve(scale, seed, name, f"{use} --stop none --max-iters 3"),
        improve(scale, seed, f"{name}-stop", f"{use} --max-iters 5"),
    ]


def own_pairs(scale: StudyScale, seed: int) -> list[str]:
    """The commands that make pairs-own.jsonl: improvements of drafts for prompts of RL, labelled by the oracle."""
    questions = f"{scale.rl_questions or 'data/rl.jsonl'} --max-rows 300"
    return [
        rl(scale, seed, "rl", "--curriculum"),
        sample(scale, seed, "rl-drafts", scale.temperature, questions),
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

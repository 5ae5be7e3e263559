"""The `pit` commands that make the rows of the systems that studies compare."""

from changes import CHANGES, Change, ranks
from scales import StudyScale
from steps import (
    ONCE,
    RL_DRAFTS,
    gap_model,
    improve,
    improver_steps,
    policy_steps,
    rl,
    sample,
    sft_improver,
)
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


def distilled_steps(scale: StudyScale, seed: int, value: str) -> list[str]:
    """The commands that make distill@VALUE.jsonl: what a distilled policy writes.

    VALUE: a method of pit distill, one response per prompt; twice: of a second round of sft, on improved drafts of the
    first; teacher: the improver that is distilled, on the drafts of the policy before; best-of-n: of the policy of sft,
    with the tokens of teacher; improved: the improver on its drafts.
    """
    improver = f"--run {scale.improver} --max-iters 5"
    start = f"--policy {scale.policy}" if scale.policy else f"--model {scale.model}"

    def distilled(method: str, data: str, start: str, out: str, settings: str) -> str:
        return f"pit distill --method {method} --data {data}.jsonl --out runs/{out} {start} --seed {seed} {settings}"

    def round_from(start: str, own: str, out: str) -> list[str]:
        return [
            improve(scale, seed, f"improved-{own}", improver, own),
            distilled("sft", f"improved-{own}", start, out, scale.distill),
        ]

    def written(run: str, settings: str = f"--method resample {ONCE}") -> str:
        return improve(scale, seed, f"distill@{value}", f"--policy runs/{run} {settings}")

    def drafted(name: str, run: str, questions: str) -> str:
        return f"{sample(scale, seed, name, scale.temperature, questions)} --policy runs/{run}"

    one = "distill-sft"
    questions = scale.rl_questions or "data/rl.jsonl"
    own = RL_DRAFTS if scale.rl_questions else "own-policy"
    teacher = [rl(scale, seed, "rl", "--curriculum")] if scale.improver == "runs/rl" else []
    improved = improve(scale, seed, "distill@teacher", improver)
    drafts = [*teacher, sample(scale, seed, own, scale.temperature, questions)]
    first = [*drafts, *round_from(start, own, one)]
    return {
        "teacher": [*teacher, improved],
        "sft": [*first, written(one)],
        "dpo": [
            *first[:-1],
            distilled("dpo", f"improved-{own}", start, "distill-dpo", scale.distill),
            written("distill-dpo"),
        ],
        "on-policy": [
            *drafts,
            distilled("on-policy", own, start, "distill-on-policy", f"--run {scale.improver} {scale.on_policy}"),
            written("distill-on-policy"),
        ],
        "twice": [
            *first,
            drafted(f"own-{one}", one, questions),
            *round_from(f"--policy runs/{one}", f"own-{one}", "distill-twice"),
            written("distill-twice"),
        ],
        "best-of-n": [*first, improved, written(one, "--method best-of-n --equal-tokens distill@teacher.jsonl")],
        "improved": [
            *first,
            drafted("drafts-distill", one, f"{scale.questions} {scale.drafts}"),
            improve(scale, seed, "distill@improved", improver, "drafts-distill"),
        ],
    }[value]


def variant_steps(scale: StudyScale, seed: int, kind: str, value: str) -> list[str]:
    """The commands that make the rows of a system named KIND@VALUE, which differs from `pit` in one setting."""
    name = f"{kind}@{value}"
    if kind == "stage":
        run = f"rl-{value}"
        steps = [rl(scale, seed, run, f"--curriculum-stages {value.replace('+', ',')}")]
    elif kind == "loss":
        run = f"rl-{value}"
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
    run = f"rl-{kind}" if change.sft or change.reward or change.rl or change.labels else "rl"
    steps, labels = [], ""
    if change.labels:
        steps += own_pairs(scale, seed)
        labels = f"--data {scale.reward_data},pairs-own.jsonl"
    if change.sft:
        steps.append(f"{sft_improver(scale, seed)} --out {sft} {change.sft}")
    if reward != "runs/reward":
        steps.append(gap_model(scale, seed, f"--out {reward} {change.reward} {labels}"))
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

"""Whether a gap model on the tiny base sees every demand of the synthetic task: `python examples/tiny_gate.py`.

Trains a gap model on fresh noisy pairs. Then, for each demand, it compares a faultless answer with the same answer in
which that demand alone is broken, and prints how often the faultless one has the larger gap. A base that holds no
feature of a demand leaves it at 0.5, whatever the pairs; the base that ships must reach LEAST for each.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pitcli.data.rows import Comparison, Message
from pitcli.data.synthetic import Answer, WordListTask, draw_task, met, preference_rows, render
from pitcli.evaluation.load_judge import gap_judge
from pitcli.settings.judging import JudgeSettings
from pitcli.settings.training import RewardConfig
from pitcli.stages import train_reward

LEAST = 0.85


def shares(model: str, folder: Path, seed: int, pairs: int, tasks: int) -> dict[str, float]:
    """Return how often a gap model, trained in `folder`, prefers the faultless answer, by the demand that is broken."""
    run = train(model, folder, seed, pairs)
    judge = gap_judge(f"gap:{run}", JudgeSettings(micro_batch_size=128)).judge
    found = {}
    for name, comparisons in one_broken(seed, tasks).items():
        verdicts = judge.verdicts(comparisons)
        found[name] = sum((verdict.p_better or 0) > 0.5 for verdict in verdicts) / len(verdicts)
    return found


def train(model: str, folder: Path, seed: int, count: int) -> Path:
    """Train a gap model on noisy pairs; return its run folder."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(count, seed=seed)))
    data = {"model": model, "data": str(pairs), "out": folder / "run", "seed": seed}
    train_reward.run(RewardConfig.model_validate({**data, "batch_size": 64, "micro_batch_size": 128}))
    return folder / "run"


def one_broken(seed: int, tasks: int) -> dict[str, list[Comparison]]:
    """Faultless answers against the same with one demand broken, by demand."""
    rng = random.Random(f"gate-{seed}")
    found: dict[str, list[Comparison]] = {}
    for _ in range(tasks):
        task, words = draw_task(rng), rng.getrandbits(32)
        faultless = render(task, Answer(frozenset(), words))
        for name in task.demands():
            broken = render(task, Answer(frozenset({name}), words))
            if demands_broken(task, faultless) == [] and demands_broken(task, broken) == [name]:
                prompt = (Message("user", task.prompt()),)
                found.setdefault(name, []).append(Comparison(prompt, faultless, broken))
    return found


def demands_broken(task: WordListTask, response: str) -> list[str]:
    return [name for name, good in met(task, response).items() if not good]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="base model: tiny, or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=4000, help="pairs to train on")
    parser.add_argument("--tasks", type=int, default=600, help="prompts to draw answers for")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = shares(arguments.model, Path(folder), arguments.seed, arguments.pairs, arguments.tasks)
    for name, share in found.items():
        print(f"{name:10} {share:.3f}{'' if share >= LEAST else '  below the gate'}")
    return int(min(found.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main())

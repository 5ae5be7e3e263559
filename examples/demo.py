"""Run the quickstart recipe with more rows and more RL steps, then show the result (`make demo`).

Equivalent to `pit run examples/recipes/quickstart.yaml` with the settings below; a second run skips finished stages.
Also writes summary.json. It ends with the result, three rows before and after, eight English drafts improved by the run
that pit ships, and the commands for your own data.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo_english import english

from pitcli.cli import main as pit
from pitcli.console import visible

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"
SIZES = ("prepare.synthetic=8000", "sample.max_rows=500", "rl.max_steps=120")
COLUMNS = 80
HEADS = ("prompt", "draft", "improved")
WIDTH = 10  # of the heads
SHOWN = 3  # rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out.resolve()
    start = time.time()
    settings = [word for size in SIZES for word in ("--set", size)]
    if code := pit(["run", str(RECIPE), "--out", str(out), *settings]):
        sys.exit(code)
    figures = summary(out, time.time() - start)
    (out / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    lines = [*english(out)]
    print("", *result(out, figures), "", "English, by a run that pit ships:", *lines, sep="\n", flush=True)
    print("", *next_steps(out), sep="\n", flush=True)


def summary(out: Path, seconds: float) -> dict[str, Any]:
    """The figures of summary.json, from the results of `pit evaluate`. seconds: of this run, without skipped stages."""
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())["comparisons"]
    lines = {(line["system"], line["baseline"]): line for line in found}
    over_originals, over_sft = lines["pit", "original"], lines["pit", "sft-only"]
    return {
        "originals": over_originals["grades"][1],
        "sft_only": lines["sft-only", "original"]["grades"][0],
        "improver": over_originals["grades"][0],
        **{name: over_originals[name] for name in ("wins", "ties", "losses", "delta", "delta_ci", "rows")},
        "seconds": round(seconds, 1),
        "improver_less_sft_only": over_sft["grades"][0] - over_sft["grades"][1],
        "improver_less_sft_only_ci": over_sft["grade_difference_ci"],
        "learned_stop": lines["learned-stop", "original"]["grades"][0],
    }


def result(out: Path, figures: dict[str, Any]) -> Iterator[str]:
    """The figures and some rows, as plain lines that fit 80 columns."""
    low, high = figures["delta_ci"]
    yield f"originals -> improved: mean quality {figures['originals']:.3f} -> {figures['improver']:.3f}"
    yield (
        f"{figures['wins']} better, {figures['ties']} equal, {figures['losses']} worse: "
        f"delta (better% - worse%) {figures['delta']:+.1f} [{low:+.1f}, {high:+.1f}]"
    )
    yield from shown_rows(changed_rows(out / "improved.jsonl"))


def next_steps(out: Path) -> Iterator[str]:
    """The report and the commands for one's own data, as lines that fit 80 columns."""
    yield f"report (open it in a browser): {here(out / 'evaluation' / 'report.html')}"
    yield f"next, with your own data (pit is {here(Path(sys.executable).with_name('pit'))}):"
    yield "  pit train-reward --data pairs.jsonl                # prompt, chosen, rejected"
    yield "  pit rl --curriculum                                # trains the improver"
    yield "  pit improve --input drafts.jsonl > improved.jsonl  # prompt, response"


def changed_rows(file: Path) -> list[tuple[str, ...]]:
    """Prompt, draft and improved response of the first rows that changed; rows that fit come first."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [(row["prompt"], row["original_response"], row["response"]) for row in rows]
    changed = [tuple(visible(" ".join(text.split())) for text in row) for row in texts if row[1] != row[2]]
    return sorted(changed, key=lambda row: max(map(len, row)) > COLUMNS - WIDTH)[:SHOWN]


def shown_rows(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Three lines per row, truncated to fit."""
    for row in rows:
        yield from (f"{head:{WIDTH}}{truncated(text, COLUMNS - WIDTH)}" for head, text in zip(HEADS, row, strict=True))


def truncated(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def here(path: Path) -> str:
    """The path relative to the working directory, if it is inside."""
    return visible(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


if __name__ == "__main__":
    main()

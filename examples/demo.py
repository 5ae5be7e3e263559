"""`make demo`: the quickstart recipe with more rows and more RL steps, judged by the oracle on held-out prompts.

It is `pit run examples/recipes/quickstart.yaml` with the settings below; a second run skips the stages that are
finished. What is added is summary.json, and two lines at the end.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pitcli.cli import main as pit

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"
SIZES = ("prepare.synthetic=8000", "sample.max_rows=500", "rl.max_steps=120")


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
    low, high = figures["improver_less_sft_only_ci"]
    print(
        f"PIT after RL less SFT-only, mean quality: {figures['improver_less_sft_only']:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    print(
        f"{figures['seconds']:.0f} s; figures in {out / 'summary.json'}, a report in {out / 'evaluation/report.html'}"
    )


def summary(out: Path, seconds: float) -> dict[str, Any]:
    """The figures of summary.json, from what `pit evaluate` found; seconds: of this run, without skipped stages."""
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


if __name__ == "__main__":
    main()

"""What RL asks of a gap model before it trains on its rewards."""

from pitcli.console import warn
from pitcli.equations import MAX_TEMPERATURE
from pitcli.errors import RunError
from pitcli.runs.earlier import EarlierRun, gap_temperature, warn_if_not_calibrated
from pitcli.runs.manifest import Manifest


def gap_problem(manifest: Manifest) -> str | None:
    """Return what shows that a gap model ranks held-out pairs no better than a coin; None if nothing does."""
    accuracy = manifest.results.get("accuracy")
    if gap_temperature(manifest) >= MAX_TEMPERATURE:
        return "P(better) of the gap model is 0.5 for every pair: its temperature is at its bound"
    if isinstance(accuracy, float) and accuracy <= 0.5:
        return f"the gap model ranks {accuracy:.0%} of its held-out pairs as labelled"
    return None


def check_gap_model(gap: EarlierRun, force: bool) -> None:
    """Raise RunError, or warn with --force, if a gap model ranks held-out pairs no better than a coin.

    Warns if its P(better) is not calibrated.
    """
    if problem := gap_problem(gap.manifest):
        text = f"{gap.folder}: {problem}, so RL would learn noise"
        if not force:
            raise RunError(f"{text}; train the gap model on more pairs or longer, or use --force")
        warn(text)
    warn_if_not_calibrated(gap)

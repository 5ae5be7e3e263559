"""Preview of a file of pairs: its formats, one row, text lengths, and what was skipped or counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, quantiles

from pitcli import console
from pitcli.data.rows import PreferencePair, Prompt

LengthOf = Callable[[str], int]

BAR = 24
SHOWN_CHARACTERS = 300
LIMITS = (256, 512, 1024)


def preview(
    pairs: Sequence[PreferencePair],
    formats: Mapping[str, int],
    notes: Mapping[str, int],
    length: LengthOf,
    unit: str,
) -> None:
    """Prints the preview on stderr; `length` measures a text in `unit`."""
    console.table("Formats", ["format", "rows"], [[name, count] for name, count in formats.items()])
    if pairs:
        _row(pairs[0])
        lengths = {
            "prompt": [length(_prompt_text(pair.prompt)) for pair in pairs],
            "chosen": [length(pair.chosen) for pair in pairs],
            "rejected": [length(pair.rejected) for pair in pairs],
        }
        _statistics(lengths, unit)
        columns = [histogram(values, _bins(lengths)) for values in lengths.values()]
        labels = [_label(size) for size in _bins(lengths)]
        console.table(f"Pairs by length in {unit}", [unit, *lengths], list(zip(labels, *columns, strict=True)))
        rows = [sum(row) for row in zip(*lengths.values(), strict=True)]
        fit = ", ".join(f"{sum(row <= limit for row in rows)} within {limit}" for limit in LIMITS)
        console.note(
            f"rows of a prompt and both responses, as training reads them: {fit} {unit} (the chat template adds a few)"
        )
    for name, count in sorted(notes.items()):
        console.note(f"{name}: {count}")
    console.note(f"pairs: {len(pairs)}")


def histogram(lengths: Sequence[int], bins: Sequence[int]) -> list[str]:
    """A bar and a count per bin. Bin n has the lengths of n binary digits, so each bin is twice as wide as the last."""
    counts = Counter(length.bit_length() for length in lengths)
    most = max(counts.values())
    return [f"{'█' * -(-BAR * counts[size] // most)} {counts[size]}".strip() for size in bins]


def _bins(lengths: Mapping[str, Sequence[int]]) -> range:
    sizes = [length.bit_length() for values in lengths.values() for length in values]
    return range(min(sizes), max(sizes) + 1)


def _label(size: int) -> str:
    least, most = (2**size) // 2, 2**size - 1
    return str(most) if least >= most else f"{least}-{most}"


def _row(pair: PreferencePair) -> None:
    console.note(f"the pair on line {pair.line}, as parsed:")
    texts = {"id": pair.id, **{f"prompt[{n}] {turn.role}": turn.content for n, turn in enumerate(pair.prompt)}}
    texts |= {"chosen": pair.chosen, "rejected": pair.rejected}
    for label, text in texts.items():
        console.note(f"  {label}: {text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '…'}")
    if pair.extra:
        console.note(f"  other fields, kept unchanged: {', '.join(pair.extra)}")


def _statistics(lengths: Mapping[str, Sequence[int]], unit: str) -> None:
    rows = []
    for name, values in lengths.items():
        # quantiles() needs at least two values; a single value is its own quantile
        percentiles = quantiles(values, n=20, method="inclusive") if len(values) > 1 else [float(values[0])] * 19
        median, high = round(percentiles[9], 1), round(percentiles[18], 1)
        rows.append([name, min(values), round(mean(values), 1), median, high, max(values)])
    console.table(f"Lengths in {unit}", ["text", "min", "mean", "median", "95%", "max"], rows)


def _prompt_text(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)

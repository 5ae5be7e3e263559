"""What a file of pairs holds, shown before anything is made of it: formats, one row, lengths, what is left out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, quantiles

from pitcli import console
from pitcli.data.rows import PreferencePair, Prompt

Ruler = Callable[[str], int]

BAR = 24
SHOWN_CHARACTERS = 300


def preview(
    pairs: Sequence[PreferencePair], formats: Mapping[str, int], notes: Mapping[str, int], ruler: Ruler, unit: str
) -> None:
    """Show on stderr what was read; `ruler` measures a text in `unit`."""
    console.table("Formats", ["format", "rows"], [[name, count] for name, count in formats.items()])
    if pairs:
        _row(pairs[0])
        lengths = {
            "prompt": [ruler(_spoken(pair.prompt)) for pair in pairs],
            "chosen": [ruler(pair.chosen) for pair in pairs],
            "rejected": [ruler(pair.rejected) for pair in pairs],
        }
        _statistics(lengths, unit)
        columns = [histogram(values, _bins(lengths)) for values in lengths.values()]
        labels = [_label(size) for size in _bins(lengths)]
        console.table(f"Pairs by their {unit}", [unit, *lengths], list(zip(labels, *columns, strict=True)))
    for what, count in sorted(notes.items()):
        console.note(f"{what}: {count}")
    console.note(f"pairs: {len(pairs)}")


def histogram(lengths: Sequence[int], bins: Sequence[int]) -> list[str]:
    """A bar and a count for each bin, which holds the lengths of so many binary digits: each is twice as wide."""
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
    console.note(f"the pair of line {pair.line}, as it was read:")
    texts = {"id": pair.id, **{f"prompt[{n}] {turn.role}": turn.content for n, turn in enumerate(pair.prompt)}}
    texts |= {"chosen": pair.chosen, "rejected": pair.rejected}
    for label, text in texts.items():
        console.note(f"  {label}: {text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '…'}")
    if pair.extra:
        console.note(f"  kept as they are: {', '.join(pair.extra)}")


def _statistics(lengths: Mapping[str, Sequence[int]], unit: str) -> None:
    rows = []
    for name, values in lengths.items():
        # quantiles wants two values; one pair is its own quantile
        cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else [float(values[0])] * 19
        rows.append([name, min(values), round(mean(values), 1), round(cuts[9], 1), round(cuts[18], 1), max(values)])
    console.table(f"Lengths in {unit}", ["text", "least", "mean", "median", "95%", "most"], rows)


def _spoken(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)

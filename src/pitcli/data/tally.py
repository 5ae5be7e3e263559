"""What became of the rows of a command: how many there are, how many failed, and notes on the others."""

from collections import Counter

from pitcli.console import counted, error, note
from pitcli.data.reading import file_label
from pitcli.data.rows import RowError


class RowTally:
    """Counts rows. source: the input, as it is named in messages; notes: how often each was made."""

    def __init__(self, source: str) -> None:
        self.label = file_label(source)
        self.notes = Counter[str]()
        self.rows = self.failed = 0

    def on_error(self, problem: RowError) -> None:
        self.failed += 1
        error(str(problem))

    def show_notes(self) -> None:
        for text, count in self.notes.items():
            note(f"{self.label}: {counted(count, text)}")

    def failures(self) -> str:
        """The end of a sentence that counts the rows."""
        return f", {counted(self.failed, 'rows failed')}" if self.failed else ""

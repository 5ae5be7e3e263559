"""Settings of the commands that read preference pairs, and the choices for rows that are too long."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import Settings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.values import FieldPaths


class LongRows(StrEnum):
    cut = "cut"
    skip = "skip"
    truncate = "truncate"
    error = "error"


class PairRowSettings(Settings):
    """How the rows of preference pairs are read, by every command that reads them."""

    section = Section.data

    skip_bad: Annotated[bool | None, Fact.execution | Fact.handed_on] = Field(
        None,
        description="Skip rows that cannot be used as pairs, and count them by reason; --no-skip-bad makes all of them "
        "errors [default: skip those of hub: data sets, and those that published formats such as HH are known to have]",
    )
    list_bad: Annotated[str | None, Fact.output] = Field(
        None,
        description="Output file for the rows that cannot be used, skipped or not: file, line, field and reason of "
        "each, one JSON object per line [default: none]",
    )
    fields: Annotated[FieldPaths, Fact.text | Fact.execution | Fact.handed_on] = Field(
        None,
        description="Where to find the parts of a pair in rows of no known format: prompt=PATH,chosen=PATH,"
        "rejected=PATH[,system=PATH][,history=PATH]; a path is a field, data.question, or answers.0.text "
        "[default: the format is recognised]",
    )


class DataSettings(PairRowSettings):
    section = Section.data

    data: Annotated[str | None, Fact.files | Fact.handed_on | Fact.off_card, Section.common] = Field(
        None,
        description="Preference pairs: .jsonl, .csv, .tsv (or .gz of these), .parquet, hub:OWNER/NAME, or - for stdin; "
        "several, comma-separated [default: the data of the earlier runs; the first command needs it]",
    )
    max_rows: int | None = Field(
        None, ge=1, description="Use at most this many rows, from the start [default: all rows]"
    )
    long_rows: LongRows = Field(
        LongRows.cut,
        description="Rows longer than --max-length: cut the prompt from its front and the responses from their end; "
        "skip the row; truncate the responses only; or end with an error",
    )

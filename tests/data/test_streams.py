"""Windows of rows: full at once, except from a pipe."""

import os
from pathlib import Path

import pytest

from pitcli.data.streams import windows


@pytest.mark.parametrize("path", ["rows.jsonl", "instructions:test", "hub:owner/name"])
def test_rows_that_do_not_arrive_one_by_one_fill_the_first_window(path: str) -> None:
    assert [len(window) for window in windows(range(20), 8, path)] == [8, 8, 4]


def test_the_first_rows_of_a_pipe_come_out_early(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("-", str(tmp_path / "fifo")):
        assert [len(window) for window in windows(range(20), 8, path)] == [1, 2, 4, 8, 5]

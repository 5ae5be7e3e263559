"""A draft as plain text: the newline at its end, encodings, and unusable files."""

from pathlib import Path

import pytest

from pitcli.data.plain_text import read_text_draft
from pitcli.data.rows import Message
from pitcli.errors import InputError


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Dear all,\n\nyes.\n", "Dear all,\n\nyes."),
        (b"yes", "yes"),
        (b" yes \r\n", " yes "),
        (b"\xef\xbb\xbfja\xc3\xa4\n\n", "jaä\n"),
        (b"[ 1 ]\n", "[ 1 ]"),
        (b'{"a": 1}\n', '{"a": 1}'),
    ],
)
def test_the_text_is_kept_but_for_the_newline_at_its_end(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "draft.txt"
    path.write_bytes(data)
    draft = read_text_draft(str(path), "Answer.")
    assert (draft.response, draft.prompt) == (text, (Message("user", "Answer."),))
    assert draft.row == {"prompt": "Answer.", "response": text}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "draft.txt: empty"),
        (b" \n\n", "draft.txt: empty"),
        (b"a\xff", "draft.txt: not UTF-8: byte 0xff at byte 2; convert it: iconv"),
        (b"a\0b", "a NUL character"),
        (b"x" * (16 * 2**20 + 1), "longer than 16 MiB"),
    ],
)
def test_an_unusable_text_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "draft.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=problem):
        read_text_draft(str(path), "Answer.")


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.txt: cannot be opened: No such file"):
        read_text_draft(str(tmp_path / "none.txt"), "Answer.")
    with pytest.raises(InputError, match="cannot be opened: Is a directory"):
        read_text_draft(str(tmp_path), "Answer.")

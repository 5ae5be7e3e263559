"""A draft as plain text, the response to a prompt that is given on the command line."""

from pitcli.data.conversations import checked_text, parse_prompt
from pitcli.data.reading import BYTE_ORDER_MARK, file_label, open_stdin
from pitcli.data.rows import Draft
from pitcli.data.strict_json import MAX_LINE_BYTES, RowProblem, check_values, decoded
from pitcli.errors import InputError


def read_text_draft(path: str, prompt: str) -> Draft:
    """The whole file, or stdin, as a draft; the newline at its end is not part of it."""
    label = file_label(path)
    try:
        with open_stdin() if path == "-" else open(path, "rb") as stream:
            data = stream.read(MAX_LINE_BYTES + 1)
        if len(data) > MAX_LINE_BYTES:
            raise RowProblem("", f"the text is longer than {MAX_LINE_BYTES // 2**20} MiB")
        text = decoded(data.removeprefix(BYTE_ORDER_MARK)).removesuffix("\n").removesuffix("\r")
        row = {"prompt": prompt, "response": checked_text(text, "")}
        check_values(row)
        return Draft(None, parse_prompt(prompt, "--prompt"), text, row, line=1)
    except OSError as error:
        raise InputError(f"{label}: cannot be opened: {error.strerror}") from None
    except RowProblem as problem:
        raise InputError(f"{problem.field or label}: {problem.reason}") from None

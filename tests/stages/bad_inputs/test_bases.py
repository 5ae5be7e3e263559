"""Bases whose tokenizer or template lacks something, has too many tokens, or refuses a prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from tests.stages.bad_inputs.rows import (
    COMMANDS,
    FIRST,
    LAST,
    MIDDLE,
    PROMPT,
    Loaded,
    pit,
    swap,
)


def tiny_with(folder: Path, tiny_folder: Path, changes: dict[str, Callable[[dict[str, Any]], object]]) -> Path:
    """A copy of the embedded base with some of its JSON files changed."""
    for path in tiny_folder.iterdir():
        content = path.read_bytes()
        if change := changes.get(path.name):
            values = json.loads(content)
            change(values)
            content = json.dumps(values).encode()
        (folder / path.name).write_bytes(content)
    return folder


def test_a_tokenizer_larger_than_the_embeddings_is_refused(
    no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any
) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append(
            {**tokenizer["added_tokens"][0], "id": 438, "content": "<x>", "special": False}
        )

    base = tiny_with(tmp_path, tiny_folder, {"tokenizer.json": add})
    assert pit("train-reward", "pairs.jsonl", "--model", str(base)) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: --model: {base}: ")
    assert "model.resize_token_embeddings(439)" in err


def test_a_base_without_a_context_length_needs_max_length(
    no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any
) -> None:
    def remove_context_length(config: dict[str, Any]) -> None:
        del config["max_position_embeddings"]
        config["model_type"] = "mamba"

    base = tiny_with(tmp_path, tiny_folder, {"config.json": remove_context_length})
    assert pit("train-reward", "pairs.jsonl", "--model", str(base)) == 2
    assert capfd.readouterr().err == (
        f"error: --max-length: {base} gives no context length; set the longest conversation in tokens\n"
    )
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--model", str(base), "--max-length", "200")


def test_a_base_without_pad_token_and_chat_template_gets_defaults(
    no_model: None, tmp_path: Path, tiny_folder: Path
) -> None:
    """test_templates checks which."""
    base = tiny_with(tmp_path, tiny_folder, {"tokenizer_config.json": lambda config: config.pop("pad_token")})
    (base / "chat_template.jinja").unlink()
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--model", str(base))


def test_a_text_without_tokens_is_refused(no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any) -> None:
    """Nothing could be learned from such a row: all its labels would be masked."""

    def drop_zero_width_spaces(tokenizer: dict[str, Any]) -> None:
        tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
        tokenizer["pre_tokenizer"]["add_prefix_space"] = False

    base = tiny_with(tmp_path, tiny_folder, {"tokenizer.json": drop_zero_width_spaces})
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST["train-reward"] + b"\n" + MIDDLE["train-reward"].replace(b"ant cow fox", rb"\u200b\u200b"))
    for command in ("train-reward", "sft"):
        assert pit(command, file, "--model", str(base)) == 2
        expected = f"error: {file}:2:chosen: empty for this model: its tokenizer encodes the text as no tokens\n"
        assert capfd.readouterr().err == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_roles_that_the_template_refuses_are_a_row_error(
    command: str, request: Any, tmp_path: Path, tiny_folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tiny_folder.joinpath("chat_template.jinja").read_text()
    refusing = "{% if messages[2:] and messages[0].role == 'system' %}{{ 1 + '' }}{% endif %}" + template
    with_system = swap(PROMPT, b'[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]')
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([FIRST[command], with_system(MIDDLE[command]), LAST[command], b""]))
    base = tiny_with(tmp_path, tiny_folder, {})
    (base / "chat_template.jinja").write_text(refusing)
    flags = ["--model", str(base)]
    if command == "improve":
        small = "--data pairs.jsonl --max-steps 1 --lora-rank 2 --batch-size 4"
        for stage in ("sft", "train-reward"):
            assert cli.main([stage, *small.split(), *flags, "--out", str(tmp_path / stage)]) == 0
        flags += ["--run", str(tmp_path / "sft"), "--reward", str(tmp_path / "train-reward")]
        capfd.readouterr()
    else:
        request.getfixturevalue("no_model")
    assert pit(command, file, *flags) == (1 if command == "improve" else 2)
    out, err = capfd.readouterr()
    assert f"error: {file}:2:prompt: the chat template refuses the roles system, user, assistant, user: unsupp" in err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ([1, 3] if command == "improve" else [])

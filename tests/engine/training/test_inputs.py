"""What a new run knows of its data."""

import json
from pathlib import Path

import pytest

from pitcli.engine.training.inputs import gap_data_of_rows
from pitcli.errors import InputError

GAP_DATA = {"path": "pairs.jsonl", "digest": "d", "rows": 4, "prompts": ["a", "b"]}


def test_rows_of_pit_improve_name_the_data_of_the_gap_model_that_chose_them(tmp_path: Path) -> None:
    improved, plain, sampled = (tmp_path / f"{name}.jsonl" for name in ("improved", "plain", "sampled"))
    record = {"settings": {}, "origin": {"gap_data": [GAP_DATA]}}
    Path(f"{improved}.manifest.json").write_text(json.dumps(record))
    Path(f"{sampled}.manifest.json").write_text(json.dumps({"settings": {}}))
    found = gap_data_of_rows(f"{plain},{improved},{sampled}")
    assert [(data.path, data.rows) for data in found] == [("pairs.jsonl", 4)]
    assert gap_data_of_rows("hub:owner/name") == []


@pytest.mark.parametrize("content", ["[1, 2", "[1, 2]", '{"origin": {"gap_data": [{"path": "x"}]}}'])
def test_a_manifest_that_cannot_be_read_is_no_rows_without_a_gap_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"rows.jsonl.manifest.json: damaged, or not of pit improve"):
        gap_data_of_rows(str(tmp_path / "rows.jsonl"))

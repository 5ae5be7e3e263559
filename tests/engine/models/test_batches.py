"""Padding, masks, the order of the rows, and micro-batches."""

from itertools import pairwise, product

import pytest
import torch

from pitcli.data.templates import Example
from pitcli.engine.models.batches import PASS_TOKENS, Batch, length_sorted_chunks, pad_left, pad_right, padding_share
from pitcli.engine.models.trees import completion_batch
from pitcli.engine.training.schedule import micro_batch_rows, rows_of_step, steps_per_epoch
from pitcli.settings.training import SftConfig

CPU = torch.device("cpu")


def test_padding_on_the_right() -> None:
    assert pad_right([[5, 9, 7], [6]], pad_id=9).tolist() == [[5, 9, 7], [6, 9, 9]]


def test_padding_on_the_left() -> None:
    # 9 is a pad id that also occurs as a token: only the mask marks the padding
    input_ids_BT, mask_BT = pad_left([[5, 9, 7], [6]], pad_id=9)
    assert input_ids_BT.tolist() == [[5, 9, 7], [9, 9, 6]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_states_that_predict_the_completions_are_selected() -> None:
    batch = completion_batch([Example([1, 2, 3], [4, 5]), Example([6], [7]), Example([8], [9, 10, 11])], pad_id=0)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 11, 0]]
    assert batch.rows_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.columns_N.tolist() == [2, 3, 0, 0, 1, 2]
    assert batch.targets_N.tolist() == [4, 5, 7, 9, 10, 11]
    assert batch.tokens == 11
    assert isinstance(batch.to(CPU), Batch)


def test_the_share_of_padding_in_a_step() -> None:
    wide = completion_batch([Example([1, 2, 3], [4, 5]), Example([6], [7])], pad_id=0)
    narrow = completion_batch([Example([1], [2])], pad_id=0)
    assert padding_share([wide, narrow]) == 3 / 12


def test_an_epoch_has_each_row_once() -> None:
    assert [steps_per_epoch(rows, 4) for rows in (1, 4, 5, 10)] == [1, 1, 2, 3]
    steps = [rows_of_step(step, rows=10, batch_size=4, seed=1) for step in range(6)]
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for rows in epoch for row in rows] for epoch in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))


def test_rows_depend_on_seed_and_step_only() -> None:
    assert rows_of_step(7, 100, 8, seed=3) == rows_of_step(7, 100, 8, seed=3)
    assert rows_of_step(7, 100, 8, seed=3) != rows_of_step(7, 100, 8, seed=4)


def test_chunks_are_sorted_from_long_to_short() -> None:
    assert length_sorted_chunks([3, 9, 5, 9, 1], 2, CPU) == [[1, 3], [2, 0], [4]]
    assert length_sorted_chunks([], 2, CPU) == []


def cost(chunks: list[list[int]], lengths: list[int], device: torch.device) -> int:
    passes = PASS_TOKENS[device.type] * len(chunks)
    return passes + sum(max(lengths[row] for row in chunk) * len(chunk) for chunk in chunks)


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")], ids=str)
def test_chunks_have_the_least_cost(device: torch.device) -> None:
    """Compared with every way to split the sorted rows."""
    for seed in range(20):
        lengths = torch.randint(1, 300, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
        order = sorted(range(9), key=lambda row: -lengths[row])
        all_splits = []
        for splits in product([False, True], repeat=8):
            edges = [0, *(index + 1 for index, split in enumerate(splits) if split), 9]
            all_splits.append([order[start:stop] for start, stop in pairwise(edges)])
        small = [chunks for chunks in all_splits if max(map(len, chunks)) <= 4]
        found = length_sorted_chunks(lengths, 4, device)
        assert cost(found, lengths, device) == min(cost(chunks, lengths, device) for chunks in small)
        assert device == CPU or len(found) == 3  # as few passes as possible
        within_budget = [
            chunks
            for chunks in all_splits
            if all(len(chunk) == 1 or lengths[chunk[0]] * len(chunk) <= 500 for chunk in chunks)
        ]
        found = length_sorted_chunks(lengths, 9, device, 500)
        assert cost(found, lengths, device) == min(cost(chunks, lengths, device) for chunks in within_budget)


def test_tokens_per_batch_replaces_the_limit_of_rows_and_leaves_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.exp(torch.randn(640, generator=generator) * 0.6 + 5.2).int().tolist()  # 180 tokens, some 1,000
    by_tokens = SftConfig(batch_size=64, tokens_per_batch=2048)
    for config in (by_tokens, SftConfig(batch_size=16)):
        chunks = [chunk for step in range(10) for chunk in micro_batch_rows(step, lengths, config, 8, CPU)]
        widths = [max(lengths[row] for row in chunk) for chunk in chunks]
        cells = sum(width * len(chunk) for width, chunk in zip(widths, chunks, strict=True))
        assert 1 - sum(lengths[row] for chunk in chunks for row in chunk) / cells < 0.05
        most = max(map(len, chunks))
        assert most > 8 if config is by_tokens else most <= 8
        if config is by_tokens:
            assert all(w * len(chunk) <= 2048 for w, chunk in zip(widths, chunks, strict=True) if len(chunk) > 1)

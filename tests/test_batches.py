"""Padding, masks and the order of the rows."""

import torch

from pitcli.data.templates import Example
from pitcli.engine.batches import (
    Batch,
    completion_batch,
    length_sorted_chunks,
    pad_left,
    pad_right,
    rows_of_step,
    steps_per_epoch,
)


def test_padding_on_the_right() -> None:
    # 9 is a pad id that also occurs as a token: the mask alone says what is padding
    input_ids_BT, mask_BT = pad_right([[5, 9, 7], [6]], pad_id=9)
    assert input_ids_BT.tolist() == [[5, 9, 7], [6, 9, 9]]
    assert mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_on_the_left() -> None:
    input_ids_BT, mask_BT = pad_left([[5, 9, 7], [6]], pad_id=9)
    assert input_ids_BT.tolist() == [[5, 9, 7], [9, 9, 6]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_completion_mask_lies_on_the_completions() -> None:
    batch = completion_batch([Example([1, 2, 3], [4, 5]), Example([6], [7]), Example([8], [9, 10, 11])], pad_id=0)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 11, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert batch.completion_mask_BT.tolist() == [
        [False, False, False, True, True],
        [False, True, False, False, False],
        [False, True, True, True, False],
    ]
    assert isinstance(batch.to(torch.device("cpu")), Batch)


def test_an_epoch_takes_each_row_once() -> None:
    assert [steps_per_epoch(rows, 4) for rows in (1, 4, 5, 10)] == [1, 1, 2, 3]
    steps = [rows_of_step(step, rows=10, batch_size=4, seed=1) for step in range(6)]
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for rows in epoch for row in rows] for epoch in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))


def test_rows_are_a_function_of_seed_and_step() -> None:
    assert rows_of_step(7, 100, 8, seed=3) == rows_of_step(7, 100, 8, seed=3)
    assert rows_of_step(7, 100, 8, seed=3) != rows_of_step(7, 100, 8, seed=4)


def test_chunks_go_from_the_longest_to_the_shortest() -> None:
    assert length_sorted_chunks([3, 9, 5, 9, 1], size=2) == [[1, 3], [2, 0], [4]]
    assert length_sorted_chunks([], size=2) == []

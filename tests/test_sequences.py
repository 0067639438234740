from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seqclf.data.sequences import IGNORED, Sequences, Share

DATA = Sequences(
    values=torch.arange(5 * 2 * 3, dtype=torch.uint8).view(5, 2, 3),
    labels=torch.tensor([0, 1, 2, 1, 0]),
    classes=("a", "b", "c"),
    scale=30.0,
)


@pytest.mark.parametrize(
    ("ids", "fetched", "labels"), [([4, 0, 4], [4, 0, 4], [0, 0, 0]), ([], [3], [IGNORED])]
)
def test_a_share_is_fetched_and_an_empty_one_is_filled(
    ids: list[int], fetched: list[int], labels: list[int]
) -> None:
    share = Share(7, torch.tensor(ids, dtype=torch.int64), 4, 9, 3)
    batch = DATA.__getitems__(share)
    assert batch.values.tolist() == [DATA.values[i].tolist() for i in fetched]
    assert batch.labels.tolist() == labels
    assert (batch.step, batch.first, batch.total) == (7, 4, 9)
    assert batch.values.dtype == torch.uint8
    assert DATA.labels.tolist() == [0, 1, 2, 1, 0]
    assert batch.to(torch.device("cpu")) is batch
    assert batch.to(torch.device("meta")).labels.device.type == "meta"


def test_len_item_and_select() -> None:
    value, label = DATA[2]
    assert (len(DATA), value.tolist(), int(label)) == (5, [[12, 13, 14], [15, 16, 17]], 2)
    chosen = DATA.select(torch.tensor([3, 1]))
    assert (chosen.labels.tolist(), chosen.values[:, 0, 0].tolist()) == ([1, 1], [18, 6])
    assert (chosen.classes, chosen.scale) == (DATA.classes, DATA.scale)


@pytest.mark.parametrize("shape", [(4, 2, 3), (5, 6), (5, 2, 3, 1)])
def test_values_must_be_sequences_with_one_label_each(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one label each, found 5 labels"):
        replace(DATA, values=torch.zeros(shape))


def test_the_fingerprint_sees_every_part() -> None:
    variants = [
        DATA,
        replace(DATA, values=DATA.values.flip(0)),
        replace(DATA, labels=DATA.labels.roll(1)),
        replace(DATA, classes=("a", "b", "d")),
        replace(DATA, values=DATA.values.view(5, 3, 2)),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    strided = replace(DATA, values=DATA.values.mT.contiguous().mT)
    assert strided.fingerprint() == DATA.fingerprint()


# ---- unequal lengths

RAGGED = Sequences(
    values=torch.arange(20.0).view(10, 2),
    labels=torch.tensor([0, 1, 1, 0]),
    classes=("a", "b"),
    starts=torch.tensor([0, 1, 4, 6]),
    lengths=torch.tensor([1, 3, 2, 3]),
)


def rows_of(sequences: Sequences, number: int) -> list[list[float]]:
    rows: list[list[float]] = sequences[number][0].tolist()
    return rows


def test_rows_repeat_their_last_step_up_to_the_longest() -> None:
    values, lengths = RAGGED.rows(torch.tensor([1, 0]))
    assert values.tolist() == [[[2, 3], [4, 5], [6, 7]], [[0, 1], [0, 1], [0, 1]]]
    assert lengths is not None
    assert lengths.tolist() == [3, 1]
    values, none = RAGGED.rows(torch.tensor([1, 3]))
    assert (values[1].tolist(), none) == ([[12, 13], [14, 15], [16, 17]], None)
    batch = RAGGED.__getitems__(Share(7, torch.tensor([2, 0]), 4, 9, 3))
    assert (batch.labels.tolist(), batch.step, batch.first, batch.total) == ([1, 0], 7, 4, 9)
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [2, 1]
    empty = RAGGED.__getitems__(Share(7, torch.tensor([], dtype=torch.int64), 4, 9, 3))
    assert (empty.labels.tolist(), empty.values.shape) == ([IGNORED], (1, 3, 2))
    assert RAGGED.shape == (3, 2)


def test_a_part_of_a_batch_is_cut_to_its_longest_row() -> None:
    batch = RAGGED.__getitems__(Share(0, torch.tensor([0, 2, 1, 3]), 0, 4, 0))
    part = batch.part(0, 2)
    assert (part.values.shape, part.labels.tolist()) == ((2, 2, 2), [0, 1])
    assert part.lengths is not None
    assert part.lengths.tolist() == [1, 2]
    equal = batch.part(2, 4)
    assert (equal.values.shape, equal.lengths) == ((2, 3, 2), None)
    images = DATA.__getitems__(Share(0, torch.tensor([0, 1, 2]), 0, 3, 0)).part(1, 2)
    assert images.values.tolist() == [DATA.values[1].tolist()]


@pytest.mark.parametrize(
    ("keep", "kept"), [("first", [[2, 3], [4, 5]]), ("last", [[4, 5], [6, 7]])]
)
def test_long_sequences_are_cut(keep: str, kept: list[list[float]]) -> None:
    cut = RAGGED.cut(2, keep)
    assert rows_of(cut, 1) == kept
    assert [len(rows_of(cut, i)) for i in range(4)] == [1, 2, 2, 2]
    assert RAGGED.cut(None, keep) is RAGGED.cut(3, keep) is RAGGED
    images = DATA.cut(1, keep)
    assert images.values.tolist() == DATA.values[:, [0 if keep == "first" else 1]].tolist()


def test_selections_share_the_values_of_all() -> None:
    chosen = RAGGED.select(torch.tensor([3, 0]))
    assert chosen.values.data_ptr() == RAGGED.values.data_ptr()
    assert (rows_of(chosen, 0), chosen.labels.tolist()) == ([[12, 13], [14, 15], [16, 17]], [0, 0])
    assert chosen.shape == (3, 2)

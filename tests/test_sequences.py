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

"""NumPy's files: every array is read right, and no pickle."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.reading import numbers, problems, rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import Journal, ReadOptions, Row
from seqclf.errors import UserError


def test_npy_takes_labels_from_a_file_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12).reshape(3, 2, 2))
    labels = write(tmp_path, "y.txt", "a\nb\na\n")
    sequences = rows(tmp_path / "x.npy", labels=labels)
    assert [row.label for row in sequences] == ["a", "b", "a"]
    assert numbers(sequences[2]) == [[8, 9], [10, 11]]
    np.save(tmp_path / "y.npy", np.array([1.0, 2.0, 1.0]))
    assert [row.label for row in rows(tmp_path / "x.npy", labels=tmp_path / "y.npy")] == [
        "1",
        "2",
        "1",
    ]


def test_arrays_in_fortran_order(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(3, 4, 2)
    np.save(tmp_path / "x.npy", np.asfortranarray(values))
    assert [numbers(row) for row in rows(tmp_path / "x.npy")] == values.tolist()
    np.save(tmp_path / "one.npy", values[0].T.copy().T)
    (row,) = rows(write(tmp_path, "manifest.csv", "path,label\none.npy,a\n"))
    assert numbers(row) == values[0].tolist()


def test_npz_of_parts(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        x_train=np.zeros((2, 3)),
        y_train=np.array([0, 1]),
        x_test=np.ones((1, 3)),
        y_test=np.array([1]),
    )
    sequences = rows(tmp_path / "x.npz")
    assert [(row.split, row.label) for row in sequences] == [
        ("train", "0"),
        ("train", "1"),
        ("test", "1"),
    ]


def aside(path: Path, **options: object) -> dict[str, str]:
    journal = Journal()
    list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    return journal.left_aside


def save(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "x.npz", **arrays)  # type: ignore[arg-type]
    return folder / "x.npz"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ragged_sequences_are_the_same_however_they_are_saved(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ragged")
    num_features = data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=6))
    # An end that happens to be NaN would be padding; these sequences have none.
    value = st.floats(-1e6, 1e6, width=32)
    sequences = [
        np.array([[data.draw(value) for _ in range(num_features)] for _ in range(length)])
        for length in lengths
    ]
    longest = max(lengths) + data.draw(st.integers(0, 2))
    padded = np.full((len(lengths), longest, num_features), np.nan)
    zeros = np.full_like(padded, 7.0)
    for index, sequence in enumerate(sequences):
        padded[index, : len(sequence)] = sequence
        zeros[index, : len(sequence)] = sequence
    labels = np.array([f"c{index % 2}" for index in range(len(lengths))])
    concatenated = np.concatenate(sequences)
    ways: dict[str, dict[str, np.ndarray]] = {
        "padded": {"x": zeros, "y": labels, "lengths": np.array(lengths)},
        "nan": {"X": padded, "labels": labels},
        "offsets": {
            "values": concatenated,
            "offsets": np.cumsum([0, *lengths]),
            "y": labels,
        },
    }
    if len(lengths) != sum(lengths):
        ways["concatenated"] = {"X": concatenated, "y": labels, "lengths": np.array(lengths)}
    expected = [sequence.astype(np.float32).tolist() for sequence in sequences]
    for name, arrays in ways.items():
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        found = rows(folder / f"{name}.npz")
        assert [numbers(row) for row in found] == expected, name
        assert [row.label for row in found] == labels.tolist()
        assert [row.id for row in found] == [str(index) for index in range(len(lengths))]
    found = rows(folder / "nan.npz")
    assert [row.padding for row in found] == [longest - length for length in lengths]
    (first, *_) = rows(save(folder, x=padded.transpose(0, 2, 1)), channels_first=True)
    assert numbers(first) == expected[0]


def test_groups_splits_ids_and_names_of_features_are_read(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        X=np.arange(8.0).reshape(2, 2, 2),
        y=np.array([b"a", b"b"]),
        groups=np.array([1, 2]),
        split=np.array(["training", "test"]),
        ids=np.array(["rec7", "rec9"]),
        feature_names=np.array(["ax", "ay"]),
        weights=np.ones(2),
    )
    first, second = rows(path)
    assert (first.id, first.label, first.group, first.split) == ("rec7", "a", "1", "train")
    assert (second.id, second.label, second.group, second.split) == ("rec9", "b", "2", "test")
    assert first.features == ("ax", "ay")
    assert aside(path) == {"weights": "an array that is not read: float64 (2,)"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("X_train", "train"),
        ("x_dev", "val"),
        ("X_valid", "val"),
        ("validation_x", "val"),
        ("test_data", "test"),
        ("xTest", "test"),
    ],
)
def test_names_of_splits(name: str, split: str, tmp_path: Path) -> None:
    (row,) = rows(save(tmp_path, **{name: np.ones((1, 3))}))
    assert row.split == split


def test_an_array_too_many_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.ones((1, 2)), values=np.zeros((1, 2)), y_test=np.array([1]))
    (row,) = rows(path)
    assert numbers(row) == [[1], [1]]
    assert set(aside(path)) == {"values", "y_test"}


def test_zeros_are_padding_if_they_are_said_to_be(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.array([[[1.0, 0], [0, 0], [2, 0], [0, 0]], [[0, 0]] * 4]))
    kept, _ = rows(path)
    assert len(kept.steps) == 4
    first, second = read_rows(path, ReadOptions(pad_value=0.0))
    assert isinstance(first, Row)
    assert (numbers(first), first.padding) == ([[1, 0], [0, 0], [2, 0]], 1)
    assert "all of its values are missing or padding" in str(second)


def test_labels_of_numbers_are_whole(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.ones((4, 2)), y=np.array([1.0, 2.0, np.nan, 2.5]))
    assert [row.label for row in rows(path)] == ["1", "2", None, "2.5"]


def pickled(folder: Path) -> bytes:
    np.save(folder / "objects.npy", np.array([[1], [1, 2]], dtype=object), allow_pickle=True)
    return (folder / "objects.npy").read_bytes()


def test_pickles_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "x.npy", pickled(tmp_path))
    with pytest.raises(UserError, match="only pickle could read"):
        list(read_rows(tmp_path / "x.npy", ReadOptions()))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", pickled(tmp_path))
    with pytest.raises(UserError, match="only pickle could read"):
        list(read_rows(tmp_path / "x.npz", ReadOptions()))
    (message,) = problems(write(tmp_path, "manifest.csv", "path,label\nx.npy,a\n"))
    assert "x.npy: holds Python objects" in message


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(3)}, "expected x and y, or values, offsets and labels"),
        ({"x": np.zeros(3)}, r"shape \(3,\)"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "3 sequences, but 2 labels"),
        ({"x": np.array([["a"]])}, "where numbers are expected"),
        ({"values": np.zeros(3), "offsets": np.array([0, 2])}, "rise from 0 to its 3 steps"),
        ({"values": np.zeros(3), "offsets": np.array([0, 4, 3])}, "rise from 0 to its 3 steps"),
        ({"values": np.zeros(3), "offsets": np.array([0.0, 3.0])}, "expected whole numbers"),
        ({"x": np.zeros((3, 2)), "y": np.eye(3)}, r"save the number of the class: y\.argmax\(1\)"),
        ({"x": np.zeros((3, 2)), "groups": np.zeros(4)}, "3 sequences, but 4 groups"),
        ({"x": np.zeros((2, 3)), "lengths": np.array([1, 0])}, "length 1 is 0; must be at least 1"),
        (
            {"x": np.zeros((2, 3)), "lengths": np.array([1, 4])},
            "length 1 is 4, where the array has 3",
        ),
        ({"x": np.zeros((2, 3)), "lengths": np.array([1, 1])}, "may be padded sequences, or steps"),
        (
            {"x": np.zeros((5, 3)), "lengths": np.array([1, 1])},
            "fits neither 2 padded sequences nor",
        ),
        ({"x": np.zeros((2, 3)), "lengths": np.array([1.0, 2.0])}, "lengths are float64"),
        ({"x": np.zeros((2, 3), complex)}, "complex128, where numbers are expected"),
    ],
)
def test_npz_that_cannot_be_used(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / "x.npz", ReadOptions()))


def test_channels_first_needs_three_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match="--channels-first expects sequences x features x steps"):
        list(read_rows(tmp_path / "x.npy", ReadOptions(channels_first=True)))


def test_array_problems_name_the_place(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 2))
    values[1, 2, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    (message,) = problems(tmp_path / "x.npy")
    assert message.startswith("x.npy[1]: step 3, feature 2: a missing value")


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**6)}
    np.lib.format.write_array_header_1_0(header, fields)
    with pytest.raises(UserError, match="where its header asks for"):
        list(read_rows(write(tmp_path, "x.npy", header.getvalue() + b"\0" * 64), ReadOptions()))

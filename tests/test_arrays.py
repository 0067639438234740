"""NumPy's files: every array is read right, and no pickle."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.reading import numbers, problems, rows, write

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import ReadOptions
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
    ],
)
def test_npz_that_cannot_be_used(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / "x.npz", ReadOptions()))


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

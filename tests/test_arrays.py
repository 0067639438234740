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


def decisions(path: Path, **options: object) -> Journal:
    journal = Journal()
    list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    return journal


def aside(path: Path, **options: object) -> dict[str, str]:
    return decisions(path, **options).left_aside


def refusal(path: Path, **options: object) -> str:
    """Return why a whole file is refused, without the folder."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


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
    if num_features == 1:
        ways["one feature"] = {"x": concatenated[:, 0], "y": labels, "lengths": np.array(lengths)}
    if len(lengths) < sum(lengths):  # else it may be padded too
        ways["concatenated"] = {"X": concatenated, "y": labels, "lengths": np.array(lengths)}
        if num_features == 1:
            ways["rows"] = {"x": zeros[:, :, 0], "y": labels, "lengths": np.array(lengths)}
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


X = np.zeros((3, 2))  # three sequences
CUBE = np.zeros((3, 4, 2))
THREE = np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"arr_0": X, "arr_1": THREE},
            "x.npz: expected x and y, or values, offsets and labels, or x_train, y_train, x_test "
            'and y_test; found arr_0, arr_1; np.savez("x.npz", x=..., y=...) names them',
        ),
        ({}, "found nothing"),
        # Shapes
        ({"x": np.zeros(3)}, "x.npz: x: shape (3,), where sequences x steps x features"),
        ({"x": np.zeros(3)}, "save x[None] if it is one sequence, else its offsets or lengths too"),
        ({"X": np.array(1.0)}, "x.npz: X: shape (), where"),
        ({"x": np.zeros((2, 3, 4, 5))}, "save x.reshape(*x.shape[:2], -1)"),
        ({"x": np.zeros((0, 4, 2))}, "x.npz: x: shape (0, 4, 2), which holds no sequence"),
        ({"x": np.zeros((2, 0))}, "x.npz: x: shape (2, 0), which holds no value"),
        ({"x": np.zeros((2, 3, 0))}, "x.npz: x: shape (2, 3, 0), which holds no value"),
        ({"values": np.zeros(0), "offsets": np.array([0])}, "shape (0,), which holds no sequence"),
        # Kinds
        ({"x": np.array([["a"]])}, "<U1, shape (1, 1), where numbers are expected; save x.astype("),
        (
            {"x": X.astype(complex)},
            "where numbers are expected; save np.stack([x.real, x.imag], -1",
        ),
        ({"x": CUBE.astype(complex)}, "save np.concatenate([x.real, x.imag], -1)"),
        (
            {"X": X.astype("M8[s]")},
            "X: datetime64[s], shape (3, 2), where numbers are expected; save (X - X.min()) / np",
        ),
        ({"x": X.astype("m8[s]")}, 'save x / np.timedelta64(1, "s")'),
        ({"x": np.zeros((3, 2), [("a", "f4"), ("b", "f4")])}, "structured_to_unstructured(x)"),
        # Objects
        (
            {"y": np.array(["a", "b", None], object), "x": X},
            "x.npz: y: holds Python objects, which only pickle could read; "
            "np.savez(..., y=y.astype(str)) saves what can be read",
        ),
        (
            {"X_train": np.array([[1], [1, 2]], object)},
            'np.savez("x.npz", values_train=np.concatenate(X_train), offsets_train=np.cumsum([0, '
            "*map(len, X_train)]), labels_train=y_train)",
        ),
        ({"x": X, "lengths": np.array([1, 2, 2], object)}, "lengths=lengths.astype(int)"),
        ({"x": CUBE, "features": np.array(["a", "b"], object)}, "features=features.astype(str)"),
        # One value for each sequence
        (
            {"x": X, "y": np.zeros(2)},
            "x.npz: x: shape (3, 2), 3 sequences, but 2 labels in x.npz: y, shape (2,)",
        ),
        ({"x": X, "y": np.eye(3)}, "if its rows are classes as one-hot, save y.argmax(1)"),
        ({"x": X, "Labels": np.eye(3)[:, :2]}, "as one-hot, save Labels.argmax(1)"),
        ({"x": X[:1], "y": np.eye(3)[:1]}, "save y.argmax(1)"),
        ({"x": X[:1], "y": np.array("a")}, "1 sequences, but 1 labels in x.npz: y, shape ()"),
        ({"x": X, "groups": np.zeros(4)}, "3 sequences, but 4 groups in x.npz: groups"),
        ({"x": X, "ids": np.zeros(2)}, "3 sequences, but 2 ids in x.npz: ids, shape (2,)"),
        ({"x": X, "y": THREE.astype("M8[D]")}, "x.npz: y: datetime64[D], shape (3,), where a text"),
        ({"x": X, "y": THREE * 1j}, "is the label; save y.astype(str)"),
        ({"x": X, "y": np.zeros(3, [("kind", "i4")])}, "such as y['kind']"),
        # Splits
        (
            {"x": X, "split": np.array(["train", "test", "held out"])},
            "x.npz: split[2]: 'held out': expected train, val or test; save np.where(split == "
            "'held out', 'val', split)",
        ),
        ({"x": X, "split": THREE}, "split[0]: '0': expected train, val or test; save np.array(['t"),
        ({"x": X, "split": THREE > 1}, "save np.where(split, 'train', 'test'), if true is train"),
        ({"x": X, "x_test": X}, "x and x_test: is x a part of its own, or all? save parts as x_tr"),
        ({"x_dev": X, "x_val": X}, "x_dev and x_val: which of them holds the steps of val?"),
        ({"x": X, "Y": THREE, "y": THREE}, "Y and y: which of them holds the label? leave the oth"),
        # Offsets
        ({"values": np.zeros(3), "offsets": np.array([0, 4, 3])}, "found 3 after 4, at offsets[2]"),
        (
            {"values": np.zeros(3), "offsets": np.array([0, 2])},
            "x.npz: values: offsets must rise from 0 to its 3 steps, found 0 to 2; save "
            "np.append(offsets, 3) if they are the beginnings",
        ),
        (
            {"values": np.zeros(3), "offsets": np.array([1, 3])},
            "save np.append(0, offsets) if they",
        ),
        ({"values": np.zeros(3), "offsets": np.array([], int)}, "its 3 steps, found none"),
        (
            {"values": np.zeros(3), "offsets": np.array([0.0, 3.0])},
            "x.npz: offsets: float64, expected whole numbers; save offsets.astype(int)",
        ),
        (
            {"x": CUBE, "offsets": np.array([0, 3])},
            "x: shape (3, 4, 2), where steps x features are",
        ),
        (
            {"x": X, "offsets": np.array([0, 3]), "lengths": np.array([2])},
            "x.npz: lengths: not the lengths that offsets gives; leave one of both out",
        ),
        # Lengths
        ({"x": X, "lengths": np.array([1, 2, 0])}, "may be padded sequences, or steps one after"),
        (
            {"x": X, "lengths": np.ones(3, int)},
            "x.npz: x: shape (3, 2): with these lengths it may be padded sequences, or steps one "
            "after the other; save x[:, :, None] if it is padded, else x[:, None, :]",
        ),
        (
            {"x": CUBE, "lengths": np.array([1, 4, 0])},
            "x.npz: lengths[2] is 0: expected 1 to 4, the steps of x, shape (3, 4, 2)",
        ),
        ({"x": CUBE, "lengths": np.array([1, -2, 4])}, "lengths[1] is -2: expected 1 to 4"),
        ({"x": CUBE, "lengths": np.array([1, 2, 5])}, "lengths[2] is 5: expected 1 to 4"),
        ({"x": np.zeros((5, 3)), "lengths": np.array([0, 5])}, "lengths[0] is 0: a sequence has a"),
        ({"x": X, "lengths": np.array([3, 3, -3])}, "lengths[0] is 3: expected 1 to 2"),
        (
            {"x": np.zeros(5), "lengths": np.array([7, -2])},
            "sum 5, where x has shape (5,), and len",
        ),
        (
            {"x": np.zeros((5, 3)), "lengths": np.array([1, 1])},
            "x.npz: lengths: 2 lengths with the sum 2, where x has shape (5, 3); expected a length "
            "for each of its 5 sequences, or lengths whose sum is its 5 steps",
        ),
        ({"x": CUBE, "lengths": np.array([3])}, "expected a length for each of its 3 sequences"),
        (
            {"x": X, "lengths": np.array([1.0, 2.0, 1.0])},
            "lengths: float64, expected whole numbers",
        ),
        ({"x": X, "lengths": X.astype(int)}, "lengths: shape (3, 2), expected a list of numbers"),
        ({"x": X, "lengths": np.array([2**63 + 1] * 3, np.uint64)}, "lengths[0] is -9,223"),
    ],
)
def test_npz_that_cannot_be_used(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    assert message in refusal(save(tmp_path, **arrays))


def test_a_train_split_without_labels_is_refused_once(tmp_path: Path) -> None:
    path = save(tmp_path, X_train=X, Y_train=THREE, X_valid=X, y=THREE)
    assert refusal(path, needs_label=True) == (
        "x.npz: X_valid: no labels; save y_val beside it; found X_train, Y_train, X_valid, y"
    )
    np.save(tmp_path / "x.npy", X)
    message = "x.npy: no labels; say --labels y.npy, or a text with a label in each line"
    assert refusal(tmp_path / "x.npy", needs_label=True) == message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a\nb\n", "--labels y.txt: 2 labels, one a line, but 3 sequences in x.npy, shape (3, 2)"),
        ("kind\na\nb\na\n", "shape (3, 2); if the first line, 'kind', is a header, leave it out"),
        (np.eye(3), "but 9 labels in --labels y.npy, shape (3, 3); if its rows are classes as one"),
        (
            np.zeros(4),
            "x.npy: shape (3, 2), 3 sequences, but 4 labels in --labels y.npy, shape (4,",
        ),
        (np.array(["a", 1, 2], object), "--labels y.npy: holds Python objects, which only pickle "),
    ],
)
def test_labels_beside_an_npy_that_do_not_fit(
    labels: str | np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", X)
    if isinstance(labels, str):
        path = write(tmp_path, "y.txt", labels)
    else:
        path = tmp_path / "y.npy"
        np.save(path, labels, allow_pickle=True)
    assert message in refusal(tmp_path / "x.npy", labels=path)


def test_empty_lines_after_the_labels_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    path = write(tmp_path, "y.txt", "1.000000000000000000e+00\r\n\r\n2\r\n\r\n\r\n")
    assert [row.label for row in rows(tmp_path / "x.npy", labels=path)] == ["1", None, "2"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([[1], [2], [1]]), ["1", "2", "1"]),
        (np.array([[1, 2, 1]]), ["1", "2", "1"]),
        (np.array([1.0, np.nan, -0.0]), ["1", None, "0"]),
        (np.array(["1.0", "007", "nan"]), ["1", "007", None]),
        (np.array(["né".encode(), b"b", b""]), ["né", "b", None]),
        (np.array([True, False, True]), ["true", "false", "true"]),
        (np.array([0.1, 0.5, 2], np.float32), ["0.1", "0.5", "2"]),
        (np.array([0.1, 0.5, 2], np.longdouble), ["0.1", "0.5", "2"]),
        (np.array([1, 2, 3], ">u2"), ["1", "2", "3"]),
    ],
)
def test_labels_of_every_kind(
    labels: np.ndarray, expected: list[str | None], tmp_path: Path
) -> None:
    assert [row.label for row in rows(save(tmp_path, x=X, y=labels))] == expected
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", labels)
    found = rows(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    assert [row.label for row in found] == expected


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (b"\xe9", "label '\\udce9': control characters, or not UTF-8"),
        ("b'walk'", "label b'walk': bytes that were written as text; save text: label.decode()"),
    ],
)
def test_labels_that_are_no_names(label: str | bytes, problem: str, tmp_path: Path) -> None:
    path = save(tmp_path, x=X[:2], y=np.array([label, type(label)()]))
    assert problems(path) == [f"x.npz: x[0]: {problem}"]


def test_numbers_of_every_kind(tmp_path: Path) -> None:
    for kind in ("i1", "u8", "?", "f2", ">f4", "f8", np.longdouble):
        (row,) = rows(save(tmp_path, x=np.array([[1, 0, 1]], kind)))
        assert numbers(row) == [[1], [0], [1]], kind


def test_lengths_win_over_padding_and_the_rest_of_it_is_left_off_too(tmp_path: Path) -> None:
    x = np.array([[1.0, 2, np.nan, 4], [1, 2, 3, 0], [1, 0, 0, 9]])
    lengths = np.array([3, 4, 3])
    first, second, third = rows(save(tmp_path, x=x, lengths=lengths))
    assert (numbers(first), first.padding) == ([[1], [2]], 2)
    assert (numbers(second), second.padding) == ([[1], [2], [3], [0]], 0)
    assert (numbers(third), third.padding) == ([[1], [0], [0]], 1)
    found = rows(save(tmp_path, x=x, lengths=lengths), pad_value=0.0)
    assert [row.padding for row in found] == [2, 1, 3]


def test_two_readings_of_lengths_are_said(tmp_path: Path) -> None:
    padded = save(tmp_path, x=np.zeros((2, 3)), lengths=np.array([3, 1]))
    assert [len(row.steps) for row in rows(padded)] == [3, 1]
    assert decisions(padded).notes == [
        f"{padded}: x: a row is a sequence of one number a step, cut to its length in lengths"
    ]
    joined = save(tmp_path, X=np.arange(8.0).reshape(4, 2), lengths=np.array([3, 1]))
    assert numbers(rows(joined)[1]) == [[6, 7]]
    assert decisions(joined).notes == [f"{joined}: X: steps one after the other, cut by lengths"]
    # Both readings are the same.
    both = save(tmp_path, x=np.array([[5.0], [6]]), lengths=np.array([1, 1]))
    assert [numbers(row) for row in rows(both)] == [[[5]], [[6]]]


def test_channels_first(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(2, 2, 3)
    np.save(tmp_path / "x.npy", values)
    expected = values.transpose(0, 2, 1).tolist()
    assert [numbers(row) for row in rows(tmp_path / "x.npy", channels_first=True)] == expected
    np.save(tmp_path / "x.npy", np.asfortranarray(values))
    assert [numbers(row) for row in rows(tmp_path / "x.npy", channels_first=True)] == expected
    path = save(tmp_path, x=values, lengths=np.array([1, 3]), features=np.array(["a", "b"]))
    first, second = rows(path, channels_first=True)
    assert (numbers(first), first.padding, first.features) == ([[0, 3]], 2, ("a", "b"))
    assert numbers(second) == expected[1]
    message = "lengths[0] is 3: expected 1 to 2"
    assert message in refusal(save(tmp_path, x=values, lengths=np.array([3, 3])))


def test_channels_first_needs_three_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    message = refusal(tmp_path / "x.npy", channels_first=True)
    assert message.startswith("x.npy: shape (3, 2), where --channels-first expects cases x channel")
    assert "save x[:, None, :]" in message
    # Steps one after the other cannot be meant, and offsets tell which axis is which.
    path = save(tmp_path, values=X, offsets=np.array([0, 1, 3]))
    assert [len(row.steps) for row in rows(path, channels_first=True)] == [1, 2]
    (note,) = decisions(path, channels_first=True).notes
    assert note.startswith("--channels-first is of cases x channels x time; ")


def test_parts_have_groups_lengths_and_names_of_their_own(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        test_x=np.zeros((1, 2, 2)),
        X_train=np.arange(8.0).reshape(2, 2, 2),
        lengths_train=np.array([1, 2]),
        train_groups=np.array(["p", "q"]),
        groups_test=np.array(["r"]),
        y_train=np.array(["a", "b"]),
        trainSplit=np.array(["val", "val"]),
        features=np.array(["u", "v"]),
        groups=np.array([1, 2, 3]),
    )
    found = rows(path)
    assert [(row.id, row.split, row.group, row.label) for row in found] == [
        ("0", "train", "p", "a"),
        ("1", "train", "q", "b"),
        ("2", "test", "r", None),
    ]
    assert [numbers(row) for row in found] == [[[0, 1]], [[4, 5], [6, 7]], [[0, 0], [0, 0]]]
    assert {row.features for row in found} == {("u", "v")}
    assert [row.where.removeprefix(f"{path}: ") for row in found] == [
        "X_train[0]",
        "X_train[1]",
        "test_x[0]",
    ]
    assert aside(path) == {
        "trainSplit": "not read, as X_train says the split: <U3 (2,)",
        "groups": "an array that is not read: int64 (3,)",
    }
    assert decisions(path).roles == {
        "label": "array y_train",
        "group": "arrays train_groups, groups_test",
    }


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (np.array(["a"]), "<U1, shape (1,), where names of 2 features are expected"),
        (np.array([1.5, 2]), "float64, shape (2,), where names of 2 features are expected"),
        (np.array(["a", "a"]), "names that are empty or come twice: a, a"),
        (np.array(["a", ""]), "names that are empty or come twice: a, ''"),
        (np.array(["a", "\a"]), "feature '\\x07': control characters, or not UTF-8"),
    ],
)
def test_names_that_are_no_features(features: np.ndarray, reason: str, tmp_path: Path) -> None:
    path = save(tmp_path, x=CUBE, features=features)
    assert {row.features for row in rows(path)} == {None}
    assert aside(path) == {"features": reason}


def test_features_are_found_by_name(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(1, 2, 3)
    path = save(tmp_path, x=values, feature_names=np.array(["a", "b", "c"]))
    wanted: dict[str, object] = {"features": ("c", "a"), "wanted_by": "the model"}
    (row,) = rows(path, **wanted)
    assert (row.features, numbers(row)) == (("c", "a"), [[2, 0], [5, 3]])
    assert aside(path, **wanted) == {"b": "no feature of the model"}
    # What is wanted and not there is for those to say who want it.
    (row,) = rows(path, features=("c", "z"), wanted_by="the model")
    assert row.features == ("a", "b", "c")
    unnamed = save(tmp_path, x=values)
    assert decisions(unnamed, features=("a", "b", "c"), wanted_by="the model").notes == [
        f"{unnamed}: x: its features have no names, so they are read in the order of the model"
    ]


def test_ids_that_come_again_are_said(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, ids=np.array([7.0, np.nan, 7.0]))
    assert [row.id for row in rows(path)] == ["7", "1", "7"]
    assert decisions(path).notes == [
        f"{path}: ids[2]: '7' comes again; each is a sequence of its own"
    ]


def test_ids_of_a_table_of_labels(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, ids=np.array(["r1", "r2", "r3"]), y=THREE)
    table = write(tmp_path, "y.csv", "id,label\nr3,c\nr1,a\nr2,b\n")
    assert [row.label for row in rows(path, labels=table)] == ["a", "b", "c"]
    assert aside(path, labels=table) == {"array y": f"{table} says the label"}


def test_offsets_go_with_values(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        x=np.zeros((2, 5)),
        values=np.array([1.0, 2, 3]),
        offsets=np.array([0, 1, 3]),
        lengths=np.array([1, 2]),
        y=np.array(["a", "b"]),
        labels=np.array(["walk", "run"]),
        y_test=np.array([1]),
        fs=np.array(50),
        lists=np.array([[1], [1, 2]], dtype=object),
    )
    assert [(row.label, numbers(row)) for row in rows(path)] == [("a", [[1]]), ("b", [[2], [3]])]
    assert aside(path) == {
        "x": "not read, as values holds the steps: float64 (2, 5)",
        "labels": "not read, as y holds the label: <U4 (2,)",
        "y_test": "an array that is not read: int64 (1,)",
        "fs": "an array that is not read: int64 ()",
        "lists": "an array that is not read: object (2,)",
    }
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("read\x07me.txt", "no array")
    reason = "an array that is not read: no array that can be read"
    assert aside(path)["read\\x07me.txt"] == reason


def test_an_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, x=np.arange(24.0).reshape(6, 2, 2), lengths=np.array([1, 2] * 3))
    monkeypatch.setattr("seqclf.data.readers.array_file.BYTES_AT_ONCE", 64)
    pieces: list[float] = []
    found = list(read_rows(path, ReadOptions(), progress=pieces.append))
    assert pieces == [64, 64, 64]
    assert isinstance(found[5], Row)
    assert numbers(found[5]) == [[20, 21], [22, 23]]


def test_an_npz_that_is_damaged_or_packed_in_another_way(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, y=np.array(["a", "b", "c"]))
    content = path.read_bytes()
    write(tmp_path, "x.npz", content.replace(b"b\0\0\0c\0\0\0", b"b\0\0\xffc\0\0\0"))
    assert "x.npz: y: not an .npy that can be read: Bad CRC-32 for file 'y.npy'" in refusal(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["y.npy"] = members["y.npy"].replace(b"b\0\0\0", b"b\0\0\xff")
    for method, message in [
        (zipfile.ZIP_DEFLATED, "x.npz: y: a damaged text, with numbers that are no letters"),
        (zipfile.ZIP_BZIP2, "x.npz: x: compressed in a way that np.savez_compressed does not use"),
    ]:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        assert message in refusal(path)


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

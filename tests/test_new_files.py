"""Files that differ from those of training: what is read of them, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import Capture, call, refusal, train
from helpers.reading import write

GENERATOR = np.random.default_rng(0)
N, T = 40, 8
LABELS = ["up", "down"] * (N // 2)


def values_of(number: int, num_steps: int = T) -> list[float]:
    sign = 1 if LABELS[number] == "up" else -1
    steps: list[float] = (GENERATOR.normal(size=num_steps) + sign).round(3).tolist()
    return steps


def wide(path: Path, numbers: list[int], *, has_labels: bool = True) -> Path:
    lines = ["label," * has_labels + ",".join(f"t{number}" for number in numbers)]
    for number in range(N):
        values = [str(value) for value in values_of(number, len(numbers))]
        lines.append(",".join([LABELS[number]] * has_labels + values))
    return write(path.parent, path.name, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def of_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    return train(folder, wide(folder / "x.csv", list(range(T))))


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    for number, label in enumerate(LABELS):
        lines = [f"{step},{x},{-x}" for step, x in enumerate(values_of(number))]
        write(folder / "x" / label, f"{number}.csv", "\n".join(["time,x,y", *lines]))
    return train(folder, folder / "x")


@pytest.fixture(scope="module")
def of_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    x = [values_of(number) for number in range(N)]
    pq.write_table(pa.table({"acc": x, "grav": x, "label": LABELS}), folder / "x.parquet")
    return train(folder, folder / "x.parquet")


def predicted(capsys: Capture, *words: str | Path) -> list[str]:
    code, out, err = call(capsys, "predict", *words)
    assert code == 0, err
    assert len(out.splitlines()) > 1
    return err.splitlines()


@pytest.mark.parametrize("count", [T - 2, T + 2])
def test_columns_that_count_may_end_earlier_or_later(
    of_wide: Path, tmp_path: Path, capsys: Capture, count: int
) -> None:
    path = wide(tmp_path / "new.csv", list(range(count)), has_labels=False)
    assert predicted(capsys, of_wide, path) == [
        f"note: {path}:1: {count} columns are steps, where the model has {T}",
        f"{N} predictions",
    ]


def test_columns_that_lack_in_the_middle_are_an_error(
    of_wide: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = wide(tmp_path / "new.csv", [0, 1, 2, 4, 5, 6, 7])
    err = refusal(capsys, "predict", of_wide, path)
    assert err.startswith(f"error: {path}:1: no column 't3', which the model reads; found t0, t1")


def test_columns_that_somebody_chose_stay_chosen(tmp_path: Path, capsys: Capture) -> None:
    x = wide(tmp_path / "x.csv", list(range(T)))
    run = train(tmp_path, x, "--features", "t0,t1,t2")
    aside = ", ".join(f"t{number} (no feature of the model)" for number in range(3, T))
    assert predicted(capsys, run, x)[0] == f"left aside: {aside}"


def test_further_files_may_be_longer(tmp_path: Path, capsys: Capture) -> None:
    files = [wide(tmp_path / f"{name}.csv", list(range(n))) for name, n in (("a", 5), ("b", 7))]
    words: list[str | Path] = ["--train", files[0], "--test", files[1]]
    assert call(capsys, "prepare", *words, "--out", tmp_path / "d")[0] == 0
    info = json.loads((tmp_path / "d/dataset.json").read_text())
    assert (info["parts"]["train"]["longest"], info["parts"]["test"]["longest"]) == (5, 7)
    assert len(info["reading"]["columns"]) == 7
    assert f"{files[1]}:1: 7 columns are steps, where {files[0]} has 5" in info["notes"]


def test_a_file_of_a_folder_is_one_sequence(
    of_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = of_folder.parent / "x" / "up"
    (together,) = [
        line
        for line in call(capsys, "predict", of_folder, folder)[1].splitlines()
        if "\n0.csv" in f"\n{line}"
    ]
    code, out, err = call(capsys, "predict", of_folder, folder / "0.csv")
    assert (code, out.splitlines()[1]) == (0, together)
    assert f"note: {folder / '0.csv'}: read as one sequence, as the training files were" in err
    np.save(tmp_path / "0.npy", np.ones((5, 2)))
    assert predicted(capsys, of_folder, tmp_path / "0.npy")[-1] == "1 prediction"


def test_a_table_without_ids_is_no_table_of_several_features(
    of_lists: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path, "x.csv", "acc,grav\n1,2\n3,4\n")
    err = refusal(capsys, "predict", of_lists, path)
    assert "the model reads acc, grav at each step, and nothing tells sequences apart; if" in err


def test_a_list_that_lacks_is_named(of_lists: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.parquet"
    for name in ("grav", "gravity"):
        pq.write_table(pa.table({name: [[1.0, 2.0]]}), path)
        assert refusal(capsys, "predict", of_lists, path) == (
            f"error: {path}: no list 'acc', which the model reads; found {name}\n"
        )
        one = write(tmp_path, "x.jsonl", json.dumps({name: [1, 2]}))
        assert "no list 'acc', which the model reads" in refusal(capsys, "predict", of_lists, one)
    # A list of lists may be the steps under any name.
    pq.write_table(pa.table({"z": [[[1.0, 2.0], [3.0, 4.0]]]}), path)
    assert predicted(capsys, of_lists, path)[-1] == "1 prediction"


def test_evaluate_names_the_label_that_lacks(
    of_wide: Path, of_lists: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = wide(tmp_path / "x.csv", list(range(T)), has_labels=False)
    assert refusal(capsys, "evaluate", of_wide, path).startswith(
        f"error: {path}:1: no column 'label', the label of the training files; found t0, t1"
    )
    pq.write_table(pa.table({"acc": [[1.0]], "grav": [[1.0]]}), tmp_path / "x.parquet")
    err = refusal(capsys, "evaluate", of_lists, tmp_path / "x.parquet")
    assert "no sequence has a label (no 'label', the label of the training files); name" in err


def test_a_fault_of_a_whole_file_is_said_once(
    of_lists: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path, "x.jsonl", '{"steps": [[1, 2, 3]]}\n' * 20)
    assert refusal(capsys, "predict", of_lists, path).splitlines() == [
        f"left out: {path}:1: 3 features a step, where the model reads 2",
        "left out: 19 more, all for the same reason",
        "0 predictions; 20 rows were left out, see above",
    ]
    path = write(tmp_path, "x.jsonl", '{"steps": [{"x": 1}]}\n' * 2 + '{"steps": [[1]]}\n' * 2)
    assert refusal(capsys, "predict", of_lists, path).splitlines() == [
        *[
            f"left out: {path}:{line}: a step is an object with x; write a list of its numbers, "
            "such as [0.1, 9.8]"
            for line in (1, 2)
        ],
        *[f"left out: {path}:{n}: 1 feature a step, where the model reads 2" for n in (3, 4)],
        "0 predictions; 4 rows were left out, see above",
    ]
    (tmp_path / "y.csv").write_text(
        "id,x,label\n" + "".join(f"{i // 3},{i},{i / 7:.3f}1\n" for i in range(60))
    )
    err = refusal(capsys, "prepare", tmp_path / "y.csv", "--out", tmp_path / "d")
    assert err == (
        "error: none of the first 10 rows can be used, all for one reason; "
        f"{tmp_path}/y.csv:3: labels with decimals change within a sequence: are they numbers to "
        "predict? seqclf tells classes apart; --label names another column\n"
    )
    (tmp_path / "y.csv").write_text("id,x,label\n" + "".join(f"{i // 3},{i},\n" for i in range(60)))
    err = refusal(capsys, "prepare", tmp_path / "y.csv", "--out", tmp_path / "d")
    assert "y.csv:1: no sequence has a label: column 'label' is empty; --label names an" in err


def test_labels_that_are_no_classes_are_named(
    of_wide: Path, tmp_path: Path, capsys: Capture
) -> None:
    header = "label," + ",".join(f"t{number}" for number in range(3))
    path = write(tmp_path, "x.csv", header + "\nup,1,2,3\nfly,1,2,3\n")
    assert predicted(capsys, of_wide, path)[-1] == (
        "note: 1 of the 2 labels in 'label' are no classes of the model, such as 'fly'; its "
        "classes are down, up"
    )
    path = write(tmp_path, "x.csv", header + "\nfly,1,2,3\n")
    assert predicted(capsys, of_wide, path)[-1] == (
        "note: none of the labels in 'label' is a class of the model, such as 'fly'; its classes "
        "are down, up; are they labels?"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.npy", b"", "is empty"),
        ("x.npz", b"", "is empty"),
        ("x.csv", b"id,x,label\n", "no sequences there (FILE:1: a header and no lines)"),
        ("x.csv", b"PK\x03\x04\0\0", "no text but a zip archive, as .npz and .xlsx are; docs/"),
        ("x.csv", bytes(range(256)) * 4, "a binary file, not a text"),
        ("x.csv", "id,x,label\n".encode("utf-16-le"), "not a text, or UTF-16; if so, read it with"),
    ],
)
def test_files_that_are_no_data_say_what_they_are(
    tmp_path: Path, capsys: Capture, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    err = refusal(capsys, "prepare", path, "--out", tmp_path / "d")
    assert err.startswith(f"error: {path}: {message.replace('FILE', str(path))}")

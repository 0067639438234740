"""What is written for a file or a split: right numbers beside the right ids, and never half."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import (
    COUNTED,
    IDS,
    LABELS,
    VALUES,
    Capture,
    N,
    call,
    predict,
    refusal,
    table,
    train,
    write_jsonl,
    write_wide,
)
from helpers.launching import ROOT, wait_for
from helpers.reading import write
from helpers.training import train_tiny

from seqclf.model import Architecture, ImageOrder
from seqclf.predict import MAX_GROUP
from seqclf.tally import Tally


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.jsonl, and a model of it in run/."""
    folder = tmp_path_factory.mktemp("predictions")
    train(folder, write_jsonl(folder / "x.jsonl"))
    return folder


# ---- ids


def write_long(path: Path) -> Path:
    lines = [f"{IDS[i]},{LABELS[i]},{x},{y}" for i in range(N) for x, y in VALUES[i].tolist()]
    return write(path.parent, path.name, "\n".join(["id,label,x,y", *lines]))


def write_npz(path: Path) -> Path:
    np.savez(path, x=VALUES, y=np.array(LABELS))
    return path


@pytest.mark.parametrize(
    ("make", "words", "ids"),
    [
        (write_long, [], IDS),
        (lambda path: write_wide(path, has_ids=True), ["--id", "name"], IDS),
        (lambda path: write_wide(path, has_ids=False), [], COUNTED),
        (write_npz, [], COUNTED),
    ],
    ids=["long.csv", "named.csv", "wide.csv", "x.npz"],
)
def test_ids_of_splits_join_back_to_the_file(
    make: Callable[[Path], Path],
    words: list[str],
    ids: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    path = make(tmp_path / request.node.callspec.id)
    run = train(tmp_path, path, *words)
    of_file = {line["id"]: line for line in predict(capsys, run, path)}
    assert list(of_file) == ids
    assert [line["truth"] for line in of_file.values()] == LABELS
    seen = []
    for split in ("train", "val", "test"):
        for line in predict(capsys, run, "--split", split):
            assert line == of_file[line["id"]]
            seen.append(line["id"])
    assert sorted(seen) == sorted(ids)


def test_people_see_ids(folder: Path, capsys: Capture) -> None:
    run = folder / "run"
    of_test = predict(capsys, run, "--split", "test")
    _, out, _ = call(capsys, "predict", run)
    assert f"reading test example '{of_test[0]['id']}' (truth: {of_test[0]['truth']})" in out
    assert call(capsys, "report", run)[0] == 0
    page = (run / "report.html").read_text()
    assert f"example &#39;{of_test[0]['id']}&#39;" in page
    train(
        folder / "noise",
        write_jsonl(folder / "noise.jsonl", label=None),
        "--labels",
        labels(folder),
    )
    mistakes = json.loads((folder / "noise/run/evaluation/test.json").read_text())["mistakes"]
    written = predict(capsys, folder / "noise/run", "--split", "test")
    wrong = {line["id"] for line in written if line["class"] != line["truth"]}
    assert {mistake["name"] for mistake in mistakes} == wrong
    assert [written[mistake["example"]]["id"] for mistake in mistakes] == [
        mistake["name"] for mistake in mistakes
    ]


def labels(folder: Path) -> Path:
    """Write labels that no model can learn."""
    random = np.random.default_rng(3).choice(["up", "down"], N)
    lines = [f"{name},{label}" for name, label in zip(IDS, random, strict=True)]
    return write(folder, "y.csv", "\n".join(["id,label", *lines]))


def test_count_and_out_write_the_first_examples(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    whole = predict(capsys, folder / "run", "--split", "train")
    words = ["--split", "train", "--count", "5", "--out", f"{tmp_path}/five.jsonl"]
    assert call(capsys, "predict", folder / "run", *words)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "five.jsonl").read_text().splitlines()]
    assert [(line["id"], line["truth"], line["class"]) for line in lines] == [
        (line["id"], line["truth"], line["class"]) for line in whole[:5]
    ]
    assert list(lines[0]) == ["id", "truth", "class", "probabilities"]
    out = tmp_path / "test.csv"
    code, printed, _ = call(capsys, "predict", folder / "run", "--count", "2", "--out", out)
    assert (code, printed) == (0, "")
    assert table(out.read_text()) == predict(capsys, folder / "run", "--split", "test")[:2]


def test_ids_that_come_twice_stand_beside_their_place(tmp_path: Path, capsys: Capture) -> None:
    for name, part in (("a", slice(0, 30)), ("b", slice(30, N))):
        np.savez(tmp_path / f"{name}.npz", x=VALUES[part], y=np.array(LABELS[part]))
    run = train(tmp_path, tmp_path / "a.npz", tmp_path / "b.npz")
    seen = []
    for split in ("train", "val", "test"):
        for line in predict(capsys, run, "--split", split):
            found = re.search(r"/([ab])\.npz.*\b(\d+)\b", line["place"])
            assert found
            assert found[2] == line["id"]
            number = int(found[2]) + 30 * (found[1] == "b")
            assert line["truth"] == LABELS[number]
            seen.append(number)
    assert sorted(seen) == list(range(N))


# ---- a file of predictions is whole, or it is not touched


def write_bad(folder: Path, count: int) -> Path:
    good = write_jsonl(folder / "bad.jsonl").read_text()
    return write(folder, "bad.jsonl", good + '{"steps": [[1]]}\n' * count)


def test_bad_rows_are_named_and_counted(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = write_bad(tmp_path, 25)
    err = refusal(capsys, "predict", folder / "run", bad)
    assert [line.partition(" 1 feature ")[0] for line in err.splitlines()[:-1]] == [
        f"left out: {bad}:{number}:" for number in range(61, 71)
    ]
    assert err.splitlines()[-1] == (
        f"60 predictions; {agreement(folder, capsys)} of the 60 labels in the input agree; 25 rows "
        "were left out, the first 10 are named above"
    )


def agreement(folder: Path, capsys: Capture) -> str:
    lines = predict(capsys, folder / "run", folder / "x.jsonl")
    return f"{sum(line['class'] == line['truth'] for line in lines) / len(lines):.2%}"


def test_a_failing_call_leaves_what_is_there(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = write(tmp_path, "out.csv", "precious")
    bad = write_bad(tmp_path, 1)
    twice = write(tmp_path, "twice.csv", "id,feature 0,feature 1\na,1,2\nb,1,2\na,1,2\n")
    failing: list[list[str | Path]] = [
        [folder / "run", bad],
        [folder / "run", twice, "--id", "id"],
        [folder / "run", tmp_path / "gone.jsonl"],
        [folder / "run", folder / "x.jsonl", "--per", "recording"],
        [folder / "run", folder / "x.jsonl", "--count", "3"],
        [folder / "gone", folder / "x.jsonl"],
        [folder / "run", "--split", "test", "--count", "0"],
        [folder / "run", "--split", "test", "--per", "window"],
    ]
    before = sorted(tmp_path.iterdir())
    for words in failing:
        refusal(capsys, "predict", *words, "--out", out)
        assert out.read_text() == "precious"
        assert sorted(tmp_path.iterdir()) == before
    assert (
        call(capsys, "predict", folder / "run", bad, "--out", out, "--on-bad-row", "skip")[0] == 0
    )
    assert len(table(out.read_text())) == 60


def test_the_input_is_never_overwritten(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    source = write_jsonl(tmp_path / "x.jsonl")
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    os.link(source, tmp_path / "twin.csv")
    for name in ("x.jsonl", "link.jsonl", "twin.csv"):
        err = refusal(capsys, "predict", folder / "run", source, "--out", tmp_path / name)
        assert err == f"error: --out {tmp_path / name}: is the input; name another file\n"
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("no/such/folder.csv", "No such file or directory"),
        ("x.jsonl/out.csv", "Not a directory"),
        ("folder.csv", "Is a directory"),
        ("n" * 250 + ".csv", "File name too long"),
        ("n" * 300 + ".csv", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_named(
    out: str, reason: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = write_jsonl(tmp_path / "x.jsonl")
    (tmp_path / "folder.csv").mkdir()
    err = refusal(capsys, "predict", folder / "run", source, "--out", tmp_path / out)
    assert err == f"error: --out {tmp_path / out}: cannot write it: {reason}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "x.jsonl"]


def test_a_killed_call_leaves_what_is_there(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = write(tmp_path, "out.csv", "precious")
    pipe = tmp_path / "x.jsonl"
    source = write_jsonl(tmp_path / "long.jsonl")
    source.write_text(source.read_text() * 200)
    words = [sys.executable, "-m", "seqclf", "predict", f"{folder}/run", f"{source}"]
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([*words, "--out", f"{out}"], cwd=ROOT, stderr=subprocess.PIPE)
        wait_for((tmp_path / ".out.csv.partial").exists)
        process.send_signal(number)
        process.communicate()
        assert process.returncode != 0
        assert out.read_text() == "precious"
        (tmp_path / ".out.csv.partial").unlink(missing_ok=True)
    assert not pipe.exists()
    assert call(capsys, "predict", folder / "run", folder / "x.jsonl", "--out", out)[0] == 0
    assert len(table(out.read_text())) == N


# ---- which model


def test_a_run_without_a_result_predicts_from_its_newest_checkpoint(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = {"data.name": "files", "data.path": folder / "data", "train.steps": 9}
    settings |= {"checkpoint.every": 4}
    assert train_tiny(tmp_path / "run", settings, stop_at=8) != 0
    code, out, err = call(capsys, "predict", tmp_path / "run", folder / "x.jsonl")
    assert (code, len(table(out))) == (0, N)
    assert err.startswith("note: no result yet; the weights are of step 8\n")
    of_test = predict(capsys, tmp_path / "run", "--split", "test")
    of_file = {line["id"]: line for line in table(out)}
    assert of_test == [of_file[line["id"]] for line in of_test]


def test_a_bare_model_is_enough_for_a_file(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = shutil.copytree(folder / "run" / "model", tmp_path / "bare")
    expected = predict(capsys, folder / "run", folder / "x.jsonl")
    assert predict(capsys, bare, folder / "x.jsonl") == expected
    assert call(capsys, "evaluate", bare, folder / "x.jsonl") == call(
        capsys, "evaluate", folder / "run", folder / "x.jsonl"
    )
    for command, *words in (["predict"], ["predict", "--split", "test"], ["evaluate"]):
        assert refusal(capsys, command, bare, *words) == (
            f"error: {bare}: a model without its run, and so without its data; name the "
            "directory of its run; predict and evaluate take a file, too\n"
        )
    assert "no run there" in refusal(capsys, "report", bare)


def test_a_large_vocabulary_is_no_obstacle(tmp_path: Path, capsys: Capture) -> None:
    """More than 1 MiB of names in config.json once kept a model from being read."""
    rows = [
        {
            "label": "ab"[i % 2],
            "tokens": [f"a word of some length, {i * 2000 + j}" for j in range(2000)],
        }
        for i in range(20)
    ]
    path = write(tmp_path, "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run = train(tmp_path, path, steps=1)
    assert (run / "model" / "config.json").stat().st_size > 2**20
    assert len(predict(capsys, run, path)) == 20
    assert call(capsys, "evaluate", run)[0] == 0
    assert (
        train_tiny(
            run,
            {
                "data.name": "files",
                "data.path": tmp_path / "data",
                "train.steps": 1,
                "train.batch_size": 16,
            },
        )
        == 0
    )


def test_later_labels_are_not_passed_over(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    unlabelled = '{"steps": [[1, 2]]}\n' * (MAX_GROUP + 1)
    labelled = write_jsonl(tmp_path / "y.jsonl").read_text()
    both = write(tmp_path, "z.jsonl", unlabelled + labelled)
    code, out, err = call(capsys, "predict", folder / "run", both)
    assert (code, len(table(out)), "truth" in table(out)[0]) == (0, MAX_GROUP + 1 + N, False)
    assert "note: the first 256 rows have no label, so no truth is shown" in err
    assert "of the 60 labels in the input agree" in err


@pytest.mark.parametrize("read", ["rows", "columns", "pixels", "permuted"])
def test_lengths_are_counted_as_the_model_reads_them(read: ImageOrder) -> None:
    num_steps = 64 if "p" in read else 8
    architecture = Architecture(
        input_size=64 // num_steps,
        classes=("a", "b"),
        scale=1,
        read=read,
        hidden_size=2,
        num_layers=1,
        bidirectional=False,
        dropout=0,
        pooling="last",
        lengths=(num_steps, num_steps),
    )
    tally = Tally()
    tally.add(["image"], torch.zeros(8, 8), torch.tensor([8]), architecture)
    assert list(tally.notes(architecture)) == []
    # What is cut anyway is of no other length.
    cut = architecture.model_copy(update={"max_length": num_steps})
    tally.add(["cut"], torch.zeros(80, 8), torch.tensor([80]), cut)
    assert list(tally.notes(cut)) == []
    tally.add(["large"], torch.zeros(80, 80), torch.tensor([80]), architecture)
    large = 6_400 if num_steps == 64 else 80
    assert [note.partition(" (")[0] for note in tally.notes(architecture)] == [
        f"1 sequences are of another length, {large:,} steps"
    ]

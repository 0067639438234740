"""What other methods name right, against plain computations of the same; and where it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.files import change_json
from helpers.training import train_tiny

from seqclf.baselines import find_baselines, why_left_out
from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.data.prepared import open_dataset
from seqclf.report.page import show_baselines, write_report


def prepare_waves(folder: Path, *, lengths: tuple[int, int]) -> Path:
    """Prepare slow waves and fast ones, three in four of them slow, with a phase each."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(80):
        steps = np.arange(rng.integers(*lengths, endpoint=True))
        name, rate = ("slow", 0.3) if number % 4 else ("fast", 0.9)
        wave = np.sin(rate * steps + rng.uniform(0, 6)) + rng.normal(0, 0.3, len(steps))
        lines.append(json.dumps({"x": wave.tolist(), "label": name}))
    source = folder / "waves.jsonl"
    source.write_text("\n".join(lines))
    words = [str(source), "--split", "0.5,0,0.5", "--out", str(folder / "data")]
    assert main(["prepare", *words]) == 0
    return folder / "data"


def nearest_by_dtw(data: Path) -> float:
    """Return the accuracy of 1-NN DTW, written plainly."""

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        table = np.full((len(one) + 1, len(other) + 1), np.inf)
        table[0, 0] = 0
        for i in range(1, len(one) + 1):
            for j in range(1, len(other) + 1):
                least = min(table[i - 1, j], table[i, j - 1], table[i - 1, j - 1])
                table[i, j] = (one[i - 1] - other[j - 1]) ** 2 + least
        return float(table[-1, -1])

    _, splits, _ = open_dataset(data)
    train, test = (
        [(split[i][0][:, 0].double().numpy(), int(split[i][1])) for i in range(len(split))]
        for split in (splits["train"], splits["test"])
    )
    hits = [min(train, key=lambda pair: distance(pair[0], x))[1] == label for x, label in test]
    return float(np.mean(hits))


def test_the_commonest_class_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("seqclf.baselines.find_spec", lambda name: None)
    data = prepare_waves(tmp_path, lengths=(20, 20))
    assert main(["baselines", str(data)]) == 2
    assert "need aeon: pip install 'seqclf[baselines]'" in capsys.readouterr().err
    assert main(["baselines", str(data), "--only", "majority"]) == 0
    assert "majority class     75.00%" in capsys.readouterr().out
    assert main(["baselines", str(data), "--only", "majority,svm"]) == 2
    assert "--only svm: no baseline; there are majority" in capsys.readouterr().err


@pytest.mark.slow
def test_a_page_shows_the_baselines_of_its_own_data(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    data = prepare_waves(tmp_path / "one", lengths=(20, 20))
    other = prepare_waves(tmp_path / "other", lengths=(21, 21))
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, {"data.name": "files", "data.path": data, "train.steps": 2}) == 0
    for measured, is_shown in ((other, False), (data, True)):
        assert main(["baselines", str(measured), "--only", "majority"]) == 0
        dtw = {"name": "dtw", "accuracy": 0.9}  # as if aeon were there
        change_json(measured / "baselines.json", rows=[dtw])
        (data / "baselines.json").write_bytes((measured / "baselines.json").read_bytes())
        page = re.sub("<[^>]*>", "", write_report([run_dir], None, {}).read_text())
        assert "majority class (slow) 75.00 % (59.81 to 85.81)" in page  # which needs no file
        assert ("1-NN DTW 90.00 %" in page) == is_shown
    config = load_config(run_dir / "config.yaml")[0]
    fold = config.data.model_copy(update={"folds": 2, "fold": 1})  # its test split is another
    of_fold = config.model_copy(update={"data": fold})
    for one, num_rows in ((config, 2), (of_fold, 1)):
        assert len(show_baselines(one, sources.load(one.data, seed=0))) == num_rows
    (data / "baselines.json").write_text("{")
    assert find_baselines(data, "x") is None
    assert "DTW" not in write_report([run_dir], None, {}).read_text()
    assert main(["describe", str(data), "--verify"]) == 0  # the data set is as it was
    source = tmp_path / "one" / "waves.jsonl"
    again = ["prepare", str(source), "--split", "0.5,0,0.5", "--out", str(data), "--overwrite"]
    assert main(again) == 0
    assert not (data / "baselines.json").exists()


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    _, splits, _ = open_dataset(prepare_waves(tmp_path, lengths=(5, 30)))
    train, test = splits["train"], splits["test"]
    reason = why_left_out("minirocket", train, test, asked=True)
    assert reason is not None
    assert reason.startswith("it needs sequences of one length, and these have ")
    assert why_left_out("dtw", train, test, asked=False) is None
    (tmp_path / "short").mkdir()
    _, splits, _ = open_dataset(prepare_waves(tmp_path / "short", lengths=(8, 8)))
    reason = why_left_out("minirocket", splits["train"], splits["test"], asked=True)
    assert reason == "it needs 9 steps, and these sequences have 8"
    words = tmp_path / "words.csv"
    words.write_text("text,label\n" + "good,a\nbad,b\n" * 20)
    out = tmp_path / "words"
    assert main(["prepare", str(words), "--text", "text", "--out", str(out)]) == 0
    _, splits, _ = open_dataset(out)
    reason = why_left_out("dtw", splits["train"], splits["test"], asked=True)
    assert reason == "the data are tokens or text, and it reads numbers"


def test_what_takes_hours_is_done_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, splits, _ = open_dataset(prepare_waves(tmp_path, lengths=(20, 20)))
    monkeypatch.setattr("seqclf.baselines.MOST_CELLS", 40 * 20 * 40 * 20 - 1)
    reason = why_left_out("dtw", splits["train"], splits["test"], asked=False)
    assert reason == "it would fill 6e+05 cells; --only dtw does it all the same"
    assert why_left_out("dtw", splits["train"], splits["test"], asked=True) is None


@pytest.mark.slow  # numba compiles for half a minute
@pytest.mark.parametrize("lengths", [(20, 20), (12, 25)])
def test_the_methods_of_aeon_are_what_they_are_called(
    lengths: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip("aeon")
    data = prepare_waves(tmp_path, lengths=lengths)
    assert main(["baselines", str(data)]) == 0
    found = json.loads((data / "baselines.json").read_text())
    rows = {row["name"]: row["accuracy"] for row in found["rows"]}
    assert rows["dtw"] == nearest_by_dtw(data)
    if lengths[0] == lengths[1]:
        assert rows["minirocket"] > 0.9 > rows["majority"]
    else:
        assert rows["minirocket"] is None

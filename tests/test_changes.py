"""A changed command on resume: harmless if the steps already done would have been the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.files import change_json, files_in, read_metrics, starts_of
from helpers.training import GROWING, train_tiny

from seqclf.errors import UserError

# Without dropout, whose noise depends on the micro batches.
PLAIN = {**GROWING, "model.dropout": 0}
LONGER = {**PLAIN, "train.steps": 36}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    assert train_tiny(path, PLAIN) == 0
    return path


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "with_dropout"
    assert train_tiny(path, GROWING) == 0
    return path


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"train.threads": 2}, "note        threads was 1, is 2: "),
        ({"train.micro_batch_size": 16}, "note        train.micro_batch_size was null, is 16: "),
        ({"device": "cpu"}, None),
        ({"precision": "fp32"}, None),
        ({"deterministic": True}, None),
        ({"eval.every": 4}, None),
        ({"eval.batch_size": 7}, None),
        ({"train.max_skipped": 3}, None),
        ({"log.every": 1}, None),
        ({"train.steps": None, "train.epochs": 1.5}, None),
    ],
)
def test_a_harmless_change_goes_on(
    changes: Mapping[str, object],
    note: str | None,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    capsys.readouterr()
    assert train_tiny(own, {**LONGER, **changes}) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "other rounding" in line]
    assert [line.startswith(note or "") for line in notes] == [True] * (note is not None)
    assert starts_of(own) == [0, 24]


def test_micro_batches_change_rounding_only(plain: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    assert train_tiny(own, LONGER, train__micro_batch_size=16) == 0
    assert train_tiny(tmp_path / "straight", LONGER) == 0
    losses = [read_metrics(path)[-1]["test/loss"] for path in (own, tmp_path / "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train.micro_batch_size": 16}, "train.micro_batch_size: None there, 16 now"),
        ({"train.batch_size": 32}, "train.batch_size: 64 there, 32 now"),
        ({"train.shards": 2}, "train.shards: None there, 2 now"),
        ({"model.init": "tutorial"}, "model.init: 'orthogonal' there, 'tutorial' now"),
        ({"data.augment.shift": 0}, "data.augment.shift: 1 there, 0 now"),
        ({"optim.clip": None}, "optim.clip: 1.0 there, None now"),
        ({"train.steps": 23}, "24 steps are done there, more than the 23 that train.steps"),
        (
            {"train.steps": None, "train.epochs": 0.001},
            "24 steps are done there, more than the 1 that train.steps or train.epochs asks for",
        ),
        ({"train.steps": 23, "optim.schedule": "cosine"}, "24 steps are done there"),
    ],
)
def test_a_harmful_change_is_refused(
    changes: Mapping[str, object], part: str, with_dropout: Path
) -> None:
    before = files_in(with_dropout)
    with pytest.raises(UserError, match=part) as caught:
        train_tiny(with_dropout, {**GROWING, **changes})
    assert str(with_dropout) in str(caught.value)
    assert files_in(with_dropout) == before


def test_another_effective_precision_is_refused(plain: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    change_json(own / "run.json", precision="bf16")
    with pytest.raises(UserError, match="precision: 'bf16' there, 'fp32' now"):
        train_tiny(own, LONGER, precision="fp32")

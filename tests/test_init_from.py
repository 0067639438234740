"""init_from: a new run that starts from another run's weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers.files import read_facts, same_end, sha256, starts_of, step_dir, weights_of
from helpers.patches import before_step, watch_calls
from helpers.ranks import run_ranks
from helpers.training import GROWING, train_tiny
from safetensors.torch import load
from torch import Tensor, nn

from seqclf.config.settings import Data
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.run.checkpoint import read_checkpoint

# The same bits in one process and in two.
SHARDED = {**GROWING, "train.shards": 2}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    path = tmp_path_factory.mktemp("runs") / "origin"
    assert train_tiny(path, GROWING) == 0
    return path


@pytest.fixture
def copy(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin, tmp_path / "copy"))


def note_first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Return a list that gets the weights that each run starts from."""
    seen = []

    def note(_: object, model: nn.Module, **__: object) -> None:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})

    watch_calls(monkeypatch, "seqclf.processes.runtime.Runtime.prepare", note)
    return seen


@pytest.mark.parametrize("finished", [True, False])
def test_a_new_run_starts_from_another_s_weights(
    finished: bool, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = weights_of(copy)
    if not finished:
        shutil.rmtree(copy / "model")
    seen = note_first_weights(monkeypatch)
    new = tmp_path / "new"
    assert train_tiny(new, GROWING, init_from=copy, seed=5) == 0
    expected = load(content)
    assert seen[0].keys() == expected.keys()
    assert all(torch.equal(seen[0][name], expected[name]) for name in expected)
    assert read_facts(new)["init_sha256"] == sha256(content)
    assert read_checkpoint(step_dir(new, 6)).manifest.step == 6  # a new run, from step 0
    assert starts_of(new) == [0]


def test_weights_are_part_of_a_run_s_name_and_settings(origin: Path, tmp_path: Path) -> None:
    train_tiny(tmp_path / "new", GROWING, init_from=origin, train__steps=6)
    with pytest.raises(UserError, match=r"init_from: .* there, None now"):
        train_tiny(tmp_path / "new", GROWING, train__steps=6)


def test_a_resume_does_not_need_the_weights_it_began_with(copy: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    content = weights_of(copy)
    assert train_tiny(straight, GROWING, init_from=copy) == 0
    assert train_tiny(broken, GROWING, init_from=copy, stop_at=8) == 143
    shutil.rmtree(copy)
    assert train_tiny(broken, GROWING, init_from=copy) == 0
    assert same_end(broken, straight)
    assert read_facts(broken)["init_sha256"] == sha256(content)


def be_killed() -> None:
    raise KeyboardInterrupt


def test_killed_before_its_first_checkpoint_it_ends_the_same_or_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken, exchanged = (tmp_path / name for name in ("straight", "broken", "exchanged"))
    assert train_tiny(straight, GROWING, init_from=copy) == 0
    for path in (broken, exchanged):
        with monkeypatch.context() as patch:
            before_step(patch, {5: be_killed})
            with pytest.raises(KeyboardInterrupt):
                train_tiny(path, GROWING, init_from=copy)
    assert train_tiny(broken, GROWING, init_from=copy) == 0
    assert same_end(broken, straight)
    shutil.rmtree(copy)
    assert train_tiny(copy, GROWING, seed=7) == 0
    with pytest.raises(UserError, match=f"began with other weights than init_from: {copy} holds"):
        train_tiny(exchanged, GROWING, init_from=copy)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"model.hidden_size": 6},
            r"rnn\.weight_ih_l0 is \(32, 8\) torch.float32, this model's is \(24, 8\).*"
            r"change model\.hidden_size \(there 8, here 6\)",
        ),
        (
            {"data.read": "pixels"},
            r"is \(32, 8\) .* is \(32, 1\) .* data\.name or data\.read \(there 8, here 1\)",
        ),
        (
            {"model.num_layers": 2},
            r"missing \['upper\.0\.bias.*change model\.num_layers \(there 1, here 2\)",
        ),
        (
            {"model.bidirectional": True},
            r"missing \['rnn\.bias_hh_l0_reverse.*model\.bidirectional \(there False, here True\)",
        ),
        (
            {"model.stack": 2},
            r"is \(32, 8\) .* is \(32, 16\) .* change model\.stack \(there 1, here 2\)",
        ),
        (
            {"model.rocket": 84},
            r"change model\.rocket \(there 0, here 84\), model\.rocket, which depends on .* to 0 "
            r"in both \(there \(\), here \(1,\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit_name_tensor_shapes_and_setting(
    changes: Mapping[str, object], part: str, origin: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=part) as caught:
        train_tiny(tmp_path / "new", {**GROWING, **changes}, init_from=origin)
    assert str(caught.value).startswith(f"{origin}/model/model.safetensors: ")
    assert not (tmp_path / "new" / "config.yaml").exists()  # the next try is not bound by it


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("model/model.safetensors", b"", r"model\.safetensors: not a safetensors file"),
        ("model/config.json", b"{}", r"config\.json: damaged: input_size: Field required"),
        ("model/config.json", b"[" * 99_999, r"config\.json: missing or damaged"),
        ("model/model.safetensors", None, r"cannot read it \(not a regular file\)"),
    ],
)
def test_weights_that_are_damaged_are_named(
    name: str, content: bytes | None, part: str, copy: Path, tmp_path: Path
) -> None:
    if content is None:
        (copy / name).unlink()
        (copy / name).mkdir()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=part):
        train_tiny(tmp_path / "new", GROWING, init_from=copy)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: neither a trained model nor a whole checkpoint"):
        train_tiny(tmp_path / "new", GROWING, init_from=tmp_path / "nowhere")


@pytest.mark.parametrize("classes", ["abc", "abcdefghij"])
def test_fine_tuning_on_other_classes_starts_the_output_layer_anew(
    classes: str,
    origin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def letters(data: Data, *, seed: int) -> Splits:
        """Stand for another data set of 8x8 images, with 3 classes or with 10 of other names."""
        generator = torch.Generator().manual_seed(seed)
        train, test = (
            Sequences(
                torch.randint(0, 16, (60, 8, 8), dtype=torch.uint8, generator=generator),
                torch.arange(60) % 3,
                tuple(classes),
                scale=16.0,
            )
            for _ in range(2)
        )
        return Splits(data.name, train, None, test)

    monkeypatch.setattr("seqclf.data.sources.load", letters)
    seen = note_first_weights(monkeypatch)
    assert train_tiny(tmp_path / "fresh", GROWING) == 0
    assert train_tiny(tmp_path / "tuned", GROWING, init_from=origin) == 0
    note = f"the output layer starts anew: its 10 classes are not these {len(classes)}"
    assert note in capsys.readouterr().out
    theirs = load(weights_of(origin))
    fresh, tuned = seen
    for name in fresh:
        expected = fresh if name.startswith("out.") else theirs
        assert torch.equal(tuned[name], expected[name])
        assert name.startswith("out.") or not torch.equal(tuned[name], fresh[name])


def train_on_rank(run_dir: Path, settings: Mapping[str, object]) -> int:
    """Train where only the main process can read what it starts from."""
    if os.environ["RANK"] != "0":
        lacking = {name: "/nowhere" for name in ("resume", "init_from") if name in settings}
        settings = {**settings, **lacking}
    return train_tiny(run_dir, settings)


@pytest.mark.slow
def test_two_ranks_branch_and_take_weights(origin: Path, tmp_path: Path) -> None:
    names = ("first", "same", "branch", "straight")
    first, same, branch, straight = (tmp_path / name for name in names)
    started = {**SHARDED, "init_from": origin}
    longer = {**started, "train.steps": 36}
    assert train_tiny(first, started) == 0
    assert train_tiny(straight, longer) == 0
    assert run_ranks(2, train_on_rank, same, started) == [0, 0]
    assert same_end(same, first)
    assert run_ranks(2, train_on_rank, branch, {**longer, "resume": step_dir(first, 12)}) == [0, 0]
    assert same_end(branch, straight)
    assert read_facts(branch)["init_sha256"] == read_facts(first)["init_sha256"]

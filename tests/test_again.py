"""Starting from what is there: a branch of a run, another run's weights, a changed command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_metrics, run_ranks

from seqclf import checkpoint
from seqclf import train as train_module
from seqclf.config import Data, UserError, load_config
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.runtime import Runtime
from seqclf.train import train

FLAGS = {
    "data.name": "digits",
    "data.augment.shift": "1",
    "data.val_fraction": "0.1",
    "model.hidden_size": "8",
    "model.dropout": "0.2",
    "optim.schedule": "constant",
    "optim.warmup": "0.1",
    "train.steps": "24",
    "train.threads": "1",
    "checkpoint.every": "6",
    "checkpoint.keep_last": "9",
    "eval.every": "9",
    "log.every": "5",
    "tracking.wandb": "disabled",
}
CONSTANT = {"optim.warmup": "0"}
PLAIN = CONSTANT | {"model.dropout": "0"}


def run(run_dir: Path | str, **flags: str) -> int:
    return train(load_config(None, FLAGS | CONSTANT | {"run_dir": str(run_dir)} | flags)[0])


def at(run_dir: Path, step: int) -> str:
    return str(run_dir / "checkpoints" / checkpoint.directory_name(step))


def result(run_dir: Path) -> dict[str, str]:
    """Return the hashes of a run's last weights and moments."""
    last, *_ = checkpoint.directories(run_dir / "checkpoints")
    files = [*last.glob("*.safetensors"), *run_dir.glob("model/*")]
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def everything(run_dir: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run_dir)): f.read_bytes() for f in run_dir.rglob("*") if f.is_file()}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def sessions(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "sessions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "origin"
    assert run(path) == 0
    return path


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "longer"
    assert run(path, **{"train.steps": "36"}) == 0
    return path


LONGER = {"train.steps": "36"}


# ---- a branch


def test_a_branch_equals_the_straight_run(
    origin: Path, longer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(origin)
    branch = tmp_path / "branch"
    assert run(branch, resume=at(origin, 12), **LONGER) == 0
    assert f"branch      of {at(origin, 12)}" in capsys.readouterr().out
    assert result(branch) == result(longer)
    assert len(result(branch)) == 4
    assert read_metrics(branch) == read_metrics(longer)
    assert (branch / "config.yaml").read_bytes() == (longer / "config.yaml").read_bytes()
    assert read(branch / "run.json")["branched_from"] == at(origin, 12)
    assert [(s["step"], s["branched_from"]) for s in sessions(branch)] == [(12, at(origin, 12))]
    assert everything(origin) == before


def test_a_run_s_newest_whole_checkpoint_is_branched_off(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    (Path(at(copy, 24)) / "state.json").write_text("{}")
    assert run(tmp_path / "branch", resume=str(copy), **LONGER) == 0
    assert sessions(tmp_path / "branch")[0]["step"] == 18
    assert "checkpoint passed over" in capsys.readouterr().out


def stop_at(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    monkeypatch.setattr(Runtime, "agree", lambda _, step, save: (step == last, save))


def test_a_requeued_branch_goes_on_from_its_own(
    origin: Path,
    longer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, branch = shutil.copytree(origin, tmp_path / "copy"), tmp_path / "branch"
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        assert run(branch, resume=at(copy, 12), **LONGER) == 143
    shutil.rmtree(copy)  # it is not needed any more
    capsys.readouterr()
    assert run(branch, resume=at(copy, 12), **LONGER) == 0
    assert "has a run already, which goes on: not from" in capsys.readouterr().out
    assert result(branch) == result(longer)
    assert read_metrics(branch) == read_metrics(longer)
    assert [(s["step"], s["branched_from"]) for s in sessions(branch)] == [
        (12, at(copy, 12)),
        (20, at(copy, 12)),
    ]
    assert read(branch / "run.json")["branched_from"] == at(copy, 12)


@pytest.mark.parametrize("writes", range(5))
def test_a_branch_killed_at_its_beginning_begins_again(
    writes: int, origin: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = checkpoint.write_file, []

    def killed(path: Path, content: bytes) -> checkpoint.FileEntry:
        calls.append(path)
        if len(calls) > writes:
            raise KeyboardInterrupt
        return honest(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=at(origin, 12), **LONGER)
    assert run(tmp_path, resume=at(origin, 12), **LONGER) == 0
    assert result(tmp_path) == result(longer)
    assert read_metrics(tmp_path) == read_metrics(longer)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"seed": "1"}, "seed: 0 there, 1 now"),
        ({"model.hidden_size": "9"}, "model.hidden_size: 8 there, 9 now"),
        ({"optim.lr": "0.02"}, "the learning rate of step 0 was 0.01 and would be 0.02"),
        ({"optim.schedule": "linear"}, "the learning rate of step 1 was"),
        ({"train.steps": "11"}, "12 steps are done there, more than the 11 that train.steps"),
    ],
)
def test_a_branch_with_another_past_is_refused(
    flags: dict[str, str], part: str, origin: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=part) as caught:
        run(tmp_path / "branch", resume=at(origin, 12), **flags)
    assert str(origin) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fact", ["data_fingerprint", "precision"])
def test_a_branch_of_other_data_or_precision_is_refused(
    fact: str, origin: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    (copy / "run.json").write_text(json.dumps(read(copy / "run.json") | {fact: "other"}))
    with pytest.raises(UserError, match=f"{fact}: 'other' there"):
        run(tmp_path / "branch", resume=str(copy), **LONGER)
    assert list(tmp_path.iterdir()) == [copy]


def damage_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def lose_config(path: Path) -> None:
    (path.parent.parent / "config.yaml").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("named", "damage", "part"),
    [
        ("nowhere", None, "nowhere: no such directory; name a checkpoint"),
        ("copy/config.yaml", None, "no such directory"),
        ("copy/model", None, r"no checkpoint there that is whole\n.*manifest\.json: missing"),
        ("copy/checkpoints/step-00000012", damage_weights, r"whole\n.*model\.safetensors: damaged"),
        ("copy/checkpoints/step-00000012", lose_manifest, r"whole\n.*manifest\.json: missing"),
        ("copy/checkpoints/step-00000012", lose_config, "without the config.yaml of its run"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_nothing_is_made(
    named: str, damage: Callable[[Path], None] | None, part: str, origin: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    if damage:
        damage(Path(at(copy, 12)))
    with pytest.raises(UserError, match=part) as caught:
        run(tmp_path / "branch", resume=str(tmp_path / named), **LONGER)
    assert str(caught.value).startswith(f"--resume {tmp_path / named}: ")
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("metrics_bytes", [2**62, -1])
def test_an_impossible_length_of_the_metrics_takes_no_memory(
    metrics_bytes: int, origin: Path, longer: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    manifest, files = checkpoint.read(Path(at(copy, 24)))
    state = json.loads(files["state.json"]) | {"metrics_bytes": metrics_bytes}
    files["state.json"] = json.dumps(state).encode()
    checkpoint.commit(copy / "checkpoints", 24, files, world_size=1, versions=manifest.versions)
    if metrics_bytes < 0:
        with pytest.raises(UserError, match=r"state\.json: missing or damaged \(metrics_bytes"):
            run(tmp_path / "branch", resume=at(copy, 24), **LONGER)
    else:
        assert run(tmp_path / "branch", resume=at(copy, 24), **LONGER) == 0
        assert result(tmp_path / "branch") == result(longer)


def test_a_word_that_is_none_is_offered_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, meant in (("nevr", "never"), ("aut", "auto")):
        with pytest.raises(UserError) as caught:
            run("x", resume=typed)
        assert str(caught.value) == (
            f"--resume {typed}: no such directory; did you mean '{meant}'?"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_from_its_own_newest_only(origin: Path, tmp_path: Path) -> None:
    own = shutil.copytree(origin, tmp_path / "own")
    before = everything(own)
    for flags in ({}, LONGER):
        with pytest.raises(UserError, match=r"has newer checkpoints, .* another --run_dir"):
            run(own, resume=at(own, 12), **flags)
    assert run(own, resume=at(own, 24)) == 0  # finished: nothing to do
    assert everything(own) == before
    with pytest.raises(UserError, match="no such directory"):
        run(own, resume=at(own, 13))
    assert run(own, resume=str(own), **LONGER) == 0
    assert [s["step"] for s in sessions(own)] == [0, 24]
    assert "branched_from" not in read(own / "run.json")


def test_a_finished_run_is_never_overwritten_by_a_branch(origin: Path, tmp_path: Path) -> None:
    own = shutil.copytree(origin, tmp_path / "own")
    shutil.rmtree(own / "checkpoints")
    before = everything(own)
    assert run(own, resume=at(origin, 12)) == 0
    assert everything(own) == before


# ---- another run's weights


def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Note the weights that runs start from."""
    honest, seen = Runtime.prepare, []

    def noting(self: Runtime, model: torch.nn.Module, *, reduces: bool = True) -> torch.nn.Module:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return honest(self, model, reduces=reduces)

    monkeypatch.setattr(Runtime, "prepare", noting)
    return seen


@pytest.mark.parametrize("finished", [True, False])
def test_a_new_run_starts_from_another_s_weights(
    finished: bool, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    if not finished:
        shutil.rmtree(copy / "model")
    seen = first_weights(monkeypatch)
    assert run(tmp_path / "new", init_from=str(copy), seed="5") == 0
    file = origin / "model/model.safetensors"
    expected = checkpoint.decode(file.read_bytes(), "")
    assert seen[0].keys() == expected.keys()
    assert all(torch.equal(seen[0][name], expected[name]) for name in expected)
    facts = read(tmp_path / "new" / "run.json")
    assert facts["init_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    moments, _ = checkpoint.read(Path(at(tmp_path / "new", 6)))
    assert moments.step == 6  # a new run, from step 0
    assert sessions(tmp_path / "new")[0]["step"] == 0


def test_weights_are_part_of_a_run_s_name_and_settings(origin: Path, tmp_path: Path) -> None:
    run(tmp_path / "new", init_from=str(origin), **{"train.steps": "6"})
    with pytest.raises(UserError, match=r"init_from: .* there, None now"):
        run(tmp_path / "new", **{"train.steps": "6"})


def test_a_resume_does_not_need_the_weights_it_began_with(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    assert run(tmp_path / "straight", init_from=str(copy)) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert run(tmp_path / "broken", init_from=str(copy)) == 143
    shutil.rmtree(copy)
    assert run(tmp_path / "broken", init_from=str(copy)) == 0
    assert result(tmp_path / "broken") == result(tmp_path / "straight")
    file = (origin / "model/model.safetensors").read_bytes()
    kept = read(tmp_path / "broken" / "run.json")["init_sha256"]
    assert kept == hashlib.sha256(file).hexdigest()


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    honest: Callable[..., object] = train_module.train_step

    def failing(*arguments: Any) -> object:
        if arguments[3].step == step:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(train_module, "train_step", failing)


def test_killed_before_its_first_checkpoint_it_ends_the_same_or_is_refused(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    assert run(tmp_path / "straight", init_from=str(copy)) == 0
    for name in ("broken", "exchanged"):
        with monkeypatch.context() as patch:
            fail_at(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name, init_from=str(copy))
    assert run(tmp_path / "broken", init_from=str(copy)) == 0
    assert result(tmp_path / "broken") == result(tmp_path / "straight")
    shutil.copy(f"{at(copy, 6)}/model.safetensors", copy / "model")
    with pytest.raises(UserError, match=f"began with other weights than init_from: {copy} holds"):
        run(tmp_path / "exchanged", init_from=str(copy))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (
            {"model.hidden_size": "6"},
            r"rnn\.weight_ih_l0 is \(32, 8\) torch.float32, this model's is \(24, 8\).*"
            r"change model\.hidden_size \(there 8, here 6\)",
        ),
        (
            {"data.read": "pixels"},
            r"is \(32, 8\) .* is \(32, 1\) .* data\.name or data\.read \(there 8, here 1\)",
        ),
        (
            {"model.num_layers": "2"},
            r"missing \['upper\.0\.bias.*change model\.num_layers \(there 1, here 2\)",
        ),
        (
            {"model.bidirectional": "true"},
            r"missing \['rnn\.bias_hh_l0_reverse.*model\.bidirectional \(there False, here True\)",
        ),
        (
            {"model.stack": "2"},
            r"is \(32, 8\) .* is \(32, 16\) .* change model\.stack \(there 1, here 2\)",
        ),
    ],
)
def test_weights_that_do_not_fit_name_tensor_shapes_and_setting(
    flags: dict[str, str], part: str, origin: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=part) as caught:
        run(tmp_path / "new", init_from=str(origin), **flags)
    assert str(caught.value).startswith(f"{origin}/model/model.safetensors: ")
    assert not (tmp_path / "new" / "config.yaml").exists()  # the next try is not bound by it


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("model/model.safetensors", b"", r"model\.safetensors: not a safetensors file"),
        ("model/config.json", b"{}", r"config\.json: damaged: 9 validation errors"),
        ("model/config.json", b"[" * 99_999, r"config\.json: missing or damaged"),
        ("model/model.safetensors", None, r"cannot read it \(not a regular file\)"),
        ("model", None, "nowhere: neither a trained model nor a whole checkpoint there"),
    ],
)
def test_weights_that_are_damaged_are_named(
    name: str, content: bytes | None, part: str, origin: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    init_from = tmp_path / ("nowhere" if name == "model" else "copy")
    if content is not None:
        (copy / name).write_bytes(content)
    elif name != "model":
        (copy / name).unlink()
        (copy / name).mkdir()
    with pytest.raises(UserError, match=part):
        run(tmp_path / "new", init_from=str(init_from))


def letters(data: Data, *, seed: int) -> Splits:
    """Stand for another data set of 8x8 images, with 3 classes or with 10 of other names."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Sequences(
            torch.randint(0, 16, (60, 8, 8), dtype=torch.uint8, generator=generator),
            torch.arange(60) % 3,
            CLASSES,
            scale=16.0,
        )
        for _ in range(2)
    ]
    return Splits(data.name, parts[0], None, parts[1])


CLASSES: tuple[str, ...] = ()


@pytest.mark.parametrize("classes", ["abc", "abcdefghij"])
def test_fine_tuning_on_other_classes_starts_the_output_layer_anew(
    classes: str,
    origin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(f"{__name__}.CLASSES", tuple(classes))
    monkeypatch.setattr(sources, "load", letters)
    seen = first_weights(monkeypatch)
    assert run(tmp_path / "fresh") == 0
    assert run(tmp_path / "tuned", init_from=str(origin)) == 0
    said = f"the output layer starts anew: its 10 classes are not these {len(classes)}"
    assert said in capsys.readouterr().out
    theirs = checkpoint.decode((origin / "model/model.safetensors").read_bytes(), "")
    fresh, tuned = seen
    for name in fresh:
        expected = fresh if name.startswith("out.") else theirs
        assert torch.equal(tuned[name], expected[name])
        assert name.startswith("out.") or not torch.equal(tuned[name], fresh[name])


# ---- on two ranks

SHARDED = {"train.shards": "2"}  # the same bits in one process


def start_on_ranks(run_dir: str, flags: dict[str, str]) -> int:
    """Train where only the main process can read what it starts from."""
    if os.environ["RANK"] != "0":
        flags = {k: "/nowhere" if k in ("resume", "init_from") else v for k, v in flags.items()}
    return run(run_dir, **flags)


def test_two_ranks_branch_and_take_weights(origin: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run(first, init_from=str(origin), **SHARDED) == 0
    assert run(tmp_path / "straight", init_from=str(origin), **SHARDED, **LONGER) == 0
    flags = SHARDED | {"init_from": str(origin)}
    assert run_ranks(2, start_on_ranks, str(tmp_path / "same"), flags) == [0, 0]
    assert result(tmp_path / "same") == result(first)
    assert read_metrics(tmp_path / "same") == read_metrics(first)
    flags |= LONGER | {"resume": at(first, 12)}
    assert run_ranks(2, start_on_ranks, str(tmp_path / "branch"), flags) == [0, 0]
    assert result(tmp_path / "branch") == result(tmp_path / "straight")
    assert read_metrics(tmp_path / "branch") == read_metrics(tmp_path / "straight")
    kept = [read(tmp_path / name / "run.json")["init_sha256"] for name in ("branch", "first")]
    assert kept[0] == kept[1]


# ---- what may be another on resume


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ({"train.threads": "2"}, "note        threads was 1, is 2: "),
        ({"train.micro_batch_size": "16"}, "note        train.micro_batch_size was null, is 16: "),
        ({"device": "cpu"}, None),
        ({"precision": "fp32"}, None),
        ({"deterministic": "true"}, None),
        ({"eval.every": "4"}, None),
        ({"eval.batch_size": "7"}, None),
        ({"train.max_skipped": "3"}, None),
        ({"log.every": "1"}, None),
        ({"train.steps": "null", "train.epochs": "1.5"}, None),
    ],
)
def test_a_harmless_change_goes_on(
    flags: dict[str, str],
    note: str | None,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = shutil.copytree(plain, tmp_path / "own")
    capsys.readouterr()
    assert run(own, **PLAIN | LONGER | flags) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "other rounding" in line]
    assert [line.startswith(note or "") for line in notes] == [True] * (note is not None)
    assert [s["step"] for s in sessions(own)] == [0, 24]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    assert run(path, **PLAIN) == 0
    return path


def test_micro_batches_change_rounding_only(plain: Path, tmp_path: Path) -> None:
    own = shutil.copytree(plain, tmp_path / "own")
    assert run(own, **PLAIN | LONGER | {"train.micro_batch_size": "16"}) == 0
    assert run(tmp_path / "straight", **PLAIN | LONGER) == 0
    losses = [read_metrics(path)[-1]["test/loss"] for path in (own, tmp_path / "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"train.micro_batch_size": "16"}, "train.micro_batch_size: None there, 16 now"),
        ({"train.batch_size": "32"}, "train.batch_size: 64 there, 32 now"),
        ({"train.shards": "2"}, "train.shards: None there, 2 now"),
        ({"model.init": "tutorial"}, "model.init: 'orthogonal' there, 'tutorial' now"),
        ({"data.augment.shift": "0"}, "data.augment.shift: 1 there, 0 now"),
        ({"optim.clip": "null"}, "optim.clip: 1.0 there, None now"),
        ({"train.steps": "23"}, "24 steps are done there, more than the 23 that train.steps"),
        (
            {"train.steps": "null", "train.epochs": "0.001"},
            "24 steps are done there, more than the 1 that train.steps or train.epochs asks for",
        ),
        ({"train.steps": "23", "optim.schedule": "cosine"}, "24 steps are done there"),
    ],
)
def test_a_harmful_change_is_refused(
    flags: dict[str, str], part: str, origin: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(origin, tmp_path / "own")
    before = everything(own)
    with pytest.raises(UserError, match=part) as caught:
        run(own, **flags)
    assert str(own) in str(caught.value)
    assert everything(own) == before


def test_another_effective_precision_is_refused(plain: Path, tmp_path: Path) -> None:
    own = shutil.copytree(plain, tmp_path / "own")
    (own / "run.json").write_text(json.dumps(read(own / "run.json") | {"precision": "bf16"}))
    with pytest.raises(UserError, match="precision: 'bf16' there, 'fp32' now"):
        run(own, **PLAIN | LONGER | {"precision": "fp32"})

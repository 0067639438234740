from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from seqclf.cli.main import main
from seqclf.config import recipes
from seqclf.config.load import load_config
from seqclf.config.naming import run_name
from seqclf.config.settings import NEUTRAL, Config, Data, Optim, Train, Value, settings_by_name
from seqclf.config.yaml import dump, read_yaml
from seqclf.errors import UserError

no_deadline = hypothesis_settings(deadline=None)
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))

positive = st.floats(0, exclude_min=True, allow_infinity=False)
probability = st.floats(0, 1, exclude_max=True)
texts = st.sampled_from(["1e3", "08", ".5e1", "no", "null", "~", "", "a: b", " x", "#"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="~$")  # these ask for a home or a variable
)
betas = st.tuples(probability, probability)
configs = st.builds(
    Config,
    seed=st.integers(0, 2**63 - 1),
    run_dir=st.none() | texts,
    data=st.builds(Data, root=texts, on_device=st.sampled_from(["auto", True, False])),
    optim=st.builds(Optim, lr=positive, betas=betas, clip=st.none() | positive),
    train=st.builds(Train, epochs=st.none() | positive)
    | st.builds(Train, steps=st.none() | st.integers(1, 10**12)),
)
switches = st.sampled_from(["true", "false"])
flag_sets = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 10**9).map(str),
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "deterministic": switches,
        "data.name": st.sampled_from(["auto", "digits", "mnist"]),
        "data.augment.shift": st.integers(0, 9).map(str),
        "model.bidirectional": switches,
        "optim.lr": positive.map(repr),
        "optim.betas": betas.map(lambda pair: str(list(pair))),
        "optim.clip": st.just("null") | positive.map(repr),
        "train.batch_size": st.integers(1, 10**6).map(str),
    },
)


# The last of these stands for 9 ** 11 values.
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def load_text(tmp_path: Path, text: str, flags: Mapping[str, str] | None = None) -> Config:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_config(path, flags)[0]


def complaint(tmp_path: Path, text: str, flags: Mapping[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, text, flags)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("1E+2", 100.0), (".5", 0.5), ("5.", 5.0), ("-.inf", float("-inf"))],
        *[("010", 10), ("+7", 7), ("'1'", "1"), ("True", True), ("false", False)],
        *[("~", None), ("", None), ("Null", None), ("[1, 1e1, a]", [1, 10.0, "a"])],
        *((word, word) for word in ["no", "yes", "on", "1_000", "0x10", "1:30", "2024-01-01"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Value) -> None:
    parsed = read_yaml(f"x: {text}", "f").values["x"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "flags", "start", "part"),
    [
        ("optim:\n  lr: fast\n", {}, "x.yaml:2:3: optim.lr: ", "(found fast)"),
        (
            "seed: 1\noptim:\n    lr: -1\n",
            {},
            "x.yaml:3:5: optim.lr: ",
            "greater than 0 (found -1)",
        ),
        (
            "precision: no\n",
            {},
            "x.yaml:1:1: precision: ",
            "expected auto, fp32, bf16 or fp16 (found 'no')",
        ),
        ("optim: {betas: [0.9, 2]}\n", {}, "x.yaml:1:9: optim.betas: ", "less than 1 (found 2)"),
        (
            "optim: {betas: [0.9]}\n",
            {},
            "x.yaml:1:9: optim.betas: ",
            "expected a list like [0.9, 0.999]",
        ),
        ("train: 5\n", {}, "x.yaml:1:1: train: ", "(found 5)"),
        (
            "deterministic: 1\n",
            {},
            "x.yaml:1:1: deterministic: ",
            "expected true or false (found 1)",
        ),
        (
            "train:\n  steps: 3.0\n",
            {},
            "x.yaml:2:3: train.steps: ",
            "a whole number, or null (found 3.0)",
        ),
        ("- 1\n", {}, "x.yaml:1:1: ", "expected settings"),
        ("seed: [1\n", {}, "x.yaml:2:1: not valid YAML: ", ""),
        ("seed: 1\n---\nseed: 2\n", {}, "x.yaml:2:1: not valid YAML: ", "another document"),
        ("seed: !!python/none 1\n", {}, "x.yaml:1:7: not valid YAML: ", "unknown tag"),
        ("seed: !!int x\n", {}, "x.yaml:1:", ""),
        ("a: &x [*x]\n", {}, "x.yaml:1:8: not valid YAML: an alias (*name); ", ""),
        (
            BOMB,
            {},
            "x.yaml:2:10: not valid YAML: an alias (*name); write out what it stands for",
            "",
        ),
        ("seed: " + "[" * 60_000, {}, "x.yaml:1:16: not valid YAML: nested deeper than 10 ", ""),
        ('{"a": ' * 9_000, {}, "x.yaml:1:56: not valid YAML: nested deeper than 10 levels", ""),
        ("#" * 10**7, {}, "x.yaml: 10,000,000 characters; settings take at most 65,536", ""),
        ("", {"optim.lr": "fast"}, "--optim.lr: ", "(found fast)"),
        ("", {"seed": "1" * 5000}, "--seed: expected a whole number (found ", ""),
        (
            "",
            {"optim.betas": "0.9"},
            "--optim.betas: ",
            "expected a list like [0.9, 0.999] (found 0.9)",
        ),
        ("optim: {lr: slow}\n", {"optim.lr": "fast"}, "--optim.lr: ", "(found fast)"),
        ("seed: 1\nseed: 2\n", {}, "x.yaml:2:1: seed: stands twice (first at x.yaml:1:1)", ""),
        (
            "optim:\n  lr: 1\n  clip: 2\n  lr: 1\n",
            {},
            "x.yaml:4:3: optim.lr: stands twice (first at x.yaml:2:3)",
            "",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, flags: Mapping[str, str], start: str, part: str
) -> None:
    message = complaint(tmp_path, text, flags)
    assert message.startswith(start)
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("train:\n  stpes: 3\n", "2:3: train.stpes: unknown key; did you mean 'steps'?"),
        ("trian: {}\n", "1:1: trian: unknown key; did you mean 'train'?"),
        ("lr: 1\n", "1:1: lr: unknown key; did you mean 'optim.lr'?"),
        ("model:\n  lr: 1\n", "2:3: model.lr: unknown key; did you mean 'optim.lr'?"),
        ("qqqqqq: 1\n", "1:1: qqqqqq: unknown key; `seqclf train --help` lists all"),
    ],
)
def test_an_unknown_key_hints_at_the_nearest(tmp_path: Path, text: str, end: str) -> None:
    assert complaint(tmp_path, text) == f"x.yaml:{end}"


@pytest.mark.parametrize(
    ("text", "flags", "start"),
    [
        (
            "device: cpu\nprecision: fp16\n",
            {},
            "x.yaml:2:1: precision: fp16 contradicts device: cpu (x.yaml:1:1): ",
        ),
        (
            "",
            {"data.emnist_split": "letters"},
            "--data.emnist_split: letters contradicts data.name: auto (the default): leave it out",
        ),
        (
            "data:\n  augment:\n    crop: 0.5\n",
            {"data.name": "digits"},
            "x.yaml:3:5: data.augment.crop: 0.5 contradicts data.path: null (the default): it is ",
        ),
        (
            "device: cpu\n",
            {"precision": "fp16"},
            "--precision: fp16 contradicts device: cpu (x.yaml:1:1): ",
        ),
    ],
)
def test_settings_that_contradict_each_other_name_both_places(
    tmp_path: Path, text: str, flags: Mapping[str, str], start: str
) -> None:
    assert complaint(tmp_path, text, flags).startswith(start)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = "seed: x\ntrain:\n  steps: 0\n  stpes: 1\noptim:\n  lr: 0\n"
    lines = complaint(tmp_path, text, {"optim.lr": "y", "log.every": "z"}).splitlines()
    places = ["x.yaml:1:1", "x.yaml:3:3", "x.yaml:4:3", "--optim.lr", "--log.every"]
    assert [line.split(": ")[0] for line in lines] == places


@pytest.mark.parametrize("text", ["train:\n", "train: {}\n", "data:\n  augment:\n", "# nothing\n"])
def test_an_empty_section_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text) == Config()


def test_flags_win_over_the_file_and_leave_its_other_settings(tmp_path: Path) -> None:
    text = "optim:\n  lr: 0.5\n  clip: 2\n"
    config = load_text(tmp_path, text, {"optim.lr": "1e-3", "data.augment.shift": "2"})
    assert (config.optim.lr, config.optim.clip, config.data.augment.shift) == (0.001, 2.0, 2)


@no_deadline
@given(flag_sets, st.data())
def test_flags_are_read_as_yaml_is(flags: Mapping[str, str], data: st.DataObject) -> None:
    assume(flags)
    name = data.draw(st.sampled_from(sorted(flags)))
    *parents, leaf = name.split(".")
    opened = "".join(f"{{{parent}: " for parent in parents)
    text = f"{opened}{{{leaf}: {flags[name]}}}" + "}" * len(parents)
    config, flagged = load_config(None, {name: flags[name]})
    assert config == Config.model_validate(read_yaml(text, "f").values)
    assert flagged == [name]


@pytest.mark.parametrize("text", ["2024", "1e3", "true", "runs/a #1", "a: b", "[x"])
def test_a_flag_that_takes_text_takes_any(text: str) -> None:
    assert load_config(None, {"run_dir": text})[0].run_dir == text


@no_deadline
@given(configs)
def test_dump_reads_back_as_the_same_config(config: Config) -> None:
    assert Config.model_validate(read_yaml(dump(config), "f").values) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_in_configs_loads(path: Path) -> None:
    needed = {"data.path": "data/mine"} if path.stem == "files" else {}
    config, flagged = load_config(path, needed)
    assert flagged == [*needed]
    assert config != Config()


def test_configs_were_found() -> None:
    assert {"digits", "tutorial"} <= {path.stem for path in CONFIGS}


NEUTRAL_FLAGS = [
    *[("run_dir", "r"), ("resume", "never"), ("data.root", "d"), ("data.on_device", "true")],
    *[("checkpoint.every", "3"), ("checkpoint.keep_last", "3"), ("log.every", "3")],
    *[("tracking.wandb", "disabled"), ("tracking.project", "p"), ("distributed.timeout_s", "3")],
]


@pytest.mark.parametrize(
    ("path", "flags", "name"),
    [
        ("configs/mnist.yaml", {}, "mnist"),
        (None, {}, "auto"),
        (None, {"data.name": "digits"}, "digits"),
        ("a.yaml", {"data.name": "digits"}, "a-data.name=digits"),
        ("a.yaml", {"optim.lr": "5e-3"}, "a-optim.lr=0.005"),
        ("a.yaml", {"seed": "1", "optim.betas": "[0.5, 0.6]"}, "a-optim.betas=0.5,0.6-seed=1"),
        ("a.yaml", {"model.bidirectional": "true"}, "a-model.bidirectional=True"),
        ("a.yaml", {"seed": "1", "train.threads": "3"}, "a-seed=1"),
        *(("a.yaml", dict([flag]), "a") for flag in NEUTRAL_FLAGS),
    ],
)
def test_a_run_is_named_by_the_flags_that_change_its_result(
    path: str | None, flags: Mapping[str, str], name: str
) -> None:
    config, flagged = load_config(None, flags)
    assert run_name(config, path, flagged) == name


def test_a_long_run_name_is_hashed() -> None:
    flags = {"model.hidden_size": "512", "optim.weight_decay": "0.01", "train.batch_size": "4096"}
    config, flagged = load_config(None, flags | {"loss.label_smoothing": "0.125"})
    name = run_name(config, "a.yaml", flagged)
    assert name.startswith("a-")
    assert len(name) == len("a-") + 10
    assert name == run_name(config, "a.yaml", flagged[::-1])


@no_deadline
@given(flag_sets, flag_sets)
def test_runs_of_different_results_never_share_a_name(
    one: Mapping[str, str], other: Mapping[str, str]
) -> None:
    def effect(config: Config) -> dict[str, Value]:
        return {
            name: value for name, value in settings_by_name(config).items() if name not in NEUTRAL
        }

    (a, a_flagged), (b, b_flagged) = load_config(None, one), load_config(None, other)
    assume(effect(a) != effect(b))
    for path in (None, "x.yaml"):
        assert run_name(a, path, a_flagged) != run_name(b, path, b_flagged)


@pytest.mark.parametrize("module", ["seqclf.config", "seqclf.cli.main"])
def test_reading_settings_imports_neither_torch_nor_accelerate(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'accelerate'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_flag_for_the_length_beats_a_files_other_one(tmp_path: Path) -> None:
    by_steps, by_epochs = "train: {steps: 7}", "train: {epochs: 2}"
    for text, flags, expected in [
        (by_steps, {"train.epochs": "3"}, (None, 3)),
        (by_epochs, {"train.steps": "5"}, (5, None)),
        (by_steps, {"train.epochs": "null"}, (7, None)),
        (by_steps, {"train.steps": "null", "train.epochs": "3"}, (None, 3)),
    ]:
        train = load_text(tmp_path, text, flags).train
        assert (train.steps, train.epochs) == expected
    both = {"train.steps": "5", "train.epochs": "3"}
    assert complaint(tmp_path, "", both) == (
        "--train.epochs: 3.0 contradicts train.steps: 5 (--train.steps): either says how long to "
        "train; leave one out"
    )
    assert complaint(tmp_path, "train:\n  steps: 7\n  epochs: 0.5").startswith(
        "x.yaml:3:3: train.epochs: 0.5 contradicts train.steps: 7 (x.yaml:2:3): either says"
    )


def test_an_older_run_may_say_that_it_has_no_trained_convolutions(tmp_path: Path) -> None:
    remedy = "model.conv: unknown key; seqclf has fixed convolutions now: --model.rocket auto, or 0"
    assert remedy in complaint(tmp_path, "model: {conv: 0}")
    (tmp_path / "run.json").write_text("{}")
    assert load_text(tmp_path, "model: {conv: 0, stack: 3}").model.stack == 3
    for value in ("64", "auto"):
        assert remedy in complaint(tmp_path, f"model: {{conv: {value}}}")


def test_an_older_run_may_name_both_lengths(tmp_path: Path) -> None:
    text = "train:\n  steps: 7\n  epochs: 0.5"
    (tmp_path / "run.json").write_text("{}")
    train = load_text(tmp_path, text).train
    assert (train.steps, train.epochs) == (7, None)
    train = load_text(tmp_path, text, {"train.epochs": "3"}).train
    assert (train.steps, train.epochs) == (None, 3)


def test_recipes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.recipe_names() == [path.stem for path in CONFIGS]
    data = {"data.path": "x"}
    for path in CONFIGS:
        flags = data if path.stem in ("files", "japanese_vowels") else None
        assert load_config(path.stem, flags) == load_config(path, flags)
    (tmp_path / "digits").write_text("seed: 3")
    assert load_config("digits")[0] == Config(seed=3)
    with pytest.raises(UserError, match=r"--config digts: .*; recipes .*: debug, digits,"):
        load_config("digts")
    # An installation has no configs/ beside the package, but a folder in it.
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("seed: 5")
    assert load_config("mine")[0] == Config(seed=5)


def test_an_installation_holds_all_packages_and_recipes() -> None:
    root = CONFIGS[0].parents[1]
    with (root / "pyproject.toml").open("rb") as file:
        built = tomllib.load(file)["tool"]["setuptools"]
    folders = {file.parent.relative_to(root) for file in (root / "seqclf").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders}
    assert set(built["packages"]) == names | {"seqclf.recipes"}
    assert built["package-dir"] == {"seqclf.recipes": "configs"}


def test_prepared_data_have_a_recipe_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        assert main(["train", "--print-config", *words]) == 0
        return capsys.readouterr().out

    of_files = printed("--config", "files", "--data.path", "x", "--seed", "4")
    assert printed("--data.path", "x", "--seed", "4") == of_files
    assert printed("--data.path", "x", "--data.name", "files", "--seed", "4") == of_files
    assert printed("--config", "japanese_vowels", "--data.path", "x", "--seed", "4") != of_files

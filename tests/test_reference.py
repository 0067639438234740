"""The settings as people read them: docs/settings.md, commented YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.launching import ROOT

from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.config.reference import SECTIONS, STARTER, commented_yaml, kind, markdown
from seqclf.config.settings import Config, Optim, Train, fields, settings_by_name
from seqclf.config.yaml import read_yaml

CHANGED = Config(
    run_dir="no",  # text that YAML 1.1 takes for something else
    precision="bf16",
    deterministic=True,
    optim=Optim(lr=1e-3, betas=(0.5, 0.75), clip=None),
    train=Train(epochs=0.5),
)


def written(text: str) -> set[str]:
    """Return the names of the settings that stand in a YAML text."""
    return set(read_yaml(text, "f").places) & {name for name, _, _ in fields()}


def test_the_page_of_settings_is_the_code_s() -> None:
    remedy = "python -m seqclf.config.reference > docs/settings.md"
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), remedy


def test_the_page_has_a_row_for_every_setting_and_names_every_section() -> None:
    page = markdown()
    for name, _, description in fields():
        assert f"\n| `{name}` | " in page
        assert f" | {description} |\n" in page
    assert "\n| `optim.clip` | NUMBER \\| null | `1.0` | " in page
    assert set(SECTIONS) == {name.partition(".")[0] for name, _, _ in fields() if "." in name}


@pytest.mark.parametrize("config", [Config(), CHANGED], ids=["default", "changed"])
def test_a_commented_config_reads_back_as_the_same(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(commented_yaml(config))
    assert load_config(path)[0] == config
    assert written(path.read_text()) == set(settings_by_name(config))


def test_every_setting_is_explained_above_it() -> None:
    lines = commented_yaml(Config()).splitlines()
    assert max(map(len, lines)) <= 88
    place = lines.index("  clip: 1.0")
    assert lines[place - 2 : place] == [
        "  # Largest norm of the gradient; a longer one is scaled down to it. null: off.",
        "  # (NUMBER|null)",
    ]


def test_print_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(ROOT / "configs" / "mnist.yaml"), "--optim.lr", "0.005"]
    assert main(["train", *words, "--print-config"]) == 0
    path = tmp_path / "x.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path)[0] == load_config(words[1], {"optim.lr": "0.005"})[0]


def test_the_starter_has_only_its_own_settings_on(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    assert main(["init", str(path)]) == 0
    text = path.read_text()
    assert load_config(path)[0] == Config()
    assert written(text) == STARTER
    assert "\n  #clip: 1.0\n" in text
    path.write_text(text.replace("  #clip: 1.0\n", "  clip: 2.0\n"))  # a # taken away
    assert load_config(path)[0] == Config(optim=Optim(clip=2.0))
    assert main(["init", str(path)]) == 2  # never over a file that is there


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed", "INT"),
        ("device", "auto|cpu|cuda|mps"),
        ("optim.betas", "[NUMBER,NUMBER]"),
        ("data.on_device", "auto|true|false"),
        ("train.epochs", "NUMBER|null"),
    ],
)
def test_a_setting_s_values_are_named(name: str, expected: str) -> None:
    assert kind({full: annotation for full, annotation, _ in fields()}[name]) == expected

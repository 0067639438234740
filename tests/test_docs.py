"""The documents are true: their messages, commands and links are the program's."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers.launching import ROOT, launch
from torch.distributed.run import get_args_parser

from seqclf.cli.main import main, parse
from seqclf.cli.options import given_settings, load_settings
from seqclf.config.load import load_config
from seqclf.config.naming import run_name
from seqclf.config.settings import fields
from seqclf.sweep import plan

PAGES = {
    page.name: page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
PROGRAMS = (
    "accelerate ",
    "torchrun",
    "python ",
    "seqclf ",
    "eval ",
    "sbatch ",
    "make ",
    "ACCELERATE_USE_CPU=true t",
)
PLACEHOLDERS = {"configs/RECIPE.yaml": "configs/digits.yaml", "S": "1", "R": "0", "IP": "127.0.0.1"}
PLACEHOLDERS |= {"RUN": "runs/mine", "FILE": "labelled.csv", "ONE_WAY_RUN": "runs/one-way"}
PLACEHOLDERS |= {"runs/digits": "runs/mine"}  # what `make train` makes
PLACEHOLDERS |= {f"RUN_{number}": f"runs/mine-{number}" for number in range(1, 5)}
NAMES = {"accelerate launch", "accelerate launch --mixed_precision", "torchrun"} | {
    "torchrun --standalone",
    "seqclf sweep",
    "seqclf evaluate",
    "seqclf predict",
    "seqclf prepare",
    "seqclf describe",
    "seqclf export",
    "seqclf demo",
    "seqclf push",
    "seqclf baselines",
}
SHORT = ["--train.steps", "2", "--tracking.wandb", "disabled", "--report", "false", "--run-dir"]
SMOKE = ["--data.name", "digits", "--data.emnist_split", "balanced", *SHORT]
LAUNCHED = "accelerate launch --config_file configs/accelerate/cpu.yaml launch/train.py"
NOT_LAUNCHED = {  # a part of the command: the reason. Their settings are run all the same.
    "accelerate launch launch/train.py": "tests/test_launch.py does",
    "torchrun --standalone --nproc-per-node 2": "tests/test_launch.py does",
    "accelerate launch --cpu": "tests/test_launch.py does",
    "python launch/train.py": "tests/test_launch.py does",
    "sbatch ": "tests/test_slurm.py runs the script",
    "cpu.yaml launch/train.py --config": "launched once, above",
    "accelerate/gpu.yaml": "needs a GPU",
    "accelerate/multi_gpu.yaml": "needs GPUs",
    "torchrun --standalone --nproc-per-node 8": "needs GPUs",
    "accelerate/multi_node.yaml": "needs two hosts",
    "torchrun --nnodes 2": "needs two hosts",
    "--mixed_precision bf16": "tests/test_runtime.py tries bf16, where the CPU has it",
    "git clone": "needs a network",
    "python benchmarks/": "takes minutes",
    "python examples/serve.py": "tests/test_serving.py does",
    "python -m seqclf.tracking.mirror wandb": "tests/test_mirrors.py does",
    "-m venv": "tests run in an environment that is made",
    "pip install": "needs a network",
    "accelerate config": "asks questions",
    "make ": "installs, or runs these tests",
}


def read_commands() -> Iterator[str]:
    """Yield the commands of all pages; names (`seqclf predict`) and forms (`... X`) are none."""
    for text in PAGES.values():
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        lines = [line for block in blocks for line in block.splitlines()]
        for found in [*lines, *(span for span in spans if span.startswith(PROGRAMS))]:
            command = re.sub(r"\s+# .*", "", found).strip()
            if command not in NAMES and "..." not in command and "COMMAND" not in command:
                yield command


COMMANDS = sorted(set(read_commands()))


def seqclf_words(command: str) -> tuple[str, ...]:
    """Return what a command hands to seqclf, if it does."""
    command = re.sub(r'eval "\$\((.*)\)"', r"\1", command)
    _, script, flags = re.sub(
        r"launch/(train|slurm(-multi)?)\.(py|sbatch)", "SCRIPT", command
    ).partition("SCRIPT")
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(flags if script else command)]
    if script:
        return ("train", *words)
    return tuple(words[1:]) if words[0] == "seqclf" else ()


WORDS = sorted({words for words in map(seqclf_words, COMMANDS) if words})


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 40
    found = {words[0] for words in WORDS}
    assert found == {
        "train",
        "sweep",
        "evaluate",
        "predict",
        "demo",
        "push",
        "report",
        "export",
        "prepare",
        "describe",
        "baselines",
        "runs",
        "checkpoints",
        "init",
        "doctor",
        "advise",
        "completion",
    }
    assert {"make train", "make test", "make slow", "make bench", "make gpu"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood_by_its_program(command: str) -> None:
    launcher, _, _ = command.partition("launch/train.py")
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(launcher)]
    words = [word for word in words if not word.startswith("ACCELERATE_")]
    if words[:2] == ["accelerate", "launch"]:
        options = launch_command_parser().parse_args([*words[2:], "launch/train.py"])
        if options.config_file:
            assert yaml.safe_load((ROOT / options.config_file).read_text())
    elif words[0] == "torchrun":
        get_args_parser().parse_args([*words[1:], "launch/train.py"])
    elif words[0] == "make":
        assert re.search(f"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    if "--help" not in command and (words_of_seqclf := seqclf_words(command)):
        arguments = parse(words_of_seqclf)
        if arguments.command == "train":
            load_settings(arguments)


def test_every_command_is_run_or_has_its_reason() -> None:
    assert LAUNCHED in COMMANDS
    others = [c for c in COMMANDS if not c.startswith(("seqclf ", "eval ")) and c != LAUNCHED]
    assert [c for c in others if not any(part in c for part in NOT_LAUNCHED)] == []
    assert [part for part in NOT_LAUNCHED if not any(part in c for c in others)] == []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's scripts and recipes, with the run that the README speaks of."""
    place = tmp_path_factory.mktemp("workplace")
    for name in ("launch", "configs"):
        (place / name).symlink_to(ROOT / name)
    debug = ["train", "--config", str(ROOT / "configs" / "debug.yaml"), *SMOKE]
    assert main([*debug, str(place / "runs" / "mnist_fast-optim.lr=0.005-seed=1")]) == 0
    lines = [f"{i},{t},{i % 2 + t},{'ab'[i % 2]}" for i in range(60) for t in range(1 + i % 5)]
    for name in ("recordings", "new", "labelled"):
        (place / f"{name}.csv").write_text("\n".join(["recording,t,x,label", *lines]))
    words = [str(place / "recordings.csv"), "--id", "recording", "--out"]
    assert main(["prepare", *words, str(place / "data" / "mine")]) == 0
    recipe = str(ROOT / "configs" / "files.yaml")
    config = load_config(recipe, {"data.path": "data/mine"})[0]
    path = place / "runs" / run_name(config, recipe, ["data.path"])
    words = ["train", "--config", recipe, "--data.path", str(place / "data" / "mine")]
    assert main([*words, *SHORT, str(path)]) == 0
    for number in range(1, 5):
        shutil.copytree(path, place / "runs" / f"mine-{number}")
    one_way = ["--model.bidirectional", "false", "--model.rocket", "0", *SHORT]
    assert main([*words, *one_way, str(place / "runs" / "one-way")]) == 0
    return place


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_command_runs(
    words: tuple[str, ...], workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    if "--help" in words:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        return
    smoke = [*(SHORT if "--data.path" in words else SMOKE), str(tmp_path / "run")]
    if words[0] == "baselines":  # tests/test_baselines.py runs the others, which numba compiles
        words = (*words, "--only", "majority")
    if words[0] == "sweep":  # tests/test_sweep.py runs some
        arguments = parse(words)
        assert len(plan(arguments.config, given_settings(arguments))) > 1
        return
    if words[0] == "prepare":
        (workplace / "data" / "mine").rename(tmp_path / "mine")
    shortened = ["--train.epochs", "null", *smoke]  # in place of the command's own length
    assert main([*words, *(shortened if words[0] in ("train", "advise") else [])]) == 0


@pytest.mark.slow
def test_a_launcher_runs(tmp_path: Path) -> None:
    done = launch(*LAUNCHED.split(), *SMOKE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"result      {tmp_path}/model" in done.stdout


def test_settings_and_links_exist() -> None:
    names = {name for name, _, _ in fields()}
    for name, text in PAGES.items():
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z]+\.[a-z_.-]*[a-z])", text)}
        assert flags <= names, name
        for path in re.findall(r"\b(?:docs|configs|launch|tests|benchmarks)/[\w/]+\.\w+", text):
            assert (ROOT / path).is_file() or path == "configs/RECIPE.yaml", (name, path)


def literals(node: ast.AST) -> list[str]:
    """Return the fixed parts of a message in order."""
    parts = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    parts.sort(key=lambda part: (part.lineno, part.col_offset))
    texts = [str(part.value).strip(" :;,.()'\n") for part in parts]
    return [text for text in texts if text]


def message_of(call: ast.Call) -> list[str]:
    """Return the fixed parts of what a call complains of, if it does."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    first, *others = [literals(argument) for argument in call.args] or [[]]
    if name in ("UserError", "RuntimeError", "OSError", "ValueError"):
        return first
    if name in ("say", "append") and first and first[0].startswith(("note", "warning")):
        return first
    return others[0] if name == "Decision" and first == ["note"] else []


def messages() -> Iterator[tuple[str, str]]:
    """Yield (place, telling part) of all that the program complains of."""
    for path in sorted((ROOT / "seqclf").rglob("*.py")):
        place = path.relative_to(ROOT / "seqclf").with_suffix("")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (parts := message_of(node)):
                # the first words that say something, else the longest
                telling = next((p for p in parts if len(p) >= 10 and " " in p), max(parts, key=len))
                telling = telling.removeprefix("note").strip(" :")
                yield f"{place}: {telling}", telling[:30].rstrip()


MESSAGES = dict(messages())


@pytest.mark.parametrize("place", MESSAGES)
def test_a_message_is_in_troubleshooting(place: str) -> None:
    assert MESSAGES[place] in (ROOT / "docs" / "troubleshooting.md").read_text()


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) >= 50
    assert "config/yaml: not valid YAML" in MESSAGES
    assert any("GPUs here, 1 used" in place for place in MESSAGES)
    assert any("checkpoint passed over" in place for place in MESSAGES)

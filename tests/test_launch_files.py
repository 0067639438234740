"""The files in launch/ for containers and clusters, as far as one can without either."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from helpers.files import read_status
from helpers.launching import ROOT, clean_environment
from helpers.schemas import SKYPILOT_TASK, TRAIN_JOB, TRAINING_RUNTIME, Schema
from jsonschema import Draft202012Validator, ValidationError

from seqclf.cli.main import main

LAUNCH = ROOT / "launch"


def check(value: object, schema: Schema) -> None:
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(value)


# ---- Kubernetes


@pytest.fixture
def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


def test_the_runtime_and_the_job_fit_their_schemas(kubernetes: list[dict[str, Any]]) -> None:
    runtime, job = kubernetes
    check(runtime, TRAINING_RUNTIME)
    check(job, TRAIN_JOB)
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # What Trainer looks for.
    labels = node["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = node["template"]["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["node"]
    mounts = [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod["volumes"]]


def test_a_schema_refuses_a_word_that_is_not_in_it(kubernetes: list[dict[str, Any]]) -> None:
    runtime, job = copy.deepcopy(kubernetes)
    job["spec"]["trainer"]["numProcessesPerNode"] = 1
    with pytest.raises(ValidationError, match="numProcessesPerNode"):
        check(job, TRAIN_JOB)
    runtime["spec"]["mlPolicy"]["torch"]["elasticPolicy"] = {}
    with pytest.raises(ValidationError, match="elasticPolicy"):
        check(runtime, TRAINING_RUNTIME)


def test_every_exit_code_has_the_action_that_it_means(kubernetes: list[dict[str, Any]]) -> None:
    job = kubernetes[0]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    assert actions == {2: "FailJob", 143: "Ignore"}  # 1 and 137 count for backoffLimit
    trainer = kubernetes[1]["spec"]["trainer"]
    # Else torchrun would make 1 of all codes.
    assert (trainer["command"], trainer["numProcPerNode"]) == (["python", "launch/train.py"], 1)


def test_the_settings_of_the_job_are_settings(
    kubernetes: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = kubernetes[1]["spec"]["trainer"]
    assert main(["train", *trainer["args"], "--print-config"]) == 0
    shards = yaml.safe_load(capsys.readouterr().out)["train"]["shards"]
    assert shards % trainer["numNodes"] == 0


# ---- SkyPilot


def test_the_skypilot_task_fits_its_schema() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    check(task, SKYPILOT_TASK)
    run_dir = re.search(r"--run-dir (\S+)", task["run"])
    assert run_dir
    assert any(run_dir[1].startswith(f"{path}/") for path in task["file_mounts"])


def test_skypilot_starts_a_launcher_on_each_node(tmp_path: Path) -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    torchrun = tmp_path / ".venv/bin/torchrun"
    torchrun.parent.mkdir(parents=True)
    torchrun.write_text('#!/bin/sh\necho "$@"\n')
    torchrun.chmod(0o755)
    variables = {
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    words = subprocess.run(
        ["bash", "-euc", task["run"]],
        cwd=tmp_path,
        env=clean_environment() | task["envs"] | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    launcher, settings = words[: words.index("launch/train.py")], words[10 + 1 :]
    assert dict(zip(launcher[::2], launcher[1::2], strict=True)) == {
        "--nnodes": "2",
        "--node-rank": "1",
        "--nproc-per-node": "8",
        "--master-addr": "10.0.0.5",
        "--master-port": "29500",
    }
    assert main(["train", *settings, "--print-config"]) == 0


# ---- Docker


class Step(NamedTuple):
    instruction: str
    words: str


def dockerfile() -> list[Step]:
    """Return the steps of launch/Dockerfile, without comments, each on one line."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [Step(*line.split(maxsplit=1)) for line in lines if line.strip()]


def is_ignored(path: str) -> bool:
    """Return whether .dockerignore keeps a path out: its last line that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = Path(path).parts
        parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        names = parts if pattern.startswith("**/") else parents
        if not line.startswith("#") and any(
            fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names
        ):
            ignored = not line.startswith("!")
    return ignored


def words_of(instruction: str) -> list[str]:
    return [step.words for step in dockerfile() if step.instruction == instruction]


def test_the_image_is_not_roots_and_starts_its_program_without_a_shell() -> None:
    steps = dockerfile()
    assert {step.instruction for step in steps} == {
        *("ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT")
    }
    assert words_of("USER") == ["1000"]
    assert any("useradd --uid 1000" in words for words in words_of("RUN"))
    # What comes after USER cannot write as root.
    names = [step.instruction for step in steps]
    assert "RUN" not in names[names.index("USER") :]
    assert json.loads(words_of("ENTRYPOINT")[0]) == ["python", "launch/train.py"]
    assert words_of("FROM") == ["${BASE}"]
    assert [words.partition("=")[0] for words in words_of("ARG")] == ["BASE", "TORCH_INDEX"]


def test_the_context_is_what_the_image_copies() -> None:
    sources = [word for words in words_of("COPY") for word in words.split()[:-1]]
    assert all((ROOT / source).exists() and not is_ignored(source) for source in sources)
    for path in ("data", "runs", ".git", ".venv", "tests", "launch/slurm.sbatch", "wandb"):
        assert is_ignored(path)
    assert is_ignored("seqclf/run/__pycache__")


@pytest.mark.slow
def test_the_copied_files_install_and_train_in_a_clean_directory(tmp_path: Path) -> None:
    """Take the steps of the image without its base: no torch is installed, no user made."""
    app, site = tmp_path / words_of("WORKDIR")[0].strip("/"), tmp_path / "site"
    app.mkdir()
    for step in dockerfile():
        if step.instruction == "COPY":
            *sources, target = step.words.split()
            place = tmp_path / target.strip("/") if target.startswith("/") else app / target
            for source in sources:
                copy_like_docker(source, place, is_folder=target.endswith("/"))
        elif step.instruction == "RUN" and "/build" in step.words:
            install, _, remove = step.words.partition(" && ")
            here = str(tmp_path / "build")
            options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", str(site)]
            words = shlex.split(install.replace("/build", here))
            assert words[:2] == ["pip", "install"]
            subprocess.run([sys.executable, "-m", *words, *options], check=True)
            subprocess.run(shlex.split(remove.replace("/build", here)), check=True)
    flags = ["--config", "configs/debug.yaml", "--run-dir", "runs/debug"]
    program = json.loads(words_of("ENTRYPOINT")[0])
    done = subprocess.run(
        [sys.executable, *program[1:], *flags, "--train.threads", "1"],
        cwd=app,
        env=clean_environment() | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_status(app / "runs/debug").state == "finished"
    assert (site / "seqclf" / "recipes" / "mnist.yaml").is_file()


def copy_like_docker(source: str, place: Path, *, is_folder: bool) -> None:
    """Copy a file, or the files of a folder, as COPY does."""
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        return
    place = place / Path(source).name if is_folder else place
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / source, place)

"""What accelerate's flags and config file ask for: refused by name, or off and said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.files import read_facts
from helpers.launching import as_words, launch
from helpers.ranks import run_ranks
from helpers.training import TINY, tiny_flags, train_tiny

from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.processes.launcher import check_launcher, is_set, join_pods
from seqclf.processes.start import start_runtime

# What `accelerate config` writes into the user's home if one says yes to dynamo.
CONFIG_FILE = """\
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
dynamo_config:
  dynamo_backend: INDUCTOR
debug: true
num_machines: 1
num_processes: 1
machine_rank: 0
mixed_precision: 'no'
use_cpu: true
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


def test_nothing_asked_for_is_nothing_said() -> None:
    assert check_launcher() == []


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("USE_FSDP", "true", "asks for FSDP; seqclf trains with DDP"),
        ("USE_DEEPSPEED", "1", "asks for DEEPSPEED"),
        ("USE_MEGATRON_LM", "True", "asks for MEGATRON_LM"),
        ("USE_PARALLELISM_CONFIG", "true", "asks for PARALLELISM_CONFIG"),
        ("USE_SAGEMAKER", "yes", "asks for SAGEMAKER"),
        ("USE_IPEX", "on", "asks for IPEX"),
        ("USE_TPU", "maybe", "the variable ACCELERATE_USE_TPU is 'maybe'; use true or false"),
        ("USE_CPU", "perhaps", "the variable ACCELERATE_USE_CPU is 'perhaps'"),
        ("DEBUG_MODE", "2", "the variable ACCELERATE_DEBUG_MODE is '2'"),
        (
            "GRADIENT_ACCUMULATION_STEPS",
            "8",
            "STEPS to '8', which seqclf does not use: train.batch",
        ),
        ("GRADIENT_CLIPPING", "1.0", "to '1.0', which seqclf does not use: optim.clip"),
        ("TORCH_DEVICE", "cpu", "to 'cpu', which seqclf does not use: the setting `device`"),
        ("MIXED_PRECISION", "fp8", "--mixed_precision fp8 is not supported"),
    ],
)
def test_what_would_make_another_result_is_refused_by_name(
    name: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(UserError, match=named):
        start_runtime(Config())


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "PMI_SIZE"]
    for name in [*names, "SLURM_NTASKS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.setenv(name, "")
    assert train_tiny(tmp_path, {"train.steps": 1}) == 0
    assert read_facts(tmp_path)["world_size"] == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # which asks for no GPU


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USE_FSDP", "false"),
        ("USE_DEEPSPEED", "0"),
        ("GRADIENT_ACCUMULATION_STEPS", "1"),
        ("GRADIENT_CLIPPING", "none"),
        ("DYNAMO_BACKEND", "no"),
        ("DYNAMO_BACKEND", "NO"),
        ("DEBUG_MODE", "false"),
        ("CPU_AFFINITY", "1"),
        # empty is unset
        ("USE_FSDP", ""),
        ("USE_CPU", ""),
        ("GRADIENT_ACCUMULATION_STEPS", ""),
        ("TORCH_DEVICE", ""),
        ("MIXED_PRECISION", ""),
        ("DEBUG_MODE", ""),
        ("DYNAMO_BACKEND", ""),
        ("DYNAMO_USE_FULLGRAPH", ""),
        ("CPU_AFFINITY", ""),
    ],
)
def test_what_asks_for_nothing_starts(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    runtime = start_runtime(Config())
    assert [decision for decision in runtime.decisions if decision.subject == "note"] == []
    assert runtime.precision == "fp32"


POD = {
    "PET_NNODES": "3",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
PLACE = {
    "RANK": "2",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "3",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "job-node-0-0.job",
    "MASTER_PORT": "29400",
}


def in_pod(patch: pytest.MonkeyPatch, **variables: str | None) -> dict[str, str]:
    """Join the pods with these variables besides a pod's; return what a launcher would set."""
    environment = {name: value for name, value in {**POD, **variables}.items() if value}
    patch.setattr("os.environ", environment)
    join_pods()
    return {name: environment[name] for name in PLACE if name in environment}


def test_plain_python_takes_its_place_among_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_pod(monkeypatch) == PLACE
    assert in_pod(monkeypatch, PET_NPROC_PER_NODE=None) == PLACE
    # A launcher has given the place already, or there is one pod, or none.
    assert in_pod(monkeypatch, RANK="5") == {"RANK": "5"}
    for nodes in ("1", None):
        assert in_pod(monkeypatch, PET_NNODES=nodes, PET_NPROC_PER_NODE="8") == {}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PET_NPROC_PER_NODE", "8", "'8', but plain python starts one process"),
        ("PET_NPROC_PER_NODE", "auto", "'auto', but plain python starts one process"),
        ("PET_MASTER_ADDR", None, "'3', but PET_MASTER_ADDR is missing"),
        ("PET_NODE_RANK", None, "'3', but PET_NODE_RANK is missing"),
        ("PET_NNODES", "1:4", "'1:4', but it must be one number"),
    ],
)
def test_pods_that_plain_python_cannot_join_are_refused(
    name: str, value: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=told):
        in_pod(monkeypatch, **{name: value})


def test_sagemaker_without_its_own_way_to_distribute_is_plain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_SAGEMAKER", "true")
    monkeypatch.setenv("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "NO")
    assert check_launcher() == []


@pytest.mark.parametrize("text", ["1", "true", "T", "yes", "Y", "ON"])
def test_a_switch_is_read_as_accelerate_reads_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", text)
    assert is_set("ACCELERATE_USE_CPU")
    device = start_runtime(Config()).decisions[0]
    assert device.text == "cpu (the launcher says so)"


def test_dynamo_is_off_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path / "plain", train__steps=3) == 0
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    monkeypatch.setattr("torch.compile", None)
    capsys.readouterr()
    assert train_tiny(tmp_path / "asked", train__steps=3) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert len(notes) == 1
    assert notes[0].startswith(
        "note        dynamo is off, though the launcher asks for INDUCTOR: compiling makes no"
    )
    assert "--dynamo_backend no" in notes[0]
    facts = [read_facts(tmp_path / name) for name in ("plain", "asked")]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]


def reduce_in_debug_mode() -> list[str]:
    """Reduce with accelerate's debug mode asked for; return the notes."""
    os.environ["ACCELERATE_DEBUG_MODE"] = "true"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pickle.dumps", None)  # of torch's object collectives
        patch.setattr("torch.distributed.all_gather_object", None)
        runtime = start_runtime(Config())
        assert not runtime.all_true(runtime.is_main)
        runtime.close()
    return [decision.value for decision in runtime.decisions if decision.subject == "note"]


def test_debug_mode_sends_no_pickles() -> None:
    note = "accelerate's debug mode is off, though the launcher asks for it: it sends pickles"
    assert run_ranks(2, reduce_in_debug_mode) == [[note]] * 2


@pytest.mark.slow
def test_accelerates_own_config_file_changes_no_bit(tmp_path: Path) -> None:
    config = tmp_path / "home/.cache/huggingface/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG_FILE)
    words = [*as_words(tiny_flags(TINY, train__steps=3)), "--run-dir", str(tmp_path / "run")]
    cache = {"HF_HOME": str(config.parents[1])}  # else in the user's home
    done = launch("accelerate", "launch", "launch/train.py", *words, **cache)
    assert done.returncode == 0, done.stderr
    assert "note        dynamo is off, though the launcher asks for INDUCTOR" in done.stdout
    assert "note        accelerate's debug mode is off" in done.stdout
    assert train_tiny(tmp_path / "plain", train__steps=3) == 0
    facts = [read_facts(tmp_path / name) for name in ("run", "plain")]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]

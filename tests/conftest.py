"""Fixtures of all tests; functions that several test files share are in helpers/."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.data import toy_dataset, toy_rows  # noqa: F401
from helpers.files import read_metrics  # noqa: F401
from helpers.launching import ROOT, launch  # noqa: F401
from helpers.ranks import run_mortal_ranks, run_ranks, start_ranks  # noqa: F401

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and sys.platform == "linux":
    # A core for each worker and what it starts: OpenMP's threads spin while they wait.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def _no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, 2 s of each run; test_report has it."""
    if request.path.stem != "test_report":
        monkeypatch.setattr("seqclf.train.write_page", lambda *_: None)


@pytest.fixture(autouse=True)
def _same_process_state() -> Iterator[None]:
    """Undo what a run sets for its whole process."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="session")
def mnist_root() -> str:
    """The folder that holds the real MNIST files, from SEQCLF_DATA."""
    root = os.environ.get("SEQCLF_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("SEQCLF_DATA does not name a folder with MNIST/raw")
    return root

"""Fixtures of all tests; functions that several test files share are in helpers/."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.mounts import find_memory

if TYPE_CHECKING:
    from playwright.sync_api import Browser

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and sys.platform == "linux":
    # A core for each worker and what it starts: OpenMP's threads spin while they wait.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Runs sync their files again and again, and would wait for the disk half of the time.
if memory := find_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)


@pytest.fixture(autouse=True)
def _same_process_state() -> Iterator[None]:
    """Undo what a run sets for its whole process."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what a run says of other programs on the machine of the tests."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(scope="session")
def mnist_root() -> str:
    """The folder that holds the real MNIST files, from SEQCLF_DATA."""
    root = os.environ.get("SEQCLF_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("SEQCLF_DATA does not name a folder with MNIST/raw")
    return root


@pytest.fixture
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave W&B without a key, and without a variable of its own."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium that asks nobody anything."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *quiet])
        yield browser
        browser.close()

"""The page of a run in a browser: it is legible, sorts, and takes hostile names for names."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.data import write_rows
from helpers.files import change_json
from helpers.pages import BROKEN, FOCUS, LOOK, SCHEMES, opened
from helpers.training import train_tiny
from playwright.sync_api import Browser

from seqclf.cli.main import main
from seqclf.report.page import write_report

HOSTILE = '"><script>alert(1)</script>$\\frac{'
SETTINGS = {"train.steps": 30, "log.every": 10, "quiet": True}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert train_tiny(path, SETTINGS, report=True) == 0
    return path


@pytest.mark.parametrize("kind", ["series", "text"])
def test_hostile_names_are_only_names_in_a_browser(
    tmp_path: Path, kind: str, browser: Browser
) -> None:
    rows = [
        {"steps": [[n % 2, 0.5]] * (2 + n % 5), "label": [HOSTILE, "ok"][n % 2]}
        if kind == "series"
        else {"text": f"{HOSTILE} {n}" * (1 + n % 2), "label": [HOSTILE, "ok"][n % 2]}
        for n in range(60)
    ]
    settings = {**SETTINGS, "data.name": "files", "data.path": prepared(rows, tmp_path)}
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, settings) == 0
    out = write_report([run_dir], None, {})
    assert "<script>alert" not in out.read_text()
    for figure in (run_dir / "report-figures").iterdir():
        assert "<script" not in figure.read_text()
    with opened(browser, out) as page:
        assert page.locator("script").count() == 1
        assert page.locator("svg").count() == len(list((run_dir / "report-figures").iterdir()))
        assert HOSTILE in page.locator("tbody").first.inner_text()


def prepared(rows: list[dict[str, Any]], folder: Path, *words: str) -> Path:
    source = write_rows(folder / "rows.jsonl", rows)
    assert main(["prepare", str(source), "--out", str(folder / "data"), *words]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1,000 logged points, 100 classes with long names and sequences of 2,000 steps."""
    folder = tmp_path_factory.mktemp("big")
    rows = [
        {
            "steps": [[n / 100, math.sin(step)] for step in range(2000)],
            "label": f"class of the number {n:03}",
        }
        for n in list(range(100)) * 5
    ]
    data = prepared(rows, folder, "--split", "0.4,0.2,0.4")
    settings = {"train.steps": 2, "data.name": "files", "data.path": data}
    run_dir = folder / "run"
    assert train_tiny(run_dir, settings) == 0
    change_json(run_dir / "status.json", step=1000)
    noise = random.Random(0)
    with (run_dir / "metrics.jsonl").open("w") as file:
        for step in range(1, 1001):
            line = {"step": step, "train/loss": 5 * noise.random() + 0.1, "train/lr": 0.01}
            file.write(json.dumps(line | {"train/grad_norm": noise.random() + 1}) + "\n")
    return write_report([run_dir], None, {})


@pytest.mark.parametrize("which", ["digits", pytest.param("big", marks=pytest.mark.slow)])
def test_a_page_is_legible_at_any_width_in_both_schemes(
    request: pytest.FixtureRequest, browser: Browser, which: str
) -> None:
    path = request.getfixturevalue(which)
    shaded_numbers = 100 if which == "digits" else 0
    with opened(browser, path / "report.html" if path.is_dir() else path) as page:
        for width, scheme in itertools.product((360, 800, 1400), SCHEMES):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            beyond, smallest, unlike = page.evaluate(LOOK)
            assert beyond <= 0, width
            assert smallest >= 7, width
            assert unlike <= shaded_numbers, scheme
            is_dark = page.evaluate("getComputedStyle(document.body).color") == "rgb(255, 255, 255)"
            assert is_dark == (scheme == "dark")
            assert page.evaluate(BROKEN) == [], width
            for figure in page.locator("figure[role=img]").all():
                box = figure.locator("svg").bounding_box()
                assert box
                assert box["width"] > 250, width
                assert box["height"] > 80, width
        for picture in page.locator("img").all():
            assert picture.get_attribute("alt")
            assert picture.evaluate("image => image.naturalWidth") > 0
        for figure in page.locator("figure[role=img]").all():
            assert figure.get_attribute("aria-label")


@pytest.mark.slow
def test_a_big_run_has_a_small_page(big: Path) -> None:
    assert big.stat().st_size < 3e6
    sizes = {file.stem: file.stat().st_size for file in big.with_name("report-figures").iterdir()}
    assert max(sizes.values()) < 3e5
    page = big.read_text()
    assert "says class of the number" in page
    assert "drawn every 20 steps" in page


def test_tables_sort_by_mouse_and_by_keyboard(digits: Path, browser: Browser) -> None:
    found = json.loads((digits / "evaluation" / "test.json").read_text())
    supports = sorted(sum(row) for row in found["confusion"])
    with opened(browser, digits / "report.html") as page:
        head = page.locator("th", has_text="examples")
        column = "tbody tr td:nth-child(2)"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert list(map(int, page.locator(column).all_inner_texts())) == supports[::-1]
        for _ in range(30):
            page.keyboard.press("Shift+Tab" if page.evaluate(FOCUS) != "class" else "Enter")
            if page.locator("th", has_text="class").get_attribute("aria-sort"):
                break
        assert page.locator("tbody tr td:first-child").all_inner_texts() == [*"9876543210"]
        page.keyboard.press("Space")
        assert page.locator("tbody tr td:first-child").all_inner_texts() == [*"0123456789"]
        assert head.get_attribute("aria-sort") is None
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "test classes"

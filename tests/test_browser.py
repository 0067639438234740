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
from helpers.pages import BROKEN, CONTRAST, FOCUS, LOOK, SCHEMES, opened
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
        assert page.locator("script").count() == 2  # what the script reads, and the script
        assert page.locator("svg:not([role][aria-label])").count() == 0
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


@pytest.mark.slow
@pytest.mark.parametrize("which", ["digits", "big"])
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
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[scheme]
            assert page.evaluate(CONTRAST) == [], (width, scheme)
            assert page.evaluate(BROKEN) == [], width
            for figure in page.locator("figure:not(.still) > svg:not(.series)").all():
                box = figure.bounding_box()
                assert box
                assert box["width"] > 250, width
                assert box["height"] > 80, width
        for picture in page.locator("img").all():
            assert picture.get_attribute("alt")
            assert picture.evaluate("image => image.naturalWidth") > 0
        assert page.locator("svg:not([role][aria-label])").count() == 0


@pytest.mark.slow
def test_a_big_run_has_a_small_page(big: Path) -> None:
    assert big.stat().st_size < 3e6
    sizes = {file.stem: file.stat().st_size for file in big.with_name("report-figures").iterdir()}
    assert max(sizes.values()) < 3e5
    page = big.read_text()
    assert "says class of the number" in page
    assert "drawn every 20 steps" in page
    assert "Classes, the worst first" in page


def test_tables_sort_by_mouse_and_by_keyboard(digits: Path, browser: Browser) -> None:
    found = json.loads((digits / "evaluation" / "test.json").read_text())
    supports = sorted(sum(row) for row in found["confusion"])
    with opened(browser, digits / "report.html") as page:
        head = page.locator(".split th", has_text="examples")
        column = ".split tbody tr td:nth-child(2)"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert list(map(int, page.locator(column).all_inner_texts())) == supports[::-1]
        for _ in range(30):
            page.keyboard.press("Shift+Tab" if page.evaluate(FOCUS) != "class" else "Enter")
            if page.locator(".split th", has_text="class").get_attribute("aria-sort"):
                break
        assert page.locator(".split tbody tr td:first-child").all_inner_texts() == [*"9876543210"]
        page.keyboard.press("Space")
        assert page.locator(".split tbody tr td:first-child").all_inner_texts() == [*"0123456789"]
        assert head.get_attribute("aria-sort") is None
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "test classes"


def test_the_reading_is_played_by_slider_mouse_and_keyboard(digits: Path, browser: Browser) -> None:
    with opened(browser, digits / "report.html") as page:
        page.set_viewport_size({"width": 360, "height": 740})
        picture = page.locator("#shown img")
        box = picture.bounding_box()
        assert box
        assert box["y"] + box["height"] < 740  # on a phone's first screen
        played = json.loads(page.locator("#payload").inner_text())["examples"]
        slider, where, veil = (
            page.locator("#position"),
            page.locator("#where"),
            page.locator(".veil"),
        )
        assert where.inner_text() == "row 8 of 8"
        assert not veil.is_visible()
        slider.focus()
        for _ in range(5):
            page.keyboard.press("ArrowLeft")
        assert where.inner_text() == "row 3 of 8"
        unread = veil.bounding_box()
        assert unread
        assert unread["height"] == pytest.approx(box["height"] * 5 / 8, abs=1)
        best = max(range(10), key=lambda c: played[0]["chances"][2][c])
        assert page.locator("#bars .best .name").inner_text() == played[0]["classes"][best]
        chart = page.locator("#chances").bounding_box()
        assert chart
        page.mouse.move(chart["x"] + chart["width"] * 5.5 / 8, chart["y"] + 20)
        assert where.inner_text() == "row 6 of 8"
        groups = page.locator(".chooser [role=group]")
        labels = [group.get_attribute("aria-label") for group in groups.all()]
        assert labels == ["right", "wrong, and most sure", "unsure"]
        page.emulate_media(reduced_motion="reduce")
        button = groups.nth(1).locator("button").first
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        chosen = played[int(button.get_attribute("data-example") or "")]
        assert picture.get_attribute("src") == chosen["image"]
        assert f", truth {chosen['truth']}" in page.locator("#answer").inner_text()
        play = page.locator("#play")
        play.click()
        assert play.inner_text() == "Stop"
        play.click()
        assert (play.inner_text(), where.inner_text()) == ("Play", "row 8 of 8")


def test_a_page_rounds_no_probability_up_to_all_and_cuts_no_short_name(
    digits: Path, browser: Browser
) -> None:
    shares = [1, 0.99999, 0.9999, 0.9995, 0.9994, 0.5, 0.0001, 0]
    expected = ["100 %", ">99.99 %", "99.99 %", "99.95 %", "99.9 %", "50.0 %", "0.01 %", "0.00 %"]
    with opened(browser, digits / "report.html") as page:
        assert page.evaluate("(shares) => shares.map(percent)", shares) == expected
        page.evaluate(
            """() => document.getElementById("bars").replaceChildren(
                bar("gesture right at 10 Hz", 0.99999, true), bar("gesture up", 0.1, false))"""
        )
        page.set_viewport_size({"width": 1400, "height": 900})
        names = "[...document.querySelectorAll('#bars .name')]"
        assert page.evaluate(f"{names}.every((name) => name.scrollWidth <= name.clientWidth)")
        lefts = page.evaluate(
            "[...document.querySelectorAll('#bars .track')].map((one) => one.offsetLeft)"
        )
        assert lefts[0] == lefts[1]  # the bars begin below each other
        widths = {
            round(box["width"])
            for figure in page.locator(".grid:not(.small) > figure").all()
            if (box := figure.bounding_box()) and not figure.locator("xpath=../../..").is_hidden()
        }
        assert max(widths) - min(widths) < 30


def test_a_cell_shows_its_examples(digits: Path, browser: Browser) -> None:
    found = json.loads((digits / "evaluation" / "test.json").read_text())["confusion"]
    with opened(browser, digits / "report.html") as page:
        cells = page.locator("svg[role=group] a")
        link = cells.nth(3)
        link.focus()
        top = page.evaluate("scrollY")
        page.keyboard.press("Enter")
        assert page.locator(".cell:visible").count() == 1
        assert page.evaluate("scrollY") == top
        truth, guess = map(int, (link.get_attribute("href") or "").split("-")[-2:])
        told = page.locator(".cell:visible h3").inner_text()
        assert told.startswith(f"{truth} named {guess}: ")
        assert told.endswith(f" of {found[truth][guess]}")
        assert page.locator(".cell:visible img").count() == int(told.split()[3])
        cells.nth(4).click()
        assert page.locator(".cell:visible").count() == 1


def test_a_page_without_a_script_shows_an_example(digits: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((digits / "report.html").as_uri())
    assert page.locator(".still svg").is_visible()
    assert not page.locator(".live").is_visible()
    assert page.locator(".cell:visible").count() == 0
    context.close()

"""The page that runs a model says what `predict_proba` says, and does what a person wants."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.architectures import architectures, make
from helpers.commands import Capture, call, predict, refusal
from helpers.pages import LOOK, SCHEMES, opened
from helpers.training import train_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

import seqclf
from seqclf import UserError
from seqclf.classifier import Classifier
from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.data.reading import Reading
from seqclf.data.sequences import Sequences
from seqclf.demo import page as demo
from seqclf.demo.page import find_kind, make_page
from seqclf.export.check import example_batches
from seqclf.model import Architecture
from seqclf.prefixes import probabilities
from seqclf.run.data import load_data
from seqclf.training import train

TOLERANCE = 1e-5
SURE = "at('until').value = 0.5, decide(), at('decision').textContent"
READ = "([steps, ends]) => [model.probabilities(steps), [...model.prefixes(steps, ends)]]"
HOSTILE = '"></script><script>alert(1)</script><img src=x onerror=alert(2)>'


def write_page(classifier: Classifier, folder: Path, test: Sequences | None = None) -> Path:
    member = classifier._members[0]
    page, _ = make_page(member.model, member.architecture, test, title="a model", facts=[])
    (folder / "demo.html").write_text(page)
    return folder / "demo.html"


def as_split(images: list[np.ndarray], architecture: Architecture) -> Sequences:
    """Return images as a test split."""
    values = torch.from_numpy(np.stack(images)).round().to(torch.uint8)
    return Sequences(values, torch.zeros(len(values), dtype=torch.int64), architecture.classes)


def as_steps(sequence: object, architecture: Architecture) -> list[Any]:
    """Return a sequence as the script of a page has it."""
    if isinstance(sequence, str):
        return list(sequence.encode())
    if architecture.tokens:
        numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
        return [numbers.get(token, 0) for token in sequence]  # type: ignore[attr-defined]
    return np.asarray(sequence, dtype=np.float64).tolist()  # type: ignore[no-any-return]


def check_page(architecture: Architecture, seed: int, browser: Browser, folder: Path) -> None:
    """Assert that a page says of sequences, and of their prefixes, what the model says."""
    classifier = make(architecture, seed)
    if architecture.reading.measured:
        with pytest.raises(UserError, match="which values were measured"):
            write_page(classifier, folder)
        return
    classifier._reader = classifier._reader._replace(known_tokens=None)
    batches = [batch for batch in example_batches(architecture) if not has_gaps(batch)]
    is_image = find_kind(architecture) == "image"
    test = as_split([batches[0][0]], architecture) if is_image else None  # type: ignore[list-item]
    with opened(browser, write_page(classifier, folder, test)) as page:
        for sequence in [one for batch in batches for one in batch]:
            steps = as_steps(sequence, architecture)
            if is_image:
                steps = page.evaluate("stepsOf", steps)
            ends = sorted({1, len(steps) // 2 or 1, len(steps)})
            found, prefixes = page.evaluate(READ, [steps, ends])
            np.testing.assert_allclose(
                found, classifier.predict_proba([sequence])[0], rtol=0, atol=TOLERANCE
            )
            np.testing.assert_allclose(prefixes[-1], found, rtol=0, atol=1e-9)
            if not is_image:
                expected = classifier.predict_proba([sequence[:end] for end in ends])  # type: ignore[index]
                np.testing.assert_allclose(prefixes, expected, rtol=0, atol=TOLERANCE)


def has_gaps(batch: list[object]) -> bool:
    return any(
        isinstance(one, np.ndarray) and one.dtype.kind == "f" and np.isnan(one).any()
        for one in batch
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(
    "ignore:.*(another unit|all 0; is it padding|another length|lie in 0 to 1)"
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(architectures(), st.integers(0, 99))
def test_every_architecture_says_the_same(
    browser: Browser, tmp_path: Path, architecture: Architecture, seed: int
) -> None:
    check_page(architecture, seed, browser, tmp_path)


def simple(**changes: Any) -> Classifier:
    fields = {"input_size": 2, "classes": ("walk", "run"), "scale": 1.0, "dropout": 0.0}
    fields |= {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "pooling": "mean"}
    return make(Architecture.model_validate(fields | {"read": "rows"} | changes))


def test_fixed_convolutions_read_the_ends_alike(browser: Browser, tmp_path: Path) -> None:
    classifier = simple(rocket=168, dilations=(1, 2))
    values = np.random.default_rng(0).normal(1, 2, size=(13, 2))
    with opened(browser, write_page(classifier, tmp_path)) as page:
        for length in (1, 4, 13):
            found, _ = page.evaluate(READ, [values[:length].tolist(), []])
            expected = classifier.predict_proba([values[:length]])[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.* shorter than a window")
@pytest.mark.parametrize("stride", [None, 2])
def test_windows_are_cut_inside(stride: int | None, browser: Browser, tmp_path: Path) -> None:
    classifier = simple(reading=Reading(window=4, stride=stride))
    values = np.random.default_rng(0).normal(size=(13, 2))
    with opened(browser, write_page(classifier, tmp_path)) as page:
        for length in (3, 4, 5, 13):
            found, _ = page.evaluate(READ, [values[:length].tolist(), []])
            expected = classifier.predict_proba([values[:length]])[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


# ---- images


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe, and its page."""
    run = tmp_path_factory.mktemp("demo") / "digits"
    flags = {"run_dir": str(run), "tracking.wandb": "disabled", "report": "false", "quiet": "true"}
    assert train(load_config("digits", flags)[0]) == 0
    return run


def arc(
    middle: tuple[float, float], radii: tuple[float, float], first: int, last: int
) -> list[tuple[float, float]]:
    """Return points on an ellipse between two angles in degrees, clockwise from the right."""
    angles = [math.radians(first + (last - first) * number / 24) for number in range(25)]
    return [
        (middle[0] + radii[0] * math.cos(angle), middle[1] + radii[1] * math.sin(angle))
        for angle in angles
    ]


# How people write the digits, as lines on a paper 1 wide and 1 high, from its upper left corner.
STROKES: list[list[list[tuple[float, float]]]] = [
    [arc((0.5, 0.5), (0.24, 0.36), -90, 270)],
    [[(0.38, 0.28), (0.52, 0.14), (0.52, 0.86)]],
    [[*arc((0.5, 0.32), (0.2, 0.18), 180, 390), (0.3, 0.86), (0.74, 0.86)]],
    [[*arc((0.47, 0.31), (0.2, 0.18), 200, 450), *arc((0.47, 0.67), (0.24, 0.19), -90, 160)]],
    [[(0.6, 0.12), (0.25, 0.6), (0.78, 0.6)], [(0.6, 0.12), (0.6, 0.88)]],
    [[(0.7, 0.14), (0.36, 0.14), (0.33, 0.46), *arc((0.47, 0.65), (0.22, 0.21), -120, 150)]],
    [[(0.5, 0.12), (0.36, 0.4), (0.32, 0.68), *arc((0.48, 0.7), (0.16, 0.16), 180, -180)]],
    [[(0.28, 0.15), (0.72, 0.15), (0.42, 0.88)]],
    [
        [
            (0.64, 0.2),
            *arc((0.5, 0.32), (0.17, 0.18), -30, -270),
            *arc((0.5, 0.68), (0.2, 0.18), -90, 250),
            (0.64, 0.24),
        ]
    ],
    [[*arc((0.5, 0.33), (0.19, 0.2), -20, 340), (0.68, 0.3), (0.66, 0.88)]],
]


def wait_until(page: Page, condition: str) -> None:
    """Wait for something; the page itself may not evaluate texts."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def draw(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    """Draw lines on the paper with the mouse."""
    box = page.locator("#paper").bounding_box()
    assert box
    for points in strokes:
        for number, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if number == 0:
                page.mouse.down()
        page.mouse.up()


@pytest.mark.slow  # the recipe trains for half a minute
def test_each_digit_that_is_drawn_is_named(digits: Path, browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "demo.html"
    words = ["--out", str(out)]
    assert main(["demo", str(digits), *words]) == 0
    with opened(browser, out) as page:
        page.emulate_media(reduced_motion="reduce")
        named = []
        for strokes in STROKES:
            page.locator("#clear").click()
            draw(page, strokes)
            wait_until(page, "found.length === 8")
            named.append(page.locator("#answer").inner_text().partition(":")[0])
        assert named == [str(digit) for digit in range(10)]
        page.locator("#undo").click()
        assert page.locator("#answer").inner_text() == "Draw something."
        # The whole test split, against torch.
        test = load_data(digits, {})[1].test
        expected_NC = probabilities(seqclf.load_model(digits)[0], test.values)
        script = "images => images.map(image => model.probabilities(stepsOf(image)))"
        found_NC = page.evaluate(script, test.values.tolist())
        assert len(found_NC) == 359
        np.testing.assert_allclose(found_NC, expected_NC, rtol=0, atol=TOLERANCE)


def a_page_of_images(folder: Path, **changes: Any) -> Path:
    """Write the page of a model of images 8 x 6, with four examples."""
    images = [np.random.default_rng(seed).uniform(0, 16, (8, 6)) for seed in range(4)]
    classifier = simple(input_size=6, scale=16.0, lengths=(8, 8), **changes)
    return write_page(classifier, folder, as_split(images, classifier._architecture))


def test_a_drawing_gets_the_place_the_size_and_the_ink_of_the_data(
    browser: Browser, tmp_path: Path
) -> None:
    with opened(browser, a_page_of_images(tmp_path)) as page:
        page.evaluate("page.box = [1, 1, 7, 5], page.ink = 0.2")
        script = "lines => { strokes = lines; return rasterise(); }"
        lines = np.array([[[0.2, 0.1], [0.3, 0.5], [0.2, 0.9]]])
        pixels = np.array(page.evaluate(script, lines.tolist()))
        for moved in (lines + np.array([0.4, 0.05]), lines * 0.5 + np.array([0.1, 0.3])):
            np.testing.assert_array_equal(page.evaluate(script, moved.tolist()), pixels)
        assert pixels.mean() / 16 == pytest.approx(0.2, abs=0.01)
        rows, columns = np.nonzero(pixels > 2)
        assert (rows.min(), rows.max()) == (1, 6)
        assert columns.min() + columns.max() == 5  # in the middle of 1 to 5
        assert columns.min() >= 1


@pytest.mark.parametrize("read", ["rows", "columns", "pixels"])
@pytest.mark.parametrize("keep", ["first", "last"])
def test_an_image_is_cut_before_it_is_read(
    read: str, keep: str, browser: Browser, tmp_path: Path
) -> None:
    size = {"rows": 6, "columns": 3, "pixels": 1}[read]
    shape = {"input_size": size, "read": read, "scale": 16.0, "lengths": (18, 18)}
    classifier = simple(**shape, max_length=3, keep=keep)
    images = [np.random.default_rng(seed).uniform(0, 16, (8, 6)).round() for seed in range(2)]
    cut = [image[:3] if keep == "first" else image[-3:] for image in images]
    test = as_split(images, classifier._architecture)
    with opened(browser, write_page(classifier, tmp_path, test)) as page:
        script = "images => images.map(image => model.probabilities(stepsOf(image)))"
        found = page.evaluate(script, [image.tolist() for image in images])
        expected = probabilities(classifier._members[0].model, torch.tensor(np.array(cut)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_keyboard_draws_too(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, a_page_of_images(tmp_path)) as page:
        page.emulate_media(reduced_motion="reduce")
        page.locator("#paper").focus()
        for key in ("Space", *["ArrowDown"] * 5, *["ArrowRight"] * 3, "Space"):
            page.keyboard.press(key)
        assert page.locator("#pen").inner_text() == "The pen is up."
        wait_until(page, "found.length === 8")
        assert page.evaluate("strokes.length") == 1
        assert page.evaluate("strokes[0].length") == 9
        assert page.locator("#answer").inner_text().startswith(("walk: ", "run: "))


def test_examples_are_shown_row_by_row(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, a_page_of_images(tmp_path)) as page:
        buttons = page.locator("#examples button")
        assert buttons.count() == 4
        buttons.first.focus()
        page.keyboard.press("Enter")  # and the rows follow by themselves
        wait_until(page, "found.length === 8 && !playing && position === 7")
        assert page.locator("#where").inner_text() == "row 8 of 8"
        page.locator("#position").fill("2")
        assert page.locator("#where").inner_text() == "row 3 of 8"
        assert page.locator("#mark").evaluate("mark => mark.style.top") == "25%"
        shown = page.locator(".value").all_inner_texts()
        expected = page.evaluate("found[2].map(percent)")
        assert shown == expected
        page.locator("#until").fill("1")
        assert page.locator("#decision").inner_text() == "The model is never that sure."
        page.locator("#until").fill("0.5")
        assert page.locator("#decision").inner_text().startswith("After row 1 of 8 ")


@pytest.mark.parametrize("kind", ["image", "series", "tokens"])
def test_a_page_is_legible_at_any_width_in_both_schemes(
    kind: str, browser: Browser, tmp_path: Path
) -> None:
    if kind == "image":
        file = a_page_of_images(tmp_path)
    else:
        tokens = ("up", "down") if kind == "tokens" else ()
        file = write_page(simple(num_tokens=3 if tokens else 0, tokens=tokens), tmp_path)
    with opened(browser, file) as page:
        if kind == "image":
            page.locator("#examples button").first.click()
        else:
            page.locator("#text").fill("up down up" if kind == "tokens" else "1 2\n3 4\n5 6")
        wait_until(page, "found.length === ends.length && ends.length > 0")
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            for width in (320, 800, 1400):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate(LOOK)[0] <= 0, width
        unnamed = """() => [...document.querySelectorAll("button, input, textarea, canvas[role]")]
            .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length))"""
        assert page.evaluate(unnamed) == []


# ---- series, tokens and texts


def test_a_series_is_pasted(browser: Browser, tmp_path: Path) -> None:
    classifier = simple(features=("x", "y"), lengths=(2, 4))
    values = np.array([[0.5, -1.0], [2.0, 1e-3], [0.25, 3.0]])
    expected = classifier.predict_proba([values])[0]
    texts = {
        "with a header": "y,time,x\n-1.0,7,0.5\n1e-3,8,2\n3,9,.25\n",
        "without": "0.5;-1\r\n2;0.001\r\n\r\n0.25;3",
    }
    mistakes = {
        "1,2\n3": "Line 2: 1 cell, where a step has 2 (x, y).",
        "x,y\n": "No steps: the header line stands alone.",
        "x;y\n1,5;2.5": "Line 2: '2.5' has another decimal mark than '1,5'.",
        "x,y\n0x10,1": "Line 2: '0x10' is no number.",
        "x,y\n1e39,1": "Line 2: '1e39' is too large.",
        "x,z\n1,2": "Line 1: no column y, which the model reads.",
        "1,2\n3,oops": "Line 2: 'oops' is no number.",
        "1,2\nnan,1": "Line 2: a missing value, where the training data had none.",
    }
    with opened(browser, write_page(classifier, tmp_path)) as page:
        for text in texts.values():
            page.locator("#text").fill(text)
            wait_until(page, "found.length === 3")
            found = page.evaluate("found[2]")
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
            page.locator("#text").fill("")
            wait_until(page, "found.length === 0")
        for text, mistake in mistakes.items():
            page.locator("#text").fill(text)
            wait_until(page, f"at('note').textContent === {json.dumps(mistake)}")
            assert page.locator("#result").is_hidden()
        page.locator("#text").fill("1 2\n" * 9)
        wait_until(page, "found.length === 9")
        assert "9 steps, where training had 2 to 4" in page.locator("#note").inner_text()
        (tmp_path / "new.csv").write_text(texts["with a header"])
        page.locator("#file").set_input_files(tmp_path / "new.csv")
        wait_until(page, "found.length === 3")
        assert page.locator("#note").inner_text() == "Read: new.csv."


# Tables whose recordings a page must find as `seqclf predict` finds them, and by which model.
TABLES = {
    "order": "y,label,when,id,x\n2,u,3,a,1\n1,u,1,a,7\n5,v,9,b,0.5\n",
    "quoted": '"id","when","x","y"\n"a,1","2024-01-02","1","2"\n"a,1","2024-01-01T23:00","3","4"\n',
    "commas": "id;when;x;y\na;2.1.2024 9:05;1,5;2\na;2.1.2024 9:04:59,5;3,25;−4\n",
    "clock": "id\twhen\tx\ty\na\t12:00:05\t1\t2\na\t9:59\t3\t4\n",
    "zone": "id,when,x,y\na,2024-01-01T00:30+01:00,1,2\na,2024-01-01T00:00Z,3,4\n",
    "nanoseconds": "id,when,x,y\na,1700000000000000002,1,2\na,1700000000000000001,3,4\n",
    "quotes": '"id","when","x","y"\n"a ""b""","1","2","3"\n',
    "broken": 'id,note,when,x,y\na,"one\nline, ""or"" two",2,1,2\na,,1,3,4\n',
    "inches": 'id,note,when,x,y\na,5" or 7",2,1,2\na,7",1,3,4\n',
    "comma times": "id;when;x;y\na;1,5;1;2\na;0,25;3;4\na;1;5;6\n",
    "carriage": "id,when,x,y\ra,2,1,2\ra,1,3,4\r",
    "padded": "id,when,x,y\na,1,-7,1\na,3,-7,-7\na,2,-7,-7\n",
    "flags": "id,when,x,y\nb,1,true,2\nb,2,False,3\n",
    "gaps": "id,when,x,y\na,1,,4\na,2,1,?\na,4,2,NaN\na,5,n/a,9\nb,1,,1\nb,2,,2\nc,1,1,1\nc,2,,\n",
}


# What is no table of recordings, and what the page says then.
NO_TABLES = {
    "a,1,1,2\nb,1,1,2\na,2,1,2": "Line 4: \u2068a\u2069 begins again; the lines of one recording "
    "follow each other.",
    ",1,1,2": "Line 2: no id.",
    "a,1,1,2\na,9:05,1,2": "Line 3: '9:05' is a time of a clock, where the first time is a number.",
    "a,2024-02-30,1,2": "Line 2: '2024-02-30' is no time that this page can read.",
}


@pytest.mark.parametrize("is_far", [False, True])
def test_a_table_is_read_as_predict_reads_it(
    is_far: bool, browser: Browser, tmp_path: Path, capsys: Capture
) -> None:
    reading = Reading(id="id", time="when", label="label", fill_missing=True, pad_value=-7)
    if is_far:
        reading = reading.model_copy(update={"offset": (0.5, -3.0)})
    classifier = simple(features=("x", "y"), mean=(0.25, 1.0), std=(2.0, 3.0), reading=reading)
    classifier.save(tmp_path / "model")
    script = """text => {
        readTable(text, "");
        return [table.names, table.sequences.map(model.probabilities)];
    }"""
    with opened(browser, write_page(classifier, tmp_path)) as page:
        for name, text in TABLES.items():
            (tmp_path / f"{name}.csv").write_text(text)
            lines = predict(capsys, tmp_path / "model", tmp_path / f"{name}.csv")
            names, found = page.evaluate(script, text)
            assert names == [line["id"] for line in lines], name
            expected = [[float(line[f"p({one})"]) for one in ("walk", "run")] for line in lines]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=name)
        for text, reason in NO_TABLES.items():
            page.locator("#text").fill(f"id,when,x,y\n{text}")
            wait_until(page, f"at('note').textContent === {json.dumps(reason)}")
        for text, reason in {
            "id,when,x,x,y\na,1,1,2,3": "Line 1: column 'x' comes twice; rename one.",
            'id,when,x,y\na,1,1,2\n"a,2,1,2\n': "Line 3: a quote is left open, or not doubled "
            "inside a cell.",
            'id,note,when,x,y\na,"1\n2",1,1,2\na,,2,1,oops': "Line 4: 'oops' is no number.",
        }.items():
            page.locator("#text").fill(text)
            wait_until(page, f"at('note').textContent === {json.dumps(reason)}")
        found = page.evaluate("parseTable('true,1\\nfalse,2', page.table).sequences")
        assert found == [[[1, 1], [0, 2]]]


def test_each_recording_of_a_dropped_table_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    classifier = simple(features=("x", "y"), reading=Reading(id="id"))
    files = {"two.csv": b"id,x,y\n<b>,1,2\n<b>,3,4\nc,5,6\n", "empty.csv": b"\n"}
    files |= {"large.csv": b"1,2\n" * 1_300_000, "model.npz": b"PK\3\4\0", "none.csv": b"x,y\n1,2"}
    notes = {
        "empty.csv": "empty.csv is empty.",
        "large.csv": "large.csv has 6 MB, of which this page takes 5; use seqclf predict.",
        "model.npz": "model.npz is no text in UTF-8; use seqclf predict.",
        "two.csv": "Read: two.csv. Recording \u2068<b>\u2069, one of 2.",
        "none.csv": "Read: none.csv. The table has no column \u2068id\u2069, "
        "so all its lines are one recording.",
    }
    with opened(browser, write_page(classifier, tmp_path)) as page:
        page.emulate_media(reduced_motion="reduce")
        devtools = page.context.new_cdp_session(page)
        for name, note in notes.items():
            (tmp_path / name).write_bytes(files[name])
            data = {"items": [], "files": [str(tmp_path / name)], "dragOperationsMask": 1}
            for kind in ("dragEnter", "dragOver", "drop"):  # beside the field
                event = {"type": kind, "x": 900, "y": 700, "data": data}
                devtools.send("Input.dispatchDragEvent", event)
            wait_until(page, f"at('note').textContent === {json.dumps(note)}")
            assert page.locator("#choice").is_visible() == (name == "two.csv")
            assert page.locator("#result").is_visible() == (name in ("two.csv", "none.csv"))
            if name == "two.csv":
                assert page.evaluate("sequence") == [[1, 2], [3, 4]]
                page.locator("#recording").select_option("c")
                wait_until(page, "sequence.length === 1")
                assert page.evaluate("sequence") == [[5, 6]]
                assert "Recording \u2068c\u2069, one of 2." in page.locator("#note").inner_text()


def test_odd_names_are_seen_and_leave_a_sentence_in_order(browser: Browser, tmp_path: Path) -> None:
    names = ("\u200b", "עברית")
    with opened(browser, write_page(simple(classes=names), tmp_path)) as page:
        page.emulate_media(reduced_motion="reduce")
        page.locator("#text").fill("1 2\n3 4")
        wait_until(page, "found.length === 2")
        bars = page.locator("#bars .name").all_inner_texts()
        assert bars == ["\\u200b", "עברית"]
        assert page.locator("#answer bdi").inner_text() in bars
        assert re.fullmatch(r"After step \d of 2 .* of \u2068.*\u2069\.", page.evaluate(SURE))
        # A screen reader hears where a slider stands, and not each step of the animation.
        sliders = page.get_by_role("slider").all()
        assert [one.evaluate("one => one.ariaValueText") for one in sliders] == [
            "step 2 of 2",
            "50.0 %",
        ]
        live = page.locator("output").evaluate_all("all => all.map((one) => one.ariaLive)")
        assert live == ["off", "off"]


def test_tokens_and_texts_are_typed(browser: Browser, tmp_path: Path) -> None:
    tokens = simple(num_tokens=3, tokens=("up", "down"))
    with opened(browser, write_page(tokens, tmp_path)) as page:
        page.locator("#text").fill("up  <b>\ndown")
        wait_until(page, "found.length === 3")
        assert "read as an unknown token: <b>" in page.locator("#note").inner_text()
        assert page.evaluate("sequence") == [1, 0, 2]
        page.locator("#position").fill("0")
        assert page.locator("#so-far").inner_text() == "up"
    blanks = simple(num_tokens=4, tokens=("log in", "?", "out"))
    values = torch.tensor([1, 0, 2, 3, 1])
    architecture = blanks._architecture
    example = demo.raw(values, architecture)
    assert example == "log in\n??\n?\nout\nlog in"
    with opened(browser, write_page(blanks, tmp_path)) as page:
        page.locator("#text").fill(str(example))
        wait_until(page, "found.length === 5")
        assert page.evaluate("sequence") == values.tolist()
    text = simple(num_tokens=256)
    with opened(browser, write_page(text, tmp_path)) as page:
        page.locator("#text").fill("Grüße 🙂")
        wait_until(page, "found.length > 0")
        expected = text.predict_proba(["Grüße 🙂"])[0]
        found = page.evaluate("found.at(-1)")
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_hostile_names_are_only_names(browser: Browser, tmp_path: Path) -> None:
    names = (HOSTILE, "ok")
    classifier = simple(classes=names, features=(HOSTILE + "x", "y"))
    member = classifier._members[0]
    page_text, _ = make_page(
        member.model, member.architecture, None, title=HOSTILE, facts=[HOSTILE]
    )
    assert "<script>alert" not in page_text
    assert "<img" not in page_text
    (tmp_path / "demo.html").write_text(page_text)
    with opened(browser, tmp_path / "demo.html") as page:
        page.locator("#text").fill("1 2\n3 4")
        wait_until(page, "found.length === 2")
        assert page.locator("script").count() == 2
        assert HOSTILE in page.locator("#bars").inner_text()
        assert page.locator("h1").inner_text() == HOSTILE


# ---- what a page cannot hold


def test_a_large_model_has_weights_of_16_bits_or_is_refused(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = simple(input_size=6, scale=16.0, lengths=(8, 8), hidden_size=40)
    member = classifier._members[0]
    images = [np.random.default_rng(seed).uniform(0, 16, (8, 6)) for seed in range(4)]
    test = as_split(images, member.architecture)
    whole, notes = make_page(member.model, member.architecture, test, title="", facts=[])
    assert notes == []
    monkeypatch.setattr(demo, "MOST_BYTES", len(whole) - 1)
    half, notes = make_page(member.model, member.architecture, test, title="", facts=[])
    assert notes == ["weights of 16 bits, which change none of 4 test predictions"]
    assert len(half) < len(whole) - 2 * member.architecture.num_parameters
    (tmp_path / "demo.html").write_text(half)
    with opened(browser, tmp_path / "demo.html") as page:
        found = page.evaluate("image => model.probabilities(stepsOf(image))", images[0].tolist())
        np.testing.assert_allclose(found, classifier.predict_proba([images[0]])[0], atol=0.01)
    member.model.out.weight.data.zero_()  # so that rounding decides
    member.model.out.bias.data.copy_(torch.tensor([1.0, 1.0 + 1e-6]))
    with pytest.raises(UserError, match=r"change \d of 4 test predictions"):
        make_page(member.model, member.architecture, test, title="", facts=[])
    series = simple(hidden_size=60)._members[0]
    with pytest.raises(UserError, match="without test examples nobody knows"):
        make_page(series.model, series.architecture, None, title="", facts=[])
    monkeypatch.setattr(demo, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"no page: it would have .* seqclf export"):
        make_page(member.model, member.architecture, test, title="", facts=[])


def test_the_command_writes_a_page_of_a_run_or_a_bare_model(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_tiny(tmp_path / "run", {"train.steps": 3}) == 0
    out = tmp_path / "pages" / "demo.html"
    code, said, _ = call(capsys, "demo", tmp_path / "run", "--out", out)
    size = round(out.stat().st_size / 1000)
    assert (code, said) == (0, f"wrote       {out}: {size} kB; open it in a browser\n")
    assert "is there already; --overwrite" in refusal(
        capsys, "demo", tmp_path / "run", "--out", out
    )
    assert call(capsys, "demo", tmp_path / "run", "--out", out, "--overwrite")[0] == 0
    assert "neither a trained model" in refusal(capsys, "demo", tmp_path, "--out", "x.html")
    assert "is not finished" not in out.read_text()
    assert train_tiny(tmp_path / "stopped", {"train.steps": 4, "checkpoint.every": 2}) == 0
    (tmp_path / "stopped" / "model" / "model.safetensors").unlink()
    assert call(capsys, "demo", tmp_path / "stopped", "--out", out, "--overwrite")[0] == 0
    fact = "<p>Its training is not finished: these are the weights of step 4.</p>"
    assert fact in out.read_text()
    (tmp_path / "run" / "model").rename(tmp_path / "alone")
    said = refusal(capsys, "demo", tmp_path / "alone", "--out", tmp_path / "x.html")
    assert "without the images of the run nobody knows where drawings belong" in said
    classifier = simple(features=("x", "y"))
    classifier.save(tmp_path / "series")
    monkeypatch.chdir(tmp_path)
    code, said, _ = call(capsys, "demo", "series")
    assert code == 0
    assert "note: no examples to try: series: no config.yaml of a run" in said
    assert (tmp_path / "demo.html").exists()

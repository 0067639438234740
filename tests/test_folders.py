"""Files of one sequence each, in folders and manifests: tables, arrays and pictures."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from helpers.reading import numbers, rows, write

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, Row
from seqclf.errors import UserError


def read(path: Path, **options: object) -> tuple[list[Row], list[str], Journal]:
    """Return the good rows, the problems without the folder, and the journal."""
    journal = Journal()
    everything = list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    folder = f"{path if path.is_dir() else path.parent}/"
    problems = [
        f"{row.where}: {row.problem}".replace(folder, "")
        for row in everything
        if isinstance(row, BadRow)
    ]
    return [row for row in everything if isinstance(row, Row)], problems, journal


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


def write_all(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        write(folder, name, content)


# ---- folders


WALK = "x,y\n1,2\n3,4\n"


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    write_all(tmp_path, {"b/2.tsv": "x\ty\n5\t6\n", "b/1.csv.gz": gzip.compress(WALK.encode())})
    write_all(tmp_path, {"a b/1.csv": WALK})
    np.save(tmp_path / "b/3.npy", np.array([[7, 8]]))
    found, problems, journal = read(tmp_path)
    assert [(row.id, row.label, numbers(row)) for row in found] == [
        ("a b/1.csv", "a b", [[1, 2], [3, 4]]),
        ("b/1.csv.gz", "b", [[1, 2], [3, 4]]),
        ("b/2.tsv", "b", [[5, 6]]),
        ("b/3.npy", "b", [[7, 8]]),
    ]
    assert (problems, journal.left_aside, journal.roles) == ([], {}, {})
    assert journal.notes == [f"{tmp_path}: the label is the name of a file's folder"]


def test_columns_of_files_are_found_by_the_names_of_the_first(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        {
            "a/1.csv": WALK,
            "a/2.csv": "y,z,x\n2,9,1\n",
            "b/3.csv": "x,z\n1,2\n",
            "b/4.txt": " 5 6\n 7 8\n",
            "b/5.csv": "y;x\n0,5;1,5\n",
        },
    )
    found, problems, journal = read(tmp_path)
    assert [numbers(row) for row in found] == [
        [[1, 2], [3, 4]],
        [[1, 2]],
        [[5, 6], [7, 8]],
        [[1.5, 0.5]],
    ]
    assert problems == ["b/3.csv:1: no column 'y', which a/1.csv reads; found x, z"]
    assert journal.left_aside.keys() == {"z"}
    order = f"files without a header line are read in the order of columns of {tmp_path}/a/1.csv"
    assert order in journal.notes
    assert "cells are separated by ';'" in journal.notes


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Validation", "TEST")])
def test_folders_of_splits_above_the_classes(names: Sequence[str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path, f"{name}/a/1.csv", "t,x\n2,5\n1,6\n")
    found, _, journal = read(tmp_path, time="t")
    splits = {"train": "train", "test": "test", "validation": "val"}
    assert [(row.split, row.label, numbers(row)) for row in found] == [
        (splits[name.lower()], "a", [[6], [5]]) for name in sorted(names)
    ]
    assert f"{tmp_path}: the folders above say the split" in journal.notes
    write(tmp_path, "other/b/1.csv", WALK)
    assert f"'other' beside '{min(names)}'" in refusal(tmp_path)


def test_files_that_are_no_sequences_are_named(tmp_path: Path) -> None:
    write_all(tmp_path, {"a/1.csv": WALK, "a/.hidden": "", "a/x.json": "{}", "b/1.csv": WALK})
    write_all(tmp_path, {f"b/{n}.wav": "" for n in range(3)} | {"readme.txt": "so", "y.csv": WALK})
    (tmp_path / "c").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a/pipe.csv")
    found, problems, journal = read(tmp_path)
    assert ([row.id for row in found], problems) == (["a/1.csv", "b/1.csv"], [])
    assert journal.left_aside == {
        "c": "a link to a folder, which is not followed",
        "a/x.json": "not a sequence",
        "b/0.wav and 2 more .wav": "not a sequence",
        "readme.txt": "beside the folders",
        "y.csv": "beside the folders",
    }


def test_a_flat_folder_may_have_labels_in_its_files(tmp_path: Path) -> None:
    write_all(tmp_path, {"1.csv": "x,kind,label\n1,u,7.0\n", "2.csv": "x,kind,label\n1,v,8\n"})
    found, _, journal = read(tmp_path)
    assert [(row.id, row.label) for row in found] == [("1.csv", "7"), ("2.csv", "8")]
    assert (journal.roles, journal.notes) == ({"label": "label"}, [])
    assert [row.label for row in rows(tmp_path, label="kind")] == ["u", "v"]


def test_a_label_in_a_file_does_not_win_over_the_folder_in_silence(tmp_path: Path) -> None:
    write_all(tmp_path, {"a/1.csv": "x,label,id\n1,u,3\n2,u,3\n", "b/2.csv": "x,label\n1,u\n"})
    found, _, journal = read(tmp_path)
    assert [row.label for row in found] == ["a", "b"]
    assert journal.left_aside == {
        "label": "the folder says the label",
        "id": "the folder says the id",
    }
    assert [row.label for row in rows(tmp_path, label="label")] == ["u", "u"]


def test_bad_files_of_a_folder_are_named(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        {
            "a/1.csv": "x,y\n1,2\noops,3\n",
            "a/2.csv": "",
            "a/3.csv": "x,y\n",
            "a/4.csv": "id,x\n1,2\n2,3\n",
            "a/5.csv.gz": gzip.compress(WALK.encode())[:-9],
            "a/6.csv.gz": WALK,
            "a/deep/7.csv": WALK,
        },
    )
    (tmp_path / "a/8.csv").symlink_to("gone.csv")
    write(tmp_path, "a/9.npy", b"\x93NUMPY")
    _, problems, _ = read(tmp_path)
    assert problems == [
        "a/1.csv:3, column x: 'oops' is not a number",
        "a/2.csv: an empty file",
        "a/3.csv: no line below its header",
        "a/4.csv: column 'id' tells sequences apart, and a file holds one; read it alone, with "
        "--id id",
        "a/5.csv.gz: not a .gz that can be read: Compressed file ended before the end-of-stream "
        "marker was reached",
        "a/6.csv.gz: not a .gz that can be read: Not a gzipped file (b'x,')",
        "a/8.csv: No such file or directory",
        problems[7],
        "a/deep/7.csv: in a/deep: expected a folder for each class",
    ]
    assert problems[7].startswith("a/9.npy: not an .npy that can be read")


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, "none/x.wav", "")
    assert refusal(tmp_path / "none").startswith("none: a folder without .npy, .csv")
    write(tmp_path, "a/1.csv", WALK)
    assert "--form wide: the folder names files of one" in refusal(tmp_path, form="wide")


def test_labels_beside_a_folder_are_found_by_path_name_or_stem(tmp_path: Path) -> None:
    write_all(tmp_path, {"d/1.csv": WALK, "d/u/2.csv": WALK, "d/u/3.csv": WALK, "d/v/3.csv": WALK})
    labels = write(tmp_path, "y.csv", "file,label\n1,a\n2.csv,b\nu/3.csv,c\n3.csv,d\n")
    found, problems, _ = read(tmp_path / "d", labels=labels, id="file")
    assert [(row.id, row.label) for row in found] == [
        ("1.csv", "a"),
        ("u/2.csv", "b"),
        ("u/3.csv", "c"),
        ("v/3.csv", "d"),
    ]
    labels = write(tmp_path, "y.csv", "id,label\n1,a\n3,c\n")
    _, problems, _ = read(tmp_path / "d", labels=labels)
    assert problems == [
        f"u/2.csv: id 'u/2.csv': no label in {labels}",
        f"v/3.csv: 'u/3.csv' and 'v/3.csv' are both '3' in {labels}; write their paths there",
    ]


# ---- manifests


@pytest.mark.parametrize("name", ["file", "File", "path", "filename", "FilePath", "file_name"])
def test_a_manifest_names_files_beside_it_or_anywhere(name: str, tmp_path: Path) -> None:
    write(tmp_path, "data/1.csv", WALK)
    other = write(tmp_path, "elsewhere/2.csv.gz", gzip.compress(b"y,x\n2,1\n"))
    text = f"id,{name},label,Split,group,age\ni1,1.csv,a,train,g,5\n,{other},b,test,h,6\n"
    manifest = write(tmp_path, "data/all.csv.gz", gzip.compress(text.encode()))
    found, _, journal = read(manifest)
    assert [(row.id, row.label, row.split, row.group, numbers(row)) for row in found] == [
        ("i1", "a", "train", "g", [[1, 2], [3, 4]]),
        (str(other), "b", "test", "h", [[1, 2]]),
    ]
    roles = {"id": "id", "label": "label", "group": "group", "split": "Split", "path": name}
    assert journal.roles == roles
    assert journal.left_aside == {"age": "a manifest's own column"}
    assert journal.form is None


def test_time_is_a_column_of_the_files_of_a_manifest(tmp_path: Path) -> None:
    write_all(tmp_path, {"1.csv": "t,x\n2,5\n1,6\n", "2.csv": "t,x\n1,7\n2,8\n"})
    manifest = write(tmp_path, "all.csv", "path,label\n1.csv,a\n2.csv,b\n")
    assert [numbers(row) for row in rows(manifest, time="t")] == [[[6], [5]], [[7], [8]]]
    _, _, journal = read(manifest, time="t")
    assert journal.roles == {"label": "label", "path": "path", "time": "t"}


def test_a_manifest_without_labels_takes_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, "1.csv", "x,label,group\n1,u,g\n")
    (row,) = rows(write(tmp_path, "all.csv", "path\n1.csv\n"))
    assert (row.id, row.label, row.group) == ("1.csv", "u", "g")


def test_files_without_a_header_lose_no_column(tmp_path: Path) -> None:
    write_all(tmp_path, {"1.csv": "1,2,3\n4,5,6\n", "2.txt": " 7 8 9\n"})
    first, second = rows(write(tmp_path, "all.csv", "path,label\n1.csv,a\n2.txt,b\n"))
    assert numbers(first) == [[1, 2, 3], [4, 5, 6]]
    assert (numbers(second), second.features) == ([[7, 8, 9]], None)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "file,t,x\na,1,2\na,2,3\n",
            {},
            "x.csv:1: 'file' is the column of a manifest, which names",
        ),
        ("path,label\n1.csv,a\n", {"form": "wide"}, "--form wide: the manifest names files"),
        ("path,label\n1.csv,a\n", {"group": "who"}, "x.csv:1: no column 'who' (--group)"),
    ],
)
def test_manifests_that_cannot_be_read(
    text: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(write(tmp_path, "x.csv", text), **options)


# ---- pictures


GREY = np.array([[0, 50, 255], [1, 2, 3]], np.uint8)
RED = np.dstack([np.full((2, 3), 255, np.uint8), np.zeros((2, 3, 2), np.uint8)])
AS_FLOATS = GREY.astype(float).tolist()


def picture(
    values: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any
) -> bytes:
    image = PIL.Image.fromarray(values)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def test_the_rows_of_a_picture_are_steps(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        {
            "a/1.png": picture(GREY),
            "a/2.BMP": picture(GREY, "BMP"),
            "b/3.gif": picture(GREY, "GIF"),
            "b/4.png": picture(GREY, mode="RGB"),
            "b/5.png": picture(GREY, mode="LA"),
            "b/6.jpeg": picture(GREY, "JPEG", quality=100),
        },
    )
    found, problems, journal = read(tmp_path)
    assert [row.label for row in found] == ["a", "a", "b", "b", "b", "b"]
    assert [numbers(row) for row in found[:5]] == [AS_FLOATS] * 5
    assert np.abs(np.array(numbers(found[5])) - GREY).max() <= 3
    assert (problems, len(journal.notes), found[0].features) == ([], 1, None)


def test_pictures_of_16_bits_keep_their_values(tmp_path: Path) -> None:
    deep = np.array([[0, 65535, 300]], np.uint16)
    write_all(tmp_path, {"a/1.png": picture(deep), "a/2.png": picture(deep.astype(np.uint8))})
    found, problems, _ = read(tmp_path)
    assert numbers(found[0]) == [[0, 65535, 300]]
    assert problems == [
        f"a/2.png: 3 x 1 pixels of 8 bits, where the first picture, {tmp_path}/a/1.png, has 3 x 1 "
        "pixels of 16 bits; bring all pictures to one size".replace(f"{tmp_path}/", "")
    ]


def test_what_a_picture_loses_is_said_once(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 255], [255, 255, 255]], np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    write_all(
        tmp_path,
        {
            "a/1.png": picture(RED),
            "a/2.png": picture(RED, mode="P"),
            "a/3.png": picture(np.dstack([RED, alpha])),
            "a/4.png": picture(GREY, exif=exif),
        },
    )
    found, _, journal = read(tmp_path)
    assert numbers(found[0]) == numbers(found[1]) == [[76, 76, 76], [76, 76, 76]]
    assert numbers(found[2]) == [[255, 76, 76], [76, 76, 76]]
    assert numbers(found[3]) == GREY[::-1, ::-1].astype(float).tolist()
    assert journal.notes[1:] == [
        "colours of pictures become grey",
        "transparent pixels of pictures become white",
        "pictures are turned upright, as their EXIF data say",
    ]


def test_bad_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    noise = np.random.default_rng(0).integers(0, 256, (30, 30), np.uint8)
    write_all(
        tmp_path,
        {
            "a/1.png": picture(GREY),
            "a/2.png": picture(GREY.T.copy()),
            "a/3.png": picture(GREY)[:20],
            "a/4.png": picture(noise)[:300],
            "a/5.jpg": "no picture",
            "a/6.gif": file.getvalue(),
            "a/7.png": picture(np.zeros((100, 100), np.uint8)),
        },
    )
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 5000)
    found, problems, _ = read(tmp_path)
    assert [row.id for row in found] == ["a/1.png"]
    size = "pixels of 8 bits"
    assert problems[0] == (
        f"a/2.png: 2 x 3 {size}, where the first picture, a/1.png, has 3 x 2 {size}; bring all "
        "pictures to one size"
    )
    starts = [
        "a/3.png: not a picture",
        "a/4.png: not a picture",
        "a/5.jpg: no PNG",
        "a/6.gif: 2 pictures",
    ]
    assert [p.startswith(s) for p, s in zip(problems[1:5], starts, strict=True)] == [True] * 4
    assert (
        "a/7.png: not a picture that can be read: Image size (10000 pixels) exceeds" in problems[5]
    )


def test_pictures_in_a_manifest_and_alone(tmp_path: Path) -> None:
    write_all(tmp_path, {"1.png": picture(GREY), "2.png": "no picture"})
    found, problems, _ = read(write(tmp_path, "all.csv", "file,label\n1.png,a\n2.png,b\n"))
    assert [(row.label, numbers(row)) for row in found] == [("a", AS_FLOATS)]
    assert problems == ["all.csv:3: 2.png: no PNG, JPEG, BMP, GIF that can be read"]
    (row,) = rows(tmp_path / "1.png")
    assert (row.id, numbers(row)) == ("1.png", AS_FLOATS)
    assert read(tmp_path / "2.png")[1] == ["2.png: no PNG, JPEG, BMP, GIF that can be read"]

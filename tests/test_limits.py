"""Input that would fill the memory or never end: one message with the limit that is kept."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Capture, refusal

from seqclf.data.idx import read_idx
from seqclf.data.readers import lines, npz, tables
from seqclf.errors import UserError


def refused(capsys: Capture, path: Path) -> str:
    said = refusal(capsys, "prepare", path, "--out", path.parent / "out")
    assert said.count("\n") == 1
    return said


def test_an_idx_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">IIII", 2051, 10, 2, 2) + bytes(2**27))
    with pytest.raises(UserError, match="57 bytes or more where its header"):
        read_idx(path)
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">IIII", 2051, 2**31, 2**31, 2**31) + bytes(2**10))
    with pytest.raises(UserError, match="1040 bytes where its header"):
        read_idx(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_has_a_longest_sequence(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    limit = "LONGEST_SEQUENCE" if order == "C" else "LONGEST_FORTRAN"
    monkeypatch.setattr(npz, limit, 1000)
    x = np.asarray(np.zeros((4, 100, 2)), order=order)  # type: ignore[call-overload]
    np.savez_compressed(tmp_path / "x.npz", x=x, y=[0, 1, 0, 1])
    assert "bytes once it is unpacked, of which at most 1,000" in refused(
        capsys, tmp_path / "x.npz"
    )
    np.savez_compressed(tmp_path / "x.npz", x=x[0], lengths=[99, 1], y=[0, 1])
    monkeypatch.setattr(npz, "LONGEST_SEQUENCE", 1000)
    assert "a sequence of 1,584 bytes" in refused(capsys, tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", x=x[0, :9], lengths=np.ones(200, int))
    assert "lengths: 1,600 bytes" in refused(capsys, tmp_path / "x.npz")


def test_a_line_has_a_largest_number_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(tables, "MOST_CELLS", 100)
    path = tmp_path / "x.csv"
    path.write_text("label,a\nx,1\n" + "1," * 200 + "\n")
    assert "x.csv:3: 201 cells in a line, of which at most 100" in refused(capsys, path)


@pytest.mark.parametrize("ending", ["csv", "npy", "npz", "parquet", "png"])
def test_a_pipe_to_which_nobody_writes_is_not_waited_for(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(lines, "WRITER_S", 0.2)
    path = tmp_path / f"x.{ending}"
    os.mkfifo(path)
    assert "x." + ending + ": a pipe" in refused(capsys, path)
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,label\nx.{ending},a\n")
    said = refusal(capsys, "prepare", manifest, "--out", tmp_path / "out")
    assert "a pipe or a device" in said or "expected .npy" in said


def test_a_device_is_no_table(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.csv").symlink_to("/dev/zero")
    assert "a pipe or a device" in refused(capsys, tmp_path / "x.csv")

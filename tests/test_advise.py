from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from helpers.ranks import run_ranks

from seqclf.cli.advise import Cost, fit, numbers_up_to
from seqclf.cli.main import main

FLAGS = ["--device", "cpu", "--data.name", "digits", "--train.threads", "1"]
GIVEN = {"step-ms": 1, "example-us": 10, "latency-us": 500, "gb-per-s": 1}
ALL_GIVEN = [word for name, value in GIVEN.items() for word in (f"--{name}", str(value))]


def cost(step_ms: float = 2.0, latency_us: float = 0.0, gb_per_s: float = 1.0) -> Cost:
    return Cost(step_ms, 10.0, latency_us, gb_per_s, num_bytes=1_000_000)


def test_a_step_is_its_fixed_part_the_share_and_the_all_reduce() -> None:
    assert cost().step_s(100, 1) == pytest.approx(0.002 + 100 * 10e-6)
    # 3 processes: the largest share has 34 examples; a ring sends 2 x 2/3 of the bytes
    assert cost().step_s(100, 3) == pytest.approx(0.002 + 34 * 10e-6 + 4 / 3 * 0.001)
    # 8 processes: a message goes 3 times up and 3 times down
    late = cost(latency_us=50).step_s(800, 8)
    assert late == pytest.approx(0.002 + 0.001 + 6 * 50e-6 + 1.75e-3)
    # of 4 shards each process receives all gradients but its own
    shards = cost()._replace(shards=4)
    assert shards.step_s(100, 2) == pytest.approx(0.002 + 50 * 10e-6 + 4 / 2 * 0.001)


def test_efficiency_is_one_for_one_process_and_for_free_communication() -> None:
    free = cost(step_ms=0.0, gb_per_s=1e12)
    assert cost().efficiency(100, 1) == 1
    assert free.efficiency(100, 4) == pytest.approx(1)
    assert cost().efficiency(100, 2) == pytest.approx(0.003 / (2 * 0.0035))


@pytest.mark.parametrize("n", [2, 8])
def test_the_batch_from_which_processes_pay_is_the_first_that_does(n: int) -> None:
    one = cost(latency_us=50)
    batch_size = one.worth_from(n)
    assert one.efficiency(n * (batch_size // n + 1), n) >= 0.7
    assert one.efficiency(n * (batch_size // n - 1), n) < 0.7


def test_a_line_is_fitted_by_relative_errors_and_is_never_below_zero() -> None:
    assert fit({10: 0.03, 20: 0.05, 40: 0.09}) == pytest.approx((0.01, 0.002, 0), abs=1e-9)
    fixed_s, example_s, misfit = fit({10: 0.01, 20: 0.03})
    assert fixed_s == 0
    assert 0.001 < example_s < 0.0015
    assert misfit == pytest.approx(max(example_s * 10 / 0.01 - 1, 1 - example_s * 20 / 0.03))


def test_only_numbers_that_shards_can_be_dealt_to_are_listed() -> None:
    assert numbers_up_to(6, None) == [1, 2, 4, 6]
    assert numbers_up_to(8, 4) == [1, 2, 4]


def rows_of(out: str) -> dict[int, list[str]]:
    """Return the cells of each number of processes."""
    lines = [line.split() for line in out.splitlines() if re.match(r" +\d+ .*%$", line)]
    return {int(number): cells for number, *cells in lines}


def test_figures_that_are_given_decide(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["advise", *FLAGS, *ALL_GIVEN, "--gpus", "2", "--hosts", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = rows_of(out)
    assert list(rows) == [1, 2, 4]
    # LSTM(8, 64) and 10 classes have 19,594 parameters
    expected = Cost(1, 10, 500, 1, 4 * 19_594)
    for n, (share, _, _, gain, efficiency) in rows.items():
        assert int(share) == 64 // n
        assert efficiency == f"{expected.efficiency(64, n):.0%}"
        assert gain == f"{n * expected.efficiency(64, n):.2f}x"
    assert "do not spread these 19,594 parameters over 4 processes" in out
    assert "use one; or train 4 seeds" in out
    assert f"from train.batch_size {expected.worth_from(4):,} on" in out
    assert [line for line in out.splitlines() if line.startswith("measured")] == [
        line for line in out.splitlines() if "for a checkpoint of 0.2 MB" in line
    ]
    assert list(tmp_path.iterdir()) == []


def test_long_steps_are_spread(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ALL_GIVEN, "--step-ms", "0.01", "--example-us", "1000", "--gpus", "4"]
    assert main(["advise", *FLAGS, *words]) == 0
    assert "\nadvice      use 4 processes, 3." in capsys.readouterr().out


def test_what_is_measured_and_what_is_assumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *FLAGS, "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^measured    a step takes [\d.e+-]+ ms and [\d.e+-]+ µs an example, read and trained; "
        r"batches of 16, 32, 45, 64 on cpu, threads: 1, are off by \d+% at most$",
        out,
        re.M,
    )
    assert re.search(r"^assumed     gloo on one host: 700 µs a message, 1 GB/s; ", out, re.M)
    assert re.search(r"^assumed     each process has cores .* a GPU is not known here", out, re.M)
    assert main(["advise", *FLAGS, "--gpus", "2", "--hosts", "2", "--step-ms", "3"]) == 0
    out = capsys.readouterr().out
    assert "given       step_ms 3\n" in out
    assert re.search(
        r"^assumed     gloo over a network of 10 Gbit/s: 750 µs a message, 1 G", out, re.M
    )


def advise_on_ranks(folder: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(folder):
        assert main(["advise", *FLAGS]) == 0
    return out.getvalue()


def test_launched_processes_measure_their_all_reduce(tmp_path: Path) -> None:
    first, second = run_ranks(2, advise_on_ranks, str(tmp_path))
    assert second == ""
    assert re.search(
        r"^measured    2 processes: [\d.e+]+ µs a message; assumed: 1 GB/s$", first, re.M
    )
    assert list(rows_of(first))[:2] == [1, 2]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_figure_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", f"--gb-per-s={value}"]) == 2
    assert f"--gb-per-s {float(value)}: must be a number above 0" in capsys.readouterr().err

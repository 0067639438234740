"""Results as JSON in benchmarks/results/, and the tables of the documents that are made of them.

python benchmarks/results.py     writes the tables anew; tests hold that they are what is there
"""

import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
FOLDER = HERE / "results"
VERSIONS = (
    *("torch", "accelerate", "lightning", "transformers", "keras", "jax", "flax", "numpy"),
    *("datasets", "litdata"),
)


def about(*, cpu_only: bool = False) -> dict[str, Any]:
    """Return where figures come from: machine, threads, versions."""
    import torch

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    used = torch.cuda.is_available() and not cpu_only
    return ({"gpu": torch.cuda.get_device_name()} if used else {}) | {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(psutil.Process().cpu_affinity())
        if sys.platform == "linux"
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def now(device: Any) -> float:
    """Return the time, in seconds, at which a device has done all that it was told to do."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def mark(device: Any) -> Any:
    """Return a moment of a device, for `seconds`; unlike `now` this does not wait for a GPU."""
    import torch

    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(start: Any, end: Any) -> float:
    """Return the seconds between two moments of a device."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def save(name: str, found: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json and the tables that come from it."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    write_tables()


def load(name: str) -> dict[str, Any]:
    """Read benchmarks/results/NAME.json."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def where(found: dict[str, Any]) -> str:
    """Say where figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    machine = f"{found['cores']} cores of an {found['cpu']}"
    if "gpu" in found:
        machine = f"{found['gpu']}, {machine}"
    return f"{machine}, Python {found['python']}, {versions}"


def peers_table() -> str:
    """Return the table of peers.py."""
    found = load("peers")
    rows = [
        "| | s to 96 % | s to 97 % | s to 98 % | training alone to 98 % "
        "| accuracy then or at the end | examples/s | compile s |",
        "| --- " * 8 + "|",
    ]
    for name in sorted(found["found"], key=lambda name: _soonest(found["found"][name])):
        of = found["found"][name]
        cells = [_seconds(of, f"command_s_to_{goal}%") for goal in (96, 97, 98)]
        cells += [_seconds(of, "train_s_to_98%"), f"{100 * of['accuracy']:.2f} %"]
        rate, compile_s = f"{of['examples_per_s']:,.0f}", of["compile_s"]
        cells += [rate, f"{compile_s:.1f}" if compile_s >= 0.05 else ""]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += [
        f"| {name} | did not run: {why} | | | | | | |" for name, why in found["lacking"].items()
    ]
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def peers_short_table() -> str:
    """Return what peers.py found in short: of each rival its better way, of seqclf both."""
    found = load("peers")
    heads = "s to 97 %, from the command | to 98 % | accuracy then or at the end"
    rows = [f"| | {heads} | examples/s |", "| --- " * 5 + "|"]
    best: dict[str, tuple[list[float], str]] = {}
    for name, of in found["found"].items():
        library = name if name.startswith("seqclf") else name.partition(",")[0]
        way = _soonest(of), name
        best[library] = min(best.get(library, way), way)
    for _, name in sorted(best.values()):
        of = found["found"][name]
        cells = [_seconds(of, f"command_s_to_{goal}%") for goal in (97, 98)]
        cells.append(f"{100 * of['accuracy']:.2f} %")
        rows.append(f"| {name} | {' | '.join(cells)} | {of['examples_per_s']:,.0f} |")
    rows += [f"| {name} | did not run: {why} | | | |" for name, why in found["lacking"].items()]
    told = f"Medians of n = {found['rounds']} interleaved rounds. {where(found)}."
    return "\n".join(rows) + f"\n\n{told}"


def _soonest(of: dict[str, Any]) -> list[float]:
    """Return what the ways are ordered by: the seconds to the highest goal always reached."""
    return [of[f"command_s_to_{goal}%"] or math.inf for goal in (98, 97, 96)]


def _seconds(of: dict[str, Any], key: str) -> str:
    rounds = of[f"rounds_to_{key.rpartition('_')[2]}"]
    if of[key] is not None:
        return f"{of[key]:.1f}"
    return "not reached" if rounds == 0 else f"in {rounds} of {of['n']}"


def loop_table() -> str:
    """Return the ratios of loop.py."""
    found = load("loop")
    rows = [
        "| batch | ms a step | bare.py | ratio | its quartiles | of all blocks, with saves |",
        "| --- " * 6 + "|",
    ]
    for of in found["rows"]:
        low, _, high = of["ratio_quartiles"]
        rows.append(
            f"| {of['batch']} | {of['seqclf_ms']:.2f} | {of['bare_ms']:.2f} | {of['ratio']:.3f} "
            f"| {low:.3f} to {high:.3f} | {of['ratio_of_totals']:.3f} |"
        )
    blocks = " / ".join(str(of["blocks"]) for of in found["rows"])
    told = f"medians of {blocks} blocks of {found['steps_per_block']} steps"
    return "\n".join(rows) + f"\n\n{where(found)}; {told}."


def parts_table() -> str:
    """Return the profile of loop.py."""
    found = load("loop")["rows"]
    names = list(found[0]["parts_ms"])
    rows = [f"| batch | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for of in found:
        cells = " | ".join(f"{of['parts_ms'][name]:.3f}" for name in names)
        rows.append(f"| {of['batch']} | {cells} |")
    return "\n".join(rows)


def scaling_table() -> str:
    """Return the rates of scaling.py, and how much several give over one."""
    found = load("scaling")
    of = {
        (row["processes"], row["threads"], row["batch"], row["malloc"]): row
        for row in found["rows"]
    }
    batches = sorted({batch for *_, batch, _ in of})
    rows = [
        "| batch | 1 process of 1 thread, examples/s | without keeping memory | 1 of 2 | 2 of 1 "
        "| 2 of 1, twice the batch | DDP's share of a step: reducing / all else |",
        "| --- " * 7 + "|",
    ]
    for batch in batches:
        one = of[1, 1, batch, True]["examples_per_s"]
        cells = [f"{one:,.0f}", f"{of[1, 1, batch, False]['examples_per_s'] / one:.2f} times"]
        cells += [
            f"{of[p, t, batch, True]['examples_per_s'] / one:.2f} times"
            for p, t in ((1, 2), (2, 1))
        ]
        twice = of.get((2, 1, 2 * batch, True)) or {}
        cells.append(f"{twice['examples_per_s'] / one:.2f} times" if twice else "")
        two = of[2, 1, batch, True]
        reducing = two["reduction_ms"] / two["step_ms"]
        cells.append(f"{reducing:.0%} / {1 - two['alone_ms'] / two['step_ms'] - reducing:.0%}")
        rows.append(f"| {batch} | {' | '.join(cells)} |")
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def advise_fit_table() -> str:
    """Return the efficiency of two processes in scaling.py, and the one of advise's model."""
    from seqclf.cli.advise import LINKS, Cost, fit

    found = load("scaling")
    kept = [row for row in found["rows"] if row["malloc"] and row["threads"] == 1]
    one, two = (
        {row["batch"]: row["step_ms"] for row in kept if row["processes"] == number}
        for number in (1, 2)
    )
    step_ms, example_ms, _ = fit(one)
    latency_us, gb_per_s = LINKS["gloo on one host"]
    num_parameters = 24_714  # of LSTM(28, 64) and ten classes
    cost = Cost(step_ms, 1000 * example_ms, latency_us, gb_per_s, 4 * num_parameters)
    rows = ["| batch | measured | by the model |", "| --- " * 3 + "|"]
    for batch in one:
        measured = one[batch] / two[batch] / 2
        rows.append(f"| {batch} | {measured:.0%} | {cost.efficiency(batch, 2):.0%} |")
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def advise_table() -> str:
    """Return the efficiency that advise foresaw and the one that was measured, from advise.py."""
    found = load("advise")
    names = ("measured", "alone", "launched")
    rows = ["| batch | measured | foreseen | foreseen under torchrun |", "| --- " * 4 + "|"]
    for of in found["rows"]:
        cells = [
            f"{statistics.median(of[name]):.0%} ({min(of[name]):.0%} to {max(of[name]):.0%})"
            for name in names
        ]
        rows.append(f"| {of['batch']} | {' | '.join(cells)} |")
    told = f"medians of n = {found['rounds']} rounds, and the least and the most"
    return "\n".join(rows) + f"\n\n{where(found)}; {told}."


def data_table() -> str:
    """Return the rates of data.py."""
    found = load("data")
    names = ("fetch", "fetch and shift", "fetch and train")
    rows = [f"| batch | {' | '.join(names)} | fetch over train |", "| --- " * 5 + "|"]
    for of in found["rows"]:
        rates = [of[f"{name}, examples/s"] for name in names]
        cells = " | ".join(f"{rate:,.0f}" for rate in rates)
        rows.append(f"| {of['batch']} | {cells} | {rates[0] / rates[2]:.0f} times |")
    memory = f"{found['rows'][0]['memory_mb']:.0f} MB of memory"
    told = f"examples/s, medians of {found['blocks']} blocks of 25 batches; the data take {memory}"
    return "\n".join(rows) + f"\n\n{told}. {where(found)}."


def archive_table() -> str:
    """Return the accuracies of archive.py, their means, and the mean ranks; equals share theirs."""
    found = load("archive")
    methods = ("ours", "dtw", "minirocket", "inceptiontime")
    lines = [
        "| set | files.yaml | 1-NN DTW | MiniRocket | InceptionTime, published | training, s |",
        "| --- " * 6 + "|",
    ]
    table = []
    for of in found["rows"]:
        table.append([statistics.mean(of["ours"]), *(of[name] for name in methods[1:])])
        cells = ["" if value is None else f"{100 * value:.1f} %" for value in table[-1]]
        if len(of["ours"]) > 1:
            cells[0] = f"{cells[0]} ± {100 * statistics.stdev(of['ours']):.1f}"
        lines.append(f"| {of['set']} | {' | '.join(cells)} | {of['ours_s']:.0f} |")
    whole = [row for row in table if None not in row]
    means = [f"{100 * statistics.mean(column):.1f} %" for column in zip(*whole, strict=True)]
    lines.append(f"| mean of the {len(whole)} of one length | {' | '.join(means)} | |")
    without = [row[:2] + row[3:] for row in table]
    means = [f"{100 * statistics.mean(column):.1f} %" for column in zip(*without, strict=True)]
    lines.append(f"| mean of all {len(table)} | {means[0]} | {means[1]} | | {means[2]} | |")
    ranks = zip(*(ranks_of(row) for row in without), strict=True)
    ours, dtw, inception = (f"{statistics.mean(column):.2f}" for column in ranks)
    lines.append(f"| mean rank of these three | {ours} | {dtw} | | {inception} | |")
    seeds = max(len(of["ours"]) for of in found["rows"])
    told = (
        f"Test accuracy, mean ± standard deviation of {seeds} seeds, without ± of one; seconds of "
        f"a whole command, median, {found['threads']} thread{'s' * (found['threads'] > 1)}"
    )
    return "\n".join(lines) + f"\n\n{told}. {where(found)}."


def ranks_of(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, 1 for the largest; equals share the mean of theirs."""
    return [
        1 + sum(other > value for other in values) + (values.count(value) - 1) / 2
        for value in values
    ]


def linear_table() -> str:
    """Return the ratios of linear.py."""
    found = load("linear")
    rows = ["| an epoch of | times as long |", "| --- | --- |"]
    rows += [f"| {name} | {ratio:.2f} |" for name, ratio in found["ratios"].items()]
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def startup_table() -> str:
    """Return the seconds of startup.py."""
    found = load("startup")
    rows = ["| | s |", "| --- | --- |"]
    rows += [f"| {name} | {seconds:.2f} |" for name, seconds in found["seconds"].items()]
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def sweep_table() -> str:
    """Return how long several seeds take, at once and one after the other, from sweep.py."""
    found = load("sweep")
    rows = ["| | s | each round |", "| --- | --- | --- |"]
    for way, middle in found["seconds"].items():
        each = ", ".join(f"{seconds:.1f}" for seconds in found["all"][way])
        rows.append(f"| {way} | {middle:.1f} | {each} |")
    rows.append(f"| times as fast | {found['ratio']:.2f} | |")
    what = f"{found['seeds']} seeds of mnist_fast, {found['epochs']:g} epoch"
    return "\n".join(rows) + f"\n\n{what}; {where(found)}; medians of n = {found['rounds']} rounds."


def streaming_table() -> str:
    """Return the rates of streaming.py."""
    found = load("streaming")
    rows = ["| | examples/s | each round | s to the first batch | MB |", "| --- " * 5 + "|"]
    for way, of in found["found"].items():
        each = ", ".join(f"{times['examples_per_s']:,.0f}" for times in found["all"][way])
        cells = f"{of['examples_per_s']:,.0f} | {each} | {of['first_s']:.2f} | {of['mb']:.0f}"
        rows.append(f"| {way} | {cells} |")
    rows += [f"| {name} | not installed | | | |" for name in found["lacking"]]
    return "\n".join(rows) + f"\n\n{where(found)}; medians of n = {found['rounds']} rounds."


def gpu_table() -> str:
    """Return the tables of gpu.py. Raises ValueError if they are those of a rehearsal on a CPU."""
    found = load("gpu")
    if "gpu" not in found:
        raise ValueError(f"{FOLDER / 'gpu.json'} was not made on a GPU: delete it")
    return gpu_tables(found)


def gpu_tables(found: dict[str, Any]) -> str:
    """Return what gpu.py found: precisions, speed, seeds at once; and what failed."""
    ways = {True: "resident", False: "streamed"}
    lines = ["| data | precision | where the data lie | test accuracy | all losses finite |"]
    lines.append("| --- " * 5 + "|")
    for of in found["precisions"]:
        ran_in = of.get("ran_in", of["precision"])
        instead = "" if ran_in == of["precision"] else f", ran in {ran_in}"
        cells = [of["data"], of["precision"] + instead, ways[of["resident"]]]
        accuracy = "none" if of["accuracy"] is None else f"{100 * of['accuracy']:.1f} %"
        lines.append(f"| {' | '.join([*cells, accuracy, 'yes' if of.get('finite') else 'NO'])} |")
    lines += ["", "| width | batch | data | seqclf, examples/s | bare.py | time over bare.py's |"]
    lines.append("| --- " * 6 + "|")
    for of in found["speeds"]:
        cells = [str(of["width"]), str(of["batch"]), ways[of["resident"]]]
        cells += [f"{of['seqclf']:,.0f}", f"{of['bare']:,.0f}", f"{of['ratio']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = found["seeds_at_once"]
    if "ratio" in seeds:
        once, after = (seeds["seconds"][way] for way in ("at once", "one after the other"))
        lines += [
            "",
            f"{seeds['seeds']} seeds of `digits`, {seeds['steps']} steps: {once:.1f} s at once, "
            f"{after:.1f} s one after the other, {seeds['ratio']:.2f} times as fast "
            f"(medians of n = {seeds['rounds']}).",
        ]
    lines += ["", f"Tests: {found['run_tests'] or 'FAILED'}", ""]
    failures = "; ".join(failure["what"] for failure in found["failed"]) or "nothing"
    note = "" if "gpu" in found else "REHEARSAL ON A CPU, no figures of a GPU. "
    blocks = " / ".join(str(of["blocks"]) for of in found["speeds"])
    lines.append(f"{note}Failed: {failures}. Speed: medians of {blocks} blocks. {where(found)}.")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "loop": loop_table,
    "parts": parts_table,
    "peers": peers_table,
    "peers-short": peers_short_table,
    "scaling": scaling_table,
    "data": data_table,
    "linear": linear_table,
    "archive": archive_table,
    "startup": startup_table,
    "sweep": sweep_table,
    "streaming": streaming_table,
    "gpu": gpu_table,
    "advise": advise_table,
    "advise-fit": advise_fit_table,
}
SOURCES = {
    "parts": "loop",
    "peers-short": "peers",
    "advise-fit": "scaling",
}  # where a table is not of its own name
DOCUMENTS = (
    HERE / "README.md",
    HERE.parent / "README.md",
    HERE.parent / "docs" / "gpu.md",
    HERE.parent / "docs" / "scaling.md",
)


def with_tables(text: str) -> str:
    """Return a document with its tables as the results have them."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: benchmarks/results.py -->\n", f"\n<!-- /{name} -->"
        if start in text and (FOLDER / f"{SOURCES.get(name, name)}.json").exists():
            before, rest = text.split(start)
            text = before + start + table() + end + rest.partition(end)[2]
    return text


def write_tables() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))


if __name__ == "__main__":
    write_tables()

"""Plots decoding speed beside what the memory of the machine allows.

    for dtype in fp32 bf16; do wkv_bench --synthetic v7:24x1024 --dtype $dtype --json; done > runs
    python bench/peers.py --model v7:24x1024 --json peers.json
    python bench/roofline.py runs peers.json --out roofline.png

An input has objects of `wkv_bench --json`, one a line, or that of `peers.py --json`. The line is
bandwidth / bytes a token, the points are measured medians with their spread. Only what leaves out
rows of zero hidden units ("+skip") can lie above the line. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"wkv": "tab:blue", "llama.cpp": "tab:orange", "rwkv": "tab:green"}


@dataclass(frozen=True)
class Point:
    """Decoding of one contestant: bytes a token as if dense, tokens per second."""

    runtime: str
    label: str
    size: float
    least: float
    median: float
    most: float


def of_wkv_bench(run: dict[str, Any]) -> Point:
    rate = run["decode_tok_s"]
    label = f"v{run['version']} {run['n_layer']}x{run['n_embd']} {run['dtype']} {run['isa']}"
    active = run["active_share"]
    if active is not None:
        label += f", {100 * active:.0f} % active"
    size = run["weight_bytes_per_token"]["median"]
    return Point("wkv", label, size, rate["min"], rate["median"], rate["max"])


def of_peers(result: dict[str, Any]) -> list[Point]:
    rounds = result["rounds"]
    points = []
    for contestant, figures in rounds[0].items():
        rates = [r[contestant]["decode"] for r in rounds]
        runtime, dtype = contestant.split(":")
        label = f"{result['model'].split('@')[0]} {dtype}"
        if dtype.endswith("+skip"):
            label += f", {100 * result['density']:.0f} % active"
        middle = statistics.median(rates)
        points.append(Point(runtime, label, figures["bytes"], min(rates), middle, max(rates)))
    return points


def read(paths: list[Path]) -> tuple[list[Point], list[float], set[int]]:
    """Points, bandwidths in GB/s and numbers of threads of all inputs."""
    points: list[Point] = []
    bandwidths: list[float] = []
    threads: set[int] = set()
    for path in paths:
        for line in filter(None, map(str.strip, path.read_text().splitlines())):
            result = json.loads(line)
            threads.add(result["threads"])
            if "rounds" in result:
                points += of_peers(result)
                bandwidths += result["read_bandwidth_gb_s"]
            else:
                points.append(of_wkv_bench(result))
                bandwidths.append(result["read_bandwidth_gb_s"]["median"])
    return points, bandwidths, threads


def write(axes: Any, labels: list[tuple[float, float, str]]) -> None:
    """Writes each label right of its point, or above the one that would cover it."""
    taken: list[tuple[float, float]] = []
    for size, rate, text in sorted(labels, key=lambda label: label[1]):
        x, y = axes.transData.transform((size, rate))
        beside = [other for at, other in taken if abs(at - x) < 150]
        height = max([y, *(other + 11 for other in beside if other + 11 > y)])
        taken.append((x, height))
        place = axes.transData.inverted().transform((x + 8, height))
        axes.annotate(text, place, fontsize=7, va="center")


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding speed and the memory roof.")
    parser.add_argument("runs", type=Path, nargs="+", help="of wkv_bench --json or peers.py --json")
    parser.add_argument("--out", type=Path, default=Path("roofline.png"))
    arguments = parser.parse_args()
    points, bandwidths, threads = read(arguments.runs)
    if not points:
        parser.error("the inputs have no measurement")

    bandwidth = statistics.median(bandwidths)
    sizes = [point.size for point in points]
    span = [min(sizes) / 1.5, max(sizes) * 2.5]  # room for labels at the right
    figure, axes = plt.subplots(figsize=(8, 5))
    roof = [1e9 * bandwidth / size for size in span]
    limits = [size / 1e6 for size in span]
    axes.plot(limits, roof, color="black", label=f"read bandwidth, {bandwidth:.1f} GB/s")
    named: set[str] = set()
    labels: list[tuple[float, float, str]] = []
    for point in points:
        share = 100 * point.median * point.size / (1e9 * bandwidth)
        axes.errorbar(
            point.size / 1e6,
            point.median,
            yerr=[[point.median - point.least], [point.most - point.median]],
            fmt="o",
            markersize=4,
            capsize=3,
            color=COLORS[point.runtime],
            label=None if point.runtime in named else point.runtime,
        )
        named.add(point.runtime)
        labels.append((point.size / 1e6, point.median, f"{point.label}, {share:.0f} %"))
    axes.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        xlabel="MB of weights a token, if all are read",
        ylabel="tokens a second",
    )
    counts = " or ".join(map(str, sorted(threads)))
    axes.set_title(f"decoding one stream, {counts} threads; % of the bandwidth")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.tight_layout()
    write(axes, labels)
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()

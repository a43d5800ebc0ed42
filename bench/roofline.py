"""Plots decoding speed beside what the memory of the machine allows.

    for dtype in fp32 bf16; do wkv_bench --synthetic v7:24x1024 --dtype $dtype --json; done > runs
    python bench/roofline.py runs roofline.png

Each line of the input is one object of `wkv_bench --json`. The drawn line is bandwidth / bytes a
token, the points are measured medians with their spread. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding speed and the memory roof.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    runs = [json.loads(line) for line in arguments.runs.read_text().splitlines() if line.strip()]

    bandwidth = statistics.median(run["read_bandwidth_gb_s"]["median"] for run in runs)
    sizes = [run["weight_bytes_per_token"]["median"] for run in runs]
    span = [min(sizes) / 1.5, max(sizes) * 1.5]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    roof = [1e9 * bandwidth / size for size in span]
    axes.plot(span, roof, color="black", label=f"{bandwidth:.1f} GB/s")
    for run, size in zip(runs, sizes, strict=True):
        rate = run["decode_tok_s"]
        error = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
        axes.errorbar(size, rate["median"], yerr=error, fmt="o", capsize=3)
        share = 100 * run["bandwidth_fraction"]["median"]
        text = f"  RWKV-{run['version']} {run['dtype']} {run['isa']}, {share:.0f} %"
        axes.annotate(text, (size, rate["median"]), fontsize=8, va="top")
    axes.set(
        xscale="log", yscale="log", xlabel="bytes of weights a token", ylabel="tokens a second"
    )
    axes.set_title(f"decoding one stream, {runs[0]['threads']} threads")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()

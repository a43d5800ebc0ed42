"""Compares two builds of wkv_bench on one machine, interleaved.

    python bench/compare.py build/before/bench/wkv_bench build/after/bench/wkv_bench \
        [--rounds 5] -- decode --synthetic v7:24x1024 --dtype bf16

Prints the ratio after / before of every figure: its median over the rounds, the least and the most.
A difference smaller than that spread is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

FIGURES = ("decode_tok_s", "prefill_tok_s", "load_s", "peak_rss_bytes", "bandwidth_fraction")


def figures(binary: str, options: list[str]) -> dict[str, float]:
    """The medians of one run; a batch's by number of rows."""
    command = [binary, *options, "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output)
    found = {name: float(result[name]["median"]) for name in FIGURES}
    for row in result.get("batch", []):
        found[f"batch of {row['rows']}"] = float(row["tok_s"]["median"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Two builds of wkv_bench, interleaved.")
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=5)
    parser.epilog = "What follows -- goes to wkv_bench."
    mine, options = sys.argv[1:], []
    if "--" in mine:
        mine, options = mine[: mine.index("--")], mine[mine.index("--") + 1 :]
    arguments = parser.parse_args(mine)

    ratios: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        binaries = [arguments.before, arguments.after]
        if number % 2 == 1:  # neither is always the one that runs on a warm machine
            binaries.reverse()
        result = {binary: figures(binary, options) for binary in binaries}
        for name, value in result[arguments.after].items():
            ratios.setdefault(name, []).append(value / result[arguments.before][name])
    for name, values in ratios.items():
        print(
            f"{name:20} {statistics.median(values):6.3f}  ({min(values):.3f} to {max(values):.3f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

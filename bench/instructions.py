"""Counts instructions per token with callgrind: a slower kernel shows without a clock.

    python bench/instructions.py [--build build/release] [--update fp32,fp16,bf16]

Compares with bench/instructions.json, written by the same compiler; 2 % more is a failure.
Valgrind hides AVX-512, so the AVX2 kernels are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
MODELS = ("v4:1x256:256", "v5.2:1x256:256", "v6:1x256:256", "v7:1x256:256")
#: Two lengths for each way of running; the difference leaves loading and start-up out.
TOKENS = {"decode": (2, 6), "prefill": (16, 48)}


def collected(program: Path, mode: str, spec: str, dtype: str, tokens: int) -> int:
    """Instructions of a whole run."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program)]
    command += [mode, spec, dtype, str(tokens)]
    environment = os.environ | {"WKV_ISA": "avx2"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    match = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode != 0 or match is None:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("==")]
        raise RuntimeError(f"{mode} {spec} {dtype}: {' '.join(lines) or 'valgrind failed'}")
    return int(match[1])


def per_token(program: Path, mode: str, spec: str, dtype: str) -> int:
    few, many = TOKENS[mode]
    difference = collected(program, mode, spec, dtype, many) - collected(
        program, mode, spec, dtype, few
    )
    return round(difference / (many - few))


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions per token.")
    parser.add_argument("--build", type=Path, default=Path("build/release"))
    parser.add_argument("--update", metavar="DTYPES", help="write the table anew: fp32,fp16,bf16")
    arguments = parser.parse_args()
    program = arguments.build / "bench" / "count_tokens"
    if not program.exists():
        parser.error(f"{program} is not built")

    if arguments.update:
        dtypes = arguments.update.split(",")
        names = [f"{mode} {spec} {d}" for mode in TOKENS for spec in MODELS for d in dtypes]
    else:
        table = json.loads(TABLE.read_text())
        names = list(table["counts"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = dict(
            zip(names, pool.map(lambda n: per_token(program, *n.split()), names), strict=True)
        )
    compiler = subprocess.run(
        [program, "--compiler"], check=True, capture_output=True, text=True
    ).stdout.strip()

    if arguments.update:
        TABLE.write_text(json.dumps({"compiler": compiler, "counts": counts}, indent=1) + "\n")
        print(f"wrote {TABLE}")
        return 0
    worse = 0
    for name, count in counts.items():
        ratio = count / table["counts"][name]
        failed = ratio > 1 + TOLERANCE
        worse += failed
        print(f"{name:32} {count:12,d} instructions a token  {ratio:6.3f}{'  MORE' * failed}")
    if table["compiler"] != compiler:
        print(f"the table is of compiler {table['compiler']}, this is {compiler}: not judged")
        return 0
    if worse:
        print(f"{worse} counts grew by more than {TOLERANCE:.0%}; --update if that is meant")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares the registers and spills of every CUDA kernel with cuda/registers.txt.

    python tools/check_registers.py [--arch sm_90 ...] [--update] [--nvcc NVCC]

Compiles cuda/*.cu once per architecture and reads what ptxas reports. Exits with 1 if a kernel
needs more registers than the table says, spills more, or is not in it. --update writes the table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "cuda" / "registers.txt"
HEADER = "# kernel architecture registers spill_bytes; check_registers.py --update writes it\n"
FUNCTION = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# The hash of the file that nvcc puts into the name of an anonymous namespace.
ANONYMOUS = re.compile(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_(\w+?)_cu_[0-9a-f]{8}(?:_\d+)?")

Usage = dict[tuple[str, str], tuple[int, int]]


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = []
    for name in done.stdout.splitlines():
        text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|wkv::cuda::|^void ", "", name)
        short.append(re.sub(r"\s+", "", text.split("(")[0]))
    return short


def parse(text: str) -> Usage:
    """(kernel, architecture) -> registers, spill bytes, of ptxas -v."""
    found: list[tuple[str, str, int, int]] = []
    name, arch, spills = "", "", 0
    for line in text.splitlines():
        if match := FUNCTION.search(line):
            name, arch, spills = match[1], match[2], 0
        elif match := SPILLS.search(line):
            spills = int(match[1]) + int(match[2])
        elif (match := REGISTERS.search(line)) and name:
            found.append((name, arch, int(match[1]), spills))
            name = ""
    names = demangle([f[0] for f in found])
    return {(n, f[1]): (f[2], f[3]) for n, f in zip(names, found, strict=True)}


def compile_one(nvcc: str, source: Path, arch: str) -> Usage:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc, "-std=c++20", f"-arch={arch}", "-O3", "-Xptxas", "-v", "-cubin",
            f"-I{ROOT}", f"-I{ROOT / 'cpp/src'}", f"-I{ROOT / 'cpp/include'}",
            str(source), "-o", f"{folder}/kernels.cubin",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return parse(done.stderr)


def read_table() -> Usage:
    usage: Usage = {}
    for line in TABLE.read_text().splitlines() if TABLE.exists() else []:
        if line and not line.startswith("#"):
            name, arch, registers, spills = line.split()
            usage[name, arch] = int(registers), int(spills)
    return usage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", nargs="+", help="default: those in the table")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    args = parser.parse_args()
    if not Path(args.nvcc).exists():
        print("registers: no nvcc")
        return 0
    table = read_table()
    archs = args.arch or sorted({arch for _, arch in table}) or ["sm_90"]
    jobs = [(args.nvcc, s, a) for a in archs for s in sorted((ROOT / "cuda").glob("*.cu"))]
    usage: Usage = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(lambda job: compile_one(*job), jobs):
            usage |= part
    if args.update:
        kept = {key: value for key, value in table.items() if key[1] not in archs} | usage
        lines = [f"{n} {a} {r} {s}\n" for (n, a), (r, s) in sorted(kept.items())]
        TABLE.write_text(HEADER + "".join(lines))
        return 0
    problems = []
    for (name, arch), (registers, spills) in sorted(usage.items()):
        if (name, arch) not in table:
            problems.append(f"{name} {arch}: not in {TABLE.name}")
            continue
        had, spilled = table[name, arch]
        if registers > had or spills > spilled:
            problems.append(
                f"{name} {arch}: {registers} registers, {spills} bytes spilled; "
                f"the table allows {had} and {spilled}"
            )
    print("\n".join(problems) or f"registers: {len(usage)} kernels within the table")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

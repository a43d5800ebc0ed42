"""Compares the registers of every CUDA kernel with cuda/registers.txt; no kernel may spill.

    python tools/check_registers.py [--log FILE] [--update] [--nvcc NVCC]

Reads what ptxas reports: from a build's log (--log), or by compiling cuda/*.cu for the release's
architectures. Exits with 1 if a kernel spills, needs more registers than the table says, is not in
it, or is in it and was not compiled. --update writes the table.
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
# As in cuda/CMakeLists.txt.
GENCODE = [
    "arch=compute_75,code=sm_75",
    "arch=compute_80,code=[sm_80,sm_86,sm_89]",
    "arch=compute_90,code=[sm_90,sm_100,sm_120]",
]
FLAGS = {"sample.cu": ["-fmad=false", "--expt-relaxed-constexpr"]}
ARCHS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
HEADER = f"# kernel: registers on {' '.join(ARCHS)}; check_registers.py --update writes it\n"
FUNCTION = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")

Usage = dict[tuple[str, str], tuple[int, int]]


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        raise SystemExit("registers: c++filt of binutils is needed")
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = []
    for name in done.stdout.splitlines():
        text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|wkv::cuda::|^void ", "", name)
        short.append(re.sub(r"\s+", "", text.split("(")[0]))
    return short


def parse(text: str) -> Usage:
    """(kernel, architecture) -> registers, spilled bytes, of what ptxas -v says."""
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


def compile_one(nvcc: str, source: Path) -> Usage:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc, "-std=c++20", "-O3", "-Xptxas", "-v", "-fatbin", *FLAGS.get(source.name, []),
            *(word for code in GENCODE for word in ("-gencode", code)),
            f"-I{ROOT}", f"-I{ROOT / 'cpp/src'}", f"-I{ROOT / 'cpp/include'}",
            str(source), "-o", f"{folder}/kernels.fatbin",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return parse(done.stderr)


def read_table() -> dict[tuple[str, str], int]:
    table: dict[tuple[str, str], int] = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            name, *registers = line.split()
            table |= {(name, a): int(r) for a, r in zip(ARCHS, registers, strict=True)}
    return table


def write_table(usage: Usage) -> None:
    lines = [HEADER]
    for name in sorted({name for name, _ in usage}):
        lines.append(" ".join([name, *(str(usage[name, arch][0]) for arch in ARCHS)]) + "\n")
    TABLE.write_text("".join(lines))


def compare(usage: Usage, table: dict[tuple[str, str], int]) -> list[str]:
    problems = [f"{name} {arch}: not compiled" for name, arch in sorted(table.keys() - usage)]
    for (name, arch), (registers, spills) in sorted(usage.items()):
        if spills > 0:
            problems.append(f"{name} {arch}: {spills} bytes spilled")
        if (name, arch) not in table:
            problems.append(f"{name} {arch}: not in {TABLE.name}")
        elif registers > table[name, arch]:
            problems.append(
                f"{name} {arch}: {registers} registers; the table allows {table[name, arch]}"
            )
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--log", type=Path, help="of a build with -Xptxas=-v")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    args = parser.parse_args()
    if args.log is not None:
        usage = parse(args.log.read_text())
    elif not Path(args.nvcc).exists():
        print("registers: no nvcc")
        return 0
    else:
        usage = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sources = sorted((ROOT / "cuda").glob("*.cu"))
            for part in pool.map(lambda source: compile_one(args.nvcc, source), sources):
                usage |= part
    if args.update:
        write_table(usage)
    problems = compare(usage, read_table())
    print("\n".join(problems) or f"registers: {len(usage)} kernels within the table, none spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

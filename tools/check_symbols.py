"""Checks the objects that are compiled once per ISA.

    python tools/check_symbols.py [BUILD_DIR]

Each may define one external symbol, its table of kernels, and no weak one: the linker keeps one
copy of a weak function for the whole program, and a copy with AVX-512 code ends an older processor
with SIGILL. Prints what is wrong and exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PREFIX = "kernels_"  # cpp/src/cpu/kernels_avx2.cpp defines wkv::cpu::kernels_avx2
OTHERS = {"vector_passes_avx2": "wkv::detail::kAvx2Passes"}  # of the sampler


def external_symbols(path: Path) -> list[tuple[str, str]]:
    """nm's letter and the demangled name of every symbol that other objects can see."""
    done = subprocess.run(
        ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
    )
    symbols = []
    for line in done.stdout.splitlines():
        _, letter, name = line.split(maxsplit=2)
        if letter.isupper() or letter in "uvw":  # unique and weak ones have small letters too
            symbols.append((letter, name))
    return symbols


def faults(path: Path, table: str) -> list[str]:
    """What is wrong with one object."""
    found = external_symbols(path)
    wrong = [
        f"{path.name}: external symbol {letter} {name}" for letter, name in found if name != table
    ]
    if table not in [name for letter, name in found if letter not in "WVuvw"]:
        wrong.append(f"{path.name}: does not define {table}")
    return wrong


def kernel_objects(build: Path) -> list[Path]:
    """The per-ISA objects of a build."""
    patterns = (f"{PREFIX}*", *OTHERS)
    return sorted(
        path
        for pattern in patterns
        for path in build.glob(f"**/wkv_objects.dir/**/{pattern}.cpp.o")
    )


def table_of(path: Path) -> str:
    """The one symbol that an object may define."""
    name = path.name.removesuffix(".cpp.o")
    return OTHERS.get(name, f"wkv::cpu::{name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", nargs="?", default="build", type=Path)
    build = parser.parse_args().build
    objects = kernel_objects(build)
    if not objects:
        print(f"no per-ISA object below {build}: build first")
        return 1
    wrong = []
    for path in objects:
        wrong += faults(path, table_of(path))
    print("\n".join(wrong or [f"symbols: {len(objects)} objects define their table and no more"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks the objects that are compiled once per ISA.

    python tools/check_symbols.py [BUILD_DIR]

Each may define one external symbol, its table of kernels, and no weak one: the linker keeps one
copy of a weak function for the whole program, and a copy with AVX-512 code ends an older processor
with SIGILL. In an object with AMX every ldtilecfg must read the configuration as its source has it
(GCC 12 drops stores to one that <immintrin.h> is given), and be followed by a tilerelease in the
same function. Prints what is wrong and exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
from pathlib import Path

PREFIX = "kernels_"  # cpp/src/cpu/kernels_avx2.cpp defines wkv::cpu::kernels_avx2
OTHERS = {  # of the sampler
    "vector_passes_avx2": "wkv::detail::kAvx2Passes",
    "vector_passes_avx512": "wkv::detail::kAvx512Passes",
}


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


#: Palette 1, eight tiles of rows of 64 bytes, 16 of them or in all tiles but two fewer:
#: kTileConfig and kTileConfigOf of kernels/amx.inl.
TILE_CONFIGS = {
    struct.pack(
        "<2B14x16H16B", 1, 0, *([64] * 8 + [0] * 8), *([n] * 4 + [16] * 2 + [n] * 2 + [0] * 8)
    )
    for n in (4, 8, 16)
}


def objdump(path: Path, *options: str) -> str:
    command = ["objdump", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tile_faults(path: Path) -> list[str]:
    """What is wrong with an object's use of tile registers; nothing if it uses none."""
    wrong = []
    symbols = {}  # name -> section, offset
    for line in objdump(path, "-t").splitlines():
        if match := re.match(
            r"([0-9a-f]{16}) .{7} (\S+)\s+[0-9a-f]{16} +(?:\.hidden )?(\S+)$", line
        ):
            symbols[match[3]] = (match[2], int(match[1], 16))
    for body in re.split(r"\n(?=[0-9a-f]{16} <)", objdump(path, "-dr", "--no-show-raw-insn")):
        name = body.split("\n", 1)[0]
        loads = re.findall(r"\tldtilecfg .*\n.*R_X86_64_PC32\s+(\S+?)([+-]0x[0-9a-f]+)\n", body)
        if len(loads) != body.count("\tldtilecfg "):
            wrong.append(f"{path.name}: {name} a tile configuration that is no constant")
        if ("\tldtilecfg " in body) != ("\ttilerelease" in body):
            wrong.append(
                f"{path.name}: {name} ldtilecfg without tilerelease, or the other way round"
            )
        for symbol, addend in loads:
            section, offset = symbols.get(symbol, (symbol, 0))
            start = offset + int(addend, 16) + 4  # PC32 counts from the end of the instruction
            found = section_bytes(path, section, start, 64)
            if found not in TILE_CONFIGS:
                wrong.append(f"{path.name}: {name} tile configuration {found.hex()}")
    return wrong


def section_bytes(path: Path, section: str, start: int, size: int) -> bytes:
    text = objdump(
        path, "-s", "-j", section, f"--start-address={start}", f"--stop-address={start + size}"
    )
    found = ""
    for line in text.splitlines():
        if match := re.match(r" [0-9a-f]+ ((?:[0-9a-f]{2,8} ){1,4})", line):
            found += match[1].replace(" ", "")
    return bytes.fromhex(found)


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
        wrong += tile_faults(path)
    print("\n".join(wrong or [f"symbols: {len(objects)} objects define their table and no more"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

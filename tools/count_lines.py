"""Counts lines of code by part and fails if a file is longer than 600 lines.

python tools/count_lines.py [--limit N] [ROOT]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

SOURCES = {".h", ".hpp", ".cpp", ".c", ".inl", ".cu", ".cuh", ".py", ".pyi", ".cmake", ".txt"}
PARTS = ("cpp", "cuda", "python", "tests", "bench", "tools", "cmake", "third_party")


def tracked(root: Path) -> list[str]:
    """Files that git tracks, or will once they are added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(output.split("\0")) if name and (root / name).is_file())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--limit", type=int, default=600, help="lines a file may have")
    arguments = parser.parse_args()

    total: Counter[str] = Counter()
    files: Counter[str] = Counter()
    too_long = 0
    for name in tracked(arguments.root):
        part = name.split("/", 1)[0]
        if part not in PARTS or Path(name).suffix not in SOURCES:
            continue
        lines = (arguments.root / name).read_bytes().count(b"\n")
        total[part] += lines
        files[part] += 1
        if lines > arguments.limit:
            print(f"{name}: {lines} lines, at most {arguments.limit}")
            too_long += 1
    for part in PARTS:
        if files[part]:
            print(f"{part:12} {files[part]:4} files {total[part]:6} lines")
    print(f"{'total':12} {sum(files.values()):4} files {sum(total.values()):6} lines")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks tracked text files: ASCII, Unix line ends, no trailing blanks, one newline at the end.

    python tools/check_text.py [ROOT]

Files over 1 MiB are refused as well: data belongs elsewhere. Exits with 1 if anything is found.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BINARY = {".npy", ".npz", ".pth", ".safetensors", ".png", ".bin", ".gz", ".zip", ".st", ".wkv"}
# Data written by others stays as it is.
FREE_TEXT = ("LICENSE", "tests/golden/")
MAX_BYTES = 1 << 20


def tracked(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z"]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in output.split("\0") if name and (root / name).is_file())


def problems(root: Path, name: str) -> Iterator[str]:
    data = (root / name).read_bytes()
    # Checkpoints are data with a bound of their own.
    limit = 6 * MAX_BYTES if Path(name).suffix in BINARY else MAX_BYTES
    if len(data) > limit:
        yield f"{name}: {len(data)} bytes, at most {limit}"
    if Path(name).suffix in BINARY or b"\0" in data[:4096]:
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if any(byte > 126 or (byte < 32 and byte != 9) for byte in line):
            yield f"{name}:{number}: not printable ASCII"
        if line != line.rstrip():
            yield f"{name}:{number}: trailing blanks"
    if data and (not data.endswith(b"\n") or data.endswith(b"\n\n")):
        yield f"{name}: must end with one newline"


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    names = [name for name in tracked(root) if not name.startswith(FREE_TEXT)]
    found = [problem for name in names for problem in problems(root, name)]
    print("\n".join(found) if found else f"text: {len(names)} files are clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

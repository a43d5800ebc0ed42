"""Checks who includes whom: the table "Who may include whom" of docs/architecture.md.

    python tools/check_layers.py [ROOT]

Prints one line per forbidden include and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
SOURCES = {".h", ".hpp", ".cpp", ".c", ".inl", ".cu", ".cuh"}

# Folder -> the layers it may include. The first folder that holds a file applies.
RULES: dict[str, set[str]] = {
    "cpp/include/wkv": {"public"},
    "cpp/src/core": {"core", "public"},
    "cpp/src/io": {"core", "io", "public"},
    "cpp/src/text": {"core", "text", "public"},
    "cpp/src/ops": {"core", "ops", "public"},
    "cpp/src/cpu": {"core", "ops", "cpu", "public"},
    "cpp/src/models": {"core", "ops", "models", "public"},
    "cpp/src/runtime/devices.cpp": {"core", "cpu", "io", "models", "ops", "runtime", "public"},
    "cpp/src/runtime/cuda_plugin.cpp": {"core", "cuda", "ops", "runtime", "public"},
    "cpp/src/runtime": {"core", "io", "models", "ops", "runtime", "text", "public"},
    "cpp/src": {"public"},  # c_api.cpp
    "cuda/sample.cu": {"core", "cuda", "ops", "text", "public"},  # the arithmetic of sampling
    "cuda": {"core", "cuda", "ops", "public"},
    "python/bindings": {"bindings", "public"},
    "bench/kernels": {"core", "cpu", "io", "ops", "public"},  # one kernel at a time
    "bench": {"bench", "public"},
}
LAYERS = {"core", "cpu", "io", "models", "ops", "runtime", "text"}

# What a file that is compiled once per ISA may include of the system. An inline function of the
# standard library compiled with -mavx512f is a weak symbol; the linker may choose it for everybody,
# and an older processor then stops at it.
FREESTANDING = {"float.h", "immintrin.h", "limits.h", "stddef.h", "stdint.h"}


def includes(source: Path) -> Iterator[tuple[int, str]]:
    """Line number and name of every #include."""
    text = source.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start(match.lastindex or 0)) + 1, match[1] or match[2]


def resolve(include: str, includer: Path, root: Path) -> Path | None:
    """The file of ours that an include names, or None for the system's."""
    for folder in (includer.parent, root / "cpp/src", root / "cpp/include", root):
        candidate = (folder / include).resolve()
        if candidate.is_file() and candidate.is_relative_to(root):
            return candidate
    return None


def layer(file: Path, root: Path) -> str:
    parts = file.relative_to(root).parts
    if parts[:2] == ("cpp", "include"):
        return "public"
    if parts[:2] == ("cpp", "src"):
        return parts[2] if parts[2] in LAYERS else "c_api"
    return "bindings" if parts[:2] == ("python", "bindings") else parts[0]


def check_layers(root: Path) -> Iterator[str]:
    """One message per include of a layer that the file's folder may not see."""
    seen: set[Path] = set()
    for folder, allowed in RULES.items():
        start = root / folder
        for source in sorted(start.rglob("*") if start.is_dir() else [start]):
            if source in seen or source.suffix not in SOURCES or not source.is_file():
                continue
            seen.add(source)
            for line, name in includes(source):
                target = resolve(name, source, root)
                if target is not None and layer(target, root) not in allowed:
                    where = f"{source.relative_to(root).as_posix()}:{line}: {name}"
                    yield f"{where}: {folder} may include {', '.join(sorted(allowed))}"


def check_kernels(root: Path) -> Iterator[str]:
    """One message per header that a per-ISA file reaches and must not."""
    queue = sorted((root / "cpp/src").glob("cpu/kernels_*.cpp"))
    queue += sorted((root / "cpp/src").glob("text/vector_passes_*.cpp"))
    seen = set(queue)
    while queue:
        source = queue.pop()
        for line, name in includes(source):
            target = resolve(name, source, root)
            where = f"{source.relative_to(root).as_posix()}:{line}: {name}"
            if target is None and name not in FREESTANDING:
                system = ", ".join(sorted(FREESTANDING))
                yield f"{where}: a per-ISA file reaches this; of the system only {system}"
            elif target is not None and layer(target, root) != layer(source, root):
                yield f"{where}: a per-ISA file reaches this; of ours only headers of its folder"
            elif target is not None and target not in seen:
                seen.add(target)
                queue.append(target)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    found = [*check_layers(root), *check_kernels(root)]
    print("\n".join(found) if found else "layers: every include is allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

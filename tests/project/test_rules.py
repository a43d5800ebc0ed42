"""Rules about the sources themselves: layers, text, length, versions, headers that stand alone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++")
HEADERS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("cpp/include/**/*.h", "cpp/include/**/*.hpp", "cpp/src/**/*.h", "bench/*.h")
    for path in ROOT.glob(pattern)
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tool", ["check_layers", "check_text", "count_lines"])
def test_tool_is_content(tool: str) -> None:
    if tool != "check_layers" and not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    result = run(sys.executable, f"tools/{tool}.py")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "include"),
    [
        ("cpp/src/models/v9.cpp", '"cpu/isa.h"'),
        ("cpp/src/core/x.cpp", '"ops/ops.h"'),
        ("cpp/src/cpu/kernels_avx9.cpp", "<vector>"),
        ("cpp/src/text/vector_passes_avx9.cpp", "<cmath>"),
        ("bench/x.cpp", '"core/check.h"'),
    ],
)
def test_forbidden_include_is_found(tmp_path: Path, file: str, include: str) -> None:
    for header in ("cpp/src/cpu/isa.h", "cpp/src/ops/ops.h", "cpp/src/core/check.h", file):
        (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / header).touch()
    (tmp_path / file).write_text(f"#include {include}\n")
    result = run(sys.executable, "tools/check_layers.py", str(tmp_path))
    assert result.returncode == 1
    assert result.stdout.startswith(f"{file}:1: {include[1:-1]}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the compiler says of each header, compiled alone; "" if nothing."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("alone")
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-unused-function"]
    paths = [f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cpp/src'}"]

    def compile_alone(header: str) -> str:
        source = folder / (header.replace("/", "-") + ".cpp")
        source.write_text(f'#include "{ROOT / header}"\n')
        result = run(str(COMPILER), *flags, *paths, str(source))
        return result.stderr if result.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(HEADERS, pool.map(compile_alone, HEADERS), strict=True))


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header: str, compiled: dict[str, str]) -> None:
    assert compiled[header] == ""


def test_versions_agree() -> None:
    match = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    declared = match[1]
    wkv = pytest.importorskip("wkv")
    assert wkv.__version__ == declared
    assert importlib.metadata.version("wkv") == declared
    assert f"## [{declared}]" in (ROOT / "CHANGELOG.md").read_text() or (
        "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )
    bench = shutil.which("wkv_bench")
    if bench is not None:
        assert run(bench, "--version").stdout == f"wkv_bench {declared}\n"


def test_every_folder_of_tests_is_searched(pytestconfig: pytest.Config) -> None:
    """pytest passes over folders of some names, `build` among them, without a word."""
    passed_over = pytestconfig.getini("norecursedirs")
    for path in (ROOT / "tests").rglob("test_*.py"):
        folders = path.relative_to(ROOT).parts[:-1]
        assert not [f for f in folders for pattern in passed_over if fnmatch(f, pattern)], path

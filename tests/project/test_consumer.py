"""A C++ project of a user's: find_package(wkv) in the installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONSUMER = Path(__file__).parents[1] / "cpp" / "consumer"


def tool(name: str) -> str | None:
    """A program on the path or beside this interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def test_a_project_finds_the_package(tmp_path: Path) -> None:
    paths = pytest.importorskip("wkv.paths")
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None or ninja is None or tool("c++") is None:
        pytest.skip("needs cmake, ninja and c++")
    if not (Path(paths.cmake_dir()) / "wkv-config.cmake").exists():
        pytest.skip("the package in use is not an installed one")
    for command in (
        [cmake, "-S", str(CONSUMER), "-B", str(tmp_path), "-G", "Ninja",
         f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-Dwkv_DIR={paths.cmake_dir()}"],
        [cmake, "--build", str(tmp_path)],
        [str(tmp_path / "consumer")],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("consumer: wkv ")

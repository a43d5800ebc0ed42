"""The per-ISA objects define their table and nothing that the linker could choose for others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ops.harness import REPOSITORY, build_dirs

sys.path.insert(0, str(REPOSITORY / "tools"))
from check_symbols import faults, kernel_objects, table_of

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def test_built_objects_define_their_table_alone() -> None:
    objects = [o for d in build_dirs() for o in kernel_objects(d)]
    objects = [o for o in objects if not {"asan", "tsan", "fuzz"} & set(o.parts)]  # add their own
    if not objects:
        pytest.skip("no build to look at; set WKV_BUILD_DIR")
    for path in objects:
        assert not faults(path, table_of(path))


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("c++ is not installed")
    source = tmp_path / "kernels_bad.cpp"
    source.write_text(
        "#include <vector>\n"
        "namespace wkv::cpu { extern const int kernels_bad; const int kernels_bad = 1; }\n"
        "void grow(std::vector<float>& v) { v.push_back(1); }\n"
    )
    target = tmp_path / "kernels_bad.cpp.o"
    subprocess.run([compiler, "-O1", "-c", str(source), "-o", str(target)], check=True)
    return target


def test_weak_and_second_symbols_are_found(compiled: Path) -> None:
    found = faults(compiled, "wkv::cpu::kernels_bad")
    assert any("external symbol W " in line and "std::vector<float" in line for line in found)
    assert any("external symbol T grow" in line for line in found)
    assert not any("does not define" in line for line in found)


def test_a_missing_table_is_found(compiled: Path) -> None:
    assert "kernels_bad.cpp.o: does not define wkv::cpu::other" in faults(
        compiled, "wkv::cpu::other"
    )

"""The per-ISA objects define their table and nothing that the linker could choose for others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ops.harness import REPOSITORY, build_dirs

sys.path.insert(0, str(REPOSITORY / "tools"))
from check_symbols import (
    TILE_CONFIGS,
    faults,
    kernel_objects,
    section_bytes,
    table_of,
    tile_faults,
)

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def test_built_objects_define_their_table_alone() -> None:
    objects = [o for d in build_dirs() for o in kernel_objects(d)]
    objects = [o for o in objects if not {"asan", "tsan", "fuzz"} & set(o.parts)]  # add their own
    if not objects:
        pytest.skip("no build to look at; set WKV_BUILD_DIR")
    for path in objects:
        assert not faults(path, table_of(path))
        assert not tile_faults(path)


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


TILES = """
struct alignas(64) Config {
  unsigned char palette, start, reserved[14];
  unsigned short row_bytes[16];
  unsigned char rows[16];
};
CONFIG
extern "C" void multiply() { LOAD; asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); RELEASE }
"""
CONSTANT = (
    "static const Config config = "
    "{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};"
)
LOAD = 'asm volatile("ldtilecfg %0" :: "m"(config))'
RELEASE = 'asm volatile("tilerelease");'


@pytest.mark.parametrize(
    ("config", "load", "release", "fault"),
    [
        (CONSTANT, LOAD, RELEASE, ""),
        (CONSTANT.replace("{1,", "{0,"), LOAD, RELEASE, "tile configuration 00"),
        (CONSTANT.replace("64, 64}, {16", "64, 32}, {16"), LOAD, RELEASE, "tile configuration 01"),
        (CONSTANT, LOAD, "", "without tilerelease"),
        ("", "Config config = {}; config.palette = 1; " + LOAD, RELEASE, "no constant"),
    ],
    ids=["right", "palette", "row", "kept", "stored"],
)
def test_tile_configurations(
    tmp_path: Path, config: str, load: str, release: str, fault: str
) -> None:
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("objdump") is None:
        pytest.skip("c++ or objdump is not installed")
    text = TILES.replace("CONFIG", config).replace("LOAD", load).replace("RELEASE", release)
    source, target = tmp_path / "kernels_tiles.cpp", tmp_path / "kernels_tiles.cpp.o"
    source.write_text(text)
    flags = ["-O2", "-fPIC", "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
    done = subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=False)
    if done.returncode != 0:
        pytest.skip("the compiler knows no AMX")
    found = tile_faults(target)
    assert found == [] if not fault else fault in " ".join(found)
    if not fault:
        assert section_bytes(target, ".rodata", 0, 64) in TILE_CONFIGS

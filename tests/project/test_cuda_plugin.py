"""The CUDA plugin as it is installed: what it exports and needs, its size, what it says where there
is no driver; and the check of its kernels' registers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wkv
from ops.harness import build_dirs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from check_registers import ARCHS, compare, parse

PLUGIN = Path(wkv.__file__).parent / "lib" / "libwkv_cuda.so"
SHIMS = [f for f in (d / "libwkv_cuda_shim.so" for d in build_dirs()) if f.exists()]
LIMIT = 20_000_000  # bytes of a wheel; the plugin is most of it


def plugins() -> list[Path]:
    found = [PLUGIN] * PLUGIN.exists() + SHIMS
    if not found:
        pytest.skip("no plugin: the package was built without nvcc, and WKV_BUILD_DIR has none")
    return found


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_one_symbol_is_exported() -> None:
    for plugin in plugins():
        done = subprocess.run(
            ["nm", "-D", "--defined-only", str(plugin)], capture_output=True, text=True, check=True
        )
        names = [line.split()[2] for line in done.stdout.splitlines()]
        assert names == ["wkv_cuda_plugin"], plugin


@pytest.mark.skipif(not PLUGIN.exists(), reason="the package was built without nvcc")
def test_no_driver_and_no_toolkit_is_linked() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    done = subprocess.run(
        ["readelf", "-d", str(PLUGIN)], capture_output=True, text=True, check=True
    )
    needed = [line for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not any("cu" in line.split("[")[1] for line in needed), needed
    assert PLUGIN.stat().st_size < LIMIT


@pytest.mark.skipif(not PLUGIN.exists(), reason="the package was built without nvcc")
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_without_a_driver_the_reason_is_given() -> None:
    program = """
import wkv
model = wkv.Model.synthetic("v4:1x64:100")
print(*(f"{d.name}, {d.usable}, {d.reason}" for d in wkv.devices() if d.name != "cpu"))
try:
    wkv.Model.synthetic("v4:1x64:100", device="cuda")
except wkv.UnsupportedError as error:
    print(error)
"""
    env = {k: v for k, v in os.environ.items() if k != "WKV_CUDA_PLUGIN"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    devices, error = done.stdout.splitlines()
    assert devices == "cuda, False, no NVIDIA driver is installed"
    assert error.endswith("no NVIDIA driver is installed")


def ptxas(name: str, registers: int, spilled: int = 0) -> str:
    """What ptxas -v says of one kernel on every architecture."""
    return "".join(
        f"ptxas info    : Compiling entry function '{name}' for '{arch}'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    8 bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers\n"
        for arch in ARCHS
    )


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")
def test_the_register_table_is_kept() -> None:
    table = {("scale_kernel", arch): 40 for arch in ARCHS}
    name = "_ZN3wkv4cuda12_GLOBAL__N_112scale_kernelENS0_6ParamsE"
    assert compare(parse(ptxas(name, 40)), table) == []
    assert compare(parse(ptxas(name, 38)), table) == []
    grown = compare(parse(ptxas(name, 41)), table)
    assert len(grown) == len(ARCHS)
    assert grown[-1] == "scale_kernel sm_90: 41 registers; the table allows 40"
    assert "scale_kernel sm_90: 16 bytes spilled" in compare(parse(ptxas(name, 40, 8)), table)
    other = ptxas("_ZN3wkv4cuda12_GLOBAL__N_110add_kernelENS0_6ParamsE", 8)
    found = compare(parse(other), table)
    assert "scale_kernel sm_75: not compiled" in found
    assert "add_kernel sm_75: not in registers.txt" in found

"""wkv_bench as programs and people call it. Its figures are not judged here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from wkv.paths import bench_path

BENCH = bench_path()
pytestmark = pytest.mark.skipif(BENCH is None, reason="wkv was installed without wkv_bench")
FIGURES = {
    "decode_tok_s",
    "prefill_tok_s",
    "load_s",
    "peak_rss_bytes",
    "weight_bytes_per_token",
    "read_bandwidth_gb_s",
    "bandwidth_fraction",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BENCH), *arguments], capture_output=True, text=True, check=False)


def test_json_is_one_object_with_every_figure() -> None:
    small = ["--synthetic", "v6:2x64:97", "--tokens", "4", "--runs", "2", "--threads", "1"]
    done = run("batch", *small, "--rows", "1,3", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert {"version": "6.0", "dtype": "bf16", "threads": 1}.items() <= result.items()
    assert result["isa"] in {"generic", "avx2", "avx512", "avx512_bf16", "amx"}
    for name in FIGURES:
        assert 0 < result[name]["min"] <= result[name]["median"] <= result[name]["max"], name
    assert [row["rows"] for row in result["batch"]] == [1, 3]
    fraction = result["decode_tok_s"]["median"] * result["weight_bytes_per_token"]["median"]
    fraction /= 1e9 * result["read_bandwidth_gb_s"]["median"]
    assert result["bandwidth_fraction"]["median"] == pytest.approx(fraction, rel=1e-6)


def test_hidden_units_that_are_zero() -> None:
    options = ("--synthetic", "v7:1x64:32@0.2", "--tokens", "4", "--runs", "1", "--json")
    for extra, share in [
        (("--dtype", "int8"), 0.2),
        (("--skip-zeros", "on"), 0.2),
        (("--dtype", "int8", "--skip-zeros", "off"), None),
        ((), None),
    ]:
        done = run("decode", *options, *extra)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["active_share"] == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--tokens", "many"], 2, "'many'"),
        (["fly"], 2, "'fly'"),
        (["--json", "--model"], 2, "--model wants a value"),
        (["--dtype", "fp12"], 2, "fp12"),
        (["--model", "a", "--synthetic", "v7:2x64"], 2, "exclude"),
        (["--synthetic", "v7:2"], 2, "v7:2"),
        (["--model", "/nowhere.pth"], 1, "/nowhere.pth"),
        (["--skip-zeros", "maybe"], 2, "maybe"),
        (["--isa", "sse9", "--synthetic", "v7:1x64:9"], 1, "sse9"),
    ],
)
def test_failures_are_one_line(arguments: list[str], code: int, word: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("wkv_bench: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told() -> None:
    small = ["decode", "--synthetic", "v7:1x64:9", "--tokens", "2", "--runs", "1", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(BENCH), *small], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "wkv_bench: cannot write to standard output: No space left on device\n"

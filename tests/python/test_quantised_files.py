"""Quantised checkpoints: written by convert, read back without work, refused when damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkv
from numpy.typing import NDArray
from reference.files import read_safetensors
from wkv.cli import main

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = ["v1", "v2", "v3", "v4", "v5_1", "v5_2", "v6", "v7"]
FORMATS = ["int8", "mm8", "int4"]
IDS = [1, 5, 9, 2, 33, 7]


def load(path: Path, dtype: Any = "auto") -> wkv.Model:
    return wkv.Model.load(path, device="cpu", dtype=dtype, threads=2)


def logits(model: wkv.Model) -> NDArray[np.float32]:
    return model.forward(IDS, model.new_state(), logits="all")


def source(version: str) -> Path:
    return GOLDEN / version / "model.safetensors"


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_saved_model_is_the_loaded_one(version: str, dtype: str, tmp_path: Path) -> None:
    """Bit for bit, and so is what is made of it again."""
    out, again = tmp_path / "q.safetensors", tmp_path / "again.safetensors"
    wkv.convert(source(version), out, dtype)
    quantised, saved = load(source(version), dtype), load(out)
    assert saved.weight_types == quantised.weight_types
    assert saved.dtype == dtype
    np.testing.assert_array_equal(logits(saved), logits(quantised))
    assert saved.info == quantised.info
    wkv.convert(out, again)
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_saved_model_in_other_types(dtype: str, tmp_path: Path) -> None:
    """Its weights are exact in fp32; a file or a model of them in fp32 agrees with it."""
    out, back = tmp_path / "q.safetensors", tmp_path / "fp32.safetensors"
    wkv.convert(source("v7"), out, dtype)
    wkv.convert(out, back, "fp32")
    expected = logits(load(back))
    np.testing.assert_array_equal(logits(load(out, "fp32")), expected)
    assert np.abs(logits(load(out)) - expected).max() < 1e-4
    other = next(name for name in FORMATS if name != dtype)
    assert load(out, other).dtype == other


def test_a_plan_by_name(tmp_path: Path) -> None:
    plan = {"default": "int4", "blocks.0.*": "int8", "blocks.*.ffn.value.weight": "mm8",
            "head.weight": "bf16"}  # fmt: skip
    out = tmp_path / "plan.safetensors"
    wkv.convert(source("v7"), out, plan)
    for model in (load(source("v7"), plan), load(out)):
        types = model.weight_types
        assert types["blocks.0.att.key.weight"] == "int8"
        assert types["blocks.1.att.key.weight"] == "int4"
        assert types["blocks.0.ffn.value.weight"] == types["blocks.1.ffn.value.weight"] == "mm8"
        assert types["head.weight"] == "bf16"
        # Low-rank factors are never int4.
        assert types["blocks.0.att.w1"] == types["blocks.1.att.w2"] == "int8"
    np.testing.assert_array_equal(logits(load(out)), logits(load(source("v7"), plan)))
    text = "int4,blocks.0.*=int8,blocks.*.ffn.value.weight=mm8,head.weight=bf16"
    assert load(source("v7"), text).weight_types == load(out).weight_types


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_low_rank_factors(dtype: str, tmp_path: Path) -> None:
    """Stored [in, out] as ever: NAME.out_scale belongs to the rows; three axes stay floats."""
    for version, names in (("v6", ("time_maa_w1", "time_decay_w2")), ("v7", ("w1", "g2"))):
        out = tmp_path / f"{version}.safetensors"
        wkv.convert(source(version), out, dtype)
        before, after = read_safetensors(source(version)), read_safetensors(out)
        for name in (f"blocks.1.att.{part}" for part in names):
            codes = after[f"{name}.q"].astype(np.float64)
            rows, columns = after[f"{name}.out_scale"], after[f"{name}.in_scale"]
            error = codes * rows[:, None] * columns - before[name]
            assert np.linalg.norm(error) < 0.01 * np.linalg.norm(before[name])
            assert name not in after
        if version == "v6":
            name = "blocks.1.att.time_maa_w2"
            np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"default": "int5"}, "unknown dtype 'int5'"),
        ("int4,blocks.0.*", "PATTERN=TYPE"),
        ("int4,=int8", "without a pattern"),
        ("int4,block.*=int8", "matches n"),
        ({"a,b": "int8"}, "comma"),
    ],
)
def test_bad_plans(plan: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(source("v7"), plan)
    with pytest.raises(ValueError, match=message):
        wkv.convert(source("v7"), tmp_path / "out.safetensors", plan)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError):
        load(source("v7"), {"head.weight": 4})


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


KEY = "blocks.0.att.key.weight"


@pytest.mark.parametrize("dtype", FORMATS)
def test_damaged_files(dtype: str, tmp_path: Path) -> None:
    """A part that is missing, of another type or shape, or not finite: ModelFormatError."""
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    wkv.convert(source("v7"), good, dtype)
    header, data = read(good)
    parts = [name for name in header if name.startswith(KEY + ".")]
    assert len(parts) == {"int8": 3, "mm8": 5, "int4": 2}[dtype]

    def refused(changed: dict[str, Any], bytes_: bytes = data) -> None:
        write(bad, changed, bytes_)
        with pytest.raises(wkv.ModelFormatError, match=KEY.replace(".", r"\.")):
            load(bad)

    for part in parts:
        entry = header[part]
        renamed = {("other" if name == part else name): value for name, value in header.items()}
        refused(renamed)
        refused({**header, part: {**entry, "shape": [1, *entry["shape"]]}})
        wrong = {"F32": "I32", "F16": "BF16", "I8": "BOOL", "U8": "BOOL"}[entry["dtype"]]
        refused({**header, part: {**entry, "dtype": wrong}})
        if part.endswith(".q"):
            continue
        begin = entry["data_offsets"][0]
        nan = np.float32("nan") if entry["dtype"] == "F32" else np.float16("inf")
        refused(header, data[:begin] + nan.tobytes() + data[begin + nan.nbytes :])
    twice = {**header, KEY: {"dtype": "U8", "shape": [0], "data_offsets": [len(data)] * 2}}
    refused(twice)


def test_a_failed_conversion_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        wkv.convert(source("v7"), out, "int4", stop)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_weights_that_cannot_be_quantised(tmp_path: Path) -> None:
    header, data = read(source("v7"))
    begin = header[KEY]["data_offsets"][0]
    size = {"F32": 4, "F16": 2, "BF16": 2}[header[KEY]["dtype"]]
    bad = tmp_path / "bad.safetensors"
    write(bad, header, data[:begin] + b"\xff" * size + data[begin + size :])
    for dtype in FORMATS:
        with pytest.raises(wkv.ModelFormatError, match="infinities or NaN"):
            wkv.convert(bad, tmp_path / "out.safetensors", dtype)
    assert not (tmp_path / "out.safetensors").exists()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q.safetensors"
    plan = "int4,blocks.0.*=int8"
    assert main(["convert", str(source("v7")), str(out), "--dtype", plan]) == 0
    assert main(["info", str(out), "--tensors", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["tensors"][KEY]["dtype"] == "int8"
    assert info["dtypes"]["int4"] > 5
    assert info["n_params"] == wkv.inspect(source("v7")).n_params
    file = wkv._core.Checkpoint.open(out)
    assert file.get(KEY).dtype == np.float32
    assert file.get(KEY).shape == file.shape(KEY)
    assert main(["convert", str(source("v7")), str(out), "--force", "--dtype", "int5"]) == 1
    assert "int5" in capsys.readouterr().err

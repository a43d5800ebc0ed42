"""The small trained models of tests/quality: every weight type predicts as well as recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkv
from wkv.cli import main
from wkv.evaluate import perplexity

QUALITY = Path(__file__).parent.parent / "quality"
GOLDEN: dict[str, dict[str, dict[str, float]]] = json.loads((QUALITY / "golden.json").read_text())
BYTES = 2048
TEXT = (QUALITY / "held_out.bin").read_bytes()[:BYTES]
CASES = [(model, dtype) for model, figures in GOLDEN.items() for dtype in figures]
# What a type may cost in bits per byte, as a share.
MOST = {"fp32": 0.0, "fp16": 1e-4, "bf16": 1e-4, "int8": 0.002, "mm8": 0.002, "int4": 0.02}


def bits_per_byte(path: Path, dtype: Any) -> float:
    model = wkv.Model.load(path, device="cpu", dtype=dtype)
    return perplexity(model, np.frombuffer(TEXT, np.uint8), len(TEXT)).bits_per_byte


@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_bits_per_byte(model: str, dtype: str) -> None:
    """The recorded figures are those of the same bytes; kernels differ by rounding alone."""
    figures = GOLDEN[model][dtype]
    bits = bits_per_byte(QUALITY / f"{model}.safetensors", dtype)
    assert bits == pytest.approx(figures["bits_per_byte"], abs=2e-4)
    assert bits <= GOLDEN[model]["fp32"]["bits_per_byte"] * (1 + MOST[dtype]) + 2e-4


def test_a_checkpoint_for_each_version() -> None:
    """In bf16, of at most 6 MB, each with its figures."""
    paths = {path.stem: path for path in QUALITY.glob("*.safetensors")}
    assert set(paths) == set(GOLDEN) == {"v4", "v5.2", "v6", "v7"}
    for name, path in paths.items():
        assert path.stat().st_size <= 6e6
        info = wkv.inspect(path)
        assert info.version == {"v4": "4", "v6": "6.0", "v7": "7.0"}.get(name, name[1:])
        assert 2.4e6 < info.n_params < 3e6
        assert wkv.Model.load(path, device="cpu").dtype == "bf16"


@pytest.mark.parametrize("dtype", ["bf16", "int8", "mm8", "int4"])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_one_by_one(name: str, dtype: Any) -> None:
    """Decode has kernels of its own: rounding inside them costs nothing that can be seen."""
    model = wkv.Model.load(QUALITY / f"{name}.safetensors", device="cpu", dtype=dtype)
    text = np.frombuffer(TEXT[:512], np.uint8)
    chunked, single = (perplexity(model, text, 512, chunk=n).bits_per_byte for n in (256, 1))
    assert single == pytest.approx(chunked, abs=2e-4)


@pytest.mark.parametrize("model", sorted(GOLDEN))
def test_the_models_learnt_something(model: str) -> None:
    """Letters by their frequency alone cost 4.6 bits per byte here."""
    assert GOLDEN[model]["fp32"]["bits_per_byte"] < 3.2


@pytest.mark.parametrize("dtype", sorted(MOST))
def test_command(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """wkv eval perplexity on every type."""
    text = tmp_path / "text"
    text.write_bytes(TEXT)
    line = ["eval", "perplexity", str(QUALITY / "v7.safetensors"), str(text), "--json"]
    assert main([*line, "--tokenizer", "bytes", "--device", "cpu", "--dtype", dtype]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes"] == figures["tokens"] == BYTES
    assert figures["bits_per_byte"] == pytest.approx(GOLDEN["v7"][dtype]["bits_per_byte"], abs=2e-4)


def test_command_on_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """wkv convert, then wkv eval perplexity, as the figures were made."""
    saved, text = tmp_path / "int4.safetensors", tmp_path / "text"
    text.write_bytes(TEXT)
    assert main(["convert", str(QUALITY / "v7.safetensors"), str(saved), "--dtype", "int4"]) == 0
    capsys.readouterr()
    line = ["eval", "perplexity", str(saved), str(text), "--tokenizer", "bytes", "--json"]
    assert main([*line, "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes"] == BYTES
    assert figures["bits_per_byte"] == pytest.approx(
        GOLDEN["v7"]["int4"]["bits_per_byte"], abs=2e-4
    )

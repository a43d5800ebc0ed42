"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv.cli.options import add_model, load_model


def test_lora_tuned_state_and_version(golden: Path, tmp_path: Path) -> None:
    """The options that say what a file does not hold reach Model.load."""
    safetensors = pytest.importorskip("safetensors.numpy")
    path = str(golden / "v7" / "model.safetensors")
    info = wkv.inspect(path)
    rng = np.random.default_rng(1)
    shape = (info.n_head, info.head_size, info.head_size)
    tuned = {
        f"blocks.{i}.att.time_state": rng.normal(size=shape).astype(np.float32)
        for i in range(info.n_layer)
    }
    safetensors.save_file(tuned, tmp_path / "tuned.safetensors")
    lora = {
        "blocks.0.att.key.lora_A": rng.normal(size=(4, info.n_embd)).astype(np.float32),
        "blocks.0.att.key.lora_B": rng.normal(size=(info.n_embd, 4)).astype(np.float32),
    }
    safetensors.save_file(lora, tmp_path / "lora.safetensors")
    parser = argparse.ArgumentParser()
    add_model(parser)

    def first(*options: str) -> np.ndarray:
        model = load_model(parser.parse_args([path, "--device", "cpu", *options]))
        return model.forward([1, 2], model.new_state())

    plain = first("--as-version", "7.0")
    assert np.array_equal(plain, first())
    adapted = first("--lora", str(tmp_path / "lora"), "--lora-alpha", "8")
    started = first("--tuned-state", str(tmp_path / "tuned"))
    want = wkv.Model.load(path, "cpu", lora=tmp_path / "lora", lora_alpha=8)
    assert np.array_equal(adapted, want.forward([1, 2], want.new_state()))
    assert np.abs(started - plain).max() > 0.01
    with pytest.raises(ValueError, match="go together"):
        first("--lora-alpha", "8")
    with pytest.raises(ValueError, match=r"those of RWKV-7\.0"):
        first("--as-version", "6.0c")

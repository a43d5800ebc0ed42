"""The code of the documentation and the examples runs as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wkv

ROOT = Path(__file__).parent.parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture
def here(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a model.pth (v7, 64 tokens)."""
    shutil.copy(golden / "v7" / "model.pth", tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_states(here: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    info = wkv.inspect("model.pth")
    shape = (info.n_head, info.head_size, info.head_size)
    tuned = {
        f"blocks.{i}.att.time_state": np.ones(shape, dtype=np.float32) for i in range(info.n_layer)
    }
    safetensors.save_file(tuned, here / "tuned.pth")  # the reader looks at the bytes
    names: dict[str, object] = {"document": [1, 2, 3], "question": [4]}
    for code in blocks("states.md"):
        exec(code, names)
    assert (here / "talk.state").exists()


def test_checkpoints(here: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    channels = wkv.inspect("model.pth").n_embd
    factors = {
        f"blocks.0.att.key.lora_{side}": np.ones(shape, np.float32)
        for side, shape in (("A", (4, channels)), ("B", (channels, 4)))
    }
    safetensors.save_file(factors, here / "adapter.pth")
    names: dict[str, object] = {}
    for code in blocks("checkpoints.md"):
        exec(code, names)


def test_embeddings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wkv.Model.synthetic("v7:12x64:65536", device="cpu")
    monkeypatch.setattr(wkv.Model, "load", lambda *_, **__: model)
    texts = ["one", "two words", "three short words", "four"]
    names: dict[str, object] = {"texts": texts, "labels": [0, 0, 1, 1]}
    first, second, third = blocks("embeddings.md")
    exec(first, names)
    wkv.embedding.collect_stats(model, texts).save(here / "stats.npz")
    exec(second, names)
    pytest.importorskip("sklearn")
    exec(third, names)


def test_tokenizers() -> None:
    names: dict[str, object] = {}
    for code in blocks("tokenizers.md"):
        exec(code, names)


def test_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wkv.Model.synthetic("v7:2x64:65536", device="cpu")
    monkeypatch.setattr(wkv.Model, "load", lambda *_, **__: model)
    names: dict[str, object] = {}
    for code in blocks("sampling.md"):
        exec(code, names)
    assert names["out"].reason == "length"  # type: ignore[attr-defined]


def test_compat() -> None:
    pytest.importorskip("torch")
    first, second = blocks("compat.md")
    for code in (first, second + "from rwkv.model import RWKV\nassert 'wkv' in RWKV.__module__\n"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_example_document_questions(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "document.txt").write_text("A document. " * 20)
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "examples" / "document_questions.py"),
            str(shared / "tiny" / "tiny-rwkv-5v2-730K.pth"), str(tmp_path / "document.txt"),
            "What?", "Why?", "--tokenizer", "bytes", "--max-tokens", "5",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("241 tokens not read again") == 2

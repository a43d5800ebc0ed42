"""The code of the README and of every page of docs/ runs as it stands."""

from __future__ import annotations

import random
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wkv
import wkv.cli

ROOT = Path(__file__).parent.parent.parent
TESTED = {
    "../README.md", "checkpoints.md", "compat.md", "embeddings.md", "sampling.md",
    "states.md", "tokenizers.md", "versions.md",
}  # fmt: skip


@pytest.fixture(autouse=True)
def equal_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text without a seed is the same in every run; else token 0, 3 of 65536 draws, may end it."""
    monkeypatch.setattr(secrets, "randbits", random.Random(1).getrandbits)


def blocks(page: str, language: str = "python") -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.M)


def run(page: str, **names: object) -> dict[str, object]:
    """Runs the blocks of a page one after another, in one set of names."""
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)
    return names


def test_every_page_with_code_is_tested() -> None:
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages | {"../README.md"} if blocks(page)} == TESTED


def test_the_ten_lines_of_the_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = wkv.Model.synthetic("v7:2x64:65536", device="cpu")
    monkeypatch.setattr(wkv.Model, "load", lambda path: model)
    (code,) = blocks("../README.md")
    names: dict[str, object] = {}
    exec(code, names)
    state = names["state"]
    assert isinstance(state, wkv.State)
    assert state.position > 10
    assert capsys.readouterr().out


@pytest.fixture
def here(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a model.pth (v7, 64 tokens)."""
    shutil.copy(golden / "v7" / "model.pth", tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def any_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets Model.load give a model with random weights, whatever the path."""

    def give(spec: str) -> None:
        model = wkv.Model.synthetic(spec, device="cpu")
        older = wkv.Model.synthetic("v4:2x64:65536", device="cpu")
        monkeypatch.setattr(
            wkv.Model, "load", lambda path, *_, **__: older if "v4" in str(path) else model
        )

    return give


def test_readme(any_file: Callable[[str], None]) -> None:
    any_file("v7:2x64:65536")
    state = run("../README.md")["state"]
    assert isinstance(state, wkv.State)
    assert state.position > 100


def test_states(here: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    info = wkv.inspect("model.pth")
    shape = (info.n_head, info.head_size, info.head_size)
    tuned = {
        f"blocks.{i}.att.time_state": np.ones(shape, dtype=np.float32) for i in range(info.n_layer)
    }
    safetensors.save_file(tuned, here / "tuned.pth")  # the reader looks at the bytes
    run("states.md", document=[1, 2, 3], question=[4])
    assert (here / "talk.state").exists()


def test_checkpoints(here: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    channels = wkv.inspect("model.pth").n_embd
    factors = {
        f"blocks.0.att.key.lora_{side}": np.ones(shape, np.float32)
        for side, shape in (("A", (4, channels)), ("B", (channels, 4)))
    }
    safetensors.save_file(factors, here / "adapter.pth")
    run("checkpoints.md")


def test_versions(here: Path) -> None:
    run("versions.md")


def test_embeddings(here: Path, any_file: Callable[[str], None]) -> None:
    pytest.importorskip("sklearn")
    any_file("v7:12x64:65536")
    (here / "corpus.txt").write_text("one\ntwo words\nthree short words\nfour\n")
    for command in blocks("embeddings.md", "sh"):
        assert wkv.cli.main(shlex.split(command)[1:]) == 0
    texts = ["one", "two words", "three short words", "four"]
    run("embeddings.md", texts=texts, labels=[0, 0, 1, 1])


def test_tokenizers(here: Path) -> None:
    pytest.importorskip("tokenizers")
    run("tokenizers.md")


def test_sampling(any_file: Callable[[str], None]) -> None:
    any_file("v7:2x64:65536")
    assert run("sampling.md")["out"].reason == "length"  # type: ignore[attr-defined]


def test_compat(here: Path) -> None:
    pytest.importorskip("torch")
    imports, install, script = blocks("compat.md")
    for code in (imports, install + script + "assert 'wkv' in RWKV.__module__\n"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip("[]\n").split("]\n[")
    np.testing.assert_allclose(
        np.fromstring(first, sep=" "), np.fromstring(second, sep=" "), atol=1e-4
    )

"""Every program of examples/ runs, on small models, and does what it says."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wkv

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TESTED = {"chat", "classify", "document_questions", "music", "qa"}


def run(name: str, *arguments: str | Path, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tiny(shared: Path) -> Path:
    """A trained byte-level model: JSON instructions, English words."""
    return shared / "tiny" / "tiny-rwkv-5v2-730K.pth"


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_chat(tiny: Path) -> None:
    output = run("chat", tiny, "--tokenizer", "bytes", "--max-tokens", "9", text="Hello!\nWhy?\n")
    assert output.count("User: ") == 3
    assert output.count("Assistant:") == 2


def test_qa(tiny: Path) -> None:
    arguments = (tiny, "Why?", "--tokenizer", "bytes", "--max-tokens", "8", "--samples", "3")
    output = run("qa", *arguments)
    answers = re.split(r"--- \d\n", output)[1:]
    assert len(answers) == 3
    assert len(set(answers)) > 1
    assert run("qa", *arguments) == output  # the seed decides
    # The prompt of the seeds, to the letter.
    assert r"\nQ & A\n\nQuestion:\n{" in (EXAMPLES / "qa.py").read_text()
    model, tokenizer = wkv.Model.load(tiny), wkv.Tokenizer.bytes()
    prompt = "\nQ & A\n\nQuestion:\nWhy?\n\nDetailed Expert Answer:\n"
    sampling = wkv.Sampling(top_p=0.5, presence_penalty=0.4, frequency_penalty=0.4, seed=1)
    text = "".join(wkv.generate(model, tokenizer, prompt, max_tokens=8, sampling=sampling))
    assert text.strip() == answers[0].strip()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_document_questions(tiny: Path, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "document.txt").write_text("A document. " * 20)
    arguments = (
        tiny, tmp_path / "document.txt", "What?", "Why?", "--tokenizer", "bytes",
        "--max-tokens", "5", "--cache", tmp_path / "cache", "--cache-dtype", dtype,
    )  # fmt: skip
    first = run("document_questions", *arguments)
    assert first.startswith("241 tokens, 0 of them known: ")
    assert first.count("241 tokens not read again") == 2
    times = re.search(r"2 questions: ([\d.]+) s; ([\d.]+) s if each had read", first)
    assert times is not None
    assert float(times[1]) <= float(times[2])
    # Another process finds the state on disk.
    assert run("document_questions", *arguments).startswith("241 tokens, 241 of them known: ")


def test_classify(tiny: Path, tmp_path: Path) -> None:
    """Words against sums; the last character tells nothing."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    rng = random.Random(1)
    words = ["the", "patient", "of", "forest", "was", "in", "a", "good", "river", "and", "said"]
    lines = []
    for _ in range(60):
        text = " ".join(rng.choice(words) for _ in range(6))
        numbers = " + ".join(str(rng.randrange(1000)) for _ in range(6))
        lines += [f"words\t{text}.", f"sums\t{numbers}."]
    (tmp_path / "texts.tsv").write_text("\n".join(lines) + "\n")
    output = run(
        "classify", tiny, tmp_path / "texts.tsv", "--tokenizer", "bytes",
        "--part", "blocks.*.att.wkv",
    )  # fmt: skip
    accuracy = re.search(r"accuracy\s+([\d.]+)\s+60", output)
    assert accuracy is not None, output
    assert float(accuracy[1]) >= 0.9


@pytest.fixture
def music_model(golden: Path, tmp_path: Path) -> Path:
    """The golden v7 model with an embedding and a head for 128 ids."""
    safetensors = pytest.importorskip("safetensors.numpy")
    file = wkv._core.Checkpoint.open(golden / "v7" / "model.safetensors")
    tensors = {name: file.get(name) for name in file.names()}
    for name in ("emb.weight", "head.weight"):
        tensors[name] = np.concatenate([tensors[name], tensors[name][::-1]])
    safetensors.save_file(tensors, tmp_path / "music.safetensors")
    return tmp_path / "music.safetensors"


def test_abc_music(music_model: Path) -> None:
    output = run(
        "music", music_model, "--max-tokens", "40", "--prompt", "X:1\nK:D\n", "--seed", "3"
    )
    assert output.startswith("X:1\nK:D\n")
    assert output.isascii()
    assert 9 < len(output) <= len("X:1\nK:D\n") + 41


def test_midi_music(music_model: Path, tmp_path: Path) -> None:
    """A tokenizer-midi.json made here: words, lower case, split at blanks."""
    pytest.importorskip("tokenizers")
    words = ["<pad>", "<start>", "<end>", *(f"p:{n:x}:{n % 8}" for n in range(124)), "t125"]
    (tmp_path / "tokenizer-midi.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": {"type": "Lowercase"},
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": None,
                "model": {
                    "type": "WordLevel",
                    "vocab": {word: n for n, word in enumerate(words)},
                    "unk_token": "<pad>",
                },
            }
        )
    )
    file = tmp_path / "tokenizer-midi.json"
    output = run("music", music_model, "--midi", file, "--max-tokens", "30", "--prompt", "P:3C:4")
    assert output.startswith("P:3C:4")
    played = output.removeprefix("P:3C:4").split()
    assert played
    assert set(played) <= set(words)

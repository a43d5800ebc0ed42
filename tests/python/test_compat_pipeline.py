"""wkv.compat.rwkv.utils beside rwkv.utils: the same random numbers give the same text."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wkv.compat.rwkv.utils import PIPELINE, PIPELINE_ARGS

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("rwkv.utils")

LETTERS = " \t\n0123456789abcdefghijklmnopqrstuvwxyz\u00e9\u4e2d"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A character-level tokenizer.json, which both packages read."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="a")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


class Fake:
    """Logits that depend on everything read, and a diary of the calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def forward(self, tokens: list[int], state: Any) -> tuple[Any, Any]:
        self.calls.append(list(tokens))
        state = [*(state or []), *tokens]
        rng = np.random.default_rng(state)
        logits = rng.normal(size=len(LETTERS)).astype(np.float32) * 3
        return torch.from_numpy(logits), state


def seeded(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - the generator that the package draws from


@pytest.mark.parametrize("size", [7, 500, 5000, 65536])
def test_sample_logits(vocabulary: str, size: int) -> None:
    a, b = PIPELINE(None, vocabulary), theirs.PIPELINE(None, vocabulary)
    rng = np.random.default_rng(size)
    for case in range(60):
        logits = (rng.normal(size=size) * rng.choice([0.1, 1, 5])).astype(np.float32)
        if case % 4 == 0:
            logits = np.round(logits * 2) / 2  # many ties
        arguments = {
            "temperature": float(rng.choice([0, 0.3, 1.0, 1.7])),
            "top_p": float(rng.choice([0, 0.1, 0.5, 0.85, 0.999, 1.0])),
            "top_k": int(rng.choice([0, 0, 1, 5, 100, 10**6])),
        }
        for seed in range(3):
            seeded(seed)
            want = b.sample_logits(torch.from_numpy(logits.copy()), **arguments)
            seeded(seed)
            assert a.sample_logits(torch.from_numpy(logits.copy()), **arguments) == want
            seeded(seed)
            assert a.sample_logits(logits.copy(), **arguments) == want
            state = np.random.get_state()[2]  # noqa: NPY002 - as many numbers drawn
            assert isinstance(state, int)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.3, "top_p": 0.6, "alpha_frequency": 0.7, "alpha_presence": 0.1},
    {"top_k": 5, "alpha_decay": 0.9, "alpha_frequency": 2.0},
    {"token_ban": [3, 4, 20], "token_stop": [25, 30]},
    {"token_stop": list(range(15, 39)), "chunk_len": 1},
    {"chunk_len": 3},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_generate(vocabulary: str, arguments: dict[str, Any]) -> None:
    for seed in range(5):
        seen = []
        for package, args in (
            (PIPELINE, PIPELINE_ARGS(**arguments)),
            (theirs.PIPELINE, theirs.PIPELINE_ARGS(**arguments)),
        ):
            model = Fake()
            pieces: list[str] = []
            seeded(seed)
            text = package(model, vocabulary).generate(
                "the 10 prompts", token_count=40, args=args, callback=pieces.append
            )
            seen.append((text, pieces, model.calls))
        assert seen[0] == seen[1]


def test_state_and_defaults(vocabulary: str) -> None:
    seen = []
    for package in (PIPELINE, theirs.PIPELINE):
        model = Fake()
        seeded(1)
        seen.append((package(model, vocabulary).generate("abc", 5, state=[1, 2]), model.calls))
    assert seen[0] == seen[1]
    ours, real = PIPELINE_ARGS(), theirs.PIPELINE_ARGS()
    assert vars(ours) == vars(real)
    with pytest.raises(ValueError, match="at least one token"):
        PIPELINE(Fake(), vocabulary).generate("")


def test_refine_context(vocabulary: str) -> None:
    a, b = PIPELINE(None, vocabulary), theirs.PIPELINE(None, vocabulary)
    for text in ("", "\n", "  a \n\n\u3000b\u3000\r\n", "x", "a\n \n b\t\n", "\r\n\r\nq"):
        assert a.refine_context(text) == b.refine_context(text)


def test_world_tokenizer(golden: Path) -> None:
    pytest.importorskip("wkv.tokenizer")
    from wkv.compat.rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    tokenizer = PIPELINE(None, "rwkv_vocab_v20230424")
    cases = json.loads((golden / "tokenizer_world.json").read_text())
    assert isinstance(tokenizer.tokenizer, TRIE_TOKENIZER)
    assert cases
    ids = tokenizer.encode("Hello, \u4e16\u754c 123")
    assert tokenizer.decode(ids) == "Hello, \u4e16\u754c 123"
    assert tokenizer.decode([0]) == "\ufffd"
    assert tokenizer.decode([*ids, 0]) == "\ufffd"
    table = tokenizer.tokenizer.idx2token
    assert len(table) == 65529
    assert 0 not in table
    assert tokenizer.tokenizer.token2idx[b"\n"] == 11
    with pytest.raises(KeyError):
        tokenizer.tokenizer.decodeBytes([0])
    assert tokenizer.tokenizer.decodeBytes(tokenizer.tokenizer.encodeBytes(b"\xff\x00a")) == (
        b"\xff\x00a"
    )

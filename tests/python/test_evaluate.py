"""`wkv eval perplexity` and wkv.evaluate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv.cli import main
from wkv.evaluate import perplexity, token_losses

GOLDEN = Path(__file__).parent.parent / "golden" / "v5_2" / "model.safetensors"


def test_token_losses_are_negative_log_softmax() -> None:
    logits = np.array([[0.0, 0.0], [1000.0, 0.0], [-1000.0, 0.0]], np.float32)
    losses = token_losses(logits, np.array([1, 0, 0]))
    assert losses == pytest.approx([math.log(2), 0.0, 1000.0])


def test_perplexity_equals_the_sum_over_single_steps() -> None:
    model = wkv.Model.load(GOLDEN, device="cpu")
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    nats, state = 0.0, model.new_state()
    for previous, target in zip([0, *ids], ids, strict=False):
        row = model.forward([previous], state).astype(np.float64)
        nats += math.log(np.exp(row).sum()) - row[target]
    seen: list[tuple[int, int]] = []
    result = perplexity(model, ids, 22, chunk=4, progress=lambda *at: seen.append(at))
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 22, rel=1e-5)
    assert seen == [(4, 11), (8, 11), (11, 11)]
    with pytest.raises(ValueError, match="at least one token"):
        perplexity(model, [], 0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(range(48)))  # the golden models know 64 tokens
    line = ["eval", "perplexity", str(GOLDEN), str(text), "--tokenizer", "bytes", "--json"]
    assert main([*line, "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes"] == figures["tokens"] == 48
    assert figures["bits_per_byte"] > 0
    assert main(["eval", "perplexity", str(GOLDEN), str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("wkv: error:")

"""Embeddings: parts side by side, statistics per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wkv
from wkv.embedding import Stats, collect_stats, embed, part_names

TEXTS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9], [1, 2], [3, 3, 3]]


def test_hidden_is_what_the_output_layer_gets(model: wkv.Model) -> None:
    vectors = model.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), model.info.n_embd)
    assert vectors.dtype == np.float32
    for ids, vector in zip(TEXTS, vectors, strict=True):
        want = model.hidden([ids or [0]], [model.new_state()])[0, 0]
        np.testing.assert_allclose(vector, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.embed(TEXTS, batch_size=1), vectors, rtol=1e-4, atol=1e-5)


def test_parts_lie_side_by_side(model: wkv.Model) -> None:
    names = part_names(model, ["blocks.1.att.wkv", "blocks.*.att.shift", "hidden"])
    assert names == (
        "blocks.1.att.wkv",
        "blocks.0.att.shift",
        "blocks.1.att.shift",
        "hidden",
    )
    vectors = model.embed(TEXTS, parts=names)
    state = model.new_state()
    hidden = model.hidden([TEXTS[0]], [state])[0, 0]
    want = np.concatenate([*(state[name].ravel() for name in names[:-1]), hidden])
    np.testing.assert_allclose(vectors[0], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no part"):
        part_names(model, "nonsense")
    with pytest.raises(TypeError, match="one string"):
        model.embed("text")


def test_v4(v4: wkv.Model) -> None:
    """aa/bb is the running average of values, whatever scale pp gives the two."""
    vectors = v4.embed(TEXTS, parts="blocks.*.att.aa/bb")
    state = v4.new_state()
    v4.forward(TEXTS[0], state)
    want = state["blocks.0.att.aa"] / state["blocks.0.att.bb"]
    np.testing.assert_allclose(vectors[0, : want.size], want, rtol=1e-4, atol=1e-5)
    assert np.isfinite(vectors).all()
    with pytest.raises(ValueError, match="aa/bb"):
        v4.embed(TEXTS, parts="blocks.0.att.pp")


def test_statistics(model: wkv.Model, tmp_path: Path) -> None:
    parts = ["hidden", "blocks.0.ffn.shift"]
    raw = model.embed(TEXTS, parts=parts)
    stats = collect_stats(model, TEXTS, parts=parts)
    assert stats.count == len(TEXTS)
    np.testing.assert_allclose(stats.mean, raw.mean(axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(stats.std, raw.std(axis=0, dtype=np.float64), atol=1e-5)
    stats.save(tmp_path / "stats.npz")
    again = Stats.load(tmp_path / "stats.npz")
    assert (again.parts, again.count) == (stats.parts, stats.count)
    normal = model.embed(TEXTS, stats=tmp_path / "stats.npz")  # brings its own parts
    np.testing.assert_allclose(normal, (raw - stats.mean) / stats.std, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-4)
    with pytest.raises(ValueError, match="too few"):
        collect_stats(model, TEXTS[:1])
    with pytest.raises(ValueError, match="channels"):
        stats.normalize(raw[:, :-1])
    whole = (tmp_path / "stats.npz").read_bytes()
    for damaged in (b"nonsense", b"", whole[: len(whole) // 2], whole.replace(b"mean.npy", b"n")):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz holds no statistics"):
            Stats.load(tmp_path / "x.npz")


def test_channels_that_never_vary(model: wkv.Model) -> None:
    stats = collect_stats(model, [[1, 2]] * 4)
    vectors = embed(model, [[1, 2], [3]], stats=stats)
    assert np.abs(vectors[0]).max() < 1e-2
    assert np.isfinite(vectors).all()


def test_progress(model: wkv.Model) -> None:
    seen: list[tuple[int, int]] = []
    model.embed(TEXTS, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert model.embed([]).shape == (0, 0)


def test_scikit_learn(model: wkv.Model) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from wkv.sklearn import Embedder

    rng = np.random.default_rng(0)
    texts = [
        [int(t) for t in rng.integers(1 + 20 * label, 21 + 20 * label, 4)]
        for label in (0, 1)
        for _ in range(100)
    ]
    labels = [label for label in (0, 1) for _ in range(100)]
    pipeline = make_pipeline(
        Embedder(model, parts="blocks.0.att.shift"), LogisticRegression()
    )  # random weights know no more than the last token
    pipeline.fit(texts[::2], labels[::2])
    assert pipeline.score(texts[1::2], labels[1::2]) > 0.8
    twin = clone(pipeline)
    assert twin[0].model is model
    embedder = Embedder(model)
    with pytest.raises(NotFittedError):
        embedder.transform(texts)
    np.testing.assert_allclose(
        embedder.fit_transform(texts), embedder.transform(texts), rtol=1e-4, atol=1e-4
    )

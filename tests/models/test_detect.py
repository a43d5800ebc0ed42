"""Which version a file is, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wkv
from reference import Array, detect
from reference.files import write_safetensors
from reference.random_weights import Spec, random_weights

from models.specs import SPECS


def load(folder: Path, weights: dict[str, Array], note: str = "") -> wkv.Model:
    path = folder / "model.safetensors"
    write_safetensors(path, weights, metadata={"rwkv.version": note} if note else None)
    return wkv.Model.load(path, device="cpu")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sizes(spec: Spec, tmp_path: Path) -> None:
    weights = random_weights(spec)
    info = load(tmp_path, weights, spec.version).info
    sizes = detect({name: a.shape for name, a in weights.items()})
    assert info.version == spec.version
    assert (info.n_layer, info.n_embd) == (spec.n_layer, spec.n_embd)
    assert (info.n_vocab, info.dim_ffn) == (spec.n_vocab, spec.dim_ffn)
    assert (info.n_head, info.head_size) == (sizes.n_head, sizes.head_size)
    assert info.context_limit == (spec.ctx_len if spec.bounded else None)
    masks = ("copy_mask", "att_mask")
    assert info.n_params == sum(a.size for n, a in weights.items() if not n.endswith(masks))


@pytest.mark.parametrize(("note", "version"), [("", "6.0b"), ("6.0b", "6.0b"), ("6.0c", "6.0c")])
def test_only_a_note_tells_x060c(note: str, version: str, tmp_path: Path) -> None:
    weights = random_weights(Spec("6.0c"))
    assert load(tmp_path, weights, note).info.version == version


@pytest.mark.parametrize(
    ("version", "extra", "name"),
    [
        ("7.0", "blocks.0.qkv.qq.weight", "RWKV-7b"),
        ("7.0", "blocks.0.ffn.enn.weight", "RWKV-8"),
        ("7.0", "blocks.1.self_attn.q_proj.weight", "hybrid of RWKV-7"),
        ("7.0", "blocks.1.att.q_proj.weight", "hybrid of RWKV-7"),
        ("7.0", "model.layers.1.attn.q_proj.weight", "hybrid of RWKV-7"),
        ("6.0", "blocks.1.att.q_proj.weight", "hybrid of RWKV-6"),
        ("7.0", "blocks.1.rosa_q.weight", r"RWKV-8 \(ROSA\)"),
        ("1", "blocks.0.attn.query.weight", "attention baseline"),
    ],
)
def test_refused_by_name(version: str, extra: str, name: str, tmp_path: Path) -> None:
    weights = random_weights(Spec(version)) | {extra: np.ones((3, 3), np.float32)}
    if extra.startswith("model."):  # the layout of flash-linear-attention is told by this name
        weights["model.embeddings.weight"] = weights.pop("emb.weight")
    with pytest.raises(wkv.UnsupportedError, match=name):
        load(tmp_path, weights)


@pytest.mark.parametrize(
    "name", ["self_attn.time_maa_x", "self_attn.time_mixer.r_k", "self_attn.w0"]
)
def test_converted_transformers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    weights = {
        "model.embed_tokens.weight": np.ones((5, 4), np.float32),
        f"model.layers.0.{name}": np.ones(4, np.float32),
        "model.layers.0.mlp.gate_proj.weight": np.ones((8, 4), np.float32),
    }
    with pytest.raises(wkv.UnsupportedError, match="hybrid: a transformer with RWKV"):
        load(tmp_path, weights)


def test_image_models_are_refused_with_their_position_embeddings(tmp_path: Path) -> None:
    spec = Spec("4")
    weights = random_weights(spec)
    weights["blocks.0.pos_emb_x"] = np.ones((1, 4, spec.n_embd), np.float32)
    weights["blocks.0.pos_emb_y"] = np.ones((4, 1, spec.n_embd), np.float32)
    with pytest.raises(wkv.ModelFormatError, match=r"pos_emb_x(.|\n)*pos_emb_y"):
        load(tmp_path, weights)


def test_a_copy_head_without_a_mask_has_the_usual_context(tmp_path: Path) -> None:
    weights = random_weights(Spec("3", head_qk=5))
    del weights["copy_mask"]
    assert load(tmp_path, weights).info.context_limit == 1024


@pytest.mark.parametrize("spec", [s for s in SPECS if s.version in ("1", "4a", "6.0b")], ids=str)
def test_every_missing_tensor_is_listed(spec: Spec, tmp_path: Path) -> None:
    weights = random_weights(spec)
    last = f"blocks.{spec.n_layer - 1}."
    gone = [last + "ln2.bias", ("ln_f" if spec.version == "1" else "ln_out") + ".weight"]
    for name in gone:
        del weights[name]
    weights["blocks.0.surplus.weight"] = np.ones(3, np.float32)
    with pytest.raises(wkv.ModelFormatError) as error:
        load(tmp_path, weights)
    for name in [*gone, "blocks.0.surplus.weight"]:
        assert name in str(error.value)


def test_vectors_are_refused_where_tokens_are_needed(tmp_path: Path) -> None:
    for spec in (Spec("1"), Spec("2", head_qk=4), Spec("7.0a", n_vocab=11)):
        model = load(tmp_path, random_weights(spec))
        state = model.new_state()
        before = state.to_bytes()
        with pytest.raises(wkv.UnsupportedError, match="vectors"):
            model.forward_vectors(np.zeros((2, spec.n_embd), np.float32), state)
        assert state.to_bytes() == before

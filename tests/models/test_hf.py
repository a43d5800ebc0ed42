"""Folders of Hugging Face repositories: their names, shards and all, give the official logits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import wkv
from reference import Array
from reference.files import write_safetensors

from models.goldens import Golden


def transformers_names(weights: dict[str, Array]) -> dict[str, Array]:
    """RWKV/rwkv-4-..., rwkv-5-world-..., v6-Finch-...: the same tensors under other names."""
    letters = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}

    def renamed(name: str) -> str:
        if name == "head.weight":
            return name
        name = name.replace("emb.weight", "embeddings.weight").replace(".ln0.", ".pre_ln.")
        name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        return "rwkv." + re.sub(r"time_mix_([kvrg])$", lambda m: "time_mix_" + letters[m[1]], name)

    return {renamed(name): a for name, a in weights.items()}


def fla_names(weights: dict[str, Array]) -> dict[str, Array]:
    """fla-hub/rwkv7-...: other names, flat vectors, low-rank factors as linear layers."""
    linear = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    out = {}
    for name, a in weights.items():
        for old, new in {
            "emb.weight": "embeddings.weight", "ln_out.": "norm.", "blocks.": "layers.",
            ".att.": ".attn.", ".ln0.": ".pre_norm.", ".ln1.": ".attn_norm.",
            ".ln2.": ".ffn_norm.", ".ln_x.": ".g_norm.",
        }.items():  # fmt: skip
            name = name.replace(old, new)
        leaf = name.rpartition("attn.")[2]
        if re.fullmatch(r"[wavg][012]", leaf):
            part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[leaf[1]]
            name = f"{name[:-2]}{leaf[0]}_lora.lora.{part}"
            a = a.ravel() if leaf[1] == "0" else a.T
        elif leaf.split(".")[0] in linear and leaf != name:
            name = name.replace(leaf.split(".")[0], linear[leaf.split(".")[0]])
        elif a.ndim == 3:
            a = a.ravel()
        out["lm_head.weight" if name == "head.weight" else f"model.{name}"] = a
    return out


def write_shards(folder: Path, weights: dict[str, Array], count: int) -> None:
    names = list(weights)
    index = {}
    for i in range(count):
        shard = f"model-{i + 1:05}-of-{count:05}.safetensors"
        write_safetensors(folder / shard, {name: weights[name] for name in names[i::count]})
        index |= dict.fromkeys(names[i::count], shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )


@pytest.mark.parametrize("config", ["present", "missing", "broken"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("folder", "names"),
    [("v4", transformers_names), ("v5_2", transformers_names), ("v6", transformers_names),
     ("v7", fla_names)],
)  # fmt: skip
def test_repositories(folder: str, names: object, shards: int, config: str, tmp_path: Path) -> None:
    """Sizes and version come from the tensors: what config.json says, or whether, is no matter."""
    assert callable(names)
    golden = Golden(folder)
    weights = names(golden.weights)
    if shards == 1:
        write_safetensors(tmp_path / "model.safetensors", weights)
    else:
        write_shards(tmp_path, weights, shards)
    if config != "missing":
        text = json.dumps({"model_type": "rwkv", "hidden_size": 1}) if config == "present" else "{"
        (tmp_path / "config.json").write_text(text)
    model = wkv.Model.load(tmp_path, device="cpu", dtype="fp32")
    logits = model.forward(golden.prompt, model.new_state(), logits="all")
    assert np.abs(logits - golden.logits).max() <= 5e-5
    assert wkv.inspect(tmp_path) == model.info


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, wkv.ModelFormatError), match=r"model\.safetensors"):
        wkv.Model.load(tmp_path)
    write_shards(tmp_path, transformers_names(Golden("v4").weights), 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        wkv.Model.load(tmp_path)

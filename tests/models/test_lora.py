"""LoRA adapters merged at load, against float64; versions that a file cannot tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import wkv
from reference import Array
from reference.files import write_safetensors
from reference.random_weights import Spec, random_weights

RANK, ALPHA = 4, 6.0
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
# Not square: F differs from C.
TARGETS = ("att.key", "att.receptance", "att.output", "ffn.key", "ffn.value")
SPECS = [Spec("3"), Spec("4"), Spec("5.2"), Spec("6.0"), Spec("7.0")]


def adapter_of(weights: dict[str, Array], seed: int = 0) -> dict[str, Array]:
    """As RWKV-LM-LoRA and RWKV-PEFT save one: factors, and the norms and mixes trained whole."""
    rng = np.random.default_rng(seed)
    adapter = {}
    for target in TARGETS:
        name = f"blocks.1.{target}"
        out, in_ = weights[name + ".weight"].shape
        adapter[name + ".lora_A"] = rng.normal(size=(RANK, in_)).astype(np.float32) / in_**0.5
        adapter[name + ".lora_B"] = rng.normal(size=(out, RANK)).astype(np.float32)
    adapter["blocks.0.ln1.weight"] = weights["blocks.0.ln1.weight"] * np.float32(1.25)
    return adapter


def merge(weights: dict[str, Array], adapter: dict[str, Array], alpha: float) -> dict[str, Array]:
    """The truth, in float64."""
    merged = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    for name, a in adapter.items():
        if name.endswith(".lora_A"):
            up = np.asarray(adapter[name[:-1] + "B"], np.float64)
            key = name.removesuffix(".lora_A") + ".weight"
            merged[key] = merged[key] + alpha / len(a) * up @ np.asarray(a, np.float64)
        elif ".lora_" not in name:
            merged[name] = np.asarray(a, np.float64)
    return merged


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    weights = random_weights(SPECS[-1])
    return write_safetensors(tmp_path / "base.safetensors", weights), weights


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_merged_equals_float64(spec: Spec, tmp_path: Path) -> None:
    weights = random_weights(spec)
    adapter = adapter_of(weights)
    path = write_safetensors(tmp_path / "base.safetensors", weights)
    lora = write_safetensors(tmp_path / "lora.safetensors", adapter)
    model = wkv.Model.load(path, device="cpu", dtype="fp32", lora=lora, lora_alpha=ALPHA)
    want, _ = reference.load(merge(weights, adapter, ALPHA)).forward(TOKENS)
    got = model.forward(TOKENS, model.new_state(), logits="all")
    assert np.abs(got - want).max() <= 2e-5 * max(1.0, float(np.abs(want).max()))
    plain = wkv.Model.load(path, device="cpu", dtype="fp32")
    assert np.abs(plain.forward(TOKENS, plain.new_state(), logits="all") - want).max() > 0.1


def test_pth_and_peft_names(base: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, weights = base
    adapter = adapter_of(weights)
    peft = {
        f"base_model.model.{name}" + (".weight" if ".lora_" in name else ""): a
        for name, a in adapter.items()
    }
    for number, tensors in enumerate((adapter, peft)):
        torch.save({n: torch.from_numpy(a) for n, a in tensors.items()}, tmp_path / "lora.pth")
        model = wkv.Model.load(
            path, device="cpu", dtype="fp32", lora=tmp_path / "lora", lora_alpha=ALPHA
        )
        logits = model.forward(TOKENS, model.new_state())
        if number == 0:
            want = logits
        assert np.array_equal(logits, want)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_other_weights(base: tuple[Path, dict[str, Array]], tmp_path: Path, dtype: str) -> None:
    """Merged in fp32, then rounded once: as a file that was merged before."""
    path, weights = base
    adapter = adapter_of(weights)
    lora = write_safetensors(tmp_path / "lora.safetensors", adapter)
    merged = write_safetensors(
        tmp_path / "merged.safetensors",
        {n: a.astype(np.float32) for n, a in merge(weights, adapter, ALPHA).items()},
    )
    got = wkv.Model.load(path, "cpu", dtype, lora=lora, lora_alpha=ALPHA)  # type: ignore[arg-type]
    want = wkv.Model.load(merged, "cpu", dtype)  # type: ignore[arg-type]
    assert got.dtype == dtype
    a, b = got.forward(TOKENS, got.new_state()), want.forward(TOKENS, want.new_state())
    # fp32 sums of W + BA in another order may round to the other neighbour.
    assert np.abs(a - b).max() <= 0.02


def test_states_of_the_base_are_refused(
    base: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    path, weights = base
    lora = write_safetensors(tmp_path / "a.safetensors", adapter_of(weights))
    other = write_safetensors(tmp_path / "b.safetensors", adapter_of(weights, seed=1))
    plain = wkv.Model.load(path, device="cpu")
    models = [
        wkv.Model.load(path, device="cpu", lora=file, lora_alpha=alpha)
        for file, alpha in ((lora, ALPHA), (lora, 2 * ALPHA), (other, ALPHA))
    ]
    data = models[0].new_state().to_bytes()
    for model in (plain, *models[1:]):
        with pytest.raises(ValueError, match="another model"):
            model.state_from_bytes(data)
    twin = wkv.Model.load(path, device="cpu", dtype="bf16", lora=lora, lora_alpha=ALPHA)
    assert twin.state_from_bytes(data).position == 0


def test_adapters_that_do_not_fit(base: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    path, weights = base
    adapter = adapter_of(weights)
    lora = write_safetensors(tmp_path / "lora.safetensors", adapter)
    with pytest.raises(ValueError, match="go together"):
        wkv.Model.load(path, lora=lora)
    with pytest.raises(ValueError, match="go together"):
        wkv.Model.load(path, lora_alpha=ALPHA)
    with pytest.raises(ValueError, match="alpha is nan"):
        wkv.Model.load(path, lora=lora, lora_alpha=float("nan"))
    with pytest.raises(FileNotFoundError):
        wkv.Model.load(path, lora=tmp_path / "missing.pth", lora_alpha=ALPHA)
    adapter["blocks.7.att.key.lora_A"] = adapter["blocks.1.att.key.lora_A"]
    adapter["blocks.1.ffn.value.lora_B"] = adapter["blocks.1.ffn.value.lora_B"][:-1]
    write_safetensors(lora, adapter)
    with pytest.raises(wkv.ModelFormatError) as caught:
        wkv.Model.load(path, lora=lora, lora_alpha=ALPHA)
    for words in ("2 tensors do not fit", "blocks.7.att.key", "blocks.1.ffn.value"):
        assert words in str(caught.value)


def test_the_caller_can_say_that_a_file_is_x060c(tmp_path: Path) -> None:
    weights = random_weights(Spec("6.0c", seed=1))
    path = write_safetensors(tmp_path / "model.safetensors", weights)
    for version in ("6.0b", "6.0c"):
        model = wkv.Model.load(path, device="cpu", dtype="fp32", version=version)
        assert model.info.version == version
        want, _ = reference.load(weights, variant=version).forward(TOKENS)
        got = model.forward(TOKENS, model.new_state(), logits="all")
        assert np.abs(got - want).max() <= 2e-5 * max(1.0, float(np.abs(want).max()))
    for version in ("7.0", "6.0", "nonsense"):
        with pytest.raises(ValueError, match=r"those of RWKV-6\.0b"):
            wkv.Model.load(path, version=version)
    other = write_safetensors(tmp_path / "v4.safetensors", random_weights(Spec("4")))
    assert wkv.Model.load(other, device="cpu", version="4").info.version == "4"
    with pytest.raises(ValueError, match="those of RWKV-4"):
        wkv.Model.load(other, version="6.0c")

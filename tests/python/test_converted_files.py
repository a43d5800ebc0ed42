"""Files that the `rwkv` package converted to a strategy are read, with its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wkv

GOLDEN = Path(__file__).parent.parent / "golden"
IDS = [1, 5, 9, 2, 33, 7, 60, 21]
PACKAGE = {"RWKV_V7_ON": "0", "RWKV_RESCALE_LAYER": "6"}

# Converting ends the program. Logits are the package's from the same weights, unconverted: its
# v6 class cannot run a v6 file that it converted.
CONVERT = """
import sys
from rwkv.model import RWKV
RWKV(sys.argv[1], strategy=sys.argv[2], verbose=False, convert_and_save_and_exit=sys.argv[3])
"""
RUN = """
import sys
import numpy as np
from rwkv.model import RWKV
model = RWKV(sys.argv[1], strategy=sys.argv[2], verbose=False)
logits, _ = model.forward([int(i) for i in sys.argv[4].split()], None, full_output=True)
np.save(sys.argv[3], logits.float().numpy())
"""


def as_pth(version: str, folder: Path) -> str:
    """The golden checkpoint as the package reads it; its path without the suffix."""
    torch = pytest.importorskip("torch", reason="torch writes what the package converts")
    pytest.importorskip("rwkv", reason="the package `rwkv` converts the file")
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = load_file(GOLDEN / version / "model.safetensors")
    torch.save({name: value.clone() for name, value in tensors.items()}, folder / "model.pth")
    return str(folder / "model")


@pytest.mark.parametrize("version", ["v4", "v5_0", "v5_1", "v5_2", "v6"])
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp32i8"])
def test_converted_file(
    run_with_torch: Callable[..., str], version: str, strategy: str, tmp_path: Path
) -> None:
    model, converted = as_pth(version, tmp_path), str(tmp_path / "converted")
    logits_path, ids = tmp_path / "logits.npy", " ".join(map(str, IDS))
    run_with_torch(CONVERT, model, strategy, converted, **PACKAGE)
    run_with_torch(RUN, model, strategy, str(logits_path), ids, **PACKAGE)
    expected = np.load(logits_path)

    ours = wkv.Model.load(converted + ".pth", device="cpu")
    assert ours.info.version == wkv.inspect(GOLDEN / version / "model.safetensors").version
    assert ours.dtype == ("mm8" if strategy.endswith("i8") else "fp32")
    logits = ours.forward(IDS, ours.new_state(), logits="all")
    np.testing.assert_allclose(logits, expected, atol=5e-5, rtol=0)

    saved = tmp_path / "saved.safetensors"
    wkv.convert(converted + ".pth", saved)
    again = wkv.Model.load(saved, device="cpu")
    np.testing.assert_array_equal(again.forward(IDS, again.new_state(), logits="all"), logits)


def test_divided_layers(run_with_torch: Callable[..., str], tmp_path: Path) -> None:
    """fp16 files of many layers hold deep matrices divided by powers of two."""
    model, converted = as_pth("v4", tmp_path), str(tmp_path / "converted")
    for path, layers in ((converted, "1"), (converted + "0", "999")):
        environment = PACKAGE | {"RWKV_RESCALE_LAYER": layers}
        run_with_torch(CONVERT, model, "cpu fp16i8", path, **environment)
    logits = []
    for path in (converted + ".pth", converted + "0.pth"):
        ours = wkv.Model.load(path, device="cpu")
        logits.append(ours.forward(IDS, ours.new_state(), logits="all"))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-2, rtol=0)

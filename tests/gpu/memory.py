"""Host memory of loading a model on the GPU that device="auto" finds, as a JSON line.

    python tests/gpu/memory.py v7:24x2048

The file is real to everybody but the disk: names and shapes of a checkpoint, and a hole for its
weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import random_checkpoint

LOAD = """
import json, sys, time, wkv
start = time.perf_counter()
model = wkv.Model.load(sys.argv[1], device="auto")
seconds = time.perf_counter() - start
fields = [l.split() for l in open("/proc/self/status") if l.startswith(("VmHWM:", "RssAnon:"))]
mib = {f[0][:-1]: round(int(f[1]) / 1024) for f in fields}
print(json.dumps({"backend": model.backend, "load_s": round(seconds, 2)} | mib))
"""


def write_hollow(spec: str, path: Path) -> int:
    """Returns the bytes of the file's tensors."""
    with torch.device("meta"):
        tensors = random_checkpoint.build(spec, torch.bfloat16)
    header, at = {}, 0
    for name, t in tensors.items():
        end = at + t.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return at


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        size = write_hollow(sys.argv[1], path)
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True
        )
        row = {"spec": sys.argv[1], "file_mib": size >> 20} | json.loads(done.stdout)
        print(json.dumps(row | {"process_s": round(time.monotonic() - start, 2)}))


if __name__ == "__main__":
    main()

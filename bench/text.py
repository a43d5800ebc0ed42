"""Times the World tokenizer and the sampler beside the `rwkv` package's, in one interleaved run.

    python bench/text.py [--rounds 5] [--text FILE ...]

Every round times each contender once, so that whatever else the machine does meets all of them
alike; a row gives the median, the smallest and the largest of the rounds, and the median of the
rounds' ratios. Needs the package `rwkv` (and torch for its sampler); without it, our rows alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import wkv

Contender = tuple[str, Callable[[], Any]]


def interleave(contenders: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round."""
    times: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for _ in range(rounds):
        for name, call in contenders:
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def spread(values: list[float], digits: int = 1) -> str:
    """median (min-max)"""
    numbers = [f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values))]
    return f"{numbers[0]} ({numbers[1]}-{numbers[2]})"


def texts(paths: list[Path]) -> dict[str, bytes]:
    """English, code, Chinese, and bytes that are no text; or the files given."""
    if paths:
        return {path.name: path.read_bytes() for path in paths}
    root = Path(__file__).resolve().parent.parent
    prose = b"\n".join(path.read_bytes() for path in sorted((root / "docs").rglob("*.md")))
    code = b"\n".join(path.read_bytes() for path in sorted((root / "cpp").rglob("*.cpp")))
    random = np.random.default_rng(0)
    chinese = "".join(map(chr, random.integers(0x4E00, 0x5600, 100_000))).encode()
    return {
        "prose": prose,
        "code": code,
        "chinese": chinese,
        "random bytes": random.bytes(200_000),
    }


def package_tokenizer() -> Any:
    """The `rwkv` package's TRIE tokenizer, or None."""
    try:
        import rwkv.rwkv_tokenizer
    except ImportError:
        return None
    folder = Path(rwkv.rwkv_tokenizer.__file__).parent
    return rwkv.rwkv_tokenizer.TRIE_TOKENIZER(str(folder / "rwkv_vocab_v20230424.txt"))


def time_tokenizer(arguments: argparse.Namespace) -> None:
    """Megabytes a second, one call and batches."""
    ours = wkv.Tokenizer.world()
    theirs = package_tokenizer()
    print("| text | contender | MB/s | times the package |")
    print("| --- | --- | ---: | ---: |")
    for name, data in texts(arguments.text).items():
        parts = [data[i : i + 4096] for i in range(0, len(data), 4096)]
        ids = ours.encode(data)
        contenders: list[Contender] = [
            ("encode", lambda data=data: ours.encode(data)),
            ("encode_array", lambda data=data: ours.encode_array(data)),
            ("encode_batch, 4 KB each", lambda parts=parts: ours.encode_batch(parts)),
            ("decode_bytes", lambda ids=ids: ours.decode_bytes(ids)),
        ]
        if theirs is not None:
            assert theirs.encodeBytes(data) == ids, f"the tokenizers differ on {name}"
            contenders.insert(0, ("package", lambda data=data: theirs.encodeBytes(data)))
        times = interleave(contenders, arguments.rounds)
        for contender, seconds in times.items():
            ratio = ""
            if theirs is not None:
                pairs = zip(times["package"], seconds, strict=True)
                ratio = spread([theirs_s / ours_s for theirs_s, ours_s in pairs], 0)
            speed = [len(data) / s / 1e6 for s in seconds]
            print(f"| {name} | {contender} | {spread(speed)} | {ratio} |")


def time_sampler(arguments: argparse.Namespace) -> None:
    """Microseconds a token, 65536 logits."""
    random = np.random.default_rng(0)
    peaked = random.normal(0, 2, 65536)
    peaked[random.integers(0, 65536, 200)] += random.exponential(4, 200)
    logits = {"peaked": peaked.astype(np.float32),
              "flat": random.normal(0, 1, 65536).astype(np.float32)}  # fmt: skip
    settings: dict[str, dict[str, Any]] = {
        "temperature 0": {"temperature": 0},
        "no cutoff": {},
        "top_p 0.85": {"top_p": 0.85},
        "top_p 0.85, temperature 0.7": {"top_p": 0.85, "temperature": 0.7},
        "top_k 50": {"top_k": 50},
        "min_p 0.05": {"min_p": 0.05},
        "typical 0.9": {"typical": 0.9},
        "top_a 0.2": {"top_a": 0.2},
        "top_p 0.5, top_p_x 0.01": {"top_p": 0.5, "top_p_x": 0.01},
        "top_k 50, top_p 0.9, v1": {"top_k": 50, "top_p": 0.9, "variant": "v1"},
        "top_p 0.85, penalties on 500 tokens": {
            "top_p": 0.85, "presence_penalty": 0.2, "frequency_penalty": 0.2,
        },
    }  # fmt: skip
    try:
        import torch
        from rwkv.utils import PIPELINE
    except ImportError:
        package = None
    else:
        package = PIPELINE.sample_logits
    calls = 5
    print("\n| logits | sampling | us a token | the package |")
    print("| --- | --- | ---: | ---: |")
    for kind, values in logits.items():
        for name, setting in settings.items():
            sampler = wkv.Sampler(wkv.Sampling(seed=1, **setting))
            if "penalties" in name:
                for token in range(500):
                    sampler.accept(token)

            def ours(sampler: wkv.Sampler = sampler, values: Any = values) -> None:
                for _ in range(calls):
                    sampler.sample(values)

            contenders: list[Contender] = [("ours", ours)]
            known = {"top_p", "temperature", "top_k", "variant"}
            if package is not None and set(setting) <= known and "variant" not in setting:
                tensor = torch.from_numpy(values)
                keywords = {"top_p": 0.999999, **setting}

                def theirs(tensor: Any = tensor, keywords: Any = keywords) -> None:
                    for _ in range(calls):
                        package(None, tensor, **keywords)

                contenders.append(("package", theirs))
            ours()
            times = interleave(contenders, arguments.rounds)
            cells = [
                spread([s / calls * 1e6 for s in times[who]], 0) if who in times else ""
                for who in ("ours", "package")
            ]
            print(f"| {kind} | {name} | {cells[0]} | {cells[1]} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files to encode")
    parser.add_argument("--only", choices=["tokenizer", "sampler"])
    arguments = parser.parse_args()
    if arguments.only != "sampler":
        time_tokenizer(arguments)
    if arguments.only != "tokenizer":
        time_sampler(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())

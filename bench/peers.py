"""Times wkv beside other runtimes on the same random weights, interleaved, and prints ratios.

    pip install '.[bench]'
    python bench/peers.py --model v7:24x1024 --json peers.json
    python bench/peers.py --model v7:24x1024@0.2 --contestants wkv:int8,wkv:int8+skip,llama.cpp:q8_0
    python bench/roofline.py peers.json --out roofline.png

A contestant is RUNTIME:TYPE, such as wkv:bf16, rwkv:fp32, llama.cpp:f16. "+skip" behind a type of
wkv lets it leave out the rows of hidden units that are zero, which it does not do otherwise. @0.2
in the model is the share of hidden units that are not zero; the one printed has been measured.
Each round measures the read bandwidth, then runs every contestant in a process of its own, in
rotating order, so that a change of the machine's mood hits all. Ratios are taken within a round;
tables have the median and, in brackets, the least and the most of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 2.0  # a timed segment lasts at least this long
#: Who is compared with whom: equal bits, and the `rwkv` package's best CPU form against ours.
PAIRS = (
    ("wkv:bf16", "llama.cpp:f16"),
    ("wkv:fp16", "llama.cpp:f16"),
    ("wkv:int8", "llama.cpp:q8_0"),
    ("wkv:int4", "llama.cpp:q4_0"),
    ("wkv:bf16+skip", "llama.cpp:f16"),
    ("wkv:int8+skip", "llama.cpp:q8_0"),
    ("wkv:int4+skip", "llama.cpp:q4_0"),
    ("wkv:bf16+skip", "wkv:bf16"),
    ("wkv:int8+skip", "wkv:int8"),
    ("wkv:int4+skip", "wkv:int4"),
    ("wkv:bf16", "rwkv:fp32"),
    ("wkv:fp32", "rwkv:fp32"),
)
FTYPES = {"q8_0": 7, "q4_0": 2}  # llama.cpp's numbers of its file types

Forward = Callable[[list[int]], Any]  # tokens -> logits of the last one, an array
Round = dict[str, dict[str, Any]]


def wkv_forward(path: Path, dtype: str, threads: int) -> tuple[Forward, int]:
    import wkv

    kind, _, skip = dtype.partition("+")
    model = wkv.Model.load(
        path, device="cpu", dtype=kind, threads=threads, skip_zeros=skip == "skip"
    )  # type: ignore[arg-type]
    state = model.new_state()
    return lambda tokens: model.forward(tokens, state), model.weight_bytes_per_token


def rwkv_forward(path: Path, dtype: str, threads: int) -> tuple[Forward, int]:
    os.environ |= {
        "RWKV_JIT_ON": "1",
        "RWKV_CUDA_ON": "0",
        "RWKV_V7_ON": str(int("v7" in path.name)),
    }
    import torch

    torch.set_num_threads(threads)
    from rwkv.model import RWKV

    model = RWKV(model=str(path.with_suffix("")), strategy=f"cpu {dtype}")
    weights = model.z if hasattr(model, "z") else model.w
    size = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in weights.items()
        if name != "emb.weight" and isinstance(tensor, torch.Tensor)
    )
    state: Any = None

    def forward(tokens: list[int]) -> Any:
        nonlocal state
        logits, state = model.forward(tokens, state)
        return logits.float().numpy()

    return forward, size


@functools.cache
def llama_library() -> Any:
    """llama.cpp, which says nothing but errors (its level 4) on standard error."""
    import llama_cpp

    def log(level: int, text: bytes, _data: object) -> None:
        if level == 4:
            print(text.decode(errors="replace"), end="", file=sys.stderr)

    llama_cpp.kept = llama_cpp.llama_log_callback(log)  # the library holds no reference to it
    llama_cpp.llama_log_set(llama_cpp.kept, None)
    return llama_cpp


def llama_forward(path: Path, dtype: str, threads: int) -> tuple[Forward, int]:
    import numpy as np
    from gguf import GGUFReader

    llama = llama_library()
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = 1 << 20
    context_params.n_batch = context_params.n_ubatch = 256
    context_params.n_threads = context_params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, context_params)
    if context is None:
        raise RuntimeError(f"llama.cpp does not open {path} as {dtype}")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def forward(tokens: list[int]) -> Any:
        ids = (llama.llama_token * len(tokens))(*tokens)  # the batch only points at it
        batch = llama.llama_batch_get_one(ids, len(tokens))
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (vocab,))

    return forward, sum(sizes.values()) - sizes["token_embd.weight"]


RUNTIMES = {"wkv": wkv_forward, "rwkv": rwkv_forward, "llama.cpp": llama_forward}


def work(contestant: str, path: Path, threads: int, prompt: int) -> dict[str, Any]:
    """Tokens per second of one contestant, in this process."""
    runtime, dtype = contestant.split(":")
    forward, size = RUNTIMES[runtime](path, dtype, threads)
    logits = forward(list(range(1, 17)))  # pages, JIT; and what the contestants must agree on
    ids = [(i * 7919) % len(logits) for i in range(prompt)]
    sample = logits[:: max(1, len(logits) // 256)].tolist()

    def rate(tokens: list[int]) -> tuple[float, float]:
        """Tokens per second, and the share of its threads' time that the process had."""
        forward(tokens)
        done = 0
        cpu, start = time.process_time(), time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS or done < 2 * len(tokens):
            forward(tokens)
            done += len(tokens)
        return done / seconds, (time.process_time() - cpu) / (seconds * threads)

    decode, share = rate(ids[:1])
    prefill, _ = rate(ids)
    return {
        "decode": decode,
        "prefill": prefill,
        "bytes": size,
        "cpu_share": share,
        "logits": sample,
    }


def prepare(spec: str, contestants: list[str], folder: Path) -> dict[str, Path]:
    """The file of every contestant, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pth = folder / (spec.replace(":", "-") + ".pth")
    if not pth.exists():
        subprocess.run([sys.executable, HERE / "random_checkpoint.py", spec, pth], check=True)
    files = {}
    for contestant in contestants:
        runtime, kind = contestant.split(":")
        files[contestant] = pth if runtime != "llama.cpp" else gguf_file(pth, kind)
    return files


def gguf_file(pth: Path, kind: str) -> Path:
    """The same weights for llama.cpp, rounded by llama.cpp itself."""
    file = pth.with_name(f"{pth.stem}-{kind}.gguf")
    if file.exists():
        return file
    if kind == "f16":
        subprocess.run([sys.executable, HERE / "gguf_file.py", pth, file], check=True)
        return file
    llama = llama_library()
    f16 = gguf_file(pth, "f16")
    params = llama.llama_model_quantize_default_params()
    params.ftype = FTYPES[kind]
    if llama.llama_model_quantize(str(f16).encode(), str(file).encode(), params) != 0:
        raise RuntimeError(f"cannot quantise {f16} to {kind}")
    return file


def wkv_bench(*arguments: str) -> dict[str, Any]:
    program = "from wkv._bench import main; main()"
    command = [sys.executable, "-c", program, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def bandwidth(threads: int) -> float:
    """GB/s that this machine reads, by wkv_bench beside a model too small to matter."""
    small = ("--synthetic", "v7:2x128:256", "--runs", "1", "--threads", str(threads))
    return float(wkv_bench(*small)["read_bandwidth_gb_s"]["median"])


def density(pth: Path, threads: int) -> float:
    """Share of hidden units that are not zero, while decoding."""
    options = ("--skip-zeros", "on", "--runs", "1", "--tokens", "16", "--threads", str(threads))
    return float(wkv_bench("--model", str(pth), *options)["active_share"])


def run_rounds(
    files: dict[str, Path], threads: int, prompt: int, rounds: int
) -> tuple[list[Round], list[float]]:
    """Of each round what the contestants did, less those that fail, and the bandwidth."""
    results: list[Round] = []
    bandwidths: list[float] = []
    alive = list(files)
    for number in range(rounds):
        bandwidths.append(bandwidth(threads))
        turn = number % max(1, len(alive))
        result: Round = {}
        for contestant in alive[turn:] + alive[:turn]:
            command = [sys.executable, __file__, "--worker", contestant, "--file"]
            command += [str(files[contestant]), "--threads", str(threads), "--prompt", str(prompt)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
                if done.returncode < 0:
                    reason = [f"it died of {signal.Signals(-done.returncode).name}"]
                print(f"{contestant} is left out: {reason[0]}", file=sys.stderr)
                alive.remove(contestant)
                continue
            result[contestant] = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    return [{c: r[c] for c in alive} for r in results], bandwidths


def spread(values: Iterable[float], digits: int) -> str:
    values = list(values)
    least, most = (f"{limit(values):.{digits}f}" for limit in (min, max))
    return f"{statistics.median(values):.{digits}f} ({least} to {most})"


def distance(logits: list[float], reference: list[float]) -> float:
    """Root mean square of the difference, relative to that of the reference."""
    squares = sum((a - b) ** 2 for a, b in zip(logits, reference, strict=True))
    return float((squares / sum(b**2 for b in reference)) ** 0.5)


def report(rounds: list[Round], bandwidths: list[float]) -> None:
    """Two Markdown tables."""
    contestants = list(rounds[0])
    if not contestants:
        return
    exact = "wkv:fp32" if "wkv:fp32" in contestants else contestants[0]
    print(f"read bandwidth {spread(bandwidths, 1)} GB/s\n")
    print(
        "| contestant | MB a token | decode, tok/s | of the bandwidth, % | prefill, tok/s "
        f"| CPU share, % | logits off {exact} |\n| --- | --: | --: | --: | --: | --: | --: |"
    )
    for c in contestants:
        size = rounds[0][c]["bytes"]
        roofs = [1e9 * gb_s / size for gb_s in bandwidths]
        shares = [100 * r[c]["decode"] / roof for r, roof in zip(rounds, roofs, strict=True)]
        print(
            f"| {c} | {size / 1e6:.0f} | {spread((r[c]['decode'] for r in rounds), 1)} "
            f"| {spread(shares, 0)} | {spread((r[c]['prefill'] for r in rounds), 0)} "
            f"| {min(100 * r[c]['cpu_share'] for r in rounds):.0f} "
            f"| {distance(rounds[0][c]['logits'], rounds[0][exact]['logits']):.1e} |"
        )
    print("\n| ratio | decode | prefill |\n| --- | --: | --: |")
    for ours, theirs in PAIRS:
        if ours in contestants and theirs in contestants:
            ratios = (
                spread((r[ours][mode] / r[theirs][mode] for r in rounds), 2)
                for mode in ("decode", "prefill")
            )
            print(f"| {ours} / {theirs} |", " | ".join(ratios), "|")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model", default="v7:24x1024", help="VERSION:LAYERSxCHANNELS[:VOCABULARY][@DENSITY]"
    )
    parser.add_argument(
        "--contestants", default=",".join(dict.fromkeys(c for pair in PAIRS for c in pair))
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prefill")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="where files go")
    parser.add_argument("--json", type=Path, help="every figure of every round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        result = work(arguments.worker, arguments.file, arguments.threads, arguments.prompt)
        print(json.dumps(result))
        return 0
    contestants = arguments.contestants.split(",")
    if not arguments.model.startswith(("v6", "v7")):
        contestants = [c for c in contestants if not c.startswith("llama.cpp")]
        print("llama.cpp is left out: it runs v6 and v7", file=sys.stderr)
    files = prepare(arguments.model, contestants, arguments.work)
    active = density(next(f for f in files.values() if f.suffix == ".pth"), arguments.threads)
    rounds, bandwidths = run_rounds(files, arguments.threads, arguments.prompt, arguments.rounds)
    if arguments.json:
        everything = {
            "command": sys.argv,
            "processor": processor(),
            "model": arguments.model,
            "threads": arguments.threads,
            "density": active,
            "read_bandwidth_gb_s": bandwidths,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(everything) + "\n")
    print(
        f"{arguments.model}, {arguments.threads} threads, {arguments.rounds} rounds, prompts of "
        f"{arguments.prompt} tokens, {active:.3f} of the hidden units not zero; {processor()}"
    )
    report(rounds, bandwidths)
    return 0


if __name__ == "__main__":
    sys.exit(main())

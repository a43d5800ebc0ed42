"""The command ``wkv``.

Exit codes: 0 done, 1 failed (one line on standard error), 2 wrong usage, 130 Ctrl-C, 141 the reader
of our output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from wkv import __version__

from . import chat, evaluate, files, generate

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wkv", description="RWKV language models, native.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"wkv {__version__}")
    parser.add_argument(
        "--cmake-dir", action="store_true", help="print the folder for -Dwkv_DIR= and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    files.add_parsers(commands)
    generate.add_parser(commands)
    chat.add_parser(commands)
    evaluate.add_parser(commands)
    bench = commands.add_parser(
        "bench",
        help="measure speed (wkv_bench)",
        add_help=False,
        description="Everything behind `bench` goes to wkv_bench.",
    )
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _run(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:  # before argparse, which would take options such as --help
        from wkv._bench import main as bench

        bench(argv[1:])
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.cmake_dir:
        from wkv.paths import cmake_dir

        print(cmake_dir())
        return 0
    if arguments.command is None:
        parser.print_help()
        return 2
    run = arguments.run
    return int(run(arguments))


def _fail(error: BaseException) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        message = f"no such name: {message}"
    print(f"wkv: error: {message}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: The arguments without the program's name. Default: those of the process.
    """
    if sys.stdin is None:  # closed, as by `<&-`
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        return _fail(ValueError("standard output is closed"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where a terminal's encoding lacks a character
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError, RuntimeError, MemoryError, LookupError, ImportError) as error:
        if os.environ.get("WKV_TRACEBACK"):
            raise
        return _fail(error)
    return code

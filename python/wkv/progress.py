"""Progress of long calls: a callable, or a tqdm bar for ``True``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "reporter"]

#: ``None``: silent. ``True``: a tqdm bar on standard error. A callable gets ``(done, total)`` at
#: most every 50 ms and may raise to cancel the call.
Progress = Callable[[int, int], object] | bool | None


@contextmanager
def reporter(
    progress: Progress, desc: str, unit: str
) -> Iterator[Callable[[int, int], object] | None]:
    """Turns the ``progress`` argument of a call into a function for the native side.

    Args:
        progress: As described at :data:`Progress`.
        desc: What the bar says.
        unit: ``"B"`` or ``"token"``.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from tqdm import tqdm

        with tqdm(desc=desc, unit=unit, unit_scale=unit == "B", total=0, leave=False) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update
    elif callable(progress):
        yield progress
    else:
        raise TypeError(f"progress must be None, True or a callable, got {progress!r}")

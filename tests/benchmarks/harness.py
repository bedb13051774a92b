"""Tools of the benchmarks: command line, tables, alternating runs, machine limits, peak memory."""

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a command line with ``--json``; ``--help`` prints ``doc``, a module's docstring."""
    command_line = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_argument(
        "--json", type=Path, metavar="PATH", help="also write the results to this file"
    )
    return command_line


class Report:
    """Titled tables of rows (dicts) and single facts, printed as they come, written as JSON."""

    def __init__(self, doc: str | None = None):
        self.title = (doc or "").strip().split("\n")[0]
        self.machine = machine_facts()
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.facts: dict[str, Any] = {}

    def row(self, table: str, /, **figures: Any) -> dict[str, Any]:
        """Add one row to a table and print it at once."""
        self.tables.setdefault(table, []).append(figures)
        print(
            f"[{table}] " + "  ".join(f"{name}={_text(value)}" for name, value in figures.items()),
            flush=True,
        )
        return figures

    def fact(self, name: str, value: Any) -> None:
        """Add a single number, such as a fitted exponent."""
        self.facts[name] = value

    def print(self) -> None:
        """Print the machine, every table with aligned columns, and the single facts."""
        print(f"\n{self.title}")
        print("  ".join(f"{name}={_text(value)}" for name, value in self.machine.items()))
        for title, rows in self.tables.items():
            print(f"\n{title}\n" + "\n".join(_aligned(rows)))
        if self.facts:
            width = max(map(len, self.facts))
            print(
                "\n"
                + "\n".join(
                    f"{name:<{width}}  {_text(value)}" for name, value in self.facts.items()
                )
            )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        whole = {
            "title": self.title,
            "machine": self.machine,
            "tables": self.tables,
            "facts": self.facts,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=2, default=_plain) + "\n")

    def finish(self, path: Path | None) -> None:
        """Print, and write to the path of ``--json`` if there is one."""
        self.print()
        if path is not None:
            self.write(path)


class Timing(NamedTuple):
    """Seconds of one function over the repeats of :func:`paired`."""

    median: float
    min: float
    seconds: list[float]


def paired(
    functions: dict[str, Callable[[], Any]], repeats: int = 7, *, warm: int = 1
) -> dict[str, Timing]:
    """Time functions that run alternately (a b a b ...), so that all see the same machine load.

    :param warm: untimed rounds before, for compilation and caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm + repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(statistics.median(s), min(s), s) for name, s in seconds.items()}


def sgemm_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Return the best GFLOP/s of torch's float32 product of two (size, size) matrices."""
    import torch

    a, b = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty(size, size)
    best = paired({"mm": lambda: torch.mm(a, b, out=out)}, repeats)["mm"].min
    return 2 * size**3 / best / 1e9


def copy_gbs(megabytes: int = 256, repeats: int = 5) -> float:
    """Return the best GB/s of a copy of one large float32 array, reads plus writes."""
    import torch

    source = torch.rand(megabytes * 250_000)
    target = torch.empty_like(source)
    best = paired({"copy": lambda: target.copy_(source)}, repeats)["copy"].min
    return 2 * source.numel() * 4 / best / 1e9


class Memory:
    """Bytes by which the peak resident memory within a block exceeds that at its start."""

    growth = 0


@contextlib.contextmanager
def peak_memory() -> Iterator[Memory]:
    """Measure a block of code: peak resident set within it minus the resident set at its start.

    Freed memory that malloc holds is returned first, so that it cannot hide growth. On Linux
    the kernel's high-water mark (VmHWM) is reset at the start; elsewhere ``ru_maxrss`` stands in
    for it, which never falls, so that growth below an earlier peak reads as zero and the block
    should be the first large one of a fresh process.
    """
    memory = Memory()
    gc.collect()
    _trim()
    _reset_peak()
    start = resident()
    yield memory
    memory.growth = max(0, peak() - start)


class Fresh(NamedTuple):
    """Result of a function that ran in a new process."""

    result: Any
    growth: int  # bytes: peak resident set during the call minus that at entry, after imports


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Fresh:
    """Run a module-level ``function(*args)`` in a spawned process; imports are not measured.

    An exception is raised here with the child's traceback; a child that the kernel killed raises
    ``MemoryError``. The call belongs under ``if __name__ == "__main__"``, as with all spawned
    processes.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return Fresh(*pool.submit(_measured, function, args).result())
        except BrokenProcessPool as error:
            raise MemoryError(
                f"the process of {function.__name__}() was killed, most likely for lack of memory"
            ) from error


def _measured(function: Callable[..., Any], args: tuple) -> tuple[Any, int]:
    with peak_memory() as memory:
        result = function(*args)
    return result, memory.growth


def machine_facts() -> dict[str, Any]:
    """Return cores, versions and thread counts, which the results depend on."""
    import numba
    import torch

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],  # above zero: other programs were running
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    return platform.processor()


def _status(field: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def resident() -> int:
    return _status("VmRSS") if _STATUS.exists() else _max_rss()


def peak() -> int:
    # Not ru_maxrss on Linux: a child inherits that of its parent, even across exec.
    return _status("VmHWM") if _STATUS.exists() else _max_rss()


def _max_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        if _CLEAR.exists():
            _CLEAR.write_text("5")


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _aligned(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with columns in the order of their first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10000:
        return f"{value:,}"
    return str(value)


def _plain(value: Any) -> Any:
    """Convert numpy and torch scalars, paths and so on for JSON."""
    return value.item() if hasattr(value, "item") else str(value)

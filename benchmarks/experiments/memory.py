"""Peak memory of one call, measured in a process of its own."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.evaluation.precision import full_precision

Prepare = Callable[[], Callable[[], None]]
"""A picklable function that loads what is needed and returns the call to be measured."""


def peak_mib(prepare: Prepare, device: torch.device) -> float | str:
    """MiB that the call needs at its peak beyond what was there before it; where that cannot be measured, why (out of
    memory, for one).

    On a GPU the allocator's peak, on a CPU resident memory (Linux). The process is a fresh one that has imported and
    loaded everything, so neither imports nor other measurements are counted; what the first evaluation of a network
    leaves in caches is. Its malloc gives every tensor back to the system when it is freed: holes in the heap, which
    differ from run to run by tens of MiB, are not counted.
    """
    with _strict_malloc(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(partial(_measure, prepare, str(device), torch.get_num_threads())).result()
        except BrokenProcessPool:
            return "the process was killed"
        except (torch.OutOfMemoryError, MemoryError):
            return "out of memory"
        except (OSError, RuntimeError) as error:  # no /proc; torch reports a full CPU memory as RuntimeError
            return "out of memory" if "alloc" in str(error) else str(error)


@contextmanager
def _strict_malloc() -> Iterator[None]:
    """Processes started meanwhile give blocks beyond 64 KiB back when they are freed (glibc)."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = str(2**16)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _measure(prepare: Prepare, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    with full_precision(torch.device(device)):
        return _peak_of(prepare(), torch.device(device))


def _peak_of(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    resident = _peak_resident()
    call()
    return _peak_resident() - resident


def _peak_resident() -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024  # type: ignore[union-attr]

"""What pickles would import, read from their opcodes without executing them."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

_HARMLESS = ("torch._utils.", "torch.nn.parameter.", "torch.serialization._get_layout", "torch.Size", "torch.device", "collections.OrderedDict")

_PICKLES = 5  # one after the other in a PyTorch file of the old format, before the numbers


def imports_of(path: Path) -> tuple[str, ...]:
    """What a pickle, or the pickle in a PyTorch file, would import beyond what makes tensors, "module.name"; empty for what is no pickle."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                found = imports_in(file)
        else:
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                found = imports_in(io.BytesIO(archive.read(name)))
    except (StopIteration, zipfile.BadZipFile, OSError, NotImplementedError):
        return ()
    return tuple(name for name in found if not name.startswith(_HARMLESS) and not (name.startswith("torch.") and name.endswith("Storage")))


def imports_in(file: BinaryIO) -> tuple[str, ...]:
    """What the pickles at the start of a stream would import, in order."""
    found: dict[str, None] = {}
    try:
        for _ in range(_PICKLES):
            _collect(file, found)
    except Exception:  # the opcodes may be anything: what was found before them counts
        pass
    return tuple(found)


def _collect(file: BinaryIO, found: dict[str, None]) -> None:
    """Adds the imports of one pickle."""
    texts: list[str] = []  # strings in the order in which they are pushed: STACK_GLOBAL takes the last two
    memo: dict[int, str | None] = {}
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            found[str(argument).replace(" ", ".")] = None
        elif opcode.name == "STACK_GLOBAL":
            found[".".join(texts[-2:])] = None
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "PUT" in opcode.name:
            memo[int(argument)] = last
        else:
            last = memo.get(int(argument)) if "GET" in opcode.name else argument if isinstance(argument, str) and "UNICODE" in opcode.name else None
            texts = texts if last is None else [*texts[-1:], last]

"""What pickles hold and would import, found without executing anything in them."""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

_TENSORS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    *(
        f"torch.{name}Storage"
        for name in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short", "Untyped")
    ),
    "torch.storage.UntypedStorage",
    *(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "parameter", "parameter_with_state")),
    *(
        f"torch.{name}"
        for name in ("bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8")
    ),
}
"""All that a file of dense tensors names. PyTorch's safe reader allows more, of which some takes the memory that a
number asks for.
"""

_PICKLES = 5  # one after the other in a PyTorch file of the old format, before the numbers


def check(path: Path) -> None:
    """Walks through the pickle that `torch.load` would read, building nothing, and allows only what makes dense
    tensors, plain values and containers.

    Raises:
        pickle.UnpicklingError: other names, dictionary keys that are not plain values (their hash can take for ever),
            or sets; or no whole pickle.
    """
    for stream, count in _streams(path):
        for _ in range(count):
            Walk(stream).load()


def imports_of(path: Path) -> tuple[str, ...]:
    """What the pickle would import beyond what makes tensors, "module.name"; empty for what is no pickle."""
    try:
        found = [name for stream, _ in _streams(path) for name in imports_in(stream)]
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, NotImplementedError):
        return ()
    return tuple(name for name in found if name not in _TENSORS)


def _streams(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The stream that `torch.load` would read, told by the first bytes as it does, and how many pickles are in it."""
    with open(path, "rb") as file:
        if not file.read(4).startswith(b"PK"):
            file.seek(0)
            yield file, _PICKLES
            return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        if (
            len(pickles) != 1
            or pickles[0].count("/") != 1
            or not pickles[0].endswith("/data.pkl")
            or len(set(names)) != len(names)
        ):
            raise pickle.UnpicklingError(
                "expected one pickle FOLDER/data.pkl in the archive, and every name once; got"
                f" {', '.join(pickles[:5]) or 'none'}"
            )
        yield io.BytesIO(archive.read(pickles[0])), 1


class _Recorder:
    """Stands where tensors, storages and their constructors would be, and does nothing."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


_Load = Callable[[Any], None]  # a method of the unpickler, for one opcode

_LOADS: dict[int, _Load] = dict(pickle._Unpickler.dispatch)


class Walk(pickle._Unpickler):  # the one in C makes room for as many memo entries as a file claims
    """Reads a pickle without calling anything in it: names are answered by a recorder, or refused.

    Subclasses may answer other names. Raises pickle.UnpicklingError, and what a damaged stream makes the unpickler
    raise.
    """

    dispatch: ClassVar[dict[int, _Load]] = dict(_LOADS)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> type:
        if f"{module}.{name}" not in _TENSORS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Recorder

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names extension {code}")

    def persistent_load(self, identity: Any) -> _Recorder:
        return _Recorder()

    def _check_keys(self, keys: list[Any]) -> None:
        odd = next((key for key in keys if type(key) not in (str, bytes, int, float, bool, type(None))), None)
        if odd is not None:
            raise pickle.UnpicklingError(f"a dictionary has a {type(odd).__name__} as a key")

    def _load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        _LOADS[pickle.SETITEM[0]](self)

    def _load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        _LOADS[pickle.SETITEMS[0]](self)

    def _load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        _LOADS[pickle.DICT[0]](self)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it holds a set")

    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems
    dispatch[pickle.DICT[0]] = _load_dict
    for opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[opcode[0]] = _refuse


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
            memo[int(str(argument))] = last
        else:
            last = (
                memo.get(int(str(argument)))
                if "GET" in opcode.name
                else argument
                if isinstance(argument, str) and "UNICODE" in opcode.name
                else None
            )
            texts = texts if last is None else [*texts[-1:], last]

"""Files from strangers: each is a clear error, nothing in it runs, nothing of the size that it declares is allocated,
nothing is left behind.
"""

import io
import json
import os
import pickle
import struct
import zipfile

import golden
import pytest
import torch
from safetensors.torch import save_file

from purify import CheckpointError, load_score_model
from purify.zoo.guard import LARGEST_HEADER, read_tensors, tensors_in
from purify.zoo.inspect_file import inspect
from purify.zoo.pickles import imports_in

NAME = "ddpm.small"
CONFIG = json.loads((golden.FOLDER / f"{NAME}.json").read_text())["config"]
STATE = golden.network(NAME).state_dict()


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


class Filled:
    """A hundred gigabytes of zeros, in the few bytes of a call that PyTorch's safe reader allows."""

    def __reduce__(self):
        return bytearray, (10**11,)


def load(path):
    return load_score_model(path, "ddpm", CONFIG)


def rezipped(path, change, compression=zipfile.ZIP_STORED):
    """The PyTorch file with its entries' contents changed by `change(name, content)`."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


def declaring(path, numel):
    """A PyTorch file whose pickle declares a tensor and a storage of `numel` numbers, where four are."""
    torch.save({"w": torch.zeros(4)}, path)
    four, many = b"K\x04", b"\x8a\x08" + numel.to_bytes(8, "little")  # pickle's opcodes for a small and a large integer
    return rezipped(path, lambda name, content: content.replace(four, many) if name.endswith("data.pkl") else content)


def safetensors(path, header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)
    return path


def overlapping(path):
    """A zip bomb without compression: five names of the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    records = content[start:end] * 5
    counts = struct.pack("<HHI", 5, 5, len(records))
    path.write_bytes(content[:start] + records + content[end : end + 8] + counts + content[end + 16 :])
    return path


def raw_pickle(path):
    path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded")))
    return path


def torch_pickle(path):
    torch.save({"model": Bomb(path.parent / "exploded")}, path)
    return path


def old_torch_pickle(path):
    torch.save({"model": Bomb(path.parent / "exploded")}, path, _use_new_zipfile_serialization=False)
    return path


def filled_pickle(path):
    torch.save({"model": Filled()}, path)
    return path


NOTHING = b"\x80\x02}."  # pickles of {} and of {"a": bytearray(10**11)}
FILLED = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85Rs."


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**entries, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl')}", content)
    return path


def decoy(path):
    """A harmless pickle under a name that a hasty check takes for the one that is read."""
    return zipped(path, **{"0data_pkl": NOTHING, "data_pkl": FILLED})


def old_pickle_before_a_zip(path):
    """The first bytes decide what is read; a zip at the end is what a check by `zipfile` sees."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    start = (
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
        + FILLED
        + pickle.dumps([], 2)
    )
    path.write_bytes(start + zipped(path, data_pkl=NOTHING).read_bytes())
    return path


def doubling_pickle(path):
    """Every call of an encoding that PyTorch's safe reader allows doubles the text."""
    text = b"X\x04\x00\x00\x00aaaaX\x06\x00\x00\x00latin1\x86R" + b"X\x03\x00\x00\x00hex\x86R" * 40
    return zipped(path, data_pkl=b"\x80\x02}X\x01\x00\x00\x00a" + b"c_codecs\nencode\n" * 41 + text + b"s.")


def endless_key(path):
    """A tuple of twice the same tuple, sixty deep, as a dictionary's key: its hash takes for ever."""
    return zipped(path, data_pkl=b"\x80\x02}q\x01K\x01\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"h\x01h\x00K\x01s.")


def page(path):
    path.write_text("\n<!DOCTYPE html><html><title>Quota exceeded</title></html>")
    return path


def torn(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def torn_safetensors(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return path


def lying_zip_bomb(path):
    """Declares 4 GB in a file of a few hundred bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + 24
    content[start : start + 4] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def compressed(path):
    torch.save({"w": torch.randn(1000)}, path)
    return rezipped(path, lambda name, content: content, zipfile.ZIP_DEFLATED)


HUGE = {"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}

HOSTILE = [
    ("a.pkl", raw_pickle, "carries code.*safetensors.torch.save_file"),
    ("a.pt", raw_pickle, "carries code"),
    ("a.pt", torch_pickle, "carries code.*safetensors.torch.save_file"),
    ("a.pt", old_torch_pickle, "carries code"),
    ("a.pt", filled_pickle, r"carries code.*\(it would import .*bytearray\)"),
    ("a.pt", decoy, "expected one pickle FOLDER/data.pkl"),
    ("a.pt", old_pickle_before_a_zip, "would import builtins.bytearray"),
    ("a.pt", doubling_pickle, "would import _codecs.encode"),
    ("a.pt", endless_key, "a dictionary has a tuple as a key"),
    ("a.pt", zip_bomb, "declare 50,000,000 bytes in a file of .*, as a zip bomb does"),
    ("a.pt", lying_zip_bomb, "declare 4,000,000,000 bytes in a file of .*, as a zip bomb does"),
    ("a.pt", overlapping, "as a zip bomb does"),
    ("a.pt", compressed, "its entries are compressed"),
    (
        "a.pt",
        lambda path: declaring(path, 10**12),
        "its tensors declare more than 4,000,000,000,000 bytes in a file of",
    ),
    ("a.pt", lambda path: declaring(path, 10**4), "its tensors declare more than 40,000 bytes"),
    ("a.pt", torn, "is not a whole checkpoint"),
    ("a.pth", page, "is a web page, not a checkpoint"),
    ("a.safetensors", page, "is a web page, not a checkpoint"),
    ("a.safetensors", torn_safetensors, "is not a whole"),
    ("a.safetensors", lambda path: safetensors(path, HUGE, bytes(16)), "is not a whole"),
    ("a.pt", lambda path: safetensors(path, HUGE, bytes(16)), "is not a whole"),
    (
        "a.safetensors",
        lambda path: safetensors(path, b"{}", length=10**18),
        "its header declares 1,000,000,000,000,000,000 bytes in a file of 10",
    ),
    (
        "a.safetensors",
        lambda path: safetensors(path, b"{" + b" " * LARGEST_HEADER),
        "its safetensors header has .* bytes, expected at most",
    ),
    ("a.safetensors", lambda path: safetensors(path, b"[" * 100_000), "is not a whole"),
    ("a.safetensors", lambda path: safetensors(path, b"not json"), "is not a whole"),
    ("a.safetensors", lambda path: path.write_bytes(b"abc"), "is not a whole safetensors file"),
    ("a.pt", lambda path: path.write_bytes(b""), "carries code, or is no|is not a whole checkpoint"),
    ("a.pt", lambda path: None, "no weight file at"),
    ("a.pt", lambda path: path.mkdir(), "no weight file at"),
]


@pytest.mark.parametrize(("name", "make", "message"), HOSTILE)
def test_reading_refuses_and_leaves_nothing(name, make, message, tmp_path):
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(tmp_path / name)
    assert name in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "make"), [(name, make) for name, make, _ in HOSTILE])
def test_loading_refuses_and_leaves_nothing(name, make, tmp_path):
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        load(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "make", "message"), [case for case in HOSTILE if "pickle" not in case[1].__name__])
def test_looking_into_refuses(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(CheckpointError):
        inspect(tmp_path / name)


@pytest.mark.parametrize("make", [raw_pickle, torch_pickle, old_torch_pickle])
def test_looking_into_code_names_what_it_would_call(make, tmp_path):
    found = inspect(make(tmp_path / "a.pt"))
    assert found.format == "pickle with code" and f"{os.mkdir.__module__}.mkdir" in found.imports
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("protocol", range(6))
def test_imports_are_listed_for_every_protocol(protocol, tmp_path):
    data = pickle.dumps([Bomb("x"), Bomb("y"), ValueError, {"builtins": "eval"}], protocol)
    names = imports_in(io.BytesIO(data))
    assert names[0].endswith(".mkdir") and names[1].endswith(".ValueError") and len(names) == 2


ANYWHERE = [
    ({"conv_in.bias": torch.full((32,), torch.nan)}, "tensor 'conv_in.bias' holds NaN or infinity"),
    ({"conv_in.bias": None}, "(?s)do not fit.*conv_in.bias"),
    ({"extra": torch.zeros(1)}, "(?s)do not fit.*extra"),
    ({"conv_in.bias": torch.zeros(7)}, "(?s)do not fit.*conv_in.bias"),
]
PYTORCH_ONLY = [
    ({"epoch": 3}, "is not a state dict.* 'epoch' is a int"),
    ({3: torch.zeros(1)}, "is not a state dict.* 3 is a Tensor"),
    ({"conv_in.bias": torch.zeros(32, device="meta")}, "would import torch._utils._rebuild_meta_tensor_no_storage"),
    ({"conv_in.bias": torch.eye(32).to_sparse()}, "would import torch._utils._rebuild_sparse_tensor"),
    ({"conv_in.bias": torch.zeros(1).expand(10**6, 10**6)}, "declare more than|do not fit"),
]


@pytest.mark.parametrize(("change", "message"), ANYWHERE + PYTORCH_ONLY)
def test_weights_in_pytorch_files_that_do_not_fit(change, message, tmp_path):
    torch.save({name: tensor for name, tensor in {**STATE, **change}.items() if tensor is not None}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize(("change", "message"), ANYWHERE)
def test_weights_in_safetensors_that_do_not_fit(change, message, tmp_path):
    save_file(
        {name: tensor for name, tensor in {**STATE, **change}.items() if tensor is not None}, tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a.safetensors")


def test_a_wrong_architecture(tmp_path):
    save_file(golden.network("guided_diffusion.small").state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="do not fit the architecture"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (page, "whole safetensors file|web page"),
        (torn_safetensors, "is not a whole safetensors file"),
        (raw_pickle, "is not a whole safetensors file"),
        (torch_pickle, "is not a whole safetensors file"),
        (lambda path: safetensors(path, HUGE, bytes(16)), "is not a whole safetensors file"),
        (
            lambda path: safetensors(path, {**HUGE, "__metadata__": {"purify": "{}"}}, bytes(16)),
            "is not a whole safetensors file",
        ),
        (lambda path: safetensors(path, b"{}", length=10**18), "is not a whole safetensors file"),
        (lambda path: safetensors(path, {"__metadata__": {"purify": "[1]"}}), "must be a mapping"),
        (lambda path: safetensors(path, {"__metadata__": {"purify": "{"}}), "is not a whole safetensors file"),
    ],
)
def test_own_files(make, message, tmp_path):
    make(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_score_model(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_description_that_asks_for_a_huge_network(tmp_path):
    """Building ends as soon as there is more than the file can fill."""
    network = {
        "architecture": "small_unet",
        "config": {"channels": 1, "blocks": 10**9},
        "schedule": {"name": "LinearVP"},
        "provenance": {},
    }
    safetensors(
        tmp_path / "a.safetensors", {"__metadata__": {"purify": json.dumps({"kind": "score_model", **network})}}
    )
    with pytest.raises(CheckpointError, match="has more than 1,000 parameters, the file fewer tensors"):
        load_score_model(tmp_path / "a.safetensors")


def test_containers_that_hold_themselves_are_walked_once():
    loop = {"a": torch.zeros(1), "b": []}
    for _ in range(60):  # every level twice: 2^60 paths
        loop["b"] = [loop["b"], loop["b"]]
    loop["c"] = loop
    assert len(list(tensors_in(loop))) == 1

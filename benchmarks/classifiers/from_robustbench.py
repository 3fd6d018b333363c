"""RobustBench's model zoo (Croce et al. 2021, arXiv 2010.09670): "robustbench:NAME" with a data set and a threat.

What comes back is what `robustbench.utils.load_model` returns, bit for bit. Its loader runs on files that are there and
have been read here first without executing anything; the entries whose weights torchvision or timm would download are
put together here.
"""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torchvision
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.architectures.utils_architectures import normalize_model
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
from robustbench.model_zoo.imagenet import mu, sigma
from robustbench.utils import DATASET_CLASSES, load_model
from torch import nn

from benchmarks.classifiers import files as weights_on_disk
from benchmarks.classifiers import from_timm, from_torchvision
from benchmarks.classifiers.request import Request, nearest
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.folders import models_folder
from purify.zoo.guard import kind_of, read_tensors

THREATS = ("Linf", "L2", "corruptions")


class RobustBenchSource(NamedTuple):
    """Where an entry's weights are looked for, and the Google Drive ids that they come from.

    Attributes:
        file_path: of a single network; those of an ensemble lie beside it, see `files`.
        gdrive_ids: one an ensemble's member; empty where torchvision or timm supplies the weights, see
            `library_address`.
    """

    file_path: Path
    gdrive_ids: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that RobustBench's loader reads, in the order of `gdrive_ids`."""
        if len(self.gdrive_ids) < 2:
            return (self.file_path,)
        return tuple(self.file_path.with_name(f"{self.file_path.name}_m{i}.pt") for i in range(len(self.gdrive_ids)))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Pages from which a browser downloads the files."""
        return tuple(f"https://drive.google.com/file/d/{gdrive_id}/view" for gdrive_id in self.gdrive_ids)


def robustbench_source(dataset: str, threat: str, name: str) -> RobustBenchSource:
    """Files and Google Drive ids of an entry of the zoo.

    Raises:
        CheckpointError: an entry that RobustBench does not have; the message lists the nearest names.
        ValueError: an unknown data set or threat.
    """
    ids = _entry(dataset, threat, name)["gdrive_id"]
    path = _model_dir() / dataset / threat / f"{name}.pt"
    if isinstance(ids, list):
        return RobustBenchSource(path, tuple(ids))
    return RobustBenchSource(path, (ids,) if ids else ())


def library_address(dataset: str, threat: str, name: str) -> str | None:
    """The address of an entry's weights that torchvision or timm would download; None for those on Google Drive. Raises
    as `robustbench_source`.
    """
    if robustbench_source(dataset, threat, name).gdrive_ids:
        return None
    registered = _timm_name(dataset, threat, name)
    return (
        timm.models.get_pretrained_cfg(registered).url
        if timm.is_model(registered)
        else from_torchvision.torchvision_source("resnet50")[1]
    )


def load(request: Request) -> nn.Module:
    """An entry of the zoo, as its loader gives it."""
    request.only_default_weights("robustbench", "Put a file of your own at the place where the zoo's is looked for.")
    name, dataset, threat = _asked(request)
    entry = _entry(dataset, threat, name)
    paths = () if request.random else files(request)
    if library_address(dataset, threat, name) is not None:
        path = paths[0] if paths else None
        registered = _timm_name(dataset, threat, name)
        if timm.is_model(registered):
            return from_timm.create(registered, path, DATASET_CLASSES[BenchmarkDataset(dataset)])
        normalised: nn.Module = normalize_model(_resnet50(path), mu, sigma)
        return normalised
    if request.random:
        fresh: nn.Module = entry["model"]()
        return fresh
    for path in paths:
        if kind_of(path) == "safetensors":
            raise CheckpointError(f"{path} is a safetensors file; RobustBench's loader reads PyTorch files only")
        # refuses code in the very bytes that RobustBench then reads: it leaves safety to a default, which the
        # environment can change
        read_tensors(path)
    try:
        model: nn.Module = load_model(name, model_dir=_model_dir(), dataset=dataset, threat_model=threat)
    except checkpoint.UNUSABLE as error:
        raise CheckpointError(
            f"{', '.join(map(str, paths))}: RobustBench cannot load this as {name}:"
            f" {' '.join(str(error).split())[:500]}"
        ) from error
    checkpoint.check_finite(model.state_dict(), paths[0])
    return model


def files(request: Request) -> tuple[Path, ...]:
    """The entry's files in RobustBench's layout below our folder, or torch.hub's file where a library supplies the
    weights.
    """
    name, dataset, threat = _asked(request)
    source = robustbench_source(dataset, threat, name)
    what = f"robustbench:{name} for {dataset}, {threat}"
    way = (
        f"Get them with `purify models fetch robustbench:{dataset}/{threat}/{name}`, or download {{}} to there."
        f" {weights_on_disk.DRY_RUN}"
    )
    address = library_address(dataset, threat, name)
    if address is not None:
        return (
            weights_on_disk.find(
                (source.file_path, weights_on_disk.hub_checkpoint(address)), what, way.format(address)
            ),
        )
    return tuple(
        weights_on_disk.find((path,), what, way.format(page))
        for path, page in zip(source.files, source.addresses, strict=True)
    )


def _asked(request: Request) -> tuple[str, str, str]:
    """Name, data set and threat, which the zoo has. Raises as `_entry`."""
    _entry(request.dataset, request.threat, request.name)
    return request.name, str(request.dataset), str(request.threat)


def _entry(dataset: str | None, threat: str | None, name: str) -> dict[str, Any]:
    """The zoo's own description of a model. Raises CheckpointError or ValueError for what it does not have."""
    datasets = tuple(member.value for member in BenchmarkDataset)
    if dataset not in datasets:
        raise ValueError(
            f"dataset={dataset!r}: robustbench:{name} needs the data set that it was trained on, one of"
            f" {', '.join(datasets)}"
        )
    zoo = model_dicts[BenchmarkDataset(dataset)]
    known = tuple(t for t in THREATS if ThreatModel(t) in zoo)
    if threat not in known:
        raise ValueError(
            f"threat={threat!r}: robustbench:{name} needs the threat that it was trained for; for {dataset} one of"
            f" {', '.join(known)}"
        )
    models = zoo[ThreatModel(threat)]
    if name not in models:
        elsewhere = [
            f"{d.value}/{t.value}"
            for d, threats in model_dicts.items()
            for t, entries in threats.items()
            if name in entries
        ]
        hint = f"; the name exists for {', '.join(elsewhere)}" if elsewhere else ""
        raise CheckpointError(
            f"RobustBench has no {name!r} for {dataset}, {threat}; did you mean {nearest(name, models)}?{hint}"
        )
    entry: dict[str, Any] = models[name]
    return entry


def _timm_name(dataset: str, threat: str, name: str) -> str:
    """The name under which RobustBench registers an entry with timm, if it does."""
    return f"{name.lower().replace('-', '_')}_{dataset.lower()}_{threat.lower()}"


def _resnet50(path: Path | None) -> nn.Module:
    """The standard ImageNet ResNet-50, which the zoo takes from torchvision."""
    model: nn.Module = torchvision.models.resnet50()
    if path is not None:
        weights_on_disk.load_strictly(model, weights_on_disk.state_dict(path), path, "torchvision's resnet50")
    return model


def _model_dir() -> Path:
    return models_folder() / "robustbench"

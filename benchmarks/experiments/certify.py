"""`purify certify`: one configuration, one folder, certified radii of the smoothed classifier at every noise level.

A folder holds config.yaml, summary.json, images.jsonl (one line per image and noise level), batches/ (the counts of
what is done so far), and certified.png. The counts of a few images are stored as they are finished, so an interrupted
run goes on with what it has.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.config.certify import CertifyConfig
from benchmarks.config.sources import sources
from benchmarks.evaluation.certification import ABSTAIN, Certification, certify
from benchmarks.experiments.setup import check_classes, load_parts
from benchmarks.runs.environment import environment, peak_memory
from benchmarks.runs.fingerprints import fingerprint
from benchmarks.runs.folder import RunError, check_identity
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import CertifyImageLine, CertifySummary, CountsBatch, write, write_lines
from benchmarks.runs.schema.certify import CertifyResult
from purify.defences.smoothed import DenoisedSmoothing, Smoothed
from purify.zoo import warn_if_implausible

CLAIM = (
    "With probability 1 - alpha for each image, the smoothed classifier gives the certified class at every image within"
    " the L2 radius (images in [0, 1]). Nothing is claimed of single draws, single purified images, or other norms."
)


class Certify:
    """A checked certification, ready to run.

    Args:
        settings: the configuration.
        device: where the models run.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: CertifyConfig, device: torch.device):
        self.settings = settings
        self.device = device
        self.parts = load_parts(settings.data, settings.classifier, settings.score, device, settings.data.images)
        self.x, self.y, self.image_ids = self.parts.x, self.parts.y, self.parts.image_ids
        self.models = [self._smoothed(sigma) for sigma in settings.sigma]
        self._check_fit()
        chosen = settings.model_dump(mode="json", exclude={"radii", "sigma"}, exclude_defaults=True)
        code = sources(settings).values()
        self.identity = fingerprint(
            json.dumps(chosen), *self.parts.weights.values(), self.parts.fingerprint_data(), *code
        )

    def _smoothed(self, sigma: float) -> Smoothed:
        classifier, score, seed = self.parts.classifier, self.parts.score, self.settings.seed
        return Smoothed(classifier, sigma, seed) if score is None else DenoisedSmoothing(score, classifier, sigma, seed)

    def _check_fit(self) -> None:
        """One image through every model."""
        for model in self.models:
            check_classes("the smoothed classifier", model, self.x, self.y)
        if self.parts.score is not None and self.settings.score is not None:
            warn_if_implausible(self.parts.score, f"score={self.settings.score.name!r}", self.x[:3])

    def run(self, out: Path, say: Callable[[str], None]) -> tuple[CertifySummary, list[Certification]]:
        """Certifies every image that `out` does not hold yet; returns the summary and what it was made from. `say` gets
        a line per noise level.

        Raises:
            RunError: `out` holds counts of another configuration or of other weights.
        """
        (out / "batches").mkdir(exist_ok=True)
        done: list[Certification] = []
        for number, model in enumerate(self.models, 1):
            title = f"[{number}/{len(self.models)}] sigma {model.sigma:g}"
            done.append(self._certified(out, model, title))
            summary = self.summary(done)
            write_lines(out / "images.jsonl", (line for each in done for line in self._image_lines(each)))
            write(out / "summary.json", summary)
            say(
                f"{title}: average certified radius {done[-1].average_radius:.3f}, {done[-1].abstained} abstentions,"
                f" {done[-1].seconds:.1f} s"
            )
        return summary, done

    def _certified(self, out: Path, model: Smoothed, title: str) -> Certification:
        draws, size = self.settings.n0 + self.settings.n, len(self.x)
        together = max(1, self.settings.batch_size // draws)  # images of one file: enough to fill a batch
        with progress_bar(f"{title}, noisy draws", size * draws) as update:
            starts = range(0, size, together)
            return Certification.join(
                [self._batch(out, model, slice(first, min(first + together, size)), update) for first in starts]
            )

    def _batch(self, out: Path, model: Smoothed, rows: slice, update: Callable[[int, str], None]) -> Certification:
        path = out / "batches" / f"sigma_{model.sigma!r}.{rows.start:06d}.json"
        if path.exists():
            return self._load_batch(path, model, rows)
        s = self.settings
        before = rows.start * (s.n0 + s.n)
        part = certify(
            model,
            self.x[rows],
            self.y[rows],
            s.n0,
            s.n,
            s.alpha,
            s.seed,
            image_ids=self.image_ids[rows],
            batch_size=s.batch_size,
            progress=lambda done, _: update(before + done, ""),
        )
        counts = CountsBatch(
            identity=self.identity,
            selection=part.selection.tolist(),
            counts=part.counts.tolist(),
            seconds=part.seconds,
            network_evaluations=part.network_evaluations,
        )
        write(path, counts, indent=None)
        return part

    def _load_batch(self, path: Path, model: Smoothed, rows: slice) -> Certification:
        try:
            stored = CountsBatch.model_validate_json(path.read_text())
            images, s = rows.stop - rows.start, self.settings
            selection, counts = _counts(stored.selection, images, s.n0), _counts(stored.counts, images, s.n)
        except ValueError as error:
            raise RunError(f"{path} is not a whole batch, delete it to have it made again: {error}") from error
        check_identity(path, stored.identity, self.identity)
        spent = (stored.seconds, stored.network_evaluations)
        return Certification(selection, counts, self.y[rows].cpu(), model.sigma, s.n0, s.n, s.alpha, *spent)

    def _image_lines(self, certification: Certification) -> Iterable[CertifyImageLine]:
        for i, (image, label) in enumerate(zip(self.image_ids.tolist(), certification.labels.tolist(), strict=True)):
            prediction = int(certification.predictions[i])
            yield CertifyImageLine(
                image=image,
                label=label,
                sigma=certification.sigma,
                prediction=None if prediction == ABSTAIN else prediction,
                radius=float(certification.radii[i]),
                lower_bound=float(certification.lower_bounds[i]),
                selection=_sparse(certification.selection[i]),
                counts=_sparse(certification.counts[i]),
            )

    def summary(self, done: list[Certification]) -> CertifySummary:
        """The contents of summary.json."""
        return CertifySummary(
            schema_version="certify 1",
            claim=CLAIM,
            seed=self.settings.seed,
            images=len(self.x),
            n0=self.settings.n0,
            n=self.settings.n,
            alpha=self.settings.alpha,
            complete=len(done) == len(self.models),
            weights=self.parts.weights,
            config=self.settings.model_dump(mode="json"),
            environment=environment(self.device),
            peak_memory=peak_memory(self.device),
            results=tuple(
                self._result(model, certification) for model, certification in zip(self.models, done, strict=False)
            ),
        )

    def _result(self, model: Smoothed, certification: Certification) -> CertifyResult:
        return CertifyResult(
            sigma=model.sigma,
            t=model.t if isinstance(model, DenoisedSmoothing) else None,
            certified={f"{radius:.12g}": certification.certified_accuracy(radius) for radius in self.settings.radii},
            average_radius=certification.average_radius,
            largest_radius=certification.largest_radius,
            abstained=certification.abstained,
            accuracy=certification.accuracy,
            single=certification.single,
            undefined=certification.undefined,
            seconds=round(certification.seconds, 3),
            network_evaluations=certification.network_evaluations,
        )


def _counts(rows: list[list[int]], images: int, draws: int) -> Tensor:
    """Stored counts of classes, (images, classes). Raises ValueError for what so many draws cannot give."""
    counts = torch.tensor(rows, dtype=torch.int64)
    if counts.ndim != 2 or len(counts) != images or (counts < 0).any() or (counts.sum(1) > draws).any():
        raise ValueError(f"its counts are not those of {images} images and {draws} draws")
    return counts


def _sparse(counts: Tensor) -> dict[int, int]:
    """Class -> count, of the classes that were given at all."""
    return {c: int(counts[c]) for c in counts.nonzero()[:, 0].tolist()}

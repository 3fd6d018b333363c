"""Signs of a broken evaluation: what no sound attack on an honest model shows, found in results, each with what to do.

Two rows are compared image by image on the images that both have (`paired_difference`). One "beats" the other by a
lower accuracy with a two-sided p-value below `SIGNIFICANCE`; it is "as good" where the 95 % interval of the difference
has room for 0. The signs are those of Carlini et al. 2019 (arXiv 1902.06705, section 3) and Athalye et al. 2018 (arXiv
1802.00420), and EOT's own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal

from torch import Tensor

from attacks.threats import L2, Linf, Threat
from benchmarks.evaluation import signs
from benchmarks.evaluation.result import Evaluation
from benchmarks.evaluation.signs import Flag
from benchmarks.evaluation.statistics import PairedDifference, paired_difference

SIGNIFICANCE = 0.01
NEAR_ZERO = 0.05
_LARGE = 0.5  # Linf from here on lets every pixel become grey
_SHARE = 0.05  # of images, whose gradients are bad
_ZERO, _BROKEN = (
    re.compile(rf"gradient was {what} for (\d+) of (\d+) images") for what in ("exactly zero", "NaN or infinite")
)

Access = Literal["none", "noise", "white box", "query", "transfer"]


@dataclass(frozen=True)
class Measured:
    """A row of results as it is checked here.

    Attributes:
        model: its name in results; `attack` likewise, "none" for clean images.
        evaluation: what was measured, on the first images of the run.
        access: what the attack sees: nothing, the deployed model's gradients, its answers only, or another model's
            gradients.
        threat: of the attack.
        settings: of the attack, all but the size of the threat: "iterations", "eot" and whatever else distinguishes it.
    """

    model: str
    attack: str
    evaluation: Evaluation
    access: Access = "none"
    threat: Threat | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def flags(rows: Iterable[Measured]) -> list[Flag]:
    """All signs in these rows, each row of a model and an attack once."""
    rows = list(rows)
    attacked = [row for row in rows if row.access != "none"]
    found = [*_without_clean(rows, attacked), *_lost_images(rows), *_bad_gradients(attacked)]
    for best, noise in _against_noise(attacked):
        found += _no_better_than_noise(best, noise)
    for sign, doubted, by in _comparisons(attacked):
        found += _beaten(sign, doubted, by)
    for row in attacked:
        found += _standing_at_large_epsilon(row)
    return found


def looked_for(rows: Iterable[Measured]) -> dict[str, int]:
    """Which of `signs.SIGNS` could be found in these rows, and the most images that it was looked for on: a comparison
    needs `signs.LEAST_IMAGES`.
    """
    rows = list(rows)
    attacked = [row for row in rows if row.access != "none"]
    pairs = [(signs.NOISE, best, noise) for best, noise in _against_noise(attacked)] + list(_comparisons(attacked))
    looks = [(sign, min(_images(doubted), _images(by))) for sign, doubted, by in pairs]
    white = [row for row in attacked if row.access == "white box"]
    # the official code does not tell
    gradients = (signs.ZERO_GRADIENTS, signs.BROKEN_GRADIENTS)
    looks += [(sign, _images(row)) for sign in gradients for row in white if row.settings.get("kind") != "autoattack"]
    looks += [
        (signs.LARGE_EPSILON, _images(row))
        for row in white
        if row.threat is not None and _is_large(row.threat, row.evaluation.x_adv)
    ]
    looks += [(signs.LOST, min(_images(bare), _images(defended))) for bare, defended in _clean_pairs(rows)]
    return {
        sign: max(images for of, images in looks if of == sign)
        for sign in signs.SIGNS
        if any(of == sign for of, _ in looks)
    }


def strongest(rows: Iterable[Measured]) -> Measured | None:
    """The row of the lowest accuracy among those that differentiate the deployed model with several steps, else with
    one.
    """
    white = [row for row in rows if row.access == "white box"]
    return min(
        white, key=lambda row: (row.settings.get("iterations", 0) <= 1, row.evaluation.single.value), default=None
    )


def difference(first: Measured, second: Measured) -> PairedDifference:
    """Accuracy of `first` minus that of `second` on the images that both have."""
    a, b = first.evaluation.per_image.numpy(), second.evaluation.per_image.numpy()
    count = min(len(a), len(b))
    return paired_difference(a[:count], b[:count])


def _without_clean(rows: list[Measured], attacked: list[Measured]) -> Iterable[Flag]:
    clean = {row.model for row in rows if row.access == "none"}
    for model in sorted({row.model for row in attacked} - clean):
        seen = "a worst-of-N accuracy under attack without that of clean images beside it"
        yield Flag(
            signs.NO_CLEAN_ROW,
            model,
            "none",
            seen,
            "measure the same draws on clean images: the noise of the defence alone lowers worst-of-N",
        )


def _clean_pairs(rows: list[Measured]) -> Iterable[tuple[Measured, Measured]]:
    """The clean rows of the bare and of the defended classifier."""
    clean = {row.model: row for row in rows if row.access == "none"}
    if {"undefended", "defended"} <= clean.keys():
        yield clean["undefended"], clean["defended"]


def _lost_images(rows: list[Measured]) -> Iterable[Flag]:
    """A defence that gets less than half of what the bare classifier gets right: what it leaves an attack says
    little.
    """
    for bare, defended in _clean_pairs(rows):
        before, after = bare.evaluation.single, defended.evaluation.single
        if after.ci95[1] < before.value / 2:
            seen = f"clean accuracy {after} %, {before} % without the defence"
            yield Flag(
                signs.LOST,
                "defended",
                "none",
                seen,
                "the purifier destroys the images: look at them, diffuse less, take more steps or another solver",
            )


def _bad_gradients(attacked: list[Measured]) -> Iterable[Flag]:
    """One flag for each model, with the first attack concerned."""
    for pattern, sign, advice in (
        (
            _ZERO,
            signs.ZERO_GRADIENTS,
            (
                "look for a detach, rounding or a saturated softmax (loss: margin); differentiate another way"
                " (gradient: bpda) or by queries"
            ),
        ),
        (
            _BROKEN,
            signs.BROKEN_GRADIENTS,
            "look for what overflows in the model; use loss: margin, or an attack by queries",
        ),
    ):
        concerned: dict[str, list[tuple[Measured, str]]] = {}
        for row in attacked:
            matches = [match for text in row.evaluation.warnings if (match := pattern.search(text))]
            worst = max(matches, key=lambda match: int(match[1]) / int(match[2]), default=None)
            if worst is not None and int(worst[1]) / int(worst[2]) >= _SHARE:
                concerned.setdefault(row.model, []).append((row, worst[0]))
        for model, ((first, text), *others) in concerned.items():
            also = f"; likewise in {', '.join(row.attack for row, _ in others)}" if others else ""
            yield Flag(sign, model, first.attack, f"the attack's {text} of a batch{also}", advice)


def _against_noise(attacked: list[Measured]) -> Iterable[tuple[Measured, Measured]]:
    """(the strongest attack, noise) of each model and threat."""
    for group in _groups(attacked):
        best = strongest(group)
        yield from ((best, row) for row in group if best is not None and row.access == "noise")


def _no_better_than_noise(best: Measured, noise: Measured) -> Iterable[Flag]:
    gain = difference(noise, best)
    little_left = noise.evaluation.single.ci95[0] <= NEAR_ZERO and not _beats(noise, best)
    if gain.ci95[0] <= 0 and not little_left:
        seen = f"random noise leaves {_percent(noise)}, the attack {_percent(best)}: no better on the same images"
        advice = (
            "the gradients point nowhere, or the ball is too small to matter; run `purify audit`, and attacks by query"
            " and by transfer"
        )
        yield Flag(signs.NOISE, best.model, best.attack, seen, advice, noise.attack, gain)


def _comparisons(attacked: list[Measured]) -> Iterable[tuple[str, Measured, Measured]]:
    """(sign, row, another one): the first is in doubt where the other one beats it."""
    for group in _groups(attacked):
        best = strongest(group)
        if best is not None:
            yield from ((sign, best, row) for row in group if (sign := _if_it_beats(best, row)) is not None)
    for small, large in permutations(attacked, 2):
        if _same_but_threat(small, large) and small.threat.epsilon < large.threat.epsilon:  # type: ignore[union-attr]
            yield signs.RISING, large, small
    yield from _with_fewer_draws(attacked)


def _if_it_beats(best: Measured, row: Measured) -> str | None:
    """What it shows where `row` beats the strongest white-box attack; None where it may."""
    if row.access == "white box":
        one_step = row.settings.get("iterations") == 1 and best.settings.get("iterations", 0) > 1
        return signs.ONE_STEP if one_step else None
    return {"query": signs.QUERIES, "transfer": signs.TRANSFER}.get(row.access)


def _with_fewer_draws(attacked: list[Measured]) -> Iterable[tuple[str, Measured, Measured]]:
    """Attacks that differ in EOT alone: that of at most half as many draws, and that of most."""
    families: dict[str, list[Measured]] = {}
    for row in attacked:
        rest = sorted((k, str(v)) for k, v in row.settings.items() if k != "eot")
        families.setdefault(f"{row.model} {row.threat} {row.access} {rest}", []).append(row)
    for family in families.values():
        most = max(family, key=lambda row: row.settings.get("eot", 1))
        draws = max(most.settings.get("eot", 1), 1)  # noise has none
        halves = [row for row in family if row is not most and 2 * row.settings.get("eot", 1) <= draws]
        if halves:
            yield signs.UNCONVERGED, max(halves, key=lambda row: row.settings.get("eot", 1)), most


def _groups(attacked: list[Measured]) -> Iterable[list[Measured]]:
    """Rows of one model, threat and knowledge of the noise."""
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for row in attacked:
        groups.setdefault((row.model, str(row.threat), row.settings.get("randomness", "fresh")), []).append(row)
    return groups.values()


def _standing_at_large_epsilon(row: Measured) -> Iterable[Flag]:
    if row.threat is None or row.access != "white box" or not _is_large(row.threat, row.evaluation.x_adv):
        return
    accuracy = row.evaluation.single
    if accuracy.ci95[0] > NEAR_ZERO:
        seen = f"{accuracy} % right at {row.threat}, where any image can be made grey"
        yield Flag(
            signs.LARGE_EPSILON,
            row.model,
            row.attack,
            seen,
            "the attack fails where it cannot: look for masked gradients by `purify audit`",
        )


def _beats(first: Measured, second: Measured) -> bool:
    gap = difference(second, first)
    return gap.value > 0 and gap.p_value < SIGNIFICANCE


def _beaten(sign: str, row: Measured, by: Measured) -> Iterable[Flag]:
    if not _beats(by, row):
        return
    gap = difference(row, by)
    seen = (
        f"{by.attack} ({by.threat}) leaves {_percent(by)}, {row.attack} ({row.threat}) {_percent(row)};"
        f" {100 * gap.value:.1f} points on the same images"
    )
    advice = signs.COMPARISONS[sign].format(eot=by.settings.get("eot", 1))
    yield Flag(sign, row.model, row.attack, f"{seen} (p = {gap.p_value:.4f})", advice, by.attack, gap)


def _images(row: Measured) -> int:
    return len(row.evaluation.labels)


def _percent(row: Measured) -> str:
    return f"{100 * row.evaluation.single.value:.1f} %"


def _same_but_threat(first: Measured, second: Measured) -> bool:
    same_norm = first.threat is not None and type(first.threat) is type(second.threat)
    return same_norm and (first.model, first.access, dict(first.settings)) == (
        second.model,
        second.access,
        dict(second.settings),
    )


def _is_large(threat: Threat, x: Tensor) -> bool:
    return isinstance(threat, Linf | L2) and threat.epsilon >= large_epsilon(threat, x) * (1 - 1e-9)


def large_epsilon(threat: Threat, x: Tensor) -> float:
    """The size of a ball that lets any image of the shape of `x`, (n, c, h, w), become grey."""
    return _LARGE if isinstance(threat, Linf) else _LARGE * float(x[0].numel()) ** 0.5

"""Signs of a broken evaluation: what no sound attack on an honest model shows, found in results, each with what to do.

Two rows are compared image by image on the images that both have (`paired_difference`). One "beats" the other by a
lower accuracy with a two-sided p-value below `SIGNIFICANCE`; it is "as good" where the 95 % interval of the difference
has room for 0. The signs are those of Carlini et al. 2019 (arXiv 1902.06705, section 3) and Athalye et al. 2018 (arXiv
1802.00420), and EOT's own.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import permutations
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from attacks.inputs import check_inputs
from attacks.randomness import default_keys, uniform
from attacks.threats import L2, Linf, Threat
from benchmarks.config.attack import AttackConfig, ModelName
from benchmarks.config.attack_kinds import (
    APGDConfig,
    EOTAutoAttackConfig,
    IterativeConfig,
    NormConfig,
    PGDConfig,
    SquareConfig,
)
from benchmarks.evaluation.evaluate import Attack, Evaluation
from benchmarks.evaluation.statistics import PairedDifference, paired_difference

SIGNIFICANCE = 0.01
LEAST_IMAGES = 8
"""With fewer images no difference between two rows has so small a p-value: that of n images is 2 / 2^n at the least."""

IMAGES = 32
"""The rows that `probes` asks for are measured on so many images at most."""

NEAR_ZERO = 0.05
_LARGE = 0.5  # Linf from here on lets every pixel become grey
_QUERIES, _QUERIES_PER_DRAW = 200, 50  # at least; by draw of a random model
_TRANSFER_STEPS = 20
_DOUBLED = PGDConfig, IterativeConfig, EOTAutoAttackConfig  # attacks that are the same ones with more draws
_SHARE = 0.05  # of images, whose gradients are bad
_GRADIENTS = ("gradients exactly zero", "gradients NaN or infinite")
_NOISE, _LARGE_EPSILON = "noise as good as the attack", "robust at a large epsilon"
_ONE_STEP, _QUERY, _TRANSFER = "single step beats iterations", "queries beat gradients", "transfer beats white box"
_LOST = "images lost without any attack"
_RISING, _UNCONVERGED = "accuracy rises with epsilon", "EOT not converged"
COMPARISONS = {
    _ONE_STEP: (
        "the steps undo each other or the gradient is masked: more iterations, a smaller step, momentum, other losses"
    ),
    _QUERY: "the gradients are masked: find out by `purify audit` where, and report the lower number",
    _TRANSFER: (
        "the deployed model's gradients are worse than another model's: masked, or too noisy (more EOT); report the"
        " lower number"
    ),
    _RISING: (
        "a larger ball holds the smaller one: start the attack from the smaller ball's result, take steps in proportion"
        " to epsilon, more iterations"
    ),
    _UNCONVERGED: "more draws per gradient: double eot from {eot} until the accuracy stays",
}
"""What to do where a row beats another one that should be the stronger one."""

SIGNS = (*_GRADIENTS, _NOISE, *COMPARISONS, _LARGE_EPSILON, _LOST)
"""All that rows are looked through for, but a missing clean row."""

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


@dataclass(frozen=True)
class Flag:
    """A sign of a broken evaluation.

    Attributes:
        sign: which one.
        model, attack: the row that is in doubt; `compared_with` the row that raises the doubt, if any.
        seen: what was seen; `advice`: what to do.
        difference: in accuracy, of the doubted row minus the other one, with its 95 % interval and p-value.
    """

    sign: str
    model: str
    attack: str
    seen: str
    advice: str
    compared_with: str | None = None
    difference: PairedDifference | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": None if self.difference is None else self.difference.as_dict()}


def measured(model_name: str, config: AttackConfig | None, threat: Threat | None, evaluation: Evaluation) -> Measured:
    """A row of `purify bench` as it is checked here."""
    if config is None:
        return Measured(model_name, "none", evaluation)
    access: Access = "white box" if config.white_box else "query"
    access = "noise" if isinstance(config, NoiseConfig) else "transfer" if config.through != "deployed" else access
    facts = config.facts(model_name == "defended")
    own = {name: value for name, value in config.own.items() if name not in ("eot", "bound")}
    if own.get("step_size") is not None and threat is not None and config.threat is not None:
        # the same attack at another epsilon takes steps in proportion
        own["step_size"] = round(own["step_size"] / threat.epsilon, 6)
    shared = config.model_dump(include={"kind", "gradient", "randomness", "through", "surrogate", "target"})
    within = {} if config.threat is None else config.threat.model_dump(exclude={"epsilon"})
    settings = {**shared, **own, **within, "iterations": facts["iterations"], "eot": facts["eot"]}
    return Measured(model_name, config.label, evaluation, access, threat, settings)


# the checks


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
    """Which of `SIGNS` could be found in these rows, and the most images that it was looked for on: a comparison needs
    `LEAST_IMAGES`.
    """
    rows = list(rows)
    attacked = [row for row in rows if row.access != "none"]
    pairs = [(_NOISE, best, noise) for best, noise in _against_noise(attacked)] + list(_comparisons(attacked))
    looks = [(sign, min(_images(doubted), _images(by))) for sign, doubted, by in pairs]
    white = [row for row in attacked if row.access == "white box"]
    # the official code does not tell
    looks += [(sign, _images(row)) for sign in _GRADIENTS for row in white if row.settings.get("kind") != "autoattack"]
    looks += [
        (_LARGE_EPSILON, _images(row))
        for row in white
        if row.threat is not None and _is_large(row.threat, row.evaluation.x_adv)
    ]
    looks += [(_LOST, min(_images(bare), _images(defended))) for bare, defended in _clean_pairs(rows)]
    return {
        sign: max(images for of, images in looks if of == sign) for sign in SIGNS if any(of == sign for of, _ in looks)
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
            "no clean row",
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
                _LOST,
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
            _GRADIENTS[0],
            (
                "look for a detach, rounding or a saturated softmax (loss: margin); differentiate another way"
                " (gradient: bpda) or by queries"
            ),
        ),
        (_BROKEN, _GRADIENTS[1], "look for what overflows in the model; use loss: margin, or an attack by queries"),
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
        yield Flag(_NOISE, best.model, best.attack, seen, advice, noise.attack, gain)


def _comparisons(attacked: list[Measured]) -> Iterable[tuple[str, Measured, Measured]]:
    """(sign, row, another one): the first is in doubt where the other one beats it."""
    for group in _groups(attacked):
        best = strongest(group)
        for row in group if best is not None else []:
            one_step = (
                row.access == "white box"
                and row.settings.get("iterations") == 1
                and best.settings.get("iterations", 0) > 1
            )
            sign = _ONE_STEP if one_step else {"query": _QUERY, "transfer": _TRANSFER}.get(row.access)
            if sign is not None:
                yield sign, best, row
    for small, large in permutations(attacked, 2):
        if _same_but_threat(small, large) and small.threat.epsilon < large.threat.epsilon:  # type: ignore[union-attr]
            yield _RISING, large, small
    families: dict[str, list[Measured]] = {}
    for row in attacked:
        rest = sorted((k, str(v)) for k, v in row.settings.items() if k != "eot")
        families.setdefault(f"{row.model} {row.threat} {row.access} {rest}", []).append(row)
    for family in families.values():
        most = max(family, key=lambda row: row.settings.get("eot", 1))
        draws = max(most.settings.get("eot", 1), 1)  # noise has none
        fewer = max(
            (row for row in family if row is not most and 2 * row.settings.get("eot", 1) <= draws),
            key=lambda row: row.settings.get("eot", 1),
            default=None,
        )
        if fewer is not None:
            yield _UNCONVERGED, fewer, most


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
            _LARGE_EPSILON,
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
    advice = COMPARISONS[sign].format(eot=by.settings.get("eot", 1))
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
    return isinstance(threat, Linf | L2) and threat.epsilon >= _large(threat, x) * (1 - 1e-9)


def _large(threat: Threat, x: Tensor) -> float:
    return _LARGE if isinstance(threat, Linf) else _LARGE * float(x[0].numel()) ** 0.5


# the rows that the checks need


@dataclass(frozen=True)
class RandomNoise:
    """No attack: one random point of the ball for each image, by its key."""

    query_only: ClassVar[bool] = True

    threat: Threat

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor | None = None, progress: object = None
    ) -> Tensor:
        check_inputs(x, y, keys)
        keys = default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        return self.threat.project(x + self.threat.random_start(uniform(keys, tuple(x.shape[1:]), x.dtype)), x)


class NoiseConfig(NormConfig):
    """A random point of the ball, see `RandomNoise`."""

    makes: ClassVar[Callable[..., Any]] = RandomNoise
    kind: Literal["noise"] = "noise"

    def build(self, defended: bool) -> Attack:
        return RandomNoise(self.threat.build())

    def facts(self, defended: bool) -> dict[str, Any]:
        return {
            "iterations": 0,
            "unit": self.unit,
            "eot": 0,
            "restarts": 1,
            "through": self.through,
            "surrogate": None,
            "target": None,
            "settings": {},
        }


def probes(config: AttackConfig, model: ModelName, x: Tensor) -> list[AttackConfig]:
    """The attacks to measure beside `config`, the strongest white-box attack on that model; none where it is not within
    a norm ball. `x`: (n, c, h, w).
    """
    if not isinstance(config, NormConfig):
        return []
    common = {"threat": config.threat, "models": (model,), "randomness": config.randomness, "gradient": config.gradient}
    threat, eot = config.threat.build(), config.facts(model == "defended")["eot"]
    large = _large(threat, x)
    ratio = large / threat.epsilon
    scaled: dict[str, Any] = {"threat": config.threat.model_copy(update={"epsilon": large})}
    if config.own.get("step_size") is not None:
        scaled["step_size"] = config.own["step_size"] * ratio

    def named(probe: AttackConfig, what: str, **changes: Any) -> AttackConfig:
        return probe.model_copy(update={"name": f"{config.label}+{what}", "models": (model,), **changes})

    found = [
        named(NoiseConfig(**common), "noise"),
        named(
            PGDConfig(kind="pgd", **common, steps=1, eot=eot, step_size=threat.epsilon, random_start=False),
            "single-step",
        ),
        named(
            SquareConfig(
                kind="square", **common | {"gradient": None}, queries=max(_QUERIES, _QUERIES_PER_DRAW * eot), eot=eot
            ),
            "queries",
        ),
        *([named(config, "large-epsilon", **scaled)] if ratio > 1 else []),
    ]
    if model == "defended":
        found.append(
            named(
                APGDConfig(
                    kind="apgd", **common | {"gradient": None}, iterations=_TRANSFER_STEPS, through="classifier"
                ),
                "transfer",
            )
        )
        if isinstance(config, _DOUBLED):
            found.append(named(config, "eot-doubled", eot=2 * eot))
    return found

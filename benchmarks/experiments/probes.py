"""What a diagnosis measures beside a run: noise, single steps, queries, transfer, large balls and more draws, each
against the strongest attack of the configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from attacks.inputs import check_inputs
from attacks.randomness import default_keys, uniform
from attacks.threats import Threat
from benchmarks.config.attack import AttackConfig, ModelName
from benchmarks.config.attack_kinds import (
    APGDConfig,
    EOTAutoAttackConfig,
    IterativeConfig,
    NormConfig,
    PGDConfig,
    SquareConfig,
)
from benchmarks.evaluation.diagnostics import Access, Measured, large_epsilon
from benchmarks.evaluation.evaluate import Attack
from benchmarks.evaluation.result import Evaluation

IMAGES = 32
"""The rows that `probes` asks for are measured on so many images at most."""

_QUERIES, _QUERIES_PER_DRAW = 200, 50  # at least; by draw of a random model
_TRANSFER_STEPS = 20
_DOUBLED = PGDConfig, IterativeConfig, EOTAutoAttackConfig  # attacks that are the same ones with more draws


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

    kind: Literal["noise"] = "noise"
    makes: ClassVar[Callable[..., Any]] = RandomNoise

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
    common: dict[str, Any] = {
        "threat": config.threat,
        "models": (model,),
        "randomness": config.randomness,
        "gradient": config.gradient,
    }
    blind = common | {"gradient": None}  # without the purifier's gradient
    threat, eot = config.threat.build(), config.facts(model == "defended")["eot"]
    large = large_epsilon(threat, x)
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
            SquareConfig(kind="square", **blind, queries=max(_QUERIES, _QUERIES_PER_DRAW * eot), eot=eot),
            "queries",
        ),
        *([named(config, "large-epsilon", **scaled)] if ratio > 1 else []),
    ]
    if model == "defended":
        found.append(
            named(
                APGDConfig(kind="apgd", **blind, iterations=_TRANSFER_STEPS, through="classifier"),
                "transfer",
            )
        )
        if isinstance(config, _DOUBLED):
            found.append(named(config, "eot-doubled", eot=2 * eot))
    return found

"""Attacks of packages that know nothing of keys, as attacks of this one: for comparison."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from attacks.ensembles.autoattack import FreshDraws, seed_of, seeded
from attacks.randomness import default_keys
from attacks.threats import Linf, Threat


@dataclass(frozen=True)
class _Foreign:
    """PGD of another package, with our PGD's steps of 2.5 epsilon / iterations."""

    threat: Threat
    iterations: int
    eot: int

    @property
    def step_size(self) -> float:
        return 2.5 * self.threat.epsilon / self.iterations

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Adversarial images (b, c, h, w), allowed by the threat; repeatable for the same batch and keys."""
        seed = seed_of(default_keys(len(x), x.device) if keys is None else keys)
        with seeded(seed, x.device):  # these packages draw from torch's global generator
            x_adv = self.attack(FreshDraws(model, seed).eval(), x, y)
        return self.threat.project(x_adv.detach(), x)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class Torchattacks(_Foreign):
    """torchattacks: `EOTPGD` where the attack is one of Linf, `PGDL2` (which has no EOT: a draw per step) where it is
    one of L2.
    """

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks

        common = {"eps": self.threat.epsilon, "alpha": self.step_size, "steps": self.iterations}
        if isinstance(self.threat, Linf):
            attack = torchattacks.EOTPGD(model, **common, eot_iter=self.eot)
        else:
            attack = torchattacks.PGDL2(model, **common)
        x_adv: Tensor = attack(x, y)
        return x_adv


class Foolbox(_Foreign):
    """foolbox: `LinfPGD` or `L2PGD` behind its wrapper for EOT, which averages logits."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        if self.eot > 1:
            wrapped = foolbox.models.ExpectationOverTransformationWrapper(wrapped, n_steps=self.eot)
        kind = foolbox.attacks.LinfPGD if isinstance(self.threat, Linf) else foolbox.attacks.L2PGD
        clipped: Tensor
        _, clipped, _ = kind(steps=self.iterations, abs_stepsize=self.step_size)(
            wrapped, x, y, epsilons=self.threat.epsilon
        )
        return clipped

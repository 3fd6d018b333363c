"""What holds of every attack that the package exports: one that is added is tested by being there."""

import dataclasses
import inspect
from functools import cache

import pytest
import torch
from attack_models import Purified, small_attacks

import attacks
from attacks import Attack, count_cost
from attacks.attack import gives_verdict

KINDS = [
    kind
    for kind in (getattr(attacks, name) for name in attacks.__all__)
    if isinstance(kind, type) and issubclass(kind, Attack) and not inspect.isabstract(kind)
]
IMAGES = 4
X = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
KEYS = torch.tensor([7, -3, 2**61, 12])
Y = Purified().classifier(X).argmax(1)
TARGETS = (Y + 1) % 12

each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def made(kind):
    settings = small_attacks()
    assert kind in settings, f"give tests/attack_models.py settings of {kind.__name__}"
    return settings[kind]


@cache
def result(kind, dtype=torch.float64):
    """The images that the attack makes of X, and every progress that it reported."""
    reported = []
    x_adv = made(kind)(Purified(), X.to(dtype), Y, KEYS, lambda done, total: reported.append((done, total)))
    return x_adv, reported


def check_allowed(attack, x_adv, x):
    distance = attack.threat.distance(x_adv, x)
    assert (distance <= attack.threat.epsilon * (1 + 1e-4)).all(), distance
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@each
def test_the_one_call_is_that_of_the_base(kind):
    assert kind.__call__ is Attack.__call__ and getattr(Attack.__call__, "__final__", False)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_images_like_the_given_ones_that_the_threat_allows(kind, dtype):
    x_adv, _ = result(kind, dtype)
    assert x_adv.dtype == dtype and x_adv.shape == X.shape
    check_allowed(made(kind), x_adv, X.to(dtype))


@each
def test_equal_keys_give_equal_images(kind):
    assert torch.equal(made(kind)(Purified(), X, Y, KEYS), result(kind)[0])
    assert torch.equal(made(kind)(Purified(), X[:2], Y[:2]), made(kind)(Purified(), X[:2], Y[:2], torch.arange(2)))


@each
def test_an_image_does_not_depend_on_the_others(kind):
    """But for attacks that say so: the official code draws from a state that all images share, and the budget of
    `Strongest` is that of all images.
    """
    if not kind.by_image:
        assert kind in (attacks.AutoAttack, attacks.Strongest)
        return
    order = torch.tensor([2, 0])
    part = made(kind)(Purified(), X[order], Y[order], KEYS[order])
    torch.testing.assert_close(part, result(kind)[0][order], rtol=0, atol=1e-5)


@each
def test_it_leaves_alone_what_it_was_given(kind):
    """Images that ask for gradients, the model's mode, parameters and gradients, and the global generator."""
    model, x, y, keys = Purified().train(), X.clone().requires_grad_(), Y.clone(), KEYS.clone()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    attack, state = made(kind), torch.get_rng_state()
    x_adv = attack(model, x, y, keys)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x_adv.requires_grad and torch.equal(x_adv, result(kind)[0])
    assert x.grad is None and torch.equal(x, X) and torch.equal(y, Y) and torch.equal(keys, KEYS)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))


@each
def test_a_model_may_write_into_its_input(kind):
    class Scribbling(Purified):
        def forward(self, x, keys=None):
            logits = self.classifier(x)
            if not torch.is_grad_enabled():
                x.zero_()
            return logits

        def trajectory(self, x, keys, points, estimates):
            inside = super().trajectory(x, keys, points, estimates)
            if not torch.is_grad_enabled():
                x.zero_()
            return inside

    x = X.clone()
    x_adv = made(kind)(Scribbling(), x, Y, KEYS)
    assert torch.equal(x, X)
    check_allowed(made(kind), x_adv, X)


@each
def test_progress_rises_to_its_end(kind):
    """A budget of queries or evaluations need not be spent."""
    _, reported = result(kind)
    done, totals = [d for d, _ in reported], {total for _, total in reported}
    assert len(totals) == 1 and done == sorted(done) and done[0] > 0
    total = totals.pop()
    assert done[-1] == total if made(kind).unit == "steps" else done[-1] <= total


@each
def test_gradients_are_asked_for_only_where_it_says_so(kind):
    with count_cost() as cost:
        made(kind)(Purified(), X, Y, KEYS)
    assert cost.forward > 0 and (cost.backward == 0) == kind.query_only


@each
def test_targets(kind):
    attack = made(kind)
    if not kind.takes_targets:
        with pytest.raises(ValueError, match=f"{kind.__name__} has no targeted form: leave out targets"):
            attack(Purified(), X, Y, KEYS, targets=TARGETS)
        return
    x_adv = attack(Purified(), X, Y, KEYS, targets=TARGETS)
    check_allowed(attack, x_adv, X)
    assert not torch.equal(x_adv, result(kind)[0])
    for wrong, expected in (
        (Y, "differ from the labels y, 4 of 4 are equal"),
        (TARGETS - 12, "hold class indices from 0, got -"),
        (TARGETS[:2], r"be int64 classes of shape \(4,\)"),
        (TARGETS.float(), "be int64 classes"),
    ):
        with pytest.raises(ValueError, match=f"targets must {expected}"):
            attack(Purified(), X, Y, KEYS, targets=wrong)


@each
def test_start(kind):
    attack = made(kind)
    near = (X + 0.001).clamp(max=1)
    if not kind.takes_start:
        with pytest.raises(ValueError, match=f"{kind.__name__} cannot begin at given images: leave out start"):
            attack(Purified(), X, Y, KEYS, start=near)
        return
    check_allowed(attack, attack(Purified(), X, Y, KEYS, start=near), X)
    for wrong, expected in (
        (X[:2], "be images like x"),
        (X.float(), "be images like x"),
        (X - 1, r"lie in \[0, 1\]"),
        (1 - X, f"lie within epsilon={attack.threat.epsilon:g} of x, 4 of 4 images do not"),
    ):
        with pytest.raises(ValueError, match=f"start must {expected}"):
            attack(Purified(), X, Y, KEYS, start=wrong)


@each
def test_classes_that_the_model_lacks_are_refused(kind):
    if kind is attacks.AutoAttack:
        return  # the official code looks for none
    with pytest.raises(ValueError, match="the model has 12 classes, labels and targets go up to 16"):
        made(kind)(Purified(), X, torch.full_like(Y, 16), KEYS)


COUNTS = ("steps", "iterations", "queries", "budget", "samples", "eot", "restarts", "batch_size")


@each
def test_bad_settings_are_refused_by_name(kind):
    """As are those of one attack alone, in its own tests."""
    attack = made(kind)
    fields = {field.name for field in dataclasses.fields(attack)}
    for name in fields.intersection(COUNTS):
        for wrong in (0, -1, 1.5):
            with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {wrong}"):
                dataclasses.replace(attack, **{name: wrong})
    for name in fields.intersection(("stop_draws", "target_classes")):
        for wrong in (-1, 1.5):
            with pytest.raises(ValueError, match=f"{name} must be (an integer from 0|a positive integer), got {wrong}"):
                dataclasses.replace(attack, **{name: wrong})
    if "loss" in fields:
        with pytest.raises(ValueError, match="loss='cw' is not one of ce, margin, dlr"):
            dataclasses.replace(attack, loss="cw")


WRONG = {
    "x": (X[0], X[:0], X - 1, X + 1, X.where(X > X.amin(), torch.nan), X.where(X > X.amin(), torch.inf), X.long()),
    "y": (Y[:2], Y.float(), Y.int(), Y - 12, Y[:, None]),
    "keys": (KEYS[:2], KEYS.float(), KEYS[:, None]),
}


@each
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(kind, name):
    def refuse(*inputs):
        raise AssertionError("refused before any call of the model")

    model = Purified()
    model.register_forward_pre_hook(refuse)
    for wrong in WRONG[name]:
        inputs = {"x": X, "y": Y, "keys": KEYS, name: wrong}
        if name == "x" and not len(wrong):
            inputs |= {"y": Y[:0], "keys": KEYS[:0]}
        with pytest.raises(ValueError, match=rf"^{name} (must|holds)"):
            made(kind)(model, **inputs)


@each
def test_what_it_looks_at_must_be_there(kind):
    class Bare(torch.nn.Module):
        def forward(self, x, keys):
            return Purified().classifier(x)

    attack = made(kind)
    if attack.needs is None:
        check_allowed(attack, attack(Bare(), X[:1], Y[:1]), X[:1])
        return
    with pytest.raises(ValueError, match=f"{kind.__name__}.* looks inside the model, but Bare has no"):
        attack(Bare(), X, Y)


@each
def test_its_attributes_tell_the_truth(kind):
    attack = made(kind)
    assert kind.gives_verdict == hasattr(attack, "with_verdict") == gives_verdict(attack)
    assert kind.lengths and all(isinstance(getattr(attack, name), int) for name in kind.lengths)
    assert str(attack.threat) and repr(attack).startswith(f"{kind.__name__}(")
    assert not kind.resumable


@each
def test_settings_go_by_their_other_names_too(kind):
    attack = made(kind)
    values = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
    lengths = {"iterations", "steps"} & values.keys()
    assert {"iterations", "steps"} - lengths == kind.other_names.keys() or not lengths
    for other, name in kind.other_names.items():
        renamed = {other if key == name else key: value for key, value in values.items()}
        assert kind(**renamed) == attack
        with pytest.raises(ValueError, match=f"{other} is another name of {name}: give one of them"):
            kind(**values, **{other: values[name]})


def test_an_attack_says_whether_it_gives_a_verdict():
    with pytest.raises(TypeError, match="Silent: gives_verdict must say whether it has a method `with_verdict`"):

        class Silent(Attack):
            def with_verdict(self):
                pass


@each
def test_bad_gradients_are_told_once_where_the_call_stands(kind):
    """Of all runs and parts together, for every attack that follows gradients of its own."""

    class Dead(Purified):
        def forward(self, x, keys=None):
            return self.classifier(x.detach()) + 0 * x.sum()

        def classifier(self, x):
            return super().classifier(x.detach()) + 0 * x.sum()

        def trajectory(self, x, keys, points, estimates):
            inside = super().trajectory(x.detach(), keys, points, estimates)
            inside.result = inside.result + 0 * x.sum()
            return inside

    if kind.query_only or kind is attacks.AutoAttack:
        return
    with pytest.warns(UserWarning, match="gradient was exactly zero for 4 of 4 images") as warned:
        made(kind)(Dead(), X, Y, KEYS)
    told = [warning for warning in warned if "gradient" in str(warning.message)]
    assert len(told) == 1 and told[0].filename == __file__


@dataclasses.dataclass(frozen=True)
class Brighter(Attack):
    """An attack from outside the package."""

    threat: attacks.Threat
    iterations: int = 2

    takes_start = False

    def run(self, task):
        x = task.x
        for step in range(self.iterations):
            x = self.threat.project(x + self.threat.epsilon / self.iterations, task.x)
            task.progress(step + 1, self.iterations)
        return x


def test_an_attack_of_one_s_own():
    """It writes its settings and a run; checks, keys and the rest are those of the base."""
    attack, seen = Brighter(attacks.Linf(0.1)), []
    x_adv = attack(Purified(), X, Y, progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(x_adv, (X + 0.1).clamp(max=1))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="iterations must be a positive integer, got 0"):
        Brighter(attacks.Linf(0.1), 0)
    with pytest.raises(ValueError, match="Brighter cannot begin at given images"):
        attack(Purified(), X, Y, start=X)
    with pytest.raises(TypeError, match="Wrong must write `run`"):
        type("Wrong", (Brighter,), {"__call__": lambda self, model, x, y: x})
    with pytest.raises(TypeError, match="abstract method"):
        type("Nothing", (Attack,), {})()


def test_a_function_is_an_attack_too():
    def shift(model, x, y, keys=None, progress=None):
        return (x + 0.01).clamp(max=1)

    assert not gives_verdict(shift)
    shift.with_verdict = lambda model, x, y, keys=None, progress=None: (x, y == y)
    assert gives_verdict(shift)

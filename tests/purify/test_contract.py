"""What holds for every purifier and every solver, found in the registries: a new one is tested by being there."""

import copy
import inspect

import pytest
import torch

from purify import DiffPure, Resized, ScoreModel, Sequential, noise_keys
from purify.networks import build
from purify.purifiers import PURIFIERS
from purify.schedules import LinearVP
from purify.solvers import SOLVERS

# what makes a scheme small enough for many tests; one that is not named here has its defaults
SETTINGS = {
    "diffpure": {"steps": 3},
    "langevin": {"steps": 3},
    "gdmp": {"steps": 3, "passes": 2, "scale": 500.0},
    "gradual": {"stages": (30, 50), "steps": (2, 3)},
    "purify++": {"steps": 3},
    "adp": {"steps": 3},
    "likelihood": {"steps": 2},
}
X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
KEYS = noise_keys(0, torch.arange(3), 0)
MODES = ("exact", "backprop", "adjoint", "bpda")


def _scheme(name):
    return lambda score, **options: PURIFIERS[name](score, **SETTINGS.get(name, {}), **options)


def _solver(name):
    return lambda score, **options: DiffPure(score, 0.1, 3, solver=name, **options)


def _sequential(score, seed=0, **options):
    return Sequential([DiffPure(score, 0.1, 2, **options), PURIFIERS["langevin"](score, 2, **options)], seed)


def _resized(score, **options):
    return Resized(DiffPure(score, 0.1, 2, **options), (12, 12))


CASES = {f"purifier {name}": _scheme(name) for name in PURIFIERS}
CASES |= {f"solver {name}": _solver(name) for name in SOLVERS}
CASES |= {"Sequential": _sequential, "Resized": _resized}


@pytest.fixture(scope="module")
def score():
    torch.manual_seed(0)
    network = build("small_unet", {"channels": 1, "base_channels": 8, "multipliers": [1, 2], "blocks": 1})
    for parameter in network.parameters():
        if not parameter.any():  # zero-initialised layers would hide most of the network
            torch.nn.init.normal_(parameter, std=0.05)
    return ScoreModel(network, LinearVP(), "v", image_shape=(1, 8, 8)).eval()


@pytest.fixture(params=CASES)
def make(request, score):
    """make(**options): the purifier."""
    return lambda **options: CASES[request.param](score, **options)


def gradient(purifier):
    x = X.clone().requires_grad_()
    purified = purifier(x, KEYS)
    return purified.detach(), torch.autograd.grad((purified * WEIGHT).sum(), x)[0]


def modes(make):
    """The purifier in every gradient mode that it has."""
    found = {}
    for mode in MODES:
        try:
            found[mode] = make(gradient=mode)
        except ValueError as error:  # nothing but the adjoint may be missing
            assert mode == "adjoint" and "adjoint" in str(error)
    return found


def test_both_precisions_see_the_same_noise(make, score):
    purifier = make()
    with torch.no_grad():
        single = purifier(X, KEYS)
        double = copy.deepcopy(purifier).double()(X.double(), KEYS)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert single.shape == double.shape == X.shape
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)
    assert next(score.parameters()).dtype == torch.float32


@torch.no_grad()
def test_keys_alone_decide(make):
    purifier = make()
    first = purifier(X, KEYS)
    assert first.isfinite().all() and torch.equal(purifier(X, KEYS), first)
    for which in (slice(0, 1), slice(1, 3), [2, 0, 1]):  # whatever batch an image sits in, and wherever in it
        torch.testing.assert_close(purifier(X[which], KEYS[which]), first[which], rtol=0, atol=1e-5)


@torch.no_grad()
def test_calls_without_keys_are_fresh_and_repeat_themselves(make):
    purifier, again, other = make(), make(), make()
    calls = [purifier(X) for _ in range(2)]
    assert torch.equal(again(X), calls[0]) and torch.equal(again(X), calls[1])
    if not torch.equal(purifier(X, KEYS), purifier(X, KEYS + 1)):  # some solvers and schemes may draw nothing
        assert not torch.equal(calls[0], calls[1])
    assert torch.equal(other(X, KEYS), purifier(X, KEYS))  # calls before leave no trace


@pytest.mark.parametrize(
    ("x", "keys", "message"),
    [
        (X[0], None, r"x must be images of shape \(b, .*got \(1, 8, 8\)"),
        (torch.rand(3, 2, 8, 8), None, r"x must be images of shape \(b, 1, h, w\), got \(3, 2, .*"),
        (X, KEYS[:2], r"keys must be int64 of shape \(3,\).*of shape \(2,\)"),
        (X, KEYS[:, None], r"keys must be int64 of shape \(3,\).*of shape \(3, 1\)"),
        (X, KEYS.double(), r"keys must be int64 of shape \(3,\).*got torch.float64"),
    ],
)
def test_refused_input(make, x, keys, message):
    with pytest.raises(ValueError, match=message):
        make()(x, keys)


@pytest.mark.parametrize("name", [name for name in CASES if name != "Resized"])  # bytes have no bilinear mean
def test_refused_dtype(name, score):
    with pytest.raises(ValueError, match=r"x must be floating point in \[0, 1\], got torch.uint8"):
        CASES[name](score)((X * 255).byte(), KEYS)


def test_nothing_of_the_user_is_touched(score):
    model = copy.deepcopy(score).train()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    flags, values = [p.requires_grad for p in parameters], copy.deepcopy(model.state_dict())
    for make in CASES.values():
        for mode, purifier in modes(lambda make=make, **options: make(model, **options)).items():
            x, keys = X.clone(), KEYS.clone()
            purifier(x.requires_grad_(), keys).sum().backward()
            assert torch.equal(x.detach(), X) and torch.equal(keys, KEYS) and x.grad is not None
            if mode != "backprop":  # the only mode that reaches the network's parameters
                assert all(p.grad is None for p in parameters)
            model.zero_grad(set_to_none=True)
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in parameters] == flags
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_gradient_modes(make):
    """One value for all modes, and one gradient, bit for bit, for the two that are exact."""
    found = {mode: gradient(purifier) for mode, purifier in modes(make).items()}
    with torch.no_grad():
        bare = make()(X, KEYS)
    assert {"exact", "backprop", "bpda"} <= found.keys()
    for value, slope in found.values():
        torch.testing.assert_close(value, bare, rtol=0, atol=1e-6)
        assert slope.isfinite().all() and slope.any()
    assert torch.equal(found["exact"][0], found["backprop"][0])
    assert torch.equal(found["exact"][1], found["backprop"][1])


def test_empty_batch(make):
    for purifier in modes(make).values():
        assert purifier(X[:0], KEYS[:0]).shape == (0, 1, 8, 8)
        assert purifier(X[:0]).shape == (0, 1, 8, 8)


def test_what_is_printed_are_the_settings(make):
    purifier = make()
    text = repr(purifier)
    assert text.startswith(type(purifier).__name__ + "(") and text.endswith(")")
    assert "\n" not in text and len(text) < 400 and "Conv2d" not in text
    if type(purifier) in PURIFIERS.values():
        assert "gradient='exact'" in text


@pytest.mark.parametrize("name", PURIFIERS)
def test_schemes_are_built_alike(name):
    """As configurations build them: the score model first, then settings by name, with a gradient mode and a seed."""
    parameters = inspect.signature(PURIFIERS[name]).parameters
    assert next(iter(parameters)) == "score"
    assert {"gradient", "seed"} <= parameters.keys()
    assert all(p.default is not p.empty for n, p in parameters.items() if n != "score")


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_settings(name):
    settings = SOLVERS[name]()
    assert hash(settings) == hash(SOLVERS[name]()) and settings == SOLVERS[name]()
    with pytest.raises(AttributeError):
        settings.anything = 1  # frozen
    with pytest.raises(ValueError, match=f"solver='{name.replace('+', '.')}' has no option 'nonsense'"):
        DiffPure(ScoreModel(torch.nn.Identity(), LinearVP()), solver={"name": name, "nonsense": 1})

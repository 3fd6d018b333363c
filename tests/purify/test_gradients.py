import warnings

import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, noise_keys
from purify.gradients import MODES

KEYS = noise_keys(0, torch.arange(4), 0)
X = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def value_and_gradient(purifier, x, keys=KEYS):
    x = x.clone().requires_grad_()
    y = purifier(x, keys)
    (gradient,) = torch.autograd.grad((y * WEIGHT.to(x.dtype)).sum(), x)
    return y.detach(), gradient


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("method", ["euler", "srk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_equals_backprop_bitwise(unet_score, dtype, method):
    score, x = unet_score.to(dtype), X.to(dtype)
    y, exact = value_and_gradient(DiffPure(score, 0.1, 9, "exact", method=method), x)
    y_reference, backprop = value_and_gradient(DiffPure(score, 0.1, 9, "backprop", method=method), x)
    assert torch.equal(y, y_reference)
    assert torch.equal(exact, backprop)


def test_exact_in_float32_is_close_to_float64(unet_score):
    _, single = value_and_gradient(DiffPure(unet_score, 0.1, 10), X)
    _, double = value_and_gradient(DiffPure(unet_score.double(), 0.1, 10), X.double())
    assert relative_error(single, double) < 1e-5


def test_exact_gradient_matches_finite_differences(unet_score):
    purifier, x = DiffPure(unet_score.double(), 0.1, 5), X.double()
    _, gradient = value_and_gradient(purifier, x)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    h = 1e-5
    with torch.no_grad():
        difference = ((purifier(x + h * direction, KEYS) - purifier(x - h * direction, KEYS)) * WEIGHT).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-7, atol=0)


def test_all_modes_give_the_same_values(unet_score):
    values = [value_and_gradient(DiffPure(unet_score, 0.1, 6, mode), X)[0] for mode in MODES]
    for other in values[1:]:
        assert torch.equal(values[0], other)


def test_bpda_is_the_identity(unet_score):
    _, gradient = value_and_gradient(DiffPure(unet_score, 0.1, 6, "bpda"), X)
    torch.testing.assert_close(gradient, WEIGHT)


@pytest.mark.parametrize("mode", ["exact", "backprop", "bpda"])
def test_functional_gradients(unet_score, mode):
    purifier = DiffPure(unet_score, 0.1, 5, mode)
    y, expected = value_and_gradient(purifier, X)
    functional = torch.func.grad(lambda x: (purifier(x, KEYS) * WEIGHT).sum())(X)
    torch.testing.assert_close(functional, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    value, pull_back = torch.func.vjp(lambda x: purifier(x, KEYS), X)
    assert torch.equal(value, y)
    torch.testing.assert_close(pull_back(WEIGHT)[0], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_autocast_is_repeated_in_the_backward_pass(unet_score):
    """Under autocast the recomputed steps must run in the same precision, or the gradient belongs to another
    function.
    """
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = DiffPure(unet_score, 0.1, 4, mode)(x, KEYS)
        gradients.append(torch.autograd.grad((y.float() * WEIGHT).sum(), x)[0])
    assert torch.equal(gradients[0], gradients[1])


def test_network_is_constant(unet_score):
    """exact, adjoint and bpda compute no parameter gradient, even for an unfrozen network; no mode alters the
    module.
    """
    network = unet_score.network.requires_grad_(True).train()
    for mode in ("exact", "adjoint", "bpda"):
        DiffPure(unet_score, 0.1, 3, mode)(X.clone().requires_grad_(), KEYS).sum().backward()
        assert all(p.grad is None for p in network.parameters())
    assert network.training and all(p.requires_grad for p in network.parameters())


def test_backprop_trains_through_the_purifier(unet_score):
    unet_score.network.requires_grad_(True)
    DiffPure(unet_score, 0.1, 3, "backprop")(X, KEYS).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet_score.network.parameters())


def test_gradient_passes_through_the_defended_classifier(unet_score):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        logits = DefendedClassifier(DiffPure(unet_score, 0.1, 4, mode), classifier)(x, KEYS)
        gradients.append(torch.autograd.grad(logits.logsumexp(1).sum(), x)[0])
    assert torch.equal(*gradients)
    assert (gradients[0].flatten(1) != 0).all(1).all() or gradients[0].flatten(1).ne(0).float().mean() > 0.99


def test_second_derivatives_are_refused_not_wrong(unet_score):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(DiffPure(unet_score, 0.1, 3)(x, KEYS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_exact_keeps_no_graph(unet_score):
    """Tensors that autograd saves between forward and backward: none of the network's for `exact`, all of them for
    `backprop`.
    """

    def saved_by(mode):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            DiffPure(unet_score, 0.1, 20, mode)(X.clone().requires_grad_(), KEYS)
        return sum(saved)

    assert saved_by("exact") <= X.numel() < 100 * X.numel() < saved_by("backprop")


def test_no_warnings(unet_score):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in MODES:
            value_and_gradient(DiffPure(unet_score, 0.1, 2, mode), X)

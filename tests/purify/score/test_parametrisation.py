"""Every kind of prediction from every other, in float64 against the definitions."""

from typing import get_args

import pytest
import torch
from processes import PROCESSES

from purify.score.parametrisation import Prediction, convert, from_parts, preconditioning

KINDS = get_args(Prediction)


def normals(count, dtype=torch.float64):
    return torch.randn(count, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def written_out(x0, noise, alpha, sigma, sigma_data):
    """The definitions, for x = alpha x0 + sigma noise."""
    y, r = x0 + sigma / alpha * noise, sigma / alpha
    c_skip, c_out = sigma_data**2 / (r**2 + sigma_data**2), r * sigma_data / (r**2 + sigma_data**2) ** 0.5
    return {
        "noise": noise,
        "score": -noise / sigma,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "edm": (x0 - c_skip * y) / c_out,
    }


@pytest.mark.parametrize("schedule", PROCESSES, ids=str)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_any_to_any(schedule, sigma_data):
    x0, noise = normals(2)
    t = schedule.t_max * torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64)[:, None, None, None]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    truth = written_out(x0, noise, alpha, sigma, sigma_data)
    for source in KINDS:
        torch.testing.assert_close(
            from_parts(x0, noise, alpha, sigma, source, sigma_data), truth[source], rtol=1e-9, atol=1e-9
        )
        for target in KINDS:
            found = convert(truth[source], alpha * x0 + sigma * noise, alpha, sigma, source, target, sigma_data)
            torch.testing.assert_close(found, truth[target], rtol=1e-8, atol=1e-8 * float(truth[target].abs().max()))


def test_floats_and_tensors_agree():
    output, x = normals(2)
    for source in KINDS:
        for target in KINDS:
            one = convert(output, x, 0.8, 0.7, source, target)
            many = convert(
                output,
                x,
                torch.full((3, 1, 1, 1), 0.8).double(),
                torch.full((3, 1, 1, 1), 0.7).double(),
                source,
                target,
            )
            torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)
            assert source != target or one is output


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_preconditioning_keeps_unit_variance(sigma_data):
    """EDM's table 1 and appendix B.6: inputs and targets of variance 1 at every noise level, c_noise =
    ln(sigma) / 4.
    """
    sigma = torch.logspace(-3, 2, 31, dtype=torch.float64)
    p = preconditioning(sigma, sigma_data)
    one = torch.ones_like(sigma)
    torch.testing.assert_close(p.c_in**2 * (sigma**2 + sigma_data**2), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ((1 - p.c_skip) ** 2 * sigma_data**2 + p.c_skip**2 * sigma**2) / p.c_out**2, one, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(p.c_noise, sigma.log() / 4, rtol=1e-12, atol=0)
    single = preconditioning(float(sigma[7]), sigma_data)
    assert (single.c_skip, single.c_out, single.c_in, single.c_noise) == pytest.approx(
        [float(c[7]) for c in (p.c_skip, p.c_out, p.c_in, p.c_noise)]
    )


def test_little_noise_loses_no_digits():
    """In float32 at sigma = 1e-4, where (x0 - c_skip x) / c_out and (x - D) / sigma would keep three."""
    x0, noise = normals(2, torch.float32)
    sigma = 1e-4
    x = x0.double() + sigma * noise.double()
    exact = from_parts(x0.double(), noise.double(), 1.0, sigma, "edm")
    torch.testing.assert_close(from_parts(x0, noise, 1.0, sigma, "edm").double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        convert(exact.float(), x.float(), 1.0, sigma, "edm", "noise"), noise, rtol=1e-5, atol=1e-6
    )


def test_gradients_pass():
    """d noise / d (output, x) of v prediction: alpha and sigma."""
    output, x = (tensor.requires_grad_() for tensor in normals(2))
    gradients = torch.autograd.grad(convert(output, x, 0.8, 0.6, "v", "noise").sum(), (output, x))
    for gradient, expected in zip(gradients, (0.8, 0.6), strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, expected))


def test_unknown_kinds():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="source='eps' is not one of noise, score, x0, v, edm"):
        convert(x, x, 1.0, 1.0, "eps", "noise")
    with pytest.raises(ValueError, match="target='flow' is not one of noise, score, x0, v, edm"):
        convert(x, x, 1.0, 1.0, "noise", "flow")

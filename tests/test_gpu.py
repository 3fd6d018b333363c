"""The same keys on a GPU: equal noise, equal verdicts, exact gradients. Skipped where there is none."""

import pytest
import torch

from attacks import PGD, Linf
from benchmarks import config, datasets, load_classifier
from benchmarks.config.bench import BenchConfig
from benchmarks.evaluation import evaluate
from benchmarks.evaluation.precision import full_precision
from benchmarks.experiments.audit import Audit
from purify import DefendedClassifier, DiffPure, load_score_model, noise_keys
from purify.noise import standard_normal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

X = datasets.as_floats(datasets.load("fashion-mnist-embedded").images[:16])
Y = datasets.load("fashion-mnist-embedded").labels[:16]
KEYS = noise_keys(0, torch.arange(16), 0)


@pytest.fixture
def repeatable():
    with full_precision(torch.device("cuda")):
        yield


def defended(device, gradient="exact", dtype=torch.float32):
    purifier = DiffPure(load_score_model("fashion-mnist"), 0.1, 6, gradient)
    return DefendedClassifier(purifier, load_classifier("fashion-mnist")).to(device, dtype)


def gradient(model, x, keys):
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(model.purifier(x, keys).square().sum(), x)
    return result.cpu().double()


def test_noise_is_the_same():
    assert torch.equal(noise_keys(3, torch.arange(16, device="cuda"), 5).cpu(), noise_keys(3, torch.arange(16), 5))
    torch.testing.assert_close(
        standard_normal(KEYS.cuda(), 1, 2, (1000,)).cpu(), standard_normal(KEYS, 1, 2, (1000,)), rtol=0, atol=1e-5
    )


def test_verdicts_agree_with_the_cpu(repeatable):
    results = [
        evaluate(defended(d), X.to(d), Y.to(d), PGD(Linf(0.05), steps=2), draws=4).predictions for d in ("cpu", "cuda")
    ]
    assert (results[0] != results[1]).double().mean() < 0.05  # an image on the boundary may fall on either side
    clean = [evaluate(defended(d), X.to(d), Y.to(d), draws=4).predictions for d in ("cpu", "cuda")]
    assert torch.equal(*clean)


def test_exact_is_backprop_and_close_to_float64(repeatable):
    x, keys = X.cuda(), KEYS.cuda()
    exact, backprop = (gradient(defended("cuda", mode), x, keys) for mode in ("exact", "backprop"))
    assert torch.equal(exact, backprop)
    reference = gradient(defended("cuda", dtype=torch.float64), x.double(), keys)
    assert (exact - reference).norm() / reference.norm() < 1e-5


def test_exact_memory_grows_by_its_states():
    peaks = []
    for steps in (20, 200):
        purifier, x = DiffPure(load_score_model("fashion-mnist"), 0.1, steps).cuda(), X.cuda()
        gradient(DefendedClassifier(purifier, torch.nn.Identity()), x, KEYS.cuda())
        torch.cuda.reset_peak_memory_stats()
        gradient(DefendedClassifier(purifier, torch.nn.Identity()), x, KEYS.cuda())
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] <= 180 * X.numel() * 4 + 2**20


def test_audit_of_the_default(tmp_path):
    """As a user calls it: the audit itself sees to full precision."""
    settings = config.load(BenchConfig, "fashion-mnist/bench", ["audit.steps=[10]", "audit.memory_images=8"])
    result = Audit(settings, torch.device("cuda")).run(tmp_path, lambda text: None)
    assert not [verdict for verdict in result.verdicts if verdict.passed is False]

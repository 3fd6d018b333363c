import json

import golden
import pytest
import torch
import torchsde

from benchmarks import cli, config
from benchmarks.config.bench import BenchConfig
from benchmarks.experiments import audit
from benchmarks.experiments.audit_verdicts import verdicts
from benchmarks.experiments.published_adjoint import PublishedAdjoint
from benchmarks.runs.schema import AuditResult
from benchmarks.runs.schema.audit import GradientRow
from purify import DiffPure, noise_keys

QUICK = [
    "audit.images=3",
    "audit.memory_images=0",
    "audit.convention_images=4",
    "audit.t_star=[0.05,0.1]",
    "audit.steps=[3]",
    "purifier.steps=4",
]
KEYS = noise_keys(0, torch.arange(4), 0)


def gradient(purifier, x, weight):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((purifier(x, KEYS[: len(x)]) * weight).sum(), x)[0]


def test_compare_has_known_answers():
    truth = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    wrong = torch.tensor([[3.0, -4.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)
    result = audit.compare(wrong, truth)
    assert result.relative_error == pytest.approx((65 / 26) ** 0.5)
    assert result.relative_error_images.as_json() == {"median": pytest.approx(1.0), "max": pytest.approx(1.6)}
    assert result.cosine.min == pytest.approx(-7 / 25) and result.cosine.max == pytest.approx(1)
    assert result.sign_agreement == pytest.approx(3 / 4)
    broken = audit.compare(torch.tensor([[0.0, 0.0], [torch.nan, 1.0]]).reshape(2, 1, 1, 2), truth)
    assert broken.zero == broken.not_finite == 0.5


@pytest.mark.parametrize("overrides", [[], ["purifier.eta=0.5", "purifier.noising=discrete", "purifier.grid=uniform"]])
def test_the_truth_is_what_float64_finite_differences_say(overrides):
    """Independent of autograd altogether."""
    experiment = audit.Audit(config.load(BenchConfig, "fashion-mnist/bench", [*QUICK, *overrides]), torch.device("cpu"))
    found = experiment.finite_differences()
    assert found.exact < 1e-6 and found.reference < 1e-6


def test_published_adjoint_has_diffpures_values_and_converges_to_the_gradient(gaussian_score, unet_score):
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    value = PublishedAdjoint(unet_score, 0.1, 6)(x, KEYS)
    assert golden.relative_error(value, DiffPure(unet_score, 0.1, 6, grid="diffpure")(x, KEYS)) < 1e-6

    score, x = gaussian_score(0.2, 0.5), torch.rand(1, 1, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (50, 150):
        exact = gradient(DiffPure(score, 0.3, steps, grid="diffpure"), x, 1.0)
        errors.append(golden.relative_error(gradient(PublishedAdjoint(score, 0.3, steps), x, 1.0), exact))
    assert errors[1] < 0.45 * errors[0] < 0.1


def test_published_adjoint_leaves_the_users_network_alone(unet_score):
    x = torch.rand(2, 1, 28, 28)
    gradient(PublishedAdjoint(unet_score, 0.1, 2), x, 1.0)
    assert all(not p.requires_grad and p.grad is None for p in unet_score.parameters())


def run(tmp_path, monkeypatch, *overrides):
    arguments = [part for override in [*QUICK, *overrides] for part in ("--set", override)]
    monkeypatch.setattr("sys.argv", ["purify", "audit", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    result = tmp_path / "out" / "audit.json"
    return stop.value.code, json.loads(result.read_text()) if result.exists() else None


def test_audit_of_the_default(tmp_path, monkeypatch, capsys):
    code, result = run(tmp_path, monkeypatch)
    assert code == 0
    rows = {(row["mode"], row["precision"]): row for row in result["gradients"]}
    for mode in ("exact", "backprop"):
        assert rows[mode, "float32"]["relative_error"] < 1e-5 and rows[mode, "float64"]["relative_error"] < 1e-12
    for mode in ("exact", "adjoint", "bpda"):
        assert rows[mode, "float32"]["value_as_backprop"]
    assert rows[audit.PUBLISHED, "float32"]["steps"] == 110  # its own dt of 1/1000
    assert rows["bpda", "float32"]["relative_error"] > 0.1
    assert {(row["t_star"], row["steps"]) for row in result["sweep"]} == {(0.05, 3), (0.1, 3)}
    assert len(result["sweep"]) == 2 * 5
    assert all(row["value_error"] < 1e-5 for row in result["gradients"] + result["sweep"])
    assert list(result["time"]["ratio"]) == [
        "bare network evaluations",
        "backprop",
        "exact",
        "adjoint",
        "bpda",
        audit.PUBLISHED,
    ]
    assert result["conventions"][0]["mean_change"] == 0 < result["conventions"][-1]["mean_change"] < 0.01
    assert (tmp_path / "out" / "audit.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "the true gradient" in text and "not the gradient of this defence" in text


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch, capsys):
    """A step whose backward pass is off by a tenth of a per cent, as a recomputation with slightly other noise would
    be.
    """
    real = torch.func.vjp

    def wrong(function, *primals):
        value, pull_back = real(function, *primals)
        return value, lambda cotangent, **options: tuple(part * 1.001 for part in pull_back(cotangent, **options))

    monkeypatch.setattr(torch.func, "vjp", wrong)
    code, result = run(tmp_path, monkeypatch)
    assert code == 1
    failed = [(v["mode"], v["precision"], v["steps"]) for v in result["verdicts"] if v["passed"] is False]
    swept = [("exact", "float32", 3)] * 2
    assert failed == [("exact", "float64", 4), ("exact", "float32", 4), *swept, ("finite differences", "float64", 4)]
    assert "FAIL exact" in capsys.readouterr().out


def row(mode, precision="float32", **changes):
    errors = {
        "relative_error": 1e-7,
        "relative_error_images": {"median": 1e-7, "max": 1e-7},
        "cosine": {"median": 1.0, "min": 1.0, "max": 1.0},
    }
    if precision == "float64":
        errors |= {"relative_error": 1e-15, "relative_error_images": {"median": 1e-15, "max": 1e-15}}
    rest = {
        "zero": 0.0,
        "not_finite": 0.0,
        "value_error": 1e-7,
        "value_as_backprop": True,
        "gradient_as_backprop": True,
        "t_star": 0.1,
        "steps": 5,
        "grid": "uniform",
        "sign_agreement": 1.0,
    }
    return GradientRow.model_validate({"mode": mode, "precision": precision, **errors, **rest, **changes})


def verdicts_of(gradients, sweep=()):
    return verdicts(AuditResult(schema=1, images=3, gradients=tuple(gradients), sweep=tuple(sweep)))


@pytest.mark.parametrize(
    ("changed", "passed", "text"),
    [
        (row("exact"), True, "the true gradient"),
        (
            row("exact", relative_error=2e-5, gradient_as_backprop=False),
            False,
            "gradients differ from those of backprop, an error beyond 1e-05",
        ),
        (row("exact", zero=0.25), False, "dead gradients"),
        # one small gradient of many
        (row("exact", "float64", relative_error_images={"median": 1e-15, "max": 1e-3}), False, "an error beyond 1e-12"),
        (row("exact", value_error=0.01), False, "values are off by 1e-02"),
        (row("adjoint", value_as_backprop=False), False, "values differ from those of backprop"),
        (row("adjoint", gradient_as_backprop=False), None, "close to the true gradient"),
        (
            row("adjoint", gradient_as_backprop=False, cosine={"median": 0.99, "min": 0.2, "max": 1.0}),
            None,
            "not the gradient of this defence",
        ),
        (row("adjoint", not_finite=0.5), None, "not finite for 50% of the images"),
    ],
)
def test_verdicts(changed, passed, text):
    verdict = verdicts_of([row("backprop"), changed])[1]
    assert verdict.passed is passed and text in verdict.text


def test_rounding_that_backprop_shares_is_not_held_against_exact():
    noisy = {"relative_error": 3e-5, "relative_error_images": {"median": 1e-5, "max": 9e-5}}
    rows, sweep = [row("backprop")], [row("backprop", **noisy), row("exact", **noisy)]
    assert all(verdict.passed for verdict in verdicts_of(rows, sweep))
    sweep[1] = row("exact", **noisy | {"relative_error": 6e-5})
    assert [verdict.passed for verdict in verdicts_of(rows, sweep)] == [True, False]


def test_published_adjoint_is_called_as_published(unet_score, monkeypatch):
    calls = []
    real = torchsde.sdeint_adjoint

    def watch(sde, *arguments, **named):
        calls.append((sum(p.requires_grad for p in sde.parameters()), sde.noise_type, named))
        return real(sde, *arguments, **named)

    monkeypatch.setattr(torchsde, "sdeint_adjoint", watch)
    PublishedAdjoint(unet_score, 0.1, 5, noising="discrete")(torch.rand(2, 1, 28, 28), KEYS[:2])
    ((parameters, noise_type, named),) = calls
    assert parameters == len(list(unet_score.parameters())) > 0
    assert noise_type == "diagonal" and named["dt"] == 0.1 / 5 and named["method"] == "euler"
    assert "adjoint_method" not in named and "adjoint_params" not in named


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audit.t_star=[1.5]", "audit.t_star.0: Input should be less than or equal to 1, got 1.5"),
        ("audit.images=5000", "audit.images=5000 from data.first=0: 'fashion-mnist-embedded' has 1000 images"),
        ("purifier.steps=0", "steps must be a positive integer, got 0"),
        ("purifier.t_star=1.2", "t_star must lie in (0, 1], got 1.2"),
        ("audit.steps=[100000]", 'grid="diffpure" cannot take steps=100000 from t_star='),
        ("audit.step=[3]", "unknown key 'audit.step'; did you mean 'steps'?"),
        (
            "purifier.method=srk",
            "the audit's reference is an Euler loop over the reverse SDE: it cannot audit TorchSDE(method='srk'",
        ),
        ("purifier.solver=torchdiffeq", "it cannot audit TorchDiffEq("),
        ("purifier={scheme: one_shot}", "purifier.scheme='one_shot': the audit's reference is an Euler loop"),
        ("purifier.rounds=2", "purifier.rounds=2: the audit is of one path"),
    ],
)
def test_bad_settings_come_before_any_work(tmp_path, monkeypatch, capsys, override, message):
    code, result = run(tmp_path, monkeypatch, override)
    assert code == 2 and result is None
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

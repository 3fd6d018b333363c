"""`purify bench` as a user runs it, on a tiny configuration of the packaged models."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks import cli, datasets
from benchmarks.evaluation.statistics import wilson

TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 6, "first": 2},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 2},
    "draws": 3,
    "batch_size": 4,
    "pictures": 2,
    "attacks": [
        {"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}, "steps": 3, "eot": 2},
        {
            "kind": "pgd",
            "name": "pgd-bpda",
            "threat": {"norm": "Linf", "epsilon": 0.1},
            "steps": 3,
            "eot": 2,
            "gradient": "bpda",
        },
        {"kind": "pgd", "name": "pgd-l2", "threat": {"norm": "L2", "epsilon": 1.5}, "steps": 2},
        {
            "kind": "pgd",
            "name": "fixed",
            "threat": {"norm": "Linf", "epsilon": 0.1},
            "steps": 2,
            "eot": 5,
            "randomness": "fixed",
        },
        {
            "kind": "autoattack",
            "threat": {"norm": "Linf", "epsilon": 0.1},
            "version": "custom",
            "draws": "torch",
            "attacks": ["apgd-ce", "square"],
            "iterations": 2,
            "queries": 4,
        },
    ],
}
KEYS = [
    "schema",
    "seed",
    "images",
    "draws",
    "complete",
    "weights",
    "config",
    "environment",
    "peak_memory",
    "results",
    "paired",
    "budget",
    "diagnostics",
    "looked_for",
    "flags",
]


def run(monkeypatch, *arguments):
    """The command line's exit code."""
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "bench", config, "--out", out, "--device", "cpu") == 0
    return out


def test_summary_follows_the_contract(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["schema"], summary["seed"], summary["images"], summary["draws"]) == (1, 0, 6, 3)
    assert list(summary) == KEYS
    rows = {(r["model"], r["attack"]) for r in summary["results"]}
    names = ["none", "pgd", "pgd-bpda", "pgd-l2", "fixed", "autoattack"]
    assert rows == {("defended", n) for n in names} | {("undefended", n) for n in names if n != "pgd-bpda"}
    for r in summary["results"]:
        majority = [r["majority"]["3"]] if r["majority"] else []
        for estimate in (r["single"], r["worst_of"]["3"], *majority):
            assert 0 <= estimate["ci95"][0] <= estimate["value"] <= estimate["ci95"][1] <= 1
        assert {"gradient", "steps", "t_star", "solver", "eot", "iterations", "seeds", "seconds", "threat"} <= set(r)
        assert (r["network_evaluations"] > 0) == (r["model"] == "defended")
    by_name = {(r["model"], r["attack"]): r for r in summary["results"]}
    assert by_name["defended", "pgd"]["gradient"] == "exact"
    assert by_name["defended", "pgd-bpda"]["gradient"] == "bpda"
    assert by_name["defended", "pgd"]["threat"] == "Linf 0.1"
    assert (
        {n for n in names if by_name["defended", n]["randomness"] == "fixed"}
        == {"fixed"}
        == {n for n in names if not by_name["defended", n]["majority"]}
    )
    assert by_name["defended", "fixed"]["eot"] == 1 and by_name["undefended", "fixed"]["randomness"] == "fresh"
    assert {n for n in names if by_name["defended", n]["own_verdict"]} == {"autoattack"}
    assert by_name["defended", "autoattack"]["draws_from"] == "torch"
    assert summary["environment"]["torch"] and summary["config"]["purifier"]["t_star"] == 0.1


def test_numbers_are_those_of_the_per_image_file(folder):
    """Every accuracy again, from images.jsonl alone."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = defaultdict(list)
    for line in map(json.loads, (folder / "images.jsonl").read_text().splitlines()):
        lines[line["model"], line["attack"]].append(line)
    labels = datasets.load("fashion-mnist-embedded").labels[2:8].tolist()
    for r in summary["results"]:
        images = lines[r["model"], r["attack"]]
        assert [i["image"] for i in images] == [2, 3, 4, 5, 6, 7]
        assert [i["label"] for i in images] == labels
        right = [[p == i["label"] for p in i["predictions"]] for i in images]
        assert r["single"]["value"] == pytest.approx(sum(map(sum, right)) / 18)
        assert r["worst_of"]["3"]["value"] == pytest.approx(sum(map(all, right)) / 6)
        assert tuple(r["worst_of"]["3"]["ci95"]) == pytest.approx(wilson(sum(map(all, right)), 6).ci95)
        if r["randomness"] == "fresh":
            assert r["majority"]["3"]["value"] == pytest.approx(sum(sum(x) >= 2 for x in right) / 6)


def test_adversarial_images_are_kept_and_allowed(folder):
    clean = datasets.as_floats(datasets.load("fashion-mnist-embedded").images[2:6])
    for name, distance, limit in (
        ("pgd", "inf", 0.1),
        ("pgd-l2", "l2", 1.5),
        ("fixed", "inf", 0.1),
        ("autoattack", "inf", 0.1),
    ):
        stored = load_file(folder / "batches" / f"defended.{name}.000000.safetensors")["x_adv"]
        delta = (stored - clean).flatten(1)
        size = delta.abs().amax(1) if distance == "inf" else delta.norm(dim=1)
        assert (size <= limit * (1 + 1e-5)).all()
        assert stored.min() >= 0 and stored.max() <= 1
        if name != "autoattack":  # the official code returns images that it did not break unchanged
            assert (size > 0.5 * limit).all()


def test_figures_are_written(folder):
    from PIL import Image

    for name in ("accuracy.png", "images_pgd.png", "images_autoattack.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors()) > 50


def test_an_existing_run_is_not_overwritten(folder, config, monkeypatch, capsys):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run(monkeypatch, "bench", config, "--out", folder) == 2
    assert "already holds files" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_interrupted_run_goes_on_with_what_it_has(folder, config, tmp_path, monkeypatch):
    """Half of the batches deleted: the others are kept as they are, and the numbers come out the same."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    batches = sorted((copy / "batches").iterdir())
    kept = {p: p.stat().st_mtime_ns for p in batches[::2]}
    for path in batches[1::2]:
        path.unlink()
    (copy / "summary.json").unlink()
    assert run(monkeypatch, "bench", config, "--out", copy, "--resume", "--device", "cpu") == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    old, new = (json.loads((f / "summary.json").read_text()) for f in (folder, copy))
    for a, b in zip(old["results"], new["results"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_resume_needs_the_same_configuration(folder, config, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "bench", config, "--out", folder, "--resume", "--set", "draws=4") == 2
    assert "the configuration differs" in capsys.readouterr().err
    assert run(monkeypatch, "bench", config, "--out", tmp_path, "--resume") == 2
    assert "holds no run" in capsys.readouterr().err
    assert run(monkeypatch, "bench", config, "--resume") == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_resume_needs_the_same_weights(folder, config, tmp_path, monkeypatch, capsys):
    """A weight file that changed between the two halves of a run must not be mixed in silence."""
    from purify.zoo import load_score_model, packaged_score_models, save_score_model

    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    shutil.copy(packaged_score_models()["fashion-mnist"], weights)
    command = ("bench", config, "--out", out, "--set", f"score={weights}", "--set", "attacks=[]")
    assert run(monkeypatch, *command) == 0
    model = load_score_model(weights)
    model.network.conv_out.bias.data[0] += 1e-3
    save_score_model(weights, model, "small_unet", model.metadata["config"]["network"], torch.float32)
    assert run(monkeypatch, *command, "--resume") == 2
    assert "was made with another configuration, other weights, images or code" in capsys.readouterr().err


def test_resume_needs_the_same_images(config, tmp_path, monkeypatch, capsys):
    """A data set is a name: the file behind it may have changed, or lie elsewhere on another day."""
    data, out = datasets.load("fashion-mnist-embedded"), tmp_path / "out"
    np.savez(tmp_path / "d.npz", images=data.images[:8].numpy(), labels=data.labels[:8].numpy())
    command = ("bench", config, "--out", out, "--set", f"data.name=npz:{tmp_path / 'd.npz'}", "--set", "attacks=[]")
    assert run(monkeypatch, *command) == 0
    np.savez(tmp_path / "d.npz", images=data.images[1:9].numpy(), labels=data.labels[1:9].numpy())
    assert run(monkeypatch, *command, "--resume") == 2
    assert "was made with another configuration, other weights, images or code" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(folder, config, monkeypatch, capsys):
    from benchmarks.runs.folder import locked

    with locked(folder):
        assert run(monkeypatch, "bench", config, "--out", folder, "--resume") == 2
    assert "another process is running there" in capsys.readouterr().err


def test_an_unfinished_run_is_not_reported(folder, tmp_path, monkeypatch, capsys):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"] and set(summary["weights"]) == {"classifier", "score"}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"complete": False}))
    assert run(monkeypatch, "report", tmp_path) == 2
    assert "the run is not finished" in capsys.readouterr().err


def test_seed_option_changes_the_draws(config, tmp_path, monkeypatch):
    predictions = []
    for seed in ("0", "5", "5"):
        out = tmp_path / f"run{len(predictions)}"
        assert (
            run(
                monkeypatch,
                "bench",
                config,
                "--out",
                out,
                "--seed",
                seed,
                "--set",
                "attacks=[]",
                "--set",
                "purifier.t_star=0.4",
                "--set",
                "draws=8",
            )
            == 0
        )
        assert json.loads((out / "summary.json").read_text())["seed"] == int(seed)
        predictions.append((out / "images.jsonl").read_text())
    assert predictions[0] != predictions[1] == predictions[2]


def test_report_merges_runs(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "report", folder, folder, "--curve", "t_star", "--out", tmp_path / "curve.png") == 0
    printed = capsys.readouterr().out
    assert printed.count("| defended | pgd (3 steps, EOT 2) | exact |") == 2
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert run(monkeypatch, "report", tmp_path) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "purifier.t_star=0"], "t_star must lie in (0, 1], got 0"),
        (["--set", "purifier.t_star=1.01"], "t_star must lie in (0, 1]"),
        (["--set", "purifier.steps=0"], "steps must be a positive integer, got 0"),
        (["--set", "purifier.solver=euler"], "solver='euler' is not one of torchsde"),
        (["--set", "purifier.stepz=5"], "unknown key 'purifier.stepz'; did you mean 'steps'?"),
        (["--set", "data.images=1001"], "'fashion-mnist-embedded' has 1000 images"),
        (["--set", "data.name=cifar"], "unknown data set 'cifar'"),
        (["--set", "classifier=resnet"], "no classifier 'resnet': packaged are fashion-mnist"),
        (["--set", "score=nothing.safetensors"], "no weight file at nothing.safetensors"),
        (
            ["--set", "purifier.noising=discrete", "--set", "purifier.t_star=0.10005"],
            "t must be a multiple of 1/1000 in (0, 1], as the chain has 1000 steps",
        ),
        (
            ["--set", "attacks.0.randomness=known"],
            "attacks.0.pgd.randomness: Input should be 'fresh' or 'fixed', got 'known'",
        ),
        (["--set", "attacks.4.randomness=fixed"], "draws: torch draws the noise that randomness: fixed holds fixed"),
        (["--device", "gpu"], "--device 'gpu' is not a device"),
        (["--device", "meta"], "--device 'meta' is not a device"),
        (["--device", "cuda:99"], "CUDA devices are available here"),
    ],
)
def test_bad_input(config, tmp_path, monkeypatch, capsys, arguments, message):
    out = tmp_path / "out"
    assert run(monkeypatch, "bench", config, "--out", out, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not out.exists()


def test_no_permission(config, tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(monkeypatch, "bench", config, "--out", blocked / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_truncated_weights(config, tmp_path, monkeypatch, capsys):
    from purify.zoo import packaged_score_models

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(packaged_score_models()["fashion-mnist"].read_bytes()[:100_000])
    assert run(monkeypatch, "bench", config, "--out", tmp_path / "out", "--set", f"score={broken}") == 2
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_packaged_models_do_what_they_say():
    """On the embedded images: the bare classifier is right on at least 90 %, and the score network denoises better than
    a linear filter.
    """
    from benchmarks import load_classifier
    from purify import load_score_model

    data = datasets.load("fashion-mnist-embedded")
    x, y = datasets.as_floats(data.images), data.labels
    with torch.no_grad():
        accuracy = (load_classifier("fashion-mnist")(x).argmax(1) == y).double().mean().item()
    assert accuracy >= 0.90
    score = load_score_model("fashion-mnist")
    x0 = 2 * x[:100] - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for t, recorded in score.metadata["quality"]["denoising_mse"].items():
        error = (score.denoised(score.diffuse(x0, noise, float(t)), float(t)) - x0).square().mean().item()
        assert error == pytest.approx(recorded, rel=0.25)  # 100 of the 1,000 images that the record was measured on

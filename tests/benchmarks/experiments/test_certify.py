"""`purify certify` as a user runs it, on a tiny configuration of the packaged models."""

import json
import shutil

import pytest
import torch
import yaml

from benchmarks import cli, config, datasets, load_classifier
from benchmarks.config.certify import CertifyConfig
from benchmarks.evaluation.certification import certify
from benchmarks.evaluation.statistics import wilson
from purify import load_score_model
from purify.defences.smoothed import DenoisedSmoothing

TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 4, "first": 2},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "sigma": [0.25, 1.5],
    "n0": 8,
    "n": 24,
    "radii": [0, 0.1, 0.3],
    "batch_size": 48,
}


def run(monkeypatch, *arguments):
    """The command line's exit code."""
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def read(folder):
    """The summary, and the lines of each image."""
    return json.loads((folder / "summary.json").read_text()), [
        json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("certify") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "certify", tiny, "--out", out, "--device", "cpu") == 0
    return out


def test_summary_and_images_say_the_same(folder):
    """Every number again, from images.jsonl alone."""
    summary, lines = read(folder)
    labels = datasets.load("fashion-mnist-embedded").labels[2:6].tolist()
    assert (summary["schema"], summary["images"], summary["n0"], summary["n"], summary["alpha"]) == (
        "certify 1",
        4,
        8,
        24,
        0.001,
    )
    assert (
        summary["complete"]
        and set(summary["weights"]) == {"classifier", "score"}
        and "single purified" in summary["claim"]
    )
    assert [r["sigma"] for r in summary["results"]] == [0.25, 1.5]
    for r in summary["results"]:
        images = [line for line in lines if line["sigma"] == r["sigma"]]
        assert [i["image"] for i in images] == [2, 3, 4, 5] and [i["label"] for i in images] == labels
        for i in images:
            assert sum(i["selection"].values()) == 8 and sum(i["counts"].values()) == 24
            assert (i["prediction"] is None) == (i["radius"] == 0) == (i["lower_bound"] <= 0.5)
            assert i["radius"] <= r["largest_radius"] * (1 + 1e-12)
        right = [i["radius"] if i["prediction"] == i["label"] else None for i in images]
        for radius in (0, 0.1, 0.3):
            expected = wilson(sum(found is not None and found >= radius for found in right), 4)
            assert (r["certified"][str(radius)]["value"], tuple(r["certified"][str(radius)]["ci95"])) == (
                expected.value,
                expected.ci95,
            )
        assert r["average_radius"] == pytest.approx(sum(found or 0 for found in right) / 4)
        assert r["abstained"] == sum(i["prediction"] is None for i in images)
        assert r["single"]["value"] == pytest.approx(sum(i["counts"].get(str(i["label"]), 0) for i in images) / 96)
        assert r["network_evaluations"] == 4 * 32 and r["undefined"] == 0
    assert summary["results"][0]["certified"]["0.1"]["value"] > 0.5  # this network and classifier hold a little noise


def test_the_run_is_the_function(folder):
    """What a user gets from Python with the same models, images, seed and positions, in other batches."""
    data = datasets.load("fashion-mnist-embedded")
    model = DenoisedSmoothing(load_score_model("fashion-mnist"), load_classifier("fashion-mnist"), 0.25)
    ids = torch.arange(2, 6)
    result = certify(
        model, datasets.as_floats(data.images[ids]), data.labels[ids], n0=8, n=24, image_ids=ids, batch_size=100
    )
    lines = [line for line in read(folder)[1] if line["sigma"] == 0.25]
    assert [line["radius"] for line in lines] == result.radii.tolist()
    assert [[line["counts"].get(str(c), 0) for c in range(10)] for line in lines] == result.counts.tolist()


def test_figure_is_written(folder):
    from PIL import Image

    with Image.open(folder / "certified.png") as image:
        assert min(image.size) > 200 and len(image.convert("L").getcolors()) > 50


def test_an_existing_run_is_not_overwritten(folder, tiny, monkeypatch, capsys):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run(monkeypatch, "certify", tiny, "--out", folder) == 2
    assert "already holds files" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_interrupted_run_goes_on_with_what_it_has(folder, tiny, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    batches = sorted((copy / "batches").iterdir())
    assert len(batches) == 8  # 32 draws an image do not fit twice into a batch of 48
    kept = {p: p.stat().st_mtime_ns for p in batches[::2]}
    for path in batches[1::2]:
        path.unlink()
    (copy / "summary.json").unlink()
    assert run(monkeypatch, "certify", tiny, "--out", copy, "--resume", "--device", "cpu") == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    (old, old_lines), (new, new_lines) = read(folder), read(copy)
    assert old_lines == new_lines
    for a, b in zip(old["results"], new["results"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_resume_needs_the_same_run(folder, tiny, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "certify", tiny, "--out", folder, "--resume", "--set", "n=25") == 2
    assert "the configuration differs" in capsys.readouterr().err
    assert run(monkeypatch, "certify", tiny, "--resume") == 2
    assert "--resume needs --out" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = sorted((copy / "batches").iterdir())[0]
    whole = json.loads(first.read_text())
    first.write_text(json.dumps(whole | {"identity": "of other weights"}))
    assert run(monkeypatch, "certify", tiny, "--out", copy, "--resume", "--device", "cpu") == 2
    assert "was made with another configuration, other weights, images or code" in capsys.readouterr().err
    for damaged in ("{", json.dumps(whole | {"counts": [[10**6, *row[1:]] for row in whole["counts"]]})):
        first.write_text(damaged)
        assert run(monkeypatch, "certify", tiny, "--out", copy, "--resume", "--device", "cpu") == 2
        assert "is not a whole batch, delete it" in capsys.readouterr().err


def test_report_refuses_it(folder, monkeypatch, capsys):
    """Certified accuracies are no rows of `purify bench`'s table."""
    assert run(monkeypatch, "report", folder) == 2
    assert "is a run of `purify certify`: it holds certified radii" in capsys.readouterr().err


def test_the_bare_classifier_can_be_smoothed(tiny, tmp_path, monkeypatch):
    """Cohen et al. without a denoiser: no network evaluations, and this classifier, which knows no noise, is
    worse off.
    """
    out = tmp_path / "bare"
    settings = ("--set", "score=null", "--set", "sigma=0.5", "--set", "data.images=12")
    assert run(monkeypatch, "certify", tiny, "--out", out, "--device", "cpu", *settings) == 0
    assert run(monkeypatch, "certify", tiny, "--out", tmp_path / "denoised", "--device", "cpu", *settings[2:]) == 0
    (bare, _), (denoised, _) = read(out), read(tmp_path / "denoised")
    assert [(r["network_evaluations"], r["t"]) for r in bare["results"]] == [(0, None)] and set(bare["weights"]) == {
        "classifier"
    }
    assert bare["results"][0]["single"]["value"] < denoised["results"][0]["single"]["value"] - 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sigma=0"], "sigma.0: Input should be greater than 0, got 0"),
        (["--set", "sigma=[]"], "should have at least 1 item"),
        (["--set", "sigma=[0.25, 0.25]"], "sigma holds a value twice: 0.25, 0.25"),
        (["--set", "sigma=100"], "sigma=100 is beyond 76.0835, the most noise that the score network was trained on"),
        (["--set", "n=9"], "n=9 draws can certify nothing at alpha=0.001, even where they all agree: take at least 10"),
        (["--set", "alpha=1"], "alpha: Input should be less than 1, got 1"),
        (["--set", "radii=[-1]"], "radii.0: Input should be greater than or equal to 0, got -1"),
        (["--set", "sigmas=0.25"], "unknown key 'sigmas'; did you mean 'sigma'?"),
        (["--set", "data.images=1001"], "'fashion-mnist-embedded' has 1000 images"),
        (["--set", "score=nothing.safetensors", "--set", "classifier=resnet"], "no classifier 'resnet'"),
        (["--device", "gpu"], "--device 'gpu' is not a device"),
    ],
)
def test_bad_input(tiny, tmp_path, monkeypatch, capsys, arguments, message):
    out = tmp_path / "out"
    assert run(monkeypatch, "certify", tiny, "--out", out, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not out.exists()


def test_the_packaged_configuration(tmp_path):
    settings = config.load(CertifyConfig, "fashion-mnist/certify")
    assert settings.n0 == 100 and settings.alpha == 0.001 and settings.score.name == "fashion-mnist"
    config.dump(settings, tmp_path / "dumped.yaml")
    assert config.load(CertifyConfig, str(tmp_path / "dumped.yaml")) == settings

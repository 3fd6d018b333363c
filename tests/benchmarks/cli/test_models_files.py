"""`purify models convert` and `info`: files in, files and lines out."""

import json
from pathlib import Path

import golden
import pytest
import torch
from models_command import NAME, STATE, as_file, run, score

from benchmarks.experiments import models
from purify import CheckpointError, load_score_model

# the recorded networks are not trained
pytestmark = pytest.mark.filterwarnings("ignore::purify.zoo.self_check.ScoreModelWarning")


def checkpoint(path):
    """Weights, and as their average the recorded ones."""
    network = golden.network("score_sde.ddpmpp_small").requires_grad_(True)
    shadows = [parameter.detach().clone() for parameter in network.parameters()]
    state = {f"module.{name}": tensor + 0.01 for name, tensor in network.state_dict().items()}
    torch.save({"model": state, "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows}, "step": 3}, path)
    return path, dict(network.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convert_writes_the_average(tmp_path, dtype):
    source, average = checkpoint(tmp_path / "checkpoint_8.pth")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((golden.FOLDER / "score_sde.ddpmpp_small.json").read_text())["config"]))
    out = tmp_path / "new" / "model.safetensors"
    arguments = (source, out, "--architecture", "score_sde/ncsnpp", "--config", config, "--dtype", dtype)
    assert f"score_sde/ncsnpp, weights as {dtype}, read again and compared" in run("convert", *arguments).output
    found = load_score_model(out)
    for name, parameter in found.network.named_parameters():
        assert torch.equal(parameter, average[name].to(getattr(torch, dtype)).float())
    assert found.schedule == load_score_model(source, "score_sde/ncsnpp", config).schedule
    before = out.read_bytes()
    with pytest.raises(models.ModelsError, match="already exists"):
        run("convert", *arguments)
    assert out.read_bytes() == before
    run("convert", out, tmp_path / "again.safetensors", "--dtype", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.safetensors",
        "checkpoint_8.pth",
        "config.json",
        "new",
    ]


def test_convert_by_registry_name_or_like_one(known, weights, tmp_path):
    known(score())
    with pytest.raises(models.ModelsError, match="small: nothing at .*: run `purify models fetch small`"):
        run("convert", "small", tmp_path / "out.safetensors")
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "models" / "small" / "a.pt").write_bytes(weights)
    run("convert", "small", tmp_path / "one.safetensors")
    run("convert", tmp_path / "made.pt", tmp_path / "two.safetensors", "--config", "small")
    one, two = (load_score_model(tmp_path / f"{name}.safetensors").network.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], STATE[name]) and torch.equal(two[name], STATE[name]) for name in STATE)
    with pytest.raises(
        models.ModelsError,
        match=r"--architecture and --config are needed \(names and shapes are those of --config small\)",
    ):
        run("convert", tmp_path / "made.pt", tmp_path / "three.safetensors")


def test_convert_leaves_nothing_where_it_fails(known, tmp_path):
    known(score())
    large = {**STATE, "conv_in.bias": torch.full((32,), 1e6)}
    as_file(large, tmp_path / "large.pt")
    for extra, error, message in (
        (("--dtype", "float16"), CheckpointError, "holds NaN or infinity as torch.float16"),
        (("--dtype", "float8"), models.ModelsError, "--dtype 'float8' is not one of"),
        (("--architecture", "ddpm"), models.ModelsError, "go together"),
    ):
        config = () if "--architecture" in extra else ("--config", "small")
        with pytest.raises(error, match=message):
            run("convert", tmp_path / "large.pt", tmp_path / "out.safetensors", *config, *extra)
    with pytest.raises(models.ModelsError, match="must end in .safetensors"):
        run("convert", tmp_path / "large.pt", tmp_path / "out.pt", "--config", "small")
    with pytest.raises(models.ModelsError, match="neither a readable JSON file nor a name in the registry"):
        run(
            "convert",
            tmp_path / "large.pt",
            tmp_path / "out.safetensors",
            "--architecture",
            "ddpm",
            "--config",
            tmp_path / "none.json",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["large.pt"]


def test_info_of_a_packaged_name():

    first, *lines = models.info(Path("fashion-mnist"))
    assert first.endswith("fashion-mnist.score.safetensors: safetensors, 2.0 MB")
    assert any(line.startswith("154 tensors, ") for line in lines)


def test_info(known, weights, tmp_path):
    known(score())
    lines = run("info", tmp_path / "made.pt").output.splitlines()
    assert lines[0].endswith("made.pt: PyTorch, 2.8 MB")
    assert "144 tensors, 702,499 numbers, float32; the first:" in lines
    assert "  temb.dense.0.weight (128, 32) float32" in lines
    assert lines[-1] == "names and shapes are those of: small"
    source, _ = checkpoint(tmp_path / "checkpoint_8.pth")
    text = run("info", source).output
    assert "holds a moving average of the weights" in text and "  step: 3" in text and "optimiser" not in text
    torch.save(golden.network(NAME), tmp_path / "module.pt")
    text = run("info", tmp_path / "module.pt").output
    assert (
        "pickle with code" in text
        and "not opened: it would import and may call" in text
        and "  purify.networks.ddpm.DDPM" in text
    )

"""`purify models`, against a server on this machine in place of the real ones."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from models_command import CONFIG, STATE, run, score

from benchmarks.experiments import models
from benchmarks.experiments.models import fetching
from purify import CheckpointError
from purify.zoo import registry
from purify.zoo.download import DownloadError
from purify.zoo.registry import Entry, RegistryError, SourceFile

# the recorded networks are not trained
pytestmark = pytest.mark.filterwarnings("ignore::purify.zoo.self_check.ScoreModelWarning")


@pytest.fixture
def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        member = tarfile.TarInfo("cifar-x/test.bin")
        member.size = 3
        file.addfile(member, io.BytesIO(b"abc"))
    return buffer.getvalue()


@pytest.fixture
def served(monkeypatch):
    """served[path] = bytes: what the server has; every https address of a registry entry leads to it by its
    file name.
    """
    content = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = content.get(self.path)
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(
        fetching, "address_of", lambda source: f"http://127.0.0.1:{server.server_port}/{source.rpartition('/')[2]}"
    )
    yield content
    server.shutdown()
    server.server_close()


def test_list_names_everything_and_its_users(monkeypatch, tmp_path):
    (tmp_path / "configs" / "cifar10").mkdir(parents=True)
    (tmp_path / "configs" / "cifar10" / "diffpure.yaml").write_text("score: {name: cifar10-ddpmpp-deep-vp}\n")
    (tmp_path / "configs" / "cifar10" / "l2.yaml").write_text("extends: diffpure.yaml\nseed: 1\n")
    (tmp_path / "configs" / "other.yaml").write_text("score: cifar10-ddpmpp-vp\n")
    monkeypatch.setattr("benchmarks.config.files.configs_folder", lambda: tmp_path / "configs")
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    lines = run("list").output.splitlines()
    for name in registry.entries():
        assert any(f" {name} " in line for line in lines), name
    line = next(line for line in lines if " cifar10-ddpmpp-deep-vp " in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["score", "unknown", "no", "Apache-2.0", "2 cifar10"]
    assert models.used_by("cifar10-ddpmpp-vp") == ["other"] and models.used_by("cifar100-binary") == []
    assert "2,211.4 MB" in next(line for line in lines if " imagenet256-adm-uncond " in line)


def test_fetch_and_verify(known, served, weights, tmp_path):
    known(score(size=len(weights), sha256=hashlib.sha256(weights).hexdigest()), score("unknown"))
    served["/a.pt"] = weights
    result = run("fetch", "small", "unknown")
    assert "as expected" in result.output and "recorded now, and checked from now on" in result.output
    assert (tmp_path / "models" / "small" / "a.pt").read_bytes() == weights
    served.clear()
    assert "small: is here, " in run("fetch", "small").output
    result = run("verify")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"ok        {name}: size, checksum, strict load: 702,499 parameters" for name in ("small", "unknown")
    ]
    (tmp_path / "models" / "unknown" / "a.pt").write_bytes(weights[::-1])
    result = run("verify")
    assert result.exit_code == 1
    assert (
        result.stdout.splitlines()[0].startswith("ok        small")
        and "FAIL      unknown: " in result.stdout
        and "expected" in result.stdout
    )


def test_verify_says_what_is_wrong(known, tmp_path):
    bad = {**STATE, "conv_in.bias": torch.full((32,), torch.nan)}
    known(
        score("nan"),
        score("misfit"),
        score("absent"),
        score("odd", architecture="edm/EDMPrecond", config={"img_resolution": 32}),
    )
    for name, content in (("nan", bad), ("misfit", {"x": torch.zeros(1)}), ("odd", STATE)):
        (tmp_path / "models" / name).mkdir(parents=True)
        torch.save(content, tmp_path / "models" / name / "a.pt")
    verdicts = {verdict.name: verdict for verdict in models.verify(["nan", "misfit", "absent", "odd"])}
    assert {name: verdict.state for name, verdict in verdicts.items()} == {
        "nan": "FAIL",
        "misfit": "FAIL",
        "absent": "FAIL",
        "odd": "unchecked",
    }
    assert (
        "holds NaN" in verdicts["nan"].text
        and "do not fit" in verdicts["misfit"].text
        and "No such file" in verdicts["absent"].text
    )
    assert {verdict.name for verdict in models.verify([])} == {"nan", "misfit", "odd"}
    with pytest.raises(RegistryError, match="did you mean 'absent'"):
        run("verify", "absnt")


def test_the_second_source_is_tried(known, served, weights, tmp_path):
    known(score(sources=("https://example.org/gone.pt", "https://example.org/a.pt")))
    served["/a.pt"] = weights
    run("fetch", "small")
    assert (tmp_path / "models" / "small" / "a.pt").read_bytes() == weights


def test_what_does_not_come_is_explained(known, served, tmp_path):
    known(score(sources=("https://example.org/gone.pt", "https://example.org/away.pt")), score("manual", sources=()))
    with pytest.raises(DownloadError, match=r"(?s)gone.pt answers 404.*away.pt answers 404"):
        run("fetch", "small")
    with pytest.raises(
        DownloadError,
        match="no address that a program can fetch: download a.pt from https://example.org by hand, and put it at",
    ):
        run("fetch", "manual")
    with pytest.raises(RegistryError, match="no model or data set 'smal'"):
        run("fetch", "manual", "smal")
    assert not (tmp_path / "models").exists()


def test_data_is_unpacked(known, served, archive, tmp_path):
    files = (SourceFile("x.tar.gz", ("https://example.org/x.tar.gz",), md5=hashlib.md5(archive).hexdigest()),)
    known(Entry("x", "data", files, "https://example.org", "unknown", unpack="cifar-x"))
    served["/x.tar.gz"] = archive
    run("fetch", "x")
    assert (tmp_path / "data" / "cifar-x" / "test.bin").read_bytes() == b"abc"
    assert run("verify").stdout == "ok        x: size and checksum\n"
    (tmp_path / "data" / "x.tar.gz").unlink()
    assert run("verify", "x").stdout == "ok        x: size and checksum\n"


def test_pickles_are_fetched_but_the_export_is_loaded(known, served, tmp_path):
    entry = Entry(
        "edm",
        "score",
        (SourceFile("n.pkl", ("https://e.org/n.pkl",)),),
        "https://e.org",
        "MIT",
        "ddpm",
        CONFIG,
        note="how",
        export="n.safetensors",
    )
    known(entry)
    served["/n.pkl"] = b"\x80\x04."
    assert (
        f"edm: export the weights to {tmp_path / 'models' / 'edm' / 'n.safetensors'}. how" in run("fetch", "edm").output
    )
    assert models.verify(["edm"])[0].state == "FAIL"
    from safetensors.torch import save_file

    save_file(STATE, registry.path_of(entry))
    assert models.verify([])[0].state == "ok"


def test_names_of_classifiers(monkeypatch, tmp_path):
    """Fetched from where their libraries would, to where `load_classifier` looks."""
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path))
    calls = []
    monkeypatch.setattr(
        fetching,
        "_fetch_file",
        lambda wanted, say: calls.append((str(wanted.target.relative_to(tmp_path)), *wanted.sources)),
    )
    run(
        "fetch",
        "robustbench:cifar10/Linf/Standard",
        "torchvision:resnet50",
        "torchvision:resnet50/IMAGENET1K_V2",
        "timm:deit_small_patch16_224",
    )
    assert calls == [
        ("robustbench/cifar10/Linf/Standard.pt", "gdrive:1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        ("torchvision/resnet50-0676ba61.pth", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("torchvision/resnet50-11ad3fa6.pth", "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
        (
            "timm/deit_small_patch16_224.fb_in1k.safetensors",
            "https://huggingface.co/timm/deit_small_patch16_224.fb_in1k/resolve/main/model.safetensors",
        ),
    ]
    for name in ("robustbench:Standard", "torchvision:a/b/c", "timm:a/b"):
        with pytest.raises(models.ModelsError, match="is followed by"):
            run("fetch", name)
    with pytest.raises(CheckpointError, match="did you mean"):
        run("fetch", "robustbench:cifar10/Linf/Standart")


def test_fetched_classifiers_are_verified(monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path))
    zoo = tmp_path / "robustbench" / "cifar10" / "Linf" / "Standard.pt"
    hub = tmp_path / "torchvision" / "resnet50-0676ba61.pth"
    name = "robustbench:cifar10/Linf/Standard"
    assert models.verify([name])[0].state == "FAIL"
    for file in (zoo, hub):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
    assert models.verify([name])[0].state == "ok"
    zoo.write_bytes(b"changed")
    assert "recorded in" in models.verify([name])[0].text and models.verify([name])[0].state == "FAIL"
    assert "not the one that its name begins with" in models.verify(["torchvision:resnet50"])[0].text


def test_packaged_names_are_files_too():
    assert "provenance" in run("info", "fashion-mnist").output
    assert "ok        fashion-mnist: packaged, strict load" in run("verify", "fashion-mnist").output

import numpy as np
import pytest
from PIL import Image

from benchmarks import cli, datasets


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["purify", "clean", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "boot.png"
    Image.fromarray(datasets.load("fashion-mnist-embedded").images[0, 0].numpy()).save(path)
    return path


def test_purifies_png_and_jpeg(image, tmp_path, monkeypatch):
    jpeg = tmp_path / "again.jpg"
    with Image.open(image) as picture:
        picture.convert("RGB").save(jpeg, quality=95)
    out = tmp_path / "out"
    assert run(monkeypatch, image, jpeg, "--out", out, "--steps", 10) == 0
    original = np.asarray(Image.open(image)).astype(float)
    for name in ("boot.png", "again.png"):
        purified = np.asarray(Image.open(out / name)).astype(float)
        assert purified.shape == (28, 28)
        assert 1 < np.abs(purified - original).mean() < 40  # changed, but still the same boot
        assert np.corrcoef(purified.ravel(), original.ravel())[0, 1] > 0.9


def test_repeats_itself(image, tmp_path, monkeypatch):
    for name in ("a", "b"):
        assert run(monkeypatch, image, "--out", tmp_path / name, "--steps", 3, "--seed", 7) == 0
    assert (tmp_path / "a" / "boot.png").read_bytes() == (tmp_path / "b" / "boot.png").read_bytes()


def test_sizes(tmp_path, monkeypatch, capsys):
    odd = tmp_path / "odd.png"
    Image.fromarray(np.zeros((30, 41), dtype=np.uint8)).save(odd)
    assert run(monkeypatch, odd, "--out", tmp_path / "x", "--steps", 2) == 2
    assert (
        "41 x 30; the network takes widths and heights that are multiples of 4: use --resize" in capsys.readouterr().err
    )
    assert not (tmp_path / "x").exists()
    assert run(monkeypatch, odd, "--out", tmp_path / "x", "--steps", 2, "--resize") == 0
    assert Image.open(tmp_path / "x" / "odd.png").size == (28, 28)


def test_other_sizes_are_taken_with_a_note(tmp_path, monkeypatch, capsys):
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((32, 40), dtype=np.uint8)).save(large)
    assert run(monkeypatch, large, "--out", tmp_path / "x", "--steps", 2) == 0
    assert "trained on 28 x 28" in capsys.readouterr().err
    assert Image.open(tmp_path / "x" / "large.png").size == (40, 32)


@pytest.mark.parametrize("case", ["colour", "text", "missing", "twice"])
def test_bad_files(case, image, tmp_path, monkeypatch, capsys):
    colour, text = tmp_path / "colour.png", tmp_path / "text.png"
    Image.fromarray(np.tile(np.array([255, 0, 0], dtype=np.uint8), (28, 28, 1))).save(colour)
    text.write_text("not an image")
    files, message = {
        "colour": ([image, colour], "has colours (3 channels), the score network takes grey images"),
        "text": ([text], "is not a readable image"),
        "missing": ([tmp_path / "gone.png"], "no image file at"),
        "twice": ([image, image], "several images are named boot"),
    }[case]
    assert run(monkeypatch, *files, "--out", tmp_path / "x") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()

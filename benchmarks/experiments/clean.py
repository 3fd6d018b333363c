"""`purify clean`: image files in, purified image files out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.runs.folder import RunError
from purify import Purifier, noise_keys


def read_image(path: Path, channels: int, size_multiple: int, resize: tuple[int, int] | None) -> Tensor:
    """An image file as (channels, h, w) float32 in [0, 1].

    Args:
        path: PNG, JPEG or anything else that Pillow reads.
        channels: 1 or 3: what the network takes. A grey image fits 3 channels; a coloured one does not fit 1.
        size_multiple: height and width must be multiples of it.
        resize: (height, width) to resize to, None to keep the size.

    Raises:
        RunError: not an image, colours for a grey network, or a size that the network does not take.
    """
    if not path.is_file():
        raise RunError(f"no image file at {path}")
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RunError(f"{path} is not a readable image: {error}") from error
    if resize is not None:
        image = image.resize((resize[1], resize[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    if channels == 1:
        if (pixels != pixels[..., :1]).any():
            raise RunError(f"{path} has colours (3 channels), the score network takes grey images (1 channel)")
        pixels = pixels[..., :1]
    height, width = pixels.shape[:2]
    if height % size_multiple or width % size_multiple:
        raise RunError(
            f"{path} is {width} x {height}; the network takes widths and heights that are multiples of {size_multiple}:"
            " use --resize"
        )
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def write_image(path: Path, image: Tensor) -> None:
    """Writes (c, h, w) as PNG, clamped to [0, 1]."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(path)


@torch.no_grad()
def clean(
    purifier: Purifier,
    files: list[Path],
    make_out: Callable[[], Path],
    resize: bool,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> list[Path]:
    """Purifies files one by one into `make_out()`/NAME.png, and returns these; every file is read and checked before
    the folder is made.
    """
    shape = purifier.score.image_shape
    assert shape is not None
    multiple = getattr(purifier.score.network, "size_multiple", 1)
    images = [read_image(file, shape[0], multiple, shape[1:] if resize else None) for file in files]
    names = [file.stem for file in files]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RunError(f"several images are named {', '.join(repeated)}: their results would overwrite each other")
    out = make_out()
    written = [out / f"{name}.png" for name in names]
    for index, image in enumerate(images):
        if image.shape[1:] != shape[1:]:
            say(
                f"{files[index]}: {image.shape[2]} x {image.shape[1]} pixels, the network was trained on {shape[2]} x"
                f" {shape[1]}: expect less"
            )
        keys = noise_keys(seed, torch.tensor([index]), 0).to(device)
        write_image(written[index], purifier(image[None].to(device), keys)[0])
        say(f"{files[index]} -> {written[index]}")
    return written

"""Image files as uint8 arrays, decoded when they are asked for.

Resizing and cropping follow torchvision's transforms on PIL images to the pixel: the published numbers of ImageNet
models are made with them.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.datasets.errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 1 << 26
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # Pillow would also hand PostScript to an interpreter
_UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@contextmanager
def opened(source: Path | io.BytesIO, name: str, modes: tuple[str, ...] = ("L", "RGB")) -> Iterator[Image.Image]:
    """An image of 8 bits a channel whose pixels are not decoded yet; errors of decoding them inside `with` are
    explained too.

    Args:
        source: a file.
        name: what messages call it.
        modes: Pillow's modes that are accepted.

    Raises:
        DatasetError: not a whole image, of another mode, of more than 8 bits, or of more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(source, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(
                    f"{name} declares {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: not decoded;"
                    " make it smaller first"
                )
            deep = any("16" in str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in image.tile)
            if image.mode not in modes or deep:
                raise DatasetError(
                    f"{name} is an image of mode {image.mode!r}{' with 16 bits a channel' if deep else ''}, expected"
                    f" {' or '.join(modes)} with 8 bits a channel: convert it, for instance with"
                    f" PIL.Image.open({name!r}).convert('RGB').save('converted.png')"
                )
            yield image
    except DatasetError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} is not a readable image: {error}") from error


def class_files(folder: Path) -> list[Path]:
    """The images below a class folder, in torchvision's order: folder by folder, sorted names. Raises DatasetError
    where there are none.
    """
    files = [
        Path(place, name)
        for place, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    if not files:
        raise DatasetError(
            f"{folder} has no images ({', '.join(SUFFIXES)}): put the images of the class there, or remove the folder"
        )
    return files


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an array of one size.

    Attributes:
        size: (height, width) of the result.
        channels: 1 or 3.
        resize: None, the new length of the shorter side, or (height, width).
        crop: whether to cut `size` out of the centre, with black where the image is smaller.
        bicubic: resize with bicubic instead of bilinear interpolation; both are antialiased.
        modes: Pillow's modes that are accepted; they are converted to RGB, or to grey for one channel.
    """

    size: tuple[int, int]
    channels: int = 3
    resize: int | tuple[int, int] | None = None
    crop: bool = False
    bicubic: bool = False
    modes: tuple[str, ...] = ("L", "RGB")

    def read(self, path: Path) -> np.ndarray:
        """The pixels of a file, uint8 (channels, height, width). Raises DatasetError for a file that cannot be used."""
        with opened(path, str(path), self.modes) as file:
            image = file.convert("L" if self.channels == 1 else "RGB")
            if self.resize is not None:
                image = image.resize(
                    self._resized(image, path), Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
                )
            if self.crop:
                image = _centre(image, self.size)
            if (image.height, image.width) != self.size:
                raise DatasetError(
                    f"{path} is {image.height} x {image.width} pixels, expected {self.size[0]} x {self.size[1]} (height"
                    " x width)"
                )
            return np.asarray(image).reshape(*self.size, self.channels).transpose(2, 0, 1)

    def _resized(self, image: Image.Image, path: Path) -> tuple[int, int]:
        """(width, height) after resizing; the longer side is rounded down, as in torchvision."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        short, long = sorted(image.size)
        length = int(self.resize * long / short)
        if self.resize * length > MAX_PIXELS:
            raise DatasetError(
                f"{path} is {image.height} x {image.width} pixels: too long and thin to resize the shorter side to"
                f" {self.resize}"
            )
        return (self.resize, length) if image.width <= image.height else (length, self.resize)


class ImageFiles:
    """Images of one size that stay in their files: `files[positions]` decodes those.

    Args:
        files: one an image.
        preparation: what becomes of each.
    """

    def __init__(self, files: Sequence[Path], preparation: Preparation):
        self.files = tuple(files)
        self.preparation = preparation

    @property
    def shape(self) -> torch.Size:
        """(n, c, h, w)"""
        return torch.Size((len(self.files), self.preparation.channels, *self.preparation.size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, positions: slice | Tensor | Sequence[int]) -> Tensor:
        """uint8 (k, c, h, w), in the order of `positions`.

        Raises:
            TypeError: positions that are not a slice, a one-dimensional int64 tensor or a list of integers.
            IndexError: a position that is not there.
            DatasetError: a file that cannot be used.
        """
        if isinstance(positions, slice):
            chosen = list(self.files[positions])
        else:
            tensor = torch.as_tensor(positions)
            if tensor.ndim != 1 or (tensor.dtype != torch.int64 and len(tensor)):
                raise TypeError(
                    "image files take a slice, a one-dimensional int64 tensor or a list of positions, got"
                    f" {positions!r}"
                )
            chosen = [self.files[position] for position in tensor.tolist()]
        images = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8)
        for image, file in zip(images, chosen, strict=True):
            image.copy_(torch.from_numpy(self.preparation.read(file).copy()))
        return images


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle (height, width) of an image, with black around a smaller one; odd margins are split as torchvision
    splits them.
    """
    height, width = size
    top, left = (
        -((wanted - there) // 2) if wanted > there else round((there - wanted) / 2)
        for there, wanted in ((image.height, height), (image.width, width))
    )
    return image.crop((left, top, left + width, top + height))

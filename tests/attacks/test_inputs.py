"""Images, labels, targets and starts that no attack takes."""

import pytest
import torch
from attack_models import Linear, images

from attacks import PGD, Linf

X = images()
Y = Linear()(X).argmax(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X + 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X - 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X.where(X > X.amin(), torch.nan), Y, "x holds NaN or infinity in 1 of 6 images"),
        (X[0], Y, r"shape \(b, c, h, w\), got torch.float64 of shape \(3, 6, 6\)"),
        (X[:0], Y[:0], "x holds no images"),
        (X, Y[:2], r"y must be int64 labels of shape \(6,\), got torch.int64 of shape \(2,\)"),
        (X, Y.float(), "y must be int64 labels"),
        (X, Y - 2, "y must hold class indices from 0"),
    ],
)
def test_bad_inputs(x, y, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1))(Linear(), x, y)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": Y}, "targets must differ from the labels y, 6 of 6 are equal"),
        ({"targets": Y + 2}, "the model has 2 classes, labels and targets go up to 3"),
        ({"targets": Y - 2}, "targets must hold class indices from 0, got -2"),
        ({"targets": Y[:2]}, r"targets must be int64 classes of shape \(6,\)"),
        ({"start": X[:2]}, "start must be images like x"),
        ({"start": X.float()}, "start must be images like x"),
        ({"start": X + 1}, r"start must lie in \[0, 1\]"),
        ({"start": (X + 0.2).clamp(max=1)}, "start must lie within epsilon=0.1 of x, 6 of 6 images do not"),
    ],
)
def test_bad_targets_and_starts(more, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1))(Linear(), X, Y, **more)

"""Fixed subsets by seed, as the field draws them."""

import numpy as np
import torch
from torch import Tensor

_MAX_SEED = 2**32 - 1


def subset(n_total: int, seed: int) -> Tensor:
    """All positions of a data set in the order of a seed: the first k are a subset of k images without replacement.

    This is NumPy's legacy `RandomState(seed).permutation(n_total)`, whose first k entries are
    `RandomState(seed).choice(n_total, k, replace=False)`. So `subset(len(data), data_seed)[:num_sub]` are the images,
    in order, that the code of DiffPure (Nie et al. 2022, data/datasets.py) takes with `--num_sub` and `--data_seed`
    from "cifar10-test" and from the complete "imagenet-val"; with num_sub <= 0 it takes all in the official order.

    Its scripts take only 64 images of CIFAR-10 a run (200 for BPDA+EOT) and 16 of ImageNet, with the data seed left to
    the caller. So the published 512 images are probably several such draws, for instance `torch.cat([subset(10_000,
    seed)[:64] for seed in range(8)])`, which may share images; which seeds they had is not published. Of CelebA-HQ it
    takes the first batch of `subset(len(data), data_seed)[:int(2 / 100 * len(data))]` of "celeba-hq-val:ATTRIBUTE".

    Args:
        n_total: images in the data set.
        seed: 0 to 2^32 - 1.

    Returns:
        Positions, (n_total,) int64.

    Raises:
        ValueError: no images, or a seed out of range.
    """
    if n_total < 1:
        raise ValueError(f"n_total={n_total}: a subset needs a data set of at least one image")
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed={seed}: expected 0 to {_MAX_SEED}")
    return torch.from_numpy(np.random.RandomState(seed).permutation(n_total).astype(np.int64))

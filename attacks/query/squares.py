"""The squares of the Square attack (Andriushchenko et al. 2020, arXiv 1912.00049, Algorithms 2 and 3)."""

from functools import lru_cache

import torch
from torch import Tensor

from attacks.randomness import OfSearch, derive, uniform
from attacks.threats import Linf, Threat

_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the budget after which p is halved


def first_point(threat: Threat, x: Tensor, keys: Tensor) -> Tensor:
    """(n, c, h, w), where a run begins: vertical stripes (Linf) or a chessboard of bumps (L2)."""
    n, c, h, w = x.shape
    if isinstance(threat, Linf):
        return threat.project(x + threat.epsilon * _signs(uniform(derive(keys, OfSearch.START), (c, 1, w), x.dtype)), x)
    side = max(min(h, w) // 5, 1)
    tiles = -(-h // side), -(-w // side)
    signs = (
        _signs(uniform(derive(keys, OfSearch.START), (c, *tiles), x.dtype))
        .repeat_interleave(side, 2)
        .repeat_interleave(side, 3)[..., :h, :w]
    )
    turned = (
        uniform(derive(keys, OfSearch.START, 1), tiles, x.dtype)
        .repeat_interleave(side, 1)
        .repeat_interleave(side, 2)[:, :h, :w]
        > 0.5
    )
    tile = _bump(side).to(x).repeat(tiles)[:h, :w], _bump(side).T.to(x).repeat(tiles)[:h, :w]
    bumps = torch.where(turned, tile[1], tile[0])
    return threat.project(x + threat.epsilon * threat.direction(signs * bumps[:, None]), x)


def propose(threat: Threat, p: float, x: Tensor, found: Tensor, share: Tensor, keys: Tensor) -> Tensor:
    """(n, c, h, w): the incumbents `found` with a change in one square, by their keys (n,).

    Args:
        threat: `Linf` or `L2`.
        p: share of the pixels in the first square.
        x: (n, c, h, w), the originals.
        found: (n, c, h, w).
        share: (n,), of the budget that is spent.
        keys: (n,) int64.
    """
    c, h, w = x.shape[1:]
    halvings = torch.bucketize(share, torch.tensor(_HALVINGS, device=x.device, dtype=share.dtype))
    side = (p * 0.5**halvings * h * w).sqrt()
    draws = uniform(keys, (c + 5,), torch.float64)
    signs = _signs(draws[:, :c]).to(x.dtype)[:, :, None, None]
    if isinstance(threat, Linf):
        inside, _, _ = _window(draws[:, c : c + 2], side.round().long().clamp(1, min(h, w)), h, w)
        change = threat.epsilon * signs
        proposals, other = (threat.project(torch.where(inside, x + way * change, found), x) for way in (1, -1))
        same = (proposals == found).flatten(1).all(1)[:, None, None, None]
        return torch.where(same, other, proposals)
    weight = (side / 3).clamp_max(1).to(x.dtype)[:, None, None, None]
    side = (side.round().long().clamp_min(3) | 1).clamp_max((min(h, w) - 1) | 1)
    return _propose_l2(threat, x, found, side, weight, draws[:, c:], signs)


def _propose_l2(
    threat: Threat, x: Tensor, found: Tensor, side: Tensor, weight: Tensor, draws: Tensor, signs: Tensor
) -> Tensor:
    """Moves the norm of one window into another, as a bump on top of what is there (Algorithm 3)."""
    h, w = x.shape[2:]
    delta, tiny = found - x, torch.finfo(x.dtype).tiny
    first, row, column = _window(draws[:, :2], side, h, w)
    second, _, _ = _window(draws[:, 2:4], side, h, w)
    bump = _bumps(row, column, side, (draws[:, 4] > 0.5)[:, None, None])[:, None].to(x.dtype) * first
    new = weight * bump / _length(bump).clamp_min(tiny) * signs
    old = delta * first
    new = new + old / _length(old).clamp_min(1e-12)
    spare = (threat.epsilon**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / x.shape[1]
    rest = torch.where(second, (1 - weight) * delta, delta)
    length = (
        spare
        + (delta.square() - torch.where(first, 0.0, rest.square())).where(first | second, 0.0).sum((2, 3), keepdim=True)
    ).sqrt()
    delta = torch.where(first, new / _length(new).clamp_min(tiny) * length, rest)
    return threat.project(x + threat.epsilon * threat.direction(delta), x)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -torch.ones_like(uniform), torch.ones_like(uniform))


def _length(x: Tensor) -> Tensor:
    """(n, c, 1, 1): Euclidean norm of each channel."""
    return x.square().sum((2, 3), keepdim=True).sqrt()


def _window(draws: Tensor, side: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squares of sides (n,) placed by uniforms (n, 2): (n, 1, h, w) bool: inside; rows and columns counted from their
    corners, (n, h, 1) and (n, 1, w).
    """
    top, left = ((draws[:, i] * (size - side + 1)).long() for i, size in enumerate((h, w)))
    row = torch.arange(h, device=draws.device)[None, :, None] - top[:, None, None]
    column = torch.arange(w, device=draws.device)[None, None] - left[:, None, None]
    side = side[:, None, None]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[:, None], row, column


def _bumps(row: Tensor, column: Tensor, side: Tensor, turned: Tensor) -> Tensor:
    """(n, h, w) float64: each square's bump, without meaning outside of it.

    Args:
        row: (n, h, 1), counted from the square's corner.
        column: (n, 1, w), counted from the square's corner.
        side: (n,).
        turned: (n, 1, 1) bool: the bump's rows are the square's columns.
    """
    row, column = torch.where(turned, column, row), torch.where(turned, row, column)
    out = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
    for size in sorted(set(side.tolist())):
        of = (side == size).nonzero().squeeze(1)
        out[of] = _bump(size).to(row.device)[row[of].clamp(0, size - 1), column[of].clamp(0, size - 1)]
    return out


@lru_cache(maxsize=1024)
def _bump(side: int) -> Tensor:
    """(side, side) float64: two peaks of unit length and opposite sign, one above the other; a peak is a sum of growing
    squares, the k-th 1 / k^2 high.
    """
    steps = side // 2 + 1
    # at the distance d from the middle: from the d-th square on
    heights = (1 / torch.arange(1, steps + 1).double().square()).flip(0).cumsum(0).flip(0)
    halves = []
    for height, sign in ((side // 2, 1), (side - side // 2, -1)):
        row, column = (torch.arange(height) - height // 2).abs(), (torch.arange(side) - side // 2).abs()
        peak = heights[torch.maximum(row[:, None], column[None])]
        halves.append(sign * peak / peak.norm().clamp_min(1e-30))
    return torch.cat(halves)

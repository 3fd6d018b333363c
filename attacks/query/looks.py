"""When a random model's answers have said enough about a proposal."""

import torch
from torch import Tensor

_LEAST, _MOST = 4, 64  # draws before a random model's proposal is taken, and before it is given up
# standard errors of a gain that is taken; one of labels then needs two draws more that are wrong
_SURE = {"logits": 2.0, "labels": 1.0}


class Looks:
    """What is known of each image's proposal against its incumbent."""

    def __init__(self, images: int, like: Tensor):
        self.count, self._sum, self._squares, self._reached = (like.new_zeros(images) for _ in range(4))

    @property
    def success(self) -> Tensor:
        """(n,): the share of all draws of the proposal that reached the goal."""
        return self._reached / self.count

    def decide(
        self, active: Tensor, after: Tensor, before: Tensor, success: Tensor, random: bool, answers: str
    ) -> tuple[Tensor, Tensor]:
        """(m,) bool: which proposals are taken, and which are decided upon, from scores (draws, m) of proposal and
        incumbent under the same draws.
        """
        difference, ties = after - before, answers == "labels"
        self.count[active] += len(after)
        self._sum[active] += difference.sum(0)
        self._squares[active] += difference.square().sum(0)
        self._reached[active] += success * len(after)
        count, total, squares = self.count[active], self._sum[active], self._squares[active]
        tie = ties & (squares == 0) & (self.success[active] < 1)
        if not random:
            return (total > 0) | tie, torch.ones_like(tie)
        tie &= self.success[active] == 0
        spread = ((squares - total.square() / count).clamp_min(0) / (count - 1).clamp_min(1)).sqrt()
        sure = (count >= _LEAST) & (total > _SURE[answers] * spread * count.sqrt())
        return sure | tie, sure | tie | (total < 0) | ((total == 0) & (not ties)) | (count >= _MOST)

    def forget(self, images: Tensor) -> None:
        """Their next proposals are new."""
        for value in (self.count, self._sum, self._squares, self._reached):
            value[images] = 0

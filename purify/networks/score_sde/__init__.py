"""The networks of score_sde (Song et al. 2021, arXiv 2011.13456, appendix H) under their official parameter names."""

from purify.networks.score_sde.ncsnpp import NCSNpp

__all__ = ["NCSNpp"]

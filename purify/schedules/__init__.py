"""Noise schedules: what the forward process does to an image up to time t.

Every schedule has the marginal x_t = alpha(t) x_0 + sigma(t) n with n ~ N(0, I), and the Ito equation dx = f(t) x dt +
g(t) dw that produces it. Times run from data (0) to noise (1). All methods are elementwise: they take a float or a
tensor of times and return the same kind, computed in float64 where a float comes in.
"""

from purify.schedules.base import (
    Schedule,
    Time,
    index_of_time,
    log_snr,
    noise_to_signal,
    prior,
    snr,
    time_of_index,
    transition,
)
from purify.schedules.descriptions import SCHEDULES, describe, from_description
from purify.schedules.discrete import DiscreteVP
from purify.schedules.edm import EDM
from purify.schedules.functions import Functions
from purify.schedules.ve import VE
from purify.schedules.vp import LinearVP, SubVP

__all__ = [
    "EDM",
    "SCHEDULES",
    "VE",
    "DiscreteVP",
    "Functions",
    "LinearVP",
    "Schedule",
    "SubVP",
    "Time",
    "describe",
    "from_description",
    "index_of_time",
    "log_snr",
    "noise_to_signal",
    "prior",
    "snr",
    "time_of_index",
    "transition",
]

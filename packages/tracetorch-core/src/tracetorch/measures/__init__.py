"""Measures of spikes, and of what a model costs. Pure: nothing is kept, drawn or printed.

Measures of spikes take tensors ``[T, B, …]`` or whole recordings; those of cost take modules.
"""

from __future__ import annotations

from tracetorch.measures.connectivity import connection_sparsity, footprint
from tracetorch.measures.counts import (
    HOROWITZ_45NM,
    Count,
    EnergyConstants,
    Operations,
    energy,
)
from tracetorch.measures.distances import van_rossum, victor_purpura
from tracetorch.measures.intervals import (
    Intervals,
    interspike_intervals,
    interval_cv,
    interval_mean,
    local_variation,
)
from tracetorch.measures.operating import operations
from tracetorch.measures.spikes import (
    activation_sparsity,
    dead,
    firing_rate,
    first_spike_latency,
    saturated,
    spike_counts,
)
from tracetorch.measures.variability import fano_factor, synchrony

__all__ = [
    "HOROWITZ_45NM",
    "Count",
    "EnergyConstants",
    "Intervals",
    "Operations",
    "activation_sparsity",
    "connection_sparsity",
    "dead",
    "energy",
    "fano_factor",
    "firing_rate",
    "first_spike_latency",
    "footprint",
    "interspike_intervals",
    "interval_cv",
    "interval_mean",
    "local_variation",
    "operations",
    "saturated",
    "spike_counts",
    "synchrony",
    "van_rossum",
    "victor_purpura",
]

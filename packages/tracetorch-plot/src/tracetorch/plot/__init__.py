"""Figures of traceTorch: tensors and recordings → matplotlib. Knows no model."""

from __future__ import annotations

from tracetorch.plot.activity import activity, raster, traces
from tracetorch.plot.animation import animate
from tracetorch.plot.layers import distributions, surrogate
from tracetorch.plot.maps import feature_maps, heatmap
from tracetorch.plot.network import network
from tracetorch.plot.responses import phase, response
from tracetorch.plot.training import rates, training

__all__ = [
    "activity",
    "animate",
    "distributions",
    "feature_maps",
    "heatmap",
    "network",
    "phase",
    "raster",
    "rates",
    "response",
    "surrogate",
    "traces",
    "training",
]

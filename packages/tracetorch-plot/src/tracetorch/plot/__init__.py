"""Figures of traceTorch: recorded tensors → matplotlib. Knows no layer and no model."""

from __future__ import annotations

from tracetorch.plot.activity import activity, raster, traces

__all__ = ["activity", "raster", "traces"]

"""NIR, the Neuromorphic Intermediate Representation: models to graphs, and graphs to models.

An extra, not imported with ``tracetorch.snn``: it needs ``pip install tracetorch-snn[nir]``.
"""

from __future__ import annotations

try:
    import nir as _nir  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    if error.name != "nir":
        raise
    raise ImportError(
        "tracetorch.snn.nir needs the package nir; run: pip install tracetorch-snn[nir]",
        name="nir",
    ) from None

from tracetorch.snn.nir.errors import NIRError
from tracetorch.snn.nir.exporting import to_nir
from tracetorch.snn.nir.importing import from_nir
from tracetorch.snn.nir.model import GraphModel
from tracetorch.snn.nir.neurons import Neuron
from tracetorch.snn.nir.presets import PRESETS, Discretisation

del _nir

__all__ = [
    "PRESETS",
    "Discretisation",
    "GraphModel",
    "NIRError",
    "Neuron",
    "from_nir",
    "to_nir",
]

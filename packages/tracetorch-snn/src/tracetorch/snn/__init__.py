"""Spiking and leaky-integrator layers, surrogates and quantisers of traceTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tracetorch.snn import (
    decoders,
    encoders,
    init,
    losses,
    quantizers,
    regularizers,
    resets,
    surrogates,
)
from tracetorch.snn.adaptation import Adaptation
from tracetorch.snn.delay import Delay
from tracetorch.snn.firing import BINARY, SCALED, TERNARY, Fired, Firing
from tracetorch.snn.layer import LeakyIntegrator
from tracetorch.snn.layers import (
    DLI,
    DLIB,
    DLIEMA,
    DLIT,
    DLITS,
    DRLIB,
    DRLIT,
    DRLITS,
    DSLI,
    DSLIB,
    DSLIEMA,
    DSLIT,
    DSLITS,
    DSRLIB,
    DSRLIT,
    DSRLITS,
    LAYERS,
    LI,
    LIB,
    LIEMA,
    LIT,
    LITS,
    RLIB,
    RLIT,
    RLITS,
    SLI,
    SLIB,
    SLIEMA,
    SLIT,
    SLITS,
    SRLIB,
    SRLIT,
    SRLITS,
)

Layer = LeakyIntegrator

__all__ = [
    "BINARY",
    "DLI",
    "DLIB",
    "DLIEMA",
    "DLIT",
    "DLITS",
    "DRLIB",
    "DRLIT",
    "DRLITS",
    "DSLI",
    "DSLIB",
    "DSLIEMA",
    "DSLIT",
    "DSLITS",
    "DSRLIB",
    "DSRLIT",
    "DSRLITS",
    "LAYERS",
    "LI",
    "LIB",
    "LIEMA",
    "LIT",
    "LITS",
    "RLIB",
    "RLIT",
    "RLITS",
    "SCALED",
    "SLI",
    "SLIB",
    "SLIEMA",
    "SLIT",
    "SLITS",
    "SRLIB",
    "SRLIT",
    "SRLITS",
    "TERNARY",
    "Adaptation",
    "Delay",
    "Fired",
    "Firing",
    "Layer",
    "LeakyIntegrator",
    "decoders",
    "encoders",
    "init",
    "losses",
    "quantizers",
    "regularizers",
    "resets",
    "surrogates",
]

if TYPE_CHECKING:
    from tracetorch.snn import nir as nir
else:  # checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "nir":  # an extra: needs the package nir
            return importlib.import_module("tracetorch.snn.nir")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""traceTorch: recurrent and spiking layers for PyTorch with hidden, managed states."""

from __future__ import annotations

import importlib
from importlib.metadata import version as _distribution_version
from importlib.util import find_spec as _find_spec
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

__path__ = extend_path(__path__, __name__)

from tracetorch import backends, constraints
from tracetorch.backends import BackendError
from tracetorch.checkpoints import checkpoint_values, load_checkpoint, save_checkpoint
from tracetorch.constraints import Constraint
from tracetorch.errors import (
    CheckpointError,
    FoldError,
    LayerError,
    RecordError,
    StateError,
    StateFileError,
)
from tracetorch.explicit import CallableModule, Functional
from tracetorch.layer import Layer
from tracetorch.model import Model
from tracetorch.randomness import Random
from tracetorch.recorder import record
from tracetorch.recording import Recording
from tracetorch.sequences.checking import check_unroll
from tracetorch.sequences.recomputing import restored_states
from tracetorch.states import IncompatibleStates
from tracetorch.summary import ParameterCount, Row, Summary
from tracetorch.walk import named_layers

if TYPE_CHECKING:
    functional: CallableModule
    from tracetorch import measures as measures
    from tracetorch import plot as plot
    from tracetorch import rnn as rnn
    from tracetorch import snn as snn
    from tracetorch import testing as testing

    __version__: str
else:
    from tracetorch import functional

    # both are its public name: tt.functional.halflife_to_decay(…), and tt.functional(model)
    functional.__class__ = CallableModule

__all__ = [
    "BackendError",
    "CheckpointError",
    "Constraint",
    "FoldError",
    "Functional",
    "IncompatibleStates",
    "Layer",
    "LayerError",
    "Model",
    "ParameterCount",
    "Random",
    "RecordError",
    "Recording",
    "Row",
    "StateError",
    "StateFileError",
    "Summary",
    "backends",
    "check_unroll",
    "checkpoint_values",
    "constraints",
    "functional",
    "load_checkpoint",
    "named_layers",
    "record",
    "restored_states",
    "save_checkpoint",
]

_SIBLINGS = ("plot", "rnn", "snn")
_LAZY = ("measures", "testing")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _distribution_version("tracetorch-core")
    if name in _SIBLINGS and _find_spec(f"{__name__}.{name}") is None:
        raise ImportError(
            f"tracetorch.{name} is not installed; run: pip install tracetorch-{name}",
            name=f"{__name__}.{name}",
        )
    if name in _SIBLINGS or name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    installed = (name for name in _SIBLINGS if _find_spec(f"{__name__}.{name}"))
    return sorted({*globals(), *_LAZY, *installed, "__version__"})

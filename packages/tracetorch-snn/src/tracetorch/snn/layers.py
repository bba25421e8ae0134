"""The 32 leaky-integrator layers: each a declaration of what it combines.

A name reads itself: D dual polarity, S synaptic trace, R recurrent trace, LI leaky integrator,
then EMA (moving average), B (binary), T (ternary) or TS (ternary, scaled) spikes. Constructors,
states, parameters and documentation follow from the declaration; ``layers.pyi`` spells the
constructors out for type checkers and is kept true by a test.
"""

from __future__ import annotations

from tracetorch.snn.firing import BINARY, SCALED, TERNARY
from tracetorch.snn.layer import LeakyIntegrator


class LI(LeakyIntegrator):
    """Leaky integrator that emits its membrane."""


class DLI(LeakyIntegrator, dual=True):
    """Dual-polarity leaky integrator that emits its membrane."""


class SLI(LeakyIntegrator, synapse=True):
    """Synaptic leaky integrator that emits its membrane."""


class DSLI(LeakyIntegrator, dual=True, synapse=True):
    """Dual-polarity, synaptic leaky integrator that emits its membrane."""


class LIEMA(LeakyIntegrator, average=True):
    """Leaky integrator that emits a moving average."""


class DLIEMA(LeakyIntegrator, dual=True, average=True):
    """Dual-polarity leaky integrator that emits a moving average."""


class SLIEMA(LeakyIntegrator, synapse=True, average=True):
    """Synaptic leaky integrator that emits a moving average."""


class DSLIEMA(LeakyIntegrator, dual=True, synapse=True, average=True):
    """Dual-polarity, synaptic leaky integrator that emits a moving average."""


class LIB(LeakyIntegrator, firing=BINARY):
    """Leaky integrator with binary spikes."""


class DLIB(LeakyIntegrator, dual=True, firing=BINARY):
    """Dual-polarity leaky integrator with binary spikes."""


class SLIB(LeakyIntegrator, synapse=True, firing=BINARY):
    """Synaptic leaky integrator with binary spikes."""


class RLIB(LeakyIntegrator, recurrence=True, firing=BINARY):
    """Recurrent leaky integrator with binary spikes."""


class DSLIB(LeakyIntegrator, dual=True, synapse=True, firing=BINARY):
    """Dual-polarity, synaptic leaky integrator with binary spikes."""


class DRLIB(LeakyIntegrator, dual=True, recurrence=True, firing=BINARY):
    """Dual-polarity, recurrent leaky integrator with binary spikes."""


class SRLIB(LeakyIntegrator, synapse=True, recurrence=True, firing=BINARY):
    """Synaptic, recurrent leaky integrator with binary spikes."""


class DSRLIB(LeakyIntegrator, dual=True, synapse=True, recurrence=True, firing=BINARY):
    """Dual-polarity, synaptic, recurrent leaky integrator with binary spikes."""


class LIT(LeakyIntegrator, firing=TERNARY):
    """Leaky integrator with ternary spikes."""


class DLIT(LeakyIntegrator, dual=True, firing=TERNARY):
    """Dual-polarity leaky integrator with ternary spikes."""


class SLIT(LeakyIntegrator, synapse=True, firing=TERNARY):
    """Synaptic leaky integrator with ternary spikes."""


class RLIT(LeakyIntegrator, recurrence=True, firing=TERNARY):
    """Recurrent leaky integrator with ternary spikes."""


class DSLIT(LeakyIntegrator, dual=True, synapse=True, firing=TERNARY):
    """Dual-polarity, synaptic leaky integrator with ternary spikes."""


class DRLIT(LeakyIntegrator, dual=True, recurrence=True, firing=TERNARY):
    """Dual-polarity, recurrent leaky integrator with ternary spikes."""


class SRLIT(LeakyIntegrator, synapse=True, recurrence=True, firing=TERNARY):
    """Synaptic, recurrent leaky integrator with ternary spikes."""


class DSRLIT(LeakyIntegrator, dual=True, synapse=True, recurrence=True, firing=TERNARY):
    """Dual-polarity, synaptic, recurrent leaky integrator with ternary spikes."""


class LITS(LeakyIntegrator, firing=SCALED):
    """Leaky integrator with scaled ternary spikes."""


class DLITS(LeakyIntegrator, dual=True, firing=SCALED):
    """Dual-polarity leaky integrator with scaled ternary spikes."""


class SLITS(LeakyIntegrator, synapse=True, firing=SCALED):
    """Synaptic leaky integrator with scaled ternary spikes."""


class RLITS(LeakyIntegrator, recurrence=True, firing=SCALED):
    """Recurrent leaky integrator with scaled ternary spikes."""


class DSLITS(LeakyIntegrator, dual=True, synapse=True, firing=SCALED):
    """Dual-polarity, synaptic leaky integrator with scaled ternary spikes."""


class DRLITS(LeakyIntegrator, dual=True, recurrence=True, firing=SCALED):
    """Dual-polarity, recurrent leaky integrator with scaled ternary spikes."""


class SRLITS(LeakyIntegrator, synapse=True, recurrence=True, firing=SCALED):
    """Synaptic, recurrent leaky integrator with scaled ternary spikes."""


class DSRLITS(LeakyIntegrator, dual=True, synapse=True, recurrence=True, firing=SCALED):
    """Dual-polarity, synaptic, recurrent leaky integrator with scaled ternary spikes."""


LAYERS: tuple[type[LeakyIntegrator], ...] = (
    LI,
    DLI,
    SLI,
    DSLI,
    LIEMA,
    DLIEMA,
    SLIEMA,
    DSLIEMA,
    LIB,
    DLIB,
    SLIB,
    RLIB,
    DSLIB,
    DRLIB,
    SRLIB,
    DSRLIB,
    LIT,
    DLIT,
    SLIT,
    RLIT,
    DSLIT,
    DRLIT,
    SRLIT,
    DSRLIT,
    LITS,
    DLITS,
    SLITS,
    RLITS,
    DSLITS,
    DRLITS,
    SRLITS,
    DSRLITS,
)
"""All 32 leaky integrators, simplest first."""

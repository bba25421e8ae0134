"""The quantities of the leaky-integrator family: symbol, meaning, default and constraint."""

from __future__ import annotations

from dataclasses import dataclass

from tracetorch import constraints
from tracetorch.constraints import Constraint


@dataclass(frozen=True)
class Quantity:
    """One physical quantity that a parameter stands for, whatever its polarity."""

    symbol: str
    meaning: str
    default: float
    constraint: Constraint


QUANTITIES = {
    "alpha": Quantity("α", "synapse decay per timestep", 0.5, constraints.sigmoid),
    "beta": Quantity("β", "membrane decay per timestep", 0.9, constraints.sigmoid),
    "gamma": Quantity("γ", "decay of the recurrent trace per timestep", 0.9, constraints.sigmoid),
    "threshold": Quantity("θ", "firing threshold, a magnitude", 1.0, constraints.softplus),
    "rho": Quantity("ρ", "decay of what is raised per timestep", 0.95, constraints.sigmoid),
    "jump": Quantity("j", "what a spike raises the threshold by", 0.1, constraints.softplus),
    "scale": Quantity("a", "scale of the emitted spikes", 1.0, constraints.identity),
    "rec_weight": Quantity("w", "weight of the layer's own trace", 0.0, constraints.identity),
}

"""From continuous neurons to timesteps and back: one row of a table for each simulator.

NIR describes neurons by differential equations and says nothing about timesteps. What a simulator
makes of them is a :class:`Discretisation`. Knows no graph and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from tracetorch.snn.nir.errors import NIRError

Array: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = "dict[str, Array]"

DT = 1e-4  # seconds; what the simulators take where a graph says nothing


@dataclass(frozen=True)
class Discretisation:
    """How a neuron's differential equation becomes a timestep of ``dt`` seconds.

    With k the gain and β the decay of time constant τ, a timestep is

    * synapse (CubaLI, CubaLIF): i ← α·i + k(τ_syn)·w_in·x, else i = x
    * membrane (LI, LIF, CubaLI, CubaLIF): v ← β·v + k(τ)·(r·i + v_leak)
    * membrane (I, IF): v ← v + r·i, or v + r·dt·i
    * firing: s = v > v_threshold, then the reset

    A neuron in a loop reads what it put out in the timestep before, whatever the simulator.

    Args:
        decay: ``"euler"``: 1 − dt/τ; ``"exponential"``: e^(−dt/τ).
        gain: ``"euler"``: dt/τ; ``"exponential"``: 1 − e^(−dt/τ).
        reset: ``"value"``: v ← v_reset; ``"subtract"``: v ← v − v_threshold.
        delayed: the reset comes with the next timestep, after that one's leak and input.
        order: ``"synapse"``: the synapse is updated first, and the membrane reads its new current;
            ``"membrane"``: the membrane reads the current of the timestep before.
        integral: what I and IF weigh their input with: ``"timestep"``: r; ``"seconds"``: r·dt.
        at_threshold: a membrane exactly at the threshold fires too.

    Raises:
        ValueError: an argument is none of these.

    Example:
        >>> from tracetorch.snn.nir import PRESETS, Discretisation
        >>> PRESETS["rockpool"] == Discretisation("exponential", "euler", "subtract")
        True

    Source: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122, 2024 (the equations); Rotter and Diesmann, Exact digital simulation of time-invariant
    linear systems, Biological Cybernetics 81, 1999 (the exponential decay).
    """

    decay: Literal["euler", "exponential"] = "euler"
    gain: Literal["euler", "exponential"] = "euler"
    reset: Literal["value", "subtract"] = "value"
    delayed: bool = False
    order: Literal["synapse", "membrane"] = "synapse"
    integral: Literal["timestep", "seconds"] = "timestep"
    at_threshold: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), _ALLOWED.get(field.name, (False, True))
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise ValueError(
                    f"Discretisation: {field.name} must be one of {list(allowed)}, got {value!r}"
                )

    def decay_of(self, tau: Array, dt: float) -> Array:
        """What is left of a trace of time constant ``tau`` after a timestep.

        Args:
            tau: of the trace, seconds, above 0; an array of any shape.
            dt: seconds of a timestep.
        """
        return 1 - dt / tau if self.decay == "euler" else np.exp(-dt / tau)

    def tau_of(self, decay: Array, dt: float) -> Array:
        """The time constant of a decay in (0, 1).

        Args:
            decay: per timestep, in (0, 1); an array of any shape.
            dt: seconds of a timestep.
        """
        return dt / (1 - decay) if self.decay == "euler" else -dt / np.log(decay)

    def gain_of(self, tau: Array, dt: float) -> Array:
        """The weight of a timestep's inflow.

        Args:
            tau: of the trace, seconds, above 0; an array of any shape.
            dt: seconds of a timestep.
        """
        return dt / tau if self.gain == "euler" else -np.expm1(-dt / tau)

    def integral_of(self, dt: float) -> float:
        """The weight of a timestep's inflow where nothing leaks.

        Args:
            dt: seconds of a timestep.
        """
        return 1.0 if self.integral == "timestep" else dt


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "decay": ("euler", "exponential"),
    "gain": ("euler", "exponential"),
    "reset": ("value", "subtract"),
    "order": ("synapse", "membrane"),
    "integral": ("timestep", "seconds"),
}

PRESETS = {
    "norse": Discretisation("euler", "euler", "value"),
    "snntorch": Discretisation("euler", "euler", "value"),
    "nengo": Discretisation("exponential", "exponential", "value"),
    "rockpool": Discretisation("exponential", "euler", "subtract"),
    "tracetorch": Discretisation("euler", "euler", "subtract"),
}
"""Each simulator's discretisation by its name, in lower case.

Source: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15, 8122,
2024, and what each was recorded to do with one neuron.
"""


def discretisation(preset: str | Discretisation) -> Discretisation:
    """A discretisation by its simulator's name, or as it is."""
    if isinstance(preset, Discretisation):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(
            f"preset must be one of {sorted(PRESETS)} or a Discretisation, got {preset!r}"
        )
    return PRESETS[preset]


def to_timesteps(kind: str, node: Values, how: Discretisation, dt: float) -> Values:
    """The values of a neuron's timestep, from those of its node.

    Raises:
        NIRError: a time constant is not above 0, or too short for Euler's decay; a value is not
            finite.
    """
    for name, value in node.items():
        if not np.isfinite(value).all():
            raise NIRError(f"{name} must be finite, got {_extreme(value)}")
    found: Values = {}
    if kind.startswith("Cuba"):
        tau = _checked("tau_syn", node["tau_syn"], how, dt)
        found["alpha"] = how.decay_of(tau, dt)
        found["inflow"] = how.gain_of(tau, dt) * node["w_in"]
    leaky = kind not in ("I", "IF")
    if leaky:
        name = "tau_mem" if kind.startswith("Cuba") else "tau"
        tau = _checked(name, node[name], how, dt)
        gain = how.gain_of(tau, dt)
        found |= {"beta": how.decay_of(tau, dt), "gain": gain * node["r"]}
        found["bias"] = gain * node["v_leak"]
    else:
        found["gain"] = how.integral_of(dt) * node["r"]
    if "v_threshold" in node:
        found |= {"threshold": node["v_threshold"], "rest": node["v_reset"]}
    return found


def to_node(kind: str, values: Values, how: Discretisation, dt: float) -> Values:
    """The values of a neuron's node, from those of its timestep.

    Raises:
        NIRError: there is no time constant for a decay.
    """
    found: Values = {}
    if kind.startswith("Cuba"):
        tau = _tau("alpha", values["alpha"], how, dt)
        found |= {"tau_syn": tau, "w_in": values["inflow"] / how.gain_of(tau, dt)}
    if kind not in ("I", "IF"):
        tau = _tau("beta", values["beta"], how, dt)
        gain = how.gain_of(tau, dt)
        found["tau_mem" if kind.startswith("Cuba") else "tau"] = tau
        found |= {"r": values["gain"] / gain, "v_leak": values["bias"] / gain}
    else:
        found["r"] = values["gain"] / how.integral_of(dt)
    if "threshold" in values:
        found |= {"v_threshold": values["threshold"], "v_reset": values["rest"]}
    return found


def _checked(name: str, tau: Array, how: Discretisation, dt: float) -> Array:
    if not (tau > 0).all():
        raise NIRError(f"{name} must be above 0 seconds, got {_extreme(tau)}")
    # a decay of 0 that dt/τ has missed by rounding is one
    if how.decay == "euler" and not (tau >= dt * (1 - 1e-6)).all():
        raise NIRError(
            f"{name} is {float(tau.min()):g} s, shorter than the timestep of {dt:g} s, which "
            f"Euler's decay 1 − dt/{name} cannot have; give a shorter dt, or an exponential preset"
        )
    return np.maximum(tau, dt) if how.decay == "euler" else tau


def _tau(name: str, decay: Array, how: Discretisation, dt: float) -> Array:
    low = (decay >= 0) if how.decay == "euler" else (decay > 0)
    if not (low & (decay < 1)).all():
        raise NIRError(f"{name} must lie between 0 and 1 to have a time constant, got {decay}")
    return how.tau_of(decay, dt)


def _extreme(value: Array) -> float:
    wrong = value[~np.isfinite(value)]
    return float(wrong.flat[0]) if wrong.size else float(value.min())

"""Docstrings of the leaky-integrator layers, read off the same declaration as their step."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tracetorch.snn.quantities import QUANTITIES
from tracetorch.snn.traces import DUAL

if TYPE_CHECKING:
    from tracetorch.snn.layer import LeakyIntegrator

_SIGNS = {"pos_": "⁺", "neg_": "⁻"}


def bare(name: str) -> str:
    """A parameter's name without its polarity: ``pos_beta`` → ``beta``."""
    return name.removeprefix("pos_").removeprefix("neg_")


def equations(cls: type[LeakyIntegrator]) -> list[str]:
    """The equations of one timestep, a line each."""
    half = "±" if cls.polarity == DUAL else ""
    both = cls.polarity == DUAL
    lines = []
    current = f"x{half}"
    if cls.synapse:
        lines.append(f"syn{half} ← α{half}·syn{half} + (1 − α{half})·x{half}")
        lines += ["i = syn⁺ + syn⁻"] if both else []
        current = f"i{half}" if both else "syn"
    if cls.recurrence:
        lines.append(f"rec{half} ← γ{half}·rec{half} + (1 − γ{half})·prev_output{half}")
        lines += ["r = rec⁺ + rec⁻"] if both else []
        current += f" + w{half}·r{half}" if both else " + w·rec"
    gain = f"(1 − β{half})·" if cls.average else ""
    lines.append(f"mem{half} ← β{half}·mem{half} + {gain}{current}")
    lines += ["mem = mem⁺ + mem⁻"] if both else []
    lines += cls.firing.equations if cls.firing else ["out = mem"]
    return lines + (["prev_output ← out"] if cls.recurrence else [])


def docstring(cls: type[LeakyIntegrator], sentence: str) -> str:
    """Sentence, equations, states, parameters with ranges, errors, example, source."""
    parts = [
        sentence,
        "Equations of one timestep, per neuron::\n\n" + _indented(equations(cls)),
        *_notes(cls),
        textwrap.fill(
            "States: " + ", ".join(f"``{name}``" for name in cls.state_names())
            + ", each of the input's shape, zero at the start.", 96
        ),
        "Args:\n" + _indented(_arguments(cls)),
        "Raises:\n" + _indented(
            [
                "TypeError: an argument is of the wrong kind or unknown.",
                "ValueError: a value lies outside its range, or a tensor has the wrong shape.",
            ]
        ),
        "Example:\n" + _indented(
            [
                ">>> import torch",
                ">>> from tracetorch import snn",
                f">>> layer = snn.{cls.__name__}(3)",
                ">>> y = layer(torch.zeros(2, 3))  # one timestep of a batch of two",
                f">>> layer.{cls.state_names()[0]}.tolist()",
                "[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]",
            ]
        ),
        "Source: the leaky integrate-and-fire neuron in discrete time,\n"
        "Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 1.3.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _notes(cls: type[LeakyIntegrator]) -> list[str]:
    notes = []
    if cls.polarity == DUAL:
        notes.append("u⁺ is u where u ≥ 0 and u⁻ is u where u < 0, else 0.")
    if cls.firing is not None:
        notes.append("f is ``spike_fn`` and q is ``quant_fn``.")
        if cls.polarity == DUAL:
            notes[-1] += " A reset is taken half from mem⁺, half from mem⁻."
    return ["\n".join(notes)] if notes else []


def _arguments(cls: type[LeakyIntegrator]) -> list[str]:
    lines = ["num_neurons: size of the input along ``dim``, at least 1."]
    names = cls.parameter_names()
    for name in names:
        quantity = QUANTITIES[bare(name)]
        sign = _SIGNS.get(name[:4], "")
        lines.append(
            f"{name}: {quantity.symbol}{sign}, {quantity.meaning}, {quantity.constraint.domain}; "
            f"a number, or a tensor of shape [] or [num_neurons]."
        )
    lines.append("dim: which dimension of a timestep's input holds the neurons.")
    shown = " ".join(f"``{name}_rank``" for name in names)
    lines.append(f"{shown}: 0 = one scalar for the layer, 1 = one value per neuron.")
    shown = " ".join(f"``learn_{name}``" for name in names)
    lines.append(f"{shown}: True = ``nn.Parameter``, False = buffer.")
    if cls.firing is not None:
        lines += [
            "spike_fn: distance from the threshold → firing probability, any function or module; "
            "None is ``surrogates.sigmoid(4.0)``.",
            "quant_fn: firing probability → what is emitted, any function or module; None is "
            "``quantizers.round()``.",
            "reset: what a spike does to the membrane, of ``snn.resets``; None is "
            "``resets.subtract()``, the equation above.",
            "refractory: timesteps after a spike, 0…256, in which the membrane stands still and "
            "does not fire; counted down in a state ``waiting``.",
            "adaptation: an ``snn.Adaptation``, by which spikes raise the threshold; None is none.",
            "graded: whether a spike carries the membrane it fired from: ``out·|mem|``.",
            "feedback: a module from the last output, laid out as a timestep, to what is added "
            "to the input: dense or convolutional recurrence. The timesteps run one by one then.",
        ]
    return lines


def _indented(lines: list[str]) -> str:
    wrapped = [
        textwrap.fill(line, 92, subsequent_indent="    ", break_on_hyphens=False)
        if not line.startswith((">>>", "["))
        else line
        for line in lines
    ]
    return textwrap.indent("\n".join(wrapped), "    ")

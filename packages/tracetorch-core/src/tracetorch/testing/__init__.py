"""A layer held to the contract: in one call, or one property at a time. Knows no test runner.

The three layers here are small, complete and importable: something to try a property, a trainer or
a file on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch import constraints
from tracetorch.layer import Layer
from tracetorch.testing.properties import (
    PROPERTIES,
    check_layer,
    compiling_is_exact,
    copies_keep_states,
    detaching_cuts_the_graph,
    dim_is_a_layout,
    gradients_match_differences,
    misfits_are_refused,
    precision_is_kept,
    recording_is_of_the_steps,
    samples_are_independent,
    states_follow_the_module,
    states_round_trip,
    step_equals_unroll,
)
from tracetorch.testing.restarting import (
    masks_restart_samples,
    resets_are_masks,
    zeroing_restarts,
)

__all__ = [
    "PROPERTIES",
    "AdaptiveLIF",
    "StateSpace",
    "Trace",
    "check_layer",
    "compiling_is_exact",
    "copies_keep_states",
    "detaching_cuts_the_graph",
    "dim_is_a_layout",
    "gradients_match_differences",
    "masks_restart_samples",
    "misfits_are_refused",
    "precision_is_kept",
    "recording_is_of_the_steps",
    "resets_are_masks",
    "samples_are_independent",
    "states_follow_the_module",
    "states_round_trip",
    "step_equals_unroll",
    "zeroing_restarts",
]


class Trace(Layer):
    """A leaky trace of the input: one state, one parameter.

    Args:
        num_neurons: size of the input along ``dim``, at least 1.
        beta: the decay, in (0, 1); a number, or a tensor ``[]`` or ``[num_neurons]``.
        dim: which dimension of a timestep's input holds the neurons.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> layer = Trace(1, beta=0.5)
        >>> [layer(torch.ones(1, 1)).item() for _ in range(3)]
        [1.0, 1.5, 1.75]
    """

    def __init__(self, num_neurons: int, beta: float | Tensor = 0.8, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_parameter("beta", beta, constraint=constraints.sigmoid)

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        mem = p.beta * states.mem + x
        return {"mem": mem}, mem


class AdaptiveLIF(Layer):
    """A spiking neuron whose threshold rises with each spike: two states, three parameters.

    The gradient of the spike is that of a sigmoid.

    Args:
        num_neurons: size of the input along ``dim``, at least 1.
        beta: decay of the membrane, in (0, 1); like ``jump`` a number, or a tensor ``[]`` or
            ``[num_neurons]``.
        rho: decay of what the threshold is raised by, in (0, 1): a number, or a tensor ``[]``.
        jump: what a spike raises it by, positive: a number or a tensor ``[num_neurons]``.
        dim: which dimension of a timestep's input holds the neurons.
        beta_rank: 0 = one scalar for the layer, 1 = one value per neuron.
        learn_jump: True = ``nn.Parameter``, False = buffer.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> layer = AdaptiveLIF(1, jump=2.0)
        >>> [layer(torch.full((1, 1), 1.2)).item() for _ in range(4)]
        [1.0, 0.0, 0.0, 1.0]

    Source: Bellec et al., Long short-term memory and learning-to-learn in networks of spiking
    neurons, NeurIPS 2018, arXiv 1803.09574.
    """

    def __init__(
        self,
        num_neurons: int,
        beta: float | Tensor = 0.9,
        rho: float | Tensor = 0.95,
        jump: float | Tensor = 0.5,
        dim: int = -1,
        beta_rank: int = 1,
        learn_jump: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "raised")
        self.add_parameter("beta", beta, rank=beta_rank, constraint=constraints.sigmoid)
        self.add_parameter("rho", rho, rank=0, constraint=constraints.sigmoid)
        self.add_parameter("jump", jump, learn=learn_jump, constraint=constraints.softplus)

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        mem = p.beta * states.mem + x
        over = mem - 1.0 - states.raised
        soft = torch.sigmoid(4.0 * over)
        spike = (over > 0).to(mem.dtype) + (soft - soft.detach())
        raised = p.rho * states.raised + p.jump * spike
        return {"mem": mem - spike, "raised": raised}, spike


class StateSpace(Layer):
    """Per neuron ``order`` traces, mixed into ``out_size`` outputs: a state of shape ``[N, S]``.

    Args:
        num_neurons: N, size of the input along ``dim``, at least 1.
        out_size: size of the output along ``dim``, at least 1.
        order: S, traces per neuron, at least 1.
        dim: which dimension of a timestep's input holds the neurons.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> layer = StateSpace(4, out_size=2, order=3)
        >>> layer(torch.ones(5, 4)).shape, layer.h.shape
        (torch.Size([5, 2]), torch.Size([5, 4, 3]))
    """

    def __init__(self, num_neurons: int, out_size: int = 2, order: int = 3, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        sizes = (num_neurons, order)
        self.add_state("h", sizes=sizes)
        decays = torch.linspace(0.3, 0.9, num_neurons * order).reshape(sizes)
        self.add_parameter("a", decays, shape=sizes, constraint=constraints.sigmoid)
        gains = torch.linspace(-1.0, 1.0, num_neurons * order).reshape(sizes)
        self.add_parameter("c", gains, shape=sizes, raw_name="c")
        mixed = torch.linspace(-0.5, 1.0, num_neurons * out_size).reshape(num_neurons, out_size)
        self.add_parameter("w", mixed, shape=(num_neurons, out_size), raw_name="w")

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        h = p.a * states.h + x.unsqueeze(-1)
        return {"h": h}, torch.tanh((p.c * h).sum(-1)) @ p.w

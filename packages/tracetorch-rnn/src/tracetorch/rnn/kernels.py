"""Torch's kernels for whole sequences, and how they restart samples on the way.

They know nothing of restarts, so each gets sequences that have none:

* cuDNN gets a packed one, which it is made for.
* On the CPU a packed sequence is several times as slow as a plain one. A layer whose only state is
  its output goes through rectangles, plain sequences with few places empty.
* oneDNN, which runs the LSTM there, makes a kernel for every size it meets, in a millisecond. So
  the sequence stays one, with a timestep more at every restart, whose gates make the state zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from tracetorch.rnn.restarts import apart, pieces
from tracetorch.states import finite

States = tuple[Tensor, ...]
Kernel = Callable[..., Any]
Pushes = tuple[tuple[int, int], ...]

_ONE_LAYER = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "bidirectional": False}
# as many timesteps of a sample as another rectangle costs
_SPARE = 32
# how many lengths a sequence can get by its restarts: each needs a kernel of its own
_LENGTHS = 64


def run(kernel: Kernel, x: Tensor, states: Sequence[Tensor], weights: States) -> States:
    """Outputs ``[T, B, out]`` and final states ``[1, B, out]`` for ``x`` ``[T, B, in]``.

    Args:
        kernel: of torch: ``torch.lstm``, ``torch.gru``, ``torch.rnn_tanh``.
        x: ``[T, B, in]``.
        states: of B samples each, the output first.
        weights: ``weight_ih, weight_hh, bias_ih, bias_hh``.
    """
    begun = [s.reshape(1, x.shape[1], s.shape[-1]).contiguous() for s in states]
    return kernel(  # type: ignore[no-any-return]
        x, one_or_all(begun), _for_kernel(weights), **_ONE_LAYER, train=torch.is_grad_enabled(),
        batch_first=False,
    )  # fmt: skip


def restarting(
    kernel: Kernel,
    x: Tensor,
    states: Sequence[Tensor],
    weights: States,
    resets: Tensor,
    pushes: Pushes,
) -> States:
    """The same where samples restart.

    Args:
        kernel: as in :func:`run`, with ``x``, ``states`` and ``weights``.
        x: ``[T, B, in]``.
        states: of B samples each, the output first.
        weights: ``weight_ih, weight_hh, bias_ih, bias_hh``.
        resets: booleans ``[T, B]``: a sample restarts before the timestep.
        pushes: of every gate, whether it is to be closed (-1), opened (1) or left (0) for all
            states to become zero, and for all but the output to stay; () where gates cannot do it.
    """
    if not bool(resets.any()):
        return run(kernel, x, states, weights)
    if x.is_cuda:
        return _packed(kernel, x, states, weights, resets)
    if len(states) == 1:
        return _rectangles(kernel, x, states, weights, resets)
    if pushes:
        y, *final = _apart(kernel, x, states, weights, resets, pushes)
        # no gate makes zero of what is not finite: that stays to the end
        if finite(y[-1]):
            return y, *final
    return _packed(kernel, x, states, weights, resets)


def _packed(
    kernel: Kernel, x: Tensor, states: Sequence[Tensor], weights: States, resets: Tensor
) -> States:
    """All pieces as one packed sequence."""
    cut = pieces(resets)
    begun = one_or_all(_begun(states, cut.samples, ~cut.carried))
    y, *final = kernel(
        x.flatten(0, 1)[cut.order], torch.tensor(cut.widths), begun, _for_kernel(weights),
        **_ONE_LAYER, train=torch.is_grad_enabled(),
    )  # fmt: skip
    return y[cut.back], *(state[:, cut.last] for state in final)


def _rectangles(
    kernel: Kernel, x: Tensor, states: Sequence[Tensor], weights: States, resets: Tensor
) -> States:
    """All pieces side by side, stretch by stretch of one width."""
    cut = pieces(resets, _SPARE)
    sizes = cut.rectangles()
    table = pad(x.flatten(0, 1), (0, 0, 0, 1)).index_select(0, cut.order)
    now, ys = _begun(states, cut.samples, ~cut.carried), []
    for part, size in zip(
        torch.split(table, [t * width for t, width in sizes]), sizes, strict=True
    ):
        y, *now = run(kernel, part.view(*size, -1), [s[:, : size[1]] for s in now], weights)
        ys.append(y.flatten(0, 1))
    y = torch.cat(ys).index_select(0, cut.back).view(*x.shape[:2], -1)
    return y, y[-1:].clone()


def _apart(
    kernel: Kernel,
    x: Tensor,
    states: Sequence[Tensor],
    weights: States,
    resets: Tensor,
    pushes: Pushes,
) -> States:
    """One sequence, with timesteps put in at restarts, and after the end of some samples.

    Two more features say which these are, with weights beside which nothing else counts, and whose
    products with a gradient stay finite.
    """
    steps, rows, _ = x.shape
    order, back = apart(resets, max(1, steps // _LENGTHS))
    flat = pad(x.flatten(0, 1), (0, 2, 0, 2))
    flat.detach()[-2:, -2:].fill_diagonal_(1.0)
    far = math.sqrt(torch.finfo(x.dtype).max)
    columns = weights[0].new_tensor(pushes).mul(far).repeat_interleave(states[0].shape[-1], 0)
    pushed = (torch.cat([weights[0], columns], 1), *weights[1:])
    begun = _begun(states, torch.arange(rows, device=x.device), resets[0])
    y, _, *others = run(kernel, flat.index_select(0, order).view(-1, rows, flat.shape[1]), begun,
                        pushed)  # fmt: skip
    y = y.flatten(0, 1).index_select(0, back).view(steps, rows, -1)
    return y, y[-1:].clone(), *others


def _begun(states: Sequence[Tensor], samples: Tensor, zero: Tensor) -> list[Tensor]:
    """The states of ``samples`` ``[1, …, out]``, made zero where asked."""
    flat = [state.reshape(-1, state.shape[-1]) for state in states]
    return [state[samples].masked_fill(zero[:, None], 0.0)[None] for state in flat]


def one_or_all(states: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """As torch's kernels take them: several in a sequence, one alone."""
    return states if len(states) > 1 else states[0]


def _for_kernel(weights: States) -> States:
    """The weights one after the other in memory, where cuDNN takes them without a warning."""
    if not weights[0].is_cuda:
        return weights
    whole = torch.cat([weight.reshape(-1) for weight in weights])
    parts = torch.split(whole, [weight.numel() for weight in weights])
    return tuple(part.view(weight.shape) for part, weight in zip(parts, weights, strict=True))

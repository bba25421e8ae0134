"""The synaptic operations of a model, counted through what its modules really get.

Modules are looked at by hooks that leave a model folded; layers with matrices are stepped. Uses
the one walk; knows no model but as something that unrolls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tracetorch import generators
from tracetorch.errors import check_dense
from tracetorch.layer import Layer
from tracetorch.layer_states import refuse_passage, selected
from tracetorch.measures.arguments import checked_lengths
from tracetorch.measures.connections import Tally, kind_of
from tracetorch.measures.counts import Count, Operations
from tracetorch.measures.products import Stepped, Watched, has_matrices
from tracetorch.modules import Observer
from tracetorch.walk import Boundary, named_layers


def operations(
    model: nn.Module, x: Tensor, lengths: Tensor | None = None, *, pooling: bool = True
) -> Operations:
    r"""How many synaptic operations a model does over a batch of sequences, module by module.

    Counted are the products of weights and activations, as they are in ``model.unroll(x)`` from
    the standing states, in evaluation mode:

    * *dense*: each connection at each timestep, whatever its values;
    * *effective*: those where neither weight nor activation is zero: an accumulate where the
      activation is -1 or 1, else a multiply-accumulate.

    In ``nn.Linear``, the convolutions and transposed convolutions of torch, and in layers of
    traceTorch all products of a matrix that the layer holds (the input and recurrent weights of
    ``tracetorch.rnn``). What a convolution pads with zeros is no connection. Average pooling is a
    row of accumulates, one for each input in each window; taking a maximum is no operation.
    Biases, normalisations, products of two activations and what a layer does elementwise (its
    leaks, gates and thresholds) count nothing. A module that is called twice counts twice.

    The model is left as it was: its states, modes and random generators, also after an error.

    Args:
        model: a ``tt.Model`` or a ``tt.Layer``; any other module is called timestep by timestep.
        x: ``[T, B, …]``, at least one timestep.
        lengths: integers ``[B]`` in 0…T: what comes after a sample's own length is not counted.
        pooling: whether average pooling counts; NeuroBench counts none.

    Returns:
        The counts by module, for the whole batch. Modules with weights that it is not known how to
        count (``nn.LSTM``, ``nn.MultiheadAttention``, modules with parameters of their own) are
        named in ``uncounted``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        Three timesteps of an input of one neuron: nothing, a spike, and a half.

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(1, 4))
        >>> x = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1)
        >>> operations(model, x).rows
        {'0': Count(dense=12, macs=4, acs=4)}

    Source: Yik et al., NeuroBench, arXiv 2304.04640. Theirs tells multiply-accumulates from
    accumulates for each input tensor as a whole: one that holds anything else than -1, 0 and 1
    makes all of its operations multiply-accumulates. Here it is told for each activation, so
    that the answer is the same for one timestep and for many; the sum of both is theirs.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"operations: model must be a module, got a {type(model).__name__}")
    ends = _checked(x, lengths)
    layers = list(named_layers(model))
    for _, layer in layers:
        refuse_passage(layer)
    with left_as_it_was(model, [layer for _, layer in layers], x.device):
        counting = _Counting(model, layers, pooling)
        with counting:
            _run(model, [layer for _, layer in layers], x, ends)
        rows = counting.rows()
    return Operations(rows, x.shape[1], int(ends.sum()), tuple(counting.uncounted))


def _checked(x: object, lengths: object) -> Tensor:
    """The length of each sample."""
    check_dense("operations: x must be a tensor [T, B, …]", x)
    if not isinstance(x, Tensor):
        raise TypeError(f"operations: x must be a tensor [T, B, …], got a {type(x).__name__}")
    if x.ndim < (3 if x.is_floating_point() else 2) or len(x) == 0:
        raise ValueError(
            f"operations: x must be [T, B, …] and have a timestep, got the shape {list(x.shape)}"
        )
    if lengths is None:
        return torch.full(x.shape[1:2], len(x))
    return checked_lengths("operations", lengths, x).cpu()


# ---------------------------------------------------------------------- the sequence


def _run(model: nn.Module, layers: list[Layer], x: Tensor, ends: Tensor) -> None:
    """All timesteps that count: a sample that has ended leaves the batch."""
    for start, stop in itertools.pairwise([0, *sorted({*ends.tolist()} - {0})]):
        going = ends > start
        if not bool(going.all()):
            for layer in layers:
                layer.tt.states = selected(layer, going)
            x, ends = x[:, going.to(x.device)], ends[going]
        if isinstance(model, (Boundary, Layer)):
            whole: Any = model
            whole.unroll(x[start:stop])
        else:
            for timestep in x[start:stop]:
                model(timestep)


@contextmanager
def left_as_it_was(model: nn.Module, layers: list[Layer], device: torch.device) -> Iterator[None]:
    """Within it, the model is in evaluation mode, unrecorded; afterwards all is as it was."""
    states = [(layer, layer.tt.states, layer.tt.passage) for layer in layers]
    modules = {id(m): m for root in (model, *layers) for m in root.modules()}
    training = [(module, module.training) for module in modules.values()]
    with generators.left_alone([device]), torch.no_grad():
        try:
            for module, _ in training:
                module.training = False
            for layer, _, passage in states:
                if passage is not None and passage.transparent:
                    layer.tt.passage = None
            yield
        finally:
            for module, flag in training:
                module.training = flag
            for layer, before, passage in states:
                layer.tt.states, layer.tt.passage = before, passage


# ---------------------------------------------------------------------- what is looked at


class _Counting(ExitStack):
    """Within it, the calls of a model's modules are counted.

    Attributes:
        uncounted: names of those with weights that it is not known how to count.
    """

    def __init__(self, model: nn.Module, layers: list[tuple[str, Layer]], pooling: bool) -> None:
        super().__init__()
        within = {id(m) for _, layer in layers for m in layer.modules()}
        outside = [(name, m) for name, m in model.named_modules() if id(m) not in within]
        self._tallies: dict[str, tuple[nn.Module, Tally]] = {}
        for name, module in outside:
            kind = kind_of(module)
            if kind is not None and (pooling or kind.apply is not None):
                self._tallies[name] = module, Tally(kind)
        tallies = [tally for _, tally in self._tallies.values()]
        self._watched = {
            name: (layer, (Stepped if has_matrices(layer) else Watched)(tallies))
            for name, layer in layers
        }
        self.uncounted = [name for name, m in outside if kind_of(m) is None and _weighted(m)]
        self._order = [name for name, _ in (*model.named_modules(), *layers)]

    def __enter__(self) -> _Counting:
        super().__enter__()
        for module, tally in self._tallies.values():
            handle = module.register_forward_hook(Observer(tally.look))
            self.callback(handle.remove)
        for layer, passage in self._watched.values():
            layer.tt.passage = passage
        return self

    def rows(self) -> dict[str, Count]:
        """The counts, in the order of the modules."""
        found = {name: tally.count(module) for name, (module, tally) in self._tallies.items()}
        for name, (_, passage) in self._watched.items():
            if isinstance(passage, Stepped):
                found[name] = passage.count
        return {name: found[name] for name in dict.fromkeys(self._order) if name in found}


def _weighted(module: nn.Module) -> bool:
    """Whether it holds matrices of its own, other than tables and what weights are made of."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, ParametrizationList)):
        return False
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))

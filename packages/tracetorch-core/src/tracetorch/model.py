"""A model: one line for all the states of all its layers, and for whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracetorch import event_driven
from tracetorch.errors import located
from tracetorch.layer_states import refuse_left_overs
from tracetorch.model_states import StatesOfLayers
from tracetorch.sequences.decision import Decisions, numbered_decisions
from tracetorch.sequences.unrolling import Options, unrolled
from tracetorch.summary import ParameterCount, Summary, count, looked_at, plain
from tracetorch.walk import unregistered


class Model(StatesOfLayers):
    """Base class of networks with tt layers anywhere inside.

    ``forward`` is the user's and computes one timestep. Layers are found in submodules and in
    lists, tuples, sets, dicts and plain objects held as attributes, at any depth; each once,
    under one stable name. Plain objects do not lead into modules that are or contain a
    ``tt.Model``, so a trainer or logger held by the model does not drag other models in.

    Example:
        >>> import torch, tracetorch as tt
        >>> class Leak(tt.Layer):
        ...     def __init__(self, n):
        ...         super().__init__(n)
        ...         self.add_state("mem")
        ...         self.add_parameter("beta", 0.5, constraint=tt.constraints.sigmoid)
        ...     def step(self, states, x, p):
        ...         mem = p.beta * states.mem + x
        ...         return {"mem": mem}, mem
        >>> class Net(tt.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.leaks = [Leak(1), Leak(1)]
        ...     def forward(self, x):
        ...         return self.leaks[1](self.leaks[0](x))
        >>> net = Net()
        >>> net.unroll(torch.ones(3, 1, 1)).detach().flatten().tolist()
        [1.0, 2.0, 2.75]
        >>> sorted(net.get_states())
        ['leaks.0.mem', 'leaks.1.mem']
        >>> net.zero_states()
        >>> net.get_states()
        {}
    """

    tt: Decisions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tt = numbered_decisions(self)

    @located
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``forward``; an error of a layer says the layer's qualified name."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with self.tt.alone(self), event_driven.within(self):
            return super().__call__(*args, **kwargs)

    # ------------------------------------------------------------------ sequences

    @located
    def unroll(
        self,
        x: Tensor,
        *,
        time_dim: int = 0,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        chunk_size: int | None = None,
        detach_every: int | None = None,
        recompute: bool = False,
        fold: bool | None = None,
        pack_spikes: bool = False,
    ) -> Any:
        """A whole sequence: ``torch.stack([model(x_t) for x_t in x])``, from the standing states.

        Args:
            x: ``[T, B, …]``, at least one timestep.
            time_dim: which dimension of ``x`` is time, and of the outputs.
            lengths: integers ``[B]`` in 0…T: after its own length a sample's states stand still
                and its outputs are zero.
            resets: booleans ``[T, B]``, or ``[B, T]`` where ``time_dim`` is not 0: the samples for
                which ``resets[t]`` is true restart before timestep t, as by
                ``zero_states(resets[t])``.
            chunk_size: how many timesteps are processed at a time, at least 1.
            detach_every: cut the states from the graph between every so many timesteps (truncated
                back-propagation through time), counted from the start of this call. The final
                states keep the graph of the last timesteps, of a sample's own with ``lengths``.
            recompute: keep of each chunk only its outputs and the states it began with, and
                compute the rest again when it is differentiated: the time of one more forward
                pass, and the memory of one chunk. Without gradients, and in a compiled graph,
                this changes nothing.
            fold: whether ``forward`` runs once over all timesteps. None: where that gives what
                the loop gives, decided once for a kind of sequence on a copy of the model. True:
                without asking; FoldError where it cannot be. False: never.
            pack_spikes: keep what modules save for their backward passes in one bit a value where
                it is nothing but 0 and 1, two where it is -1, 0 and 1 (on the CPU, from 128 KB
                on). Outputs and gradients are the same, bit for bit. Without gradients, in a
                compiled graph, and where other hooks for saved tensors are at work (``recompute``
                among them) this changes nothing.

        Returns:
            The outputs along ``time_dim``. Where ``forward`` returns a tuple, list or dict of
            tensors, so does this. If anything fails, the states are as they were before.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument is out of range, or a state has no batch for ``lengths`` or
                ``resets``.
            FoldError: ``fold=True`` or ``recompute=True`` and the model has to be stepped; or
                ``forward`` has begun to change something outside of layers, after it was decided
                that it does not.
            RuntimeError: another thread is in a call of this model.
        """
        options = Options(
            time_dim, lengths, resets, chunk_size, detach_every, recompute, fold, pack_spikes
        )
        if torch.compiler.is_compiling():
            return unrolled(self, x, options)
        with self.tt.alone(self), event_driven.within(self):
            return unrolled(self, x, options)

    # ------------------------------------------------------------------ inference

    def TTcompile(self, *, events: bool = False) -> None:
        """Take every layer's effective parameters as constants, for inference.

        No gradient reaches the parameters of tt layers. The ``nn.Parameter`` objects stay where
        they are, and whatever gives them new values reaches the constants at once.

        Args:
            events: large ``nn.Linear`` modules on the CPU add the weights of those inputs that are
                not zero, where that is faster and nothing is differentiated. Their weights are laid
                out ``[inputs, outputs]`` in memory: same tensors, shapes and values, other strides.

        Raises:
            BackendError: ``events`` without a C++ compiler; nothing has changed.
        """
        if events:
            event_driven.begin(self)
        for _, layer in self.named_layers():
            layer.TTcompile()

    def TTdecompile(self) -> None:
        """Back to training with the very same parameters, bit for bit."""
        event_driven.end(self)
        for _, layer in self.named_layers():
            layer.TTdecompile()

    # ------------------------------------------------------------------ looking

    def num_parameters(self) -> ParameterCount:
        """How many parameters there are, how many of them in tt layers, how many learnable."""
        return count(self)

    @located
    def summary(self, x: Tensor | None = None, lengths: Tensor | None = None) -> Summary:
        """A table: each layer, its parameters, its states and, given ``x``, what it does with it.

        Printed, it is the table; its ``rows`` are the same as data. The model is left as it was.

        Args:
            x: ``[T, B, …]``, to be unrolled in evaluation mode from fresh states. Then modules of
                torch are in the table too, with shapes, rates, silent neurons, synaptic operations,
                and whether it runs folded and fused; if not, why.
            lengths: integers ``[B]`` in 0…T: what comes after a sample's own length is not counted.

        Raises:
            TypeError: ``x`` is no tensor, or ``lengths`` holds no integers.
            ValueError: ``x`` has no timestep, or ``lengths`` is out of range.
        """
        return plain(self) if x is None else looked_at(self, x, lengths)

    # ------------------------------------------------------------------ being a module

    @located
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer in unregistered(self):
            layer._apply(fn, recurse)
        return self

    @located
    def __getstate__(self) -> dict[str, Any]:
        for _, layer in self.named_layers():
            refuse_left_overs(layer)
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.tt = numbered_decisions(self)

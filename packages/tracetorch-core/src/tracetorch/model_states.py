"""The states of all layers of a model at once: all of them, or none. Uses the one walk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from tracetorch import saving
from tracetorch.errors import StateError, located
from tracetorch.layer import Layer
from tracetorch.states import IncompatibleStates, checked_states, compared
from tracetorch.walk import Boundary, named_layers
from tracetorch.written import standard


class StatesOfLayers(Boundary):
    """What every model can do with the states of its layers."""

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer with its qualified name: registered ones first, then those in containers.

        A name is the path of attributes, indices and keys that leads to the layer.
        """
        return named_layers(self)

    @standard
    @located
    def zero_states(self, mask: Tensor | None = None) -> None:
        """Every state back to None; with a mask only the samples where it is true restart.

        Args:
            mask: boolean ``[B]``, over dimension 0 of one timestep's batch.

        Raises:
            TypeError: ``mask`` is no boolean tensor.
            ValueError: it does not fit a state's batch, or a state has none; nothing has changed.
        """
        self._for_all(lambda _, layer: layer.zero_states(mask))

    @located
    def select_states(self, index: Tensor) -> None:
        """Other samples of the batch, in another order: to sort, repeat or drop them.

        The states of sample ``k`` are afterwards those of sample ``index[k]``; for beam search, for
        sequences that are over. Random numbers of a layer (``tt.Random``) go by the place in the
        batch: seed and count stay.

        Args:
            index: integers ``[B']`` into dimension 0 of a timestep's batch, or a boolean mask
                ``[B]`` of the samples to keep.

        Raises:
            TypeError: ``index`` is neither.
            ValueError: it does not fit a state's batch, or a state has none; nothing has changed.

        Example:
            >>> import torch, tracetorch as tt
            >>> class Net(tt.Model):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.leak = tt.testing.Trace(1)
            ...     def forward(self, x):
            ...         return self.leak(x)
            >>> net = Net()
            >>> y = net(torch.tensor([[1.0], [2.0], [3.0]]))
            >>> net.select_states(torch.tensor([2, 0, 0, 1]))
            >>> net.leak.mem.detach().flatten().tolist()
            [3.0, 1.0, 1.0, 2.0]
        """
        self._for_all(lambda _, layer: layer.select_states(index))

    @located
    def detach_states(self) -> None:
        """Cut every state from the graph; values stay (truncated back-propagation)."""
        for _, layer in self.named_layers():
            layer.detach_states()

    @located
    def get_states(self) -> dict[str, Tensor]:
        """``{qualified name: tensor}`` of the states created so far, in the user's layout."""
        return {
            f"{name}.{state}": tensor
            for name, layer in self.named_layers()
            for state, tensor in layer.get_states().items()
        }

    @located
    def set_states(
        self, states: Mapping[str, Tensor | None], strict: bool = True
    ) -> IncompatibleStates:
        """Put states in place; all or none. None stands for "not created yet".

        Args:
            states: qualified names → tensors in the user's layout; as ``get_states()`` gives them,
                so without any name no state is created yet.
            strict: refuse names the model does not have, and demand every one it has.

        Returns:
            The qualified names that did not fit: ``missing``, whose states stay as they are, and
            ``unexpected``, which are left out.

        Raises:
            TypeError: ``states`` is no mapping.
            StateError: a name, shape or dtype does not fit; no state has changed then.
        """
        states = checked_states(states)
        if strict and not states:
            self.zero_states()
            return IncompatibleStates([], [])
        return self._put_states(states, strict)

    def _put_states(self, states: Mapping[str, Tensor | None], strict: bool) -> IncompatibleStates:
        layers = dict(self.named_layers())
        known = {f"{name}.{state}" for name, layer in layers.items() for state in layer.tt.states}
        misfits = compared(states.keys(), known)
        if strict and any(misfits):
            raise StateError(
                self,
                f"states do not match the model: unknown {misfits.unexpected}, "
                f"missing {misfits.missing}; pass strict=False to take those that fit by name, or "
                f"give None for a state that is not created yet",
            )

        def put(name: str, layer: Layer) -> None:
            names = [state for state in layer.tt.states if f"{name}.{state}" in states]
            layer.set_states({n: states[f"{name}.{n}"] for n in names}, strict=False)

        self._for_all(put)
        return misfits

    @located
    def save_states(self, path: str | os.PathLike[str]) -> None:
        """Write the states to the file ``path``, ``.safetensors`` or ``.pt``, atomically.

        Raises:
            ValueError: another suffix.
        """
        saving.save(self.named_layers(), path)

    @located
    def load_states(
        self,
        path: str | os.PathLike[str],
        strict: bool = True,
        device: torch.device | str | None = None,
    ) -> IncompatibleStates:
        """Read states from a file of :meth:`save_states`; all or nothing.

        A state keeps its dtype, unless the layer's parameters have another than when it was
        saved: then it becomes theirs, as ``.to()`` would have done.

        Args:
            path: a ``.safetensors`` or ``.pt`` file (the latter is read with
                ``weights_only=True``).
            strict: the file must have exactly this model's names and layer classes.
            device: where to put the states; each layer's own device where None.

        Returns:
            As of :meth:`set_states`, with the file's names for those of ``states``.

        Raises:
            ValueError: another suffix.
            FileNotFoundError: there is no such file.
            StateFileError: the file is truncated, damaged, not a state file, or of a later format.
            StateError: the states do not fit this model. In no case has anything changed.
        """
        try:
            found = saving.load(dict(self.named_layers()), path, strict, device)
            return self._put_states(found, strict)
        except StateError as error:
            error.message = f"{path}: {error.message}"
            raise

    def _for_all(self, change: Callable[[str, Layer], None]) -> None:
        """Change the states of every layer: all or none."""
        before = [(name, layer, layer.tt.states) for name, layer in self.named_layers()]
        try:
            for name, layer, _ in before:
                change(name, layer)
        except BaseException:
            for _, layer, states in before:
                layer.tt.states = states
            raise

"""A layer's step as it was when it was traced: second derivatives go through it.

What a kernel computes can be differentiated by the kernel's own gradients alone; these, once more,
only as torch does it, over the step. By then the layer may compute something else, so what it was
is put back meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracetorch.engine.admission import parts
from tracetorch.engine.trace import replaced, weights_of
from tracetorch.keeping import Kept
from tracetorch.randomness import after

if TYPE_CHECKING:
    from tracetorch.layer import Layer


class Definition:
    """The step of a layer, with the attributes that the layer has now."""

    def __init__(self, layer: Layer) -> None:
        self._layer, self._then = layer, Kept(parts(layer))

    def run(
        self, real: torch.dtype, inputs: Sequence[Tensor], random: Tensor | None, single: bool
    ) -> list[Tensor]:
        """Output and new states of a sequence, or of a single timestep.

        Args:
            real: what it computes in.
            inputs: x, the states, parameters and weights of modules.
            random: seed and count of the random numbers, if it draws any.
            single: x is one timestep, without a dimension of time.
        """
        now = Kept(parts(self._layer))
        self._then.restore()
        try:
            return self._run(self._layer, real, inputs, random, single)
        finally:
            now.restore()

    @staticmethod
    def _run(
        layer: Layer,
        real: torch.dtype,
        inputs: Sequence[Tensor],
        random: Tensor | None,
        single: bool,
    ) -> list[Tensor]:
        x, count = inputs[0], len(layer._state_specs)
        states, parameters = inputs[1 : 1 + count], inputs[1 + count :]
        own, weights = parameters[: len(layer._specs)], parameters[len(layer._specs) :]
        now, ys = [state.movedim(layer.dim, -1) for state in states], []
        with replaced(layer, dict(zip(weights_of(layer), weights, strict=True))):
            for t, timestep in enumerate((x,) if single else x):
                inflow = timestep.movedim(layer.dim, -1).to(real)
                with layer._drawing(None if random is None else after(random, t), timestep):
                    new, y = layer.step(
                        layer._state_fields(*now), inflow, layer._parameter_fields(*own)
                    )
                now = [new[state] for state in layer._state_specs]
                ys.append(y.movedim(-1, layer.dim).to(x.dtype))
        ends = [ys[0] if single else torch.stack(ys)]
        return ends + [state.movedim(-1, layer.dim) for state in now]

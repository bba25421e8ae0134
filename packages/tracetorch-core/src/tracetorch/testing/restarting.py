"""Properties of layers whose samples restart."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.layer import Layer
from tracetorch.testing import comparing
from tracetorch.testing.property import Make, property_of


@property_of
def zeroing_restarts(make: Make, x: Tensor) -> None:
    """After ``zero_states`` a layer is as if new: the same answer, bit for bit."""
    layer = make()
    first = comparing.stepped(layer, x)
    layer.zero_states()
    comparing.demand(not layer.get_states(), f"zero_states left {sorted(layer.get_states())}")
    comparing.same("the output after zero_states", comparing.stepped(layer, x), first)


@property_of
def masks_restart_samples(make: Make, x: Tensor) -> None:
    """``zero_states(mask)``: masked samples are as if new, the others as if nothing happened."""
    half, layer = len(x) // 2, make()
    comparing.stepped(layer, x[:half])
    before = layer.get_states()
    if not before:
        return
    mask = torch.arange(x.shape[1]) % 2 == 0
    if not comparing.batched(layer, x):
        comparing.refusal("an unbatched state", lambda: layer.zero_states(mask), layer, before)
        return
    longer = torch.cat([mask, mask])
    comparing.refusal("a mask of another length", lambda: layer.zero_states(longer), layer, before)
    layer.zero_states(mask)
    got, whole, fresh = (
        comparing.stepped(layer, x[half:]),
        comparing.stepped(make(), x)[half:],
        comparing.stepped(make(), x[half:]),
    )
    comparing.close("the output of restarted samples", got[:, mask], fresh[:, mask])
    comparing.close("the output of the other samples", got[:, ~mask], whole[:, ~mask])


@property_of
def resets_are_masks(make: Make, x: Tensor) -> None:
    """``unroll`` with ``resets`` is the loop with ``zero_states(mask)``, gradients and all."""
    layer = make()
    samples = torch.arange(x.shape[1])
    # none at some timesteps, all at others, and the first one among them
    resets = torch.stack([(samples + t) % (1 + t % 4) == t % 3 for t in range(len(x))])
    if not comparing.batched(layer, x):
        comparing.refusal("an unbatched input", lambda: layer.unroll(x, resets), layer, {})
        return

    def stepped(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        outputs = []
        for mask, timestep in zip(resets[-len(x) :], x, strict=True):
            layer.zero_states(mask)
            outputs.append(layer(timestep))
        return {"the output": torch.stack(outputs)}

    def unrolled(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        return {"the output": layer.unroll(x, resets[-len(x) :])}

    for warm in (0, len(x) // 2):
        expected = comparing.everything(make(), x, warm, stepped)
        got = comparing.everything(make(), x, warm, unrolled)
        for name, value in expected.items():
            comparing.close(f"{name} of unroll with resets", got[name], value)

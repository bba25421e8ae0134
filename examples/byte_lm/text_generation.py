"""Text from a model of bytes, one after the other, with its states. Knows no training."""

from __future__ import annotations

import copy

import torch
import tracetorch as tt
from torch import Tensor


@torch.no_grad()
def written(
    model: tt.Model, prompt: bytes, length: int, temperature: float, generator: torch.Generator
) -> bytes:
    """What comes after the prompt; the model is left as it is.

    Args:
        model: bytes ``[B]`` → logits ``[B, 256]`` of the next.
        prompt: read before, at once; at least one byte.
        length: how many bytes are drawn.
        temperature: that logits are divided by, above 0: towards 0, the likeliest byte.
        generator: on the CPU.
    """
    model = copy.deepcopy(model).eval()
    model.zero_states()
    model.TTcompile()
    device = next(model.parameters()).device
    read = torch.tensor([*prompt], device=device)[:, None]
    logits: Tensor = model.unroll(read)[-1]
    drawn = bytearray()
    for _ in range(length):
        chances = (logits.cpu() / temperature).softmax(-1)
        byte = chances.multinomial(1, generator=generator)[:, 0]
        drawn.append(int(byte))
        logits = model(byte.to(device))
    return bytes(drawn)

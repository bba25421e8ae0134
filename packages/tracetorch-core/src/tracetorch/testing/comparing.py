"""What properties of a layer are compared with: runs of it, and all that comes out of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tracetorch.errors import StateError
from tracetorch.layer import Layer


class Unrolled(torch.nn.Module):
    """A layer's ``unroll`` as a ``forward``."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the sequence."""
        return self.layer.unroll(x)


@contextmanager
def seeded() -> Iterator[None]:
    """Within it, torch draws the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def stepped(layer: Layer, x: Tensor) -> Tensor:
    """The loop over a sequence."""
    with seeded():
        return torch.stack([layer(timestep) for timestep in x])


def batched(layer: Layer, x: Tensor) -> bool:
    """Whether dimension 0 of its timesteps is one of samples."""
    return layer.dim % (x.ndim - 1) != 0


def everything(
    layer: Layer, x: Tensor, warm: int, run: Callable[[Layer, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What a run finds, final states and every gradient of a weighted sum of both."""
    if warm:
        stepped(layer, x[:warm])
    layer.detach_states()
    standing = {n: s for n, s in layer.get_states().items() if s.is_floating_point()}
    incoming = {f"the incoming state {n}": s.requires_grad_() for n, s in standing.items()}
    inputs = x[warm:].clone().requires_grad_()
    with seeded():
        found = run(layer, inputs)
    found.update((f"the final state {name}", s) for name, s in layer.get_states().items())
    with seeded():
        ends = [found[name] for name in sorted(found) if found[name].is_floating_point()]
        parts = [(end * weights(end)).sum() for end in ends]
        loss = torch.stack(parts).sum()
    learned = {f"the parameter {n}": p for n, p in layer.named_parameters() if p.requires_grad}
    sources = {"the input": inputs, **incoming, **learned}
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
        found.update(
            (f"the gradient of {name}", torch.zeros_like(sources[name]) if g is None else g)
            for name, g in zip(sources, gradients, strict=True)
        )
    return found


def weights(value: Tensor) -> Tensor:
    """Random numbers in its shape."""
    # randn_like would follow the layout in memory, which may differ between two equal answers
    return torch.randn(value.shape, dtype=value.dtype, device=value.device)


def refusal(what: str, call: Callable[[], object], layer: Layer, before: dict[str, Tensor]) -> str:
    """The words with which a call is refused; AssertionError where it is not, or changes states."""
    try:
        call()
    except StateError as error:
        after = layer.get_states()
        unchanged = after.keys() == before.keys() and all(after[n] is before[n] for n in before)
        demand(unchanged, f"{what} was refused, but changed the states")
        return str(error)
    raise AssertionError(f"{what} was not refused with a StateError")


def demand(holds: bool, message: str) -> None:
    """AssertionError unless it holds."""
    if not holds:
        raise AssertionError(message)


def same(what: str, got: Tensor, expected: Tensor) -> None:
    """AssertionError unless both are equal, bit for bit but for NaN."""
    close(what, got, expected, tolerance=0.0)


def close(what: str, got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """AssertionError unless both are equal up to rounding."""
    torch.testing.assert_close(
        got,
        expected,
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda difference: f"{what} differs: {difference}",
    )

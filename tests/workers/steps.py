"""One process of several in training: ``steps.py RANK WORLD RENDEZVOUS OUT``.

Trains in every way of ``CASES`` on this rank's share of each batch, and saves what came of it. The
test imports model, data and training loop from here, for one process with all of the batch.
"""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import tracetorch as tt
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tracetorch import snn

shared = runpy.run_path(str(Path(__file__).with_name("mixed.py")))
Mixed: Callable[[], Any] = shared["Mixed"]
loss_of: Callable[[Tensor], Tensor] = shared["loss_of"]

STEPS, T, B = 3, 5, 8


class Sequence(nn.Module):
    """What is wrapped: a whole sequence within one ``forward``.

    Args:
        model: the model.
        fresh: whether the states begin afresh with each sequence.
        how: options of ``unroll``; None: a loop over the timesteps.
    """

    def __init__(self, model: Any, fresh: bool = True, **how: Any) -> None:
        super().__init__()
        self.model, self.fresh, self.how = model, fresh, how

    def forward(self, x: Tensor) -> Tensor:
        if self.fresh:
            self.model.zero_states()
        if not self.how:
            return torch.stack([self.model(timestep) for timestep in x])
        y: Tensor = self.model.unroll(x, **self.how)
        return y


def model_of(name: str, dropout: float = 0.0) -> Any:
    """Of a case, the same in all processes; ``fully_shard`` takes no parameter of rank 0."""
    torch.manual_seed(0)
    model = Mixed()
    if "fsdp2" in name:
        model.net[5] = snn.LIB(4, beta=0.8)
    model.net.insert(3, nn.Dropout(dropout))
    return model.double()


def batches() -> list[Tensor]:
    """Sequences ``[T, B, 3]``."""
    generator = torch.Generator().manual_seed(1)
    return [
        1.5 * torch.randn(T, B, 3, dtype=torch.float64, generator=generator) for _ in range(STEPS)
    ]


class Trained(NamedTuple):
    """What came of a training run; of a process's own share of the batch, its loss."""

    losses: Tensor
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def trained(wrapped: nn.Module, optimizer: Any, data: list[Tensor], pieces: int = 1) -> Trained:
    """A step of the optimizer for each batch; its gradients in as many pieces, summed."""
    losses, found = [], []
    for x in data:
        optimizer.zero_grad()
        total = 0.0
        for at, piece in enumerate(x.chunk(pieces, 1)):
            last = at == pieces - 1
            with nullcontext() if last else wrapped.no_sync():  # type: ignore[operator]
                loss = loss_of(wrapped(piece)) / pieces
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        found.append(dict(_whole(wrapped, lambda p: p.grad)))
        optimizer.step()
        losses.append(total)
    return Trained(torch.tensor(losses), found, dict(_whole(wrapped, lambda p: p.detach())))


def _whole(wrapped: nn.Module, of: Callable[[Tensor], Any]) -> Iterator[tuple[str, Tensor]]:
    """Of every parameter, put together from all processes."""
    for name, parameter in wrapped.named_parameters():
        value = of(parameter)
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        yield name.removeprefix("module."), value.clone()


# ------------------------------------------------------------------ wrapped


def _replicated(sequence: Sequence) -> nn.Module:
    return DistributedDataParallel(sequence)


def _sharded(sequence: Sequence) -> nn.Module:
    """One group: all parameters are there from the first timestep to the last."""
    fully_shard(sequence)
    return sequence


def _sharded_in_parts(sequence: Sequence) -> nn.Module:
    """Groups that are gathered around calls of modules within the model."""
    for module in sequence.model.net:
        if not isinstance(module, (tt.Layer, nn.Dropout)):
            fully_shard(module)
    fully_shard(sequence.model)
    fully_shard(sequence)
    return sequence


UNROLLED = {"chunk_size": T}
RECOMPUTED = {"recompute": True, "chunk_size": 2}
INSISTED = {"fold": True, "chunk_size": T}
# by name: how it is wrapped, how sequences run, in how many pieces gradients come
CASES: dict[str, tuple[Callable[[Sequence], nn.Module], dict[str, Any], int]] = {
    "ddp stepped": (_replicated, {}, 1),
    "ddp unrolled": (_replicated, UNROLLED, 1),
    "ddp recomputed": (_replicated, RECOMPUTED, 1),
    "ddp accumulated": (_replicated, UNROLLED, 2),
    "fsdp2 stepped": (_sharded, {}, 1),
    "fsdp2 unrolled": (_sharded, UNROLLED, 1),
    "fsdp2 recomputed": (_sharded, RECOMPUTED, 1),
    "fsdp2 in parts, stepped": (_sharded_in_parts, {}, 1),
    "fsdp2 in parts, as decided": (_sharded_in_parts, UNROLLED, 1),
    "fsdp2 in parts, unrolled": (_sharded_in_parts, INSISTED, 1),
    "fsdp2 in parts, recomputed": (_sharded_in_parts, {**INSISTED, **RECOMPUTED}, 1),
}
# which of them a run is stopped in and gone on with
RESUMED = ("ddp unrolled", "fsdp2 unrolled")


def adam(module: nn.Module) -> torch.optim.Optimizer:
    """Of rates at which weights move by more than rounding."""
    return torch.optim.Adam(module.parameters(), 0.02)


# ------------------------------------------------------------------ stopped and gone on with


class Run:
    """A stream of pieces, states carried over, with dropout: all that a checkpoint is for."""

    def __init__(self, name: str) -> None:
        wrap, how, _ = CASES[name]
        self.model = model_of(name, 0.3)
        self.wrapped = wrap(Sequence(self.model, fresh=False, **how))
        self.optimizer = adam(self.wrapped)

    def train(self, data: list[Tensor]) -> dict[str, Any]:
        """What there is after it."""
        losses = []
        for x in data:
            done = trained(self.wrapped, self.optimizer, [x])
            self.model.detach_states()
            losses.append(done.losses)
        return copy.deepcopy(
            {
                "losses": torch.cat(losses),
                "weights": done.weights,
                "states": self.model.get_states(),
                "generator": torch.get_rng_state(),
            }
        )


def resumed(name: str, file: Path, data: list[Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run that was not stopped after its first step, and one that was."""
    run = Run(name)
    torch.manual_seed(dist.get_rank())
    run.train(data[:1])
    tt.save_checkpoint(file, run.wrapped, optimizer=run.optimizer, position=1)
    whole = run.train(data[1:])
    other = Run(name)
    other.train(data[:2])
    rest = tt.load_checkpoint(file, other.wrapped, optimizer=other.optimizer)
    return whole, other.train(data[rest["position"] :])


def main(rank: int, world: int, rendezvous: str, out: Path) -> None:
    """Every case, on every ``world``-th sample from ``rank``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    data = [x[:, rank::world] for x in batches()]
    found: dict[str, Any] = {"trained": {}, "stepped because": {}, "resumed": {}}
    for name, (wrap, how, pieces) in CASES.items():
        model = model_of(name)
        wrapped = wrap(Sequence(model, **how))
        done = trained(wrapped, adam(wrapped), data, pieces)
        dist.all_reduce(done.losses)
        found["trained"][name] = done._replace(losses=done.losses / world)._asdict()
        found["stepped because"][name] = str(model.tt.last)
    for name in RESUMED:
        file = out.with_name(f"run-{rank}.pt")
        found["resumed"][name] = resumed(name, file, data)
    torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))

"""S4D, S5, LRU and Mamba against their own steps, mambapy's block and a convolution by FFT."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import rnn

from benchmarks.effort import Context
from benchmarks.harness import OURS, Data
from benchmarks.peers import Run, eager
from benchmarks.recurrent import MAMBA, Twin, compare_twins
from benchmarks.tables import comparison
from benchmarks.workload import Shape

TITLE = "State-space layers"
EAGER, FFT = f"{OURS}, eager", "torch, convolution by FFT"
SHAPE = Shape(512, 8, 128)
# as many features as make a block of Mamba scan over 128 channels
MAMBA_SHAPE = SHAPE._replace(neurons=64)


def measure(context: Context) -> Data:
    """Training steps of all four; mambapy's only where it is installed."""
    effort = context.effort
    shapes = {
        name: (MAMBA_SHAPE if name == "Mamba" else SHAPE)._replace(timesteps=effort.scan)
        for name in LAYERS
    }
    return {
        name: {
            "shape": str(shape),
            "compared": compare_twins(twins(name, shape), shape, shape.neurons, effort.rounds),
        }
        for name, shape in shapes.items()
    }


def twins(name: str, shape: Shape) -> list[Twin]:
    """A layer at once and step by step, and the same by others."""
    torch.manual_seed(0)
    layer, note = LAYERS[name](shape.neurons)
    parameters = list(layer.parameters())
    found = [
        Twin(OURS, layer.unroll, parameters, layer.zero_states, note),
        Twin(EAGER, eager(layer.unroll), parameters, layer.zero_states),
    ]
    if isinstance(layer, rnn.S4D):
        note = "the same weights; from zero states, and without final ones"
        found.append(Twin(FFT, by_fft(layer), parameters, note=note))
    if isinstance(layer, rnn.Mamba) and find_spec("mambapy"):
        run, own = mambapy(layer)
        found.append(Twin(MAMBA, run, own, note="MambaBlock, the same weights", peer=True))
    return found


def _s4d(size: int) -> tuple[tt.Layer, str]:
    return rnn.S4D(size, size, d_state=64), f"D={size}, d_state=64"


def _s5(size: int) -> tuple[tt.Layer, str]:
    return rnn.S5(size, size, d_state=2 * size), f"d_state={2 * size}"


def _lru(size: int) -> tuple[tt.Layer, str]:
    return rnn.LRU(size, size, d_state=size), f"d_state={size}"


def _mamba(size: int) -> tuple[tt.Layer, str]:
    return rnn.Mamba(size, size, d_state=16), f"{2 * size} channels, d_state=16"


LAYERS = {"S4D": _s4d, "S5": _s5, "LRU": _lru, "Mamba": _mamba}


def by_fft(layer: rnn.S4D) -> Run:
    """S4D as its paper trains it: a kernel as long as the sequence, convolved in frequencies."""

    def run(x: Tensor) -> Tensor:
        steps = len(x)
        rate = torch.complex(layer.A_real, layer.A_imag)
        exponent = layer.dt[:, None] * rate
        gain = torch.view_as_complex(layer.C) * torch.expm1(exponent) / rate
        times = torch.arange(steps, dtype=x.dtype)
        kernel = 2 * torch.einsum("dn,dnt->dt", gain, torch.exp(exponent[..., None] * times)).real
        product = torch.fft.rfft(x.permute(1, 2, 0), n=2 * steps) * torch.fft.rfft(
            kernel, n=2 * steps
        )
        y = torch.fft.irfft(product, n=2 * steps)[..., :steps].permute(2, 0, 1)
        out: Tensor = layer.out_proj(y + layer.D * x)
        return out

    return run


def mambapy(layer: rnn.Mamba) -> tuple[Run, list[Tensor]]:
    """The block of mambapy with a layer's weights, and its parameters."""
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(
        MambaConfig(
            d_model=layer.in_features,
            n_layers=1,
            dt_rank=layer.dt_rank,
            d_state=layer.d_state,
            expand_factor=layer.expand,
            d_conv=layer.d_conv,
            pscan=True,
        )
    )
    block.load_state_dict(layer.state_dict())

    def run(x: Tensor) -> Tensor:
        y: Tensor = block(x.transpose(0, 1))
        return y.transpose(0, 1)

    return run, list(block.parameters())


def render(data: Data) -> str:
    """The tables."""
    parts = ["The same weights on all sides; outputs are compared before anything is timed."]
    for name, entry in data.items():
        parts += [f"### `{name}`, {entry['shape']}", comparison(entry["compared"])]
    return "\n\n".join(parts)

"""Calls that a type checker must accept, with the types it must see. Checked, never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tracetorch import plot, rnn, snn
from tracetorch.snn import quantizers, surrogates
from typing_extensions import assert_type

# constructors: positional, by keyword, numbers and tensors
assert_type(snn.LI(16), snn.LI)
lib = snn.LIB(16, 0.9, 1.0, dim=-3)
rlib = snn.RLIB(16, 0.9, torch.full((16,), 0.9), 1.0)
slit = snn.SLIT(8, 0.5, 0.9, pos_threshold=1, neg_threshold=torch.tensor(0.5))
dual = snn.DSRLITS(
    4, pos_alpha=0.5, neg_rec_weight=-0.5, dim=1, pos_beta_rank=0, learn_pos_scale=False
)
average = snn.DSLIEMA(4, 0.5, 0.5, 0.9, 0.9, -1, learn_neg_beta=False)
spiking = snn.DLIT(
    4, spike_fn=surrogates.atan(2.0, learn_slope=True), quant_fn=quantizers.bernoulli()
)
custom = snn.LITS(4, spike_fn=torch.sigmoid, quant_fn=nn.Identity())
lazy = tt.snn.SRLIB(4, beta=0.5)

# parameters read as tensors, and take numbers and tensors
assert_type(lib.beta, Tensor)
assert_type(dual.neg_rec_weight, Tensor)
assert_type(rlib.raw_gamma, Tensor)
lib.beta = 0.8
lib.threshold = torch.tensor(0.5)
dual.pos_alpha = torch.full((4,), 0.5)

# states are tensors once they are there
assert_type(lib.mem, Tensor | None)
assert_type(dual.prev_output, Tensor | None)
lib.mem = None
rlib.rec = torch.zeros(2, 16)
if slit.syn is not None:
    assert_type(slit.syn.mean(), Tensor)

# a layer
y = lib(torch.zeros(2, 16))
assert_type(lib.unroll(torch.zeros(5, 2, 16)), Tensor)
assert_type(lib.get_states(), dict[str, Tensor])
lib.zero_states()
lib.zero_states(torch.tensor([True, False]))
lib.TTcompile()
every: tuple[type[snn.LeakyIntegrator], ...] = snn.LAYERS
elementwise: Callable[[Tensor], Tensor] = custom.spike_fn


# a layer of one's own
class AdaptiveLIF(tt.Layer):
    """As in the docs, annotated."""

    beta: Tensor
    raised: Tensor | None

    def __init__(self, num_neurons: int, beta: float | Tensor = 0.9, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "raised")
        self.add_parameter("beta", beta, rank=0, constraint=tt.constraints.sigmoid)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        mem = p.beta * states.mem + x
        return {"mem": mem, "raised": states.raised}, mem


class Mine(snn.LeakyIntegrator, synapse=True, average=True, firing=snn.BINARY):
    """A combination of one's own."""


assert_type(AdaptiveLIF(3).beta, Tensor)
constraint = tt.Constraint("exponential", torch.exp, torch.log, low=0.0)
assert_type(constraint.forward(torch.zeros(())), Tensor)
assert_type(Mine(4), Mine)

# recurrent layers
assert_type(rnn.SimpleRNN(3, 4), rnn.SimpleRNN)
cell: tt.Layer = rnn.LSTM(3, out_features=4, dim=1)
gru = rnn.GRU(in_features=3, out_features=4)
ssm = tt.rnn.SelectiveSSM(128, 128, 32, dt_rank=None, dim=-1)
assert_type(ssm.state_size, int)
assert_type(ssm.x_proj, nn.Linear)


# models
class Net(tt.Model):
    """Layers wherever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), snn.LIB(4), rnn.SelectiveSSM(4, 2))
        self.more = {"hidden": [snn.DLI(2)]}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.more["hidden"][0](self.net(x))
        return y


net = Net()
logits: Tensor = net(torch.zeros(2, 3))
outputs: Tensor = net.unroll(
    torch.zeros(5, 2, 3), time_dim=0, lengths=torch.tensor([5, 3]), chunk_size=2, detach_every=None
)
net.zero_states(torch.tensor([True, False]))
net.detach_states()
assert_type(net.get_states(), dict[str, Tensor])
net.set_states({"net.1.mem": torch.zeros(2, 4), "net.2.h": None}, strict=False)
net.save_states("states.safetensors")
assert_type(net.load_states(Path("states.pt"), strict=False, device="cpu").missing, list[str])
net.TTcompile()
net.TTdecompile()
assert_type(net.num_parameters().learnable, int)
assert_type(net.summary(), tt.Summary)
for name, layer in net.named_layers():
    assert_type(name, str)
    assert_type(layer, tt.Layer)
assert_type(list(tt.named_layers(nn.Sequential(lib))), list[tuple[str, tt.Layer]])
context_fn = tt.restored_states(net)
try:
    net(torch.zeros(7, 3))
except tt.StateError as error:
    assert_type(error.name, str | None)

# conversions give back the kind they are given
assert_type(tt.functional.halflife_to_decay(10.0), float)
assert_type(tt.functional.halflife_to_decay(torch.tensor([10.0])), Tensor)
assert_type(tt.functional.decay_to_timesteps(0.9), float)
assert_type(tt.functional.hippo_decays(8, 0.1, dtype=torch.float64), Tensor)
assert_type(tt.functional.max_halflife_to_hippo_scale(10), float)

# and the module makes a function of a model
step = tt.functional(net)
assert_type(step, tt.Functional)
assert_type(step.initial_states(torch.zeros(7, 3)), dict[str, Tensor])

# surrogates and quantisers
assert_type(surrogates.superspike(slope=10), surrogates.Surrogate)
assert_type(snn.quantizers.round(), quantizers.Round)
probability: Tensor = surrogates.sigmoid()(torch.zeros(3))

# figures
assert_type(plot.raster(torch.zeros(5, 4)), Axes)
assert_type(tt.plot.traces(torch.zeros(5, 4), threshold=(1.0, -1.0)), Axes)
assert_type(plot.activity(torch.zeros(5, 4), torch.zeros(5, 4), 1.0, neurons=2), Figure)
assert_type(tt.__version__, str)

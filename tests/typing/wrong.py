"""Calls that a type checker must refuse: exactly the marked lines. Checked, never run."""

from __future__ import annotations

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import plot, rnn, snn
from tracetorch.snn import quantizers, surrogates

# constructors
snn.LI()  # wrong
snn.LIB("16")  # wrong
snn.LIB(16, "0.9")  # wrong
snn.LIB(16, betta=0.9)  # wrong
snn.LI(16, threshold=1.0)  # wrong
snn.LIB(16, alpha=0.5)  # wrong
snn.RLIB(16, 0.9, 0.9, 1.0, None)  # wrong
snn.DLIB(16, beta=0.9)  # wrong
snn.LIT(16, threshold=1.0)  # wrong
snn.LIB(16, dim=-1.0)  # wrong
snn.LIB(16, beta_rank="1")  # wrong
snn.LIB(16, learn_beta="no")  # wrong
snn.LIB(16, spike_fn="sigmoid")  # wrong
snn.LIEMA(16, spike_fn=torch.sigmoid)  # wrong
snn.LIB(16, 0.9, 1.0, -1, 1, 1, True, True, None, None, 7)  # wrong
tt.snn.LIB(16, beta=[0.9])  # wrong
snn.LIBB(16)  # wrong

# parameters and states
lib = snn.LIB(16)
lib.beta = "0.8"  # wrong
lib.beta = None  # wrong
lib.mem = 0.0  # wrong
lib.mem.mean()  # wrong
number: float = lib.beta  # wrong
fn: Tensor = snn.DLITS(4).spike_fn  # wrong

# recurrent layers
rnn.SimpleRNN(3)  # wrong
rnn.LSTM(3, 4, hidden_size=5)  # wrong
rnn.GRU(3, "4")  # wrong
tt.rnn.SelectiveSSM(3, 4, dt_rank="auto")  # wrong


# models
class Net(tt.Model):
    """Nothing inside."""


net = Net()
net.unroll([1.0])  # wrong
net.unroll(torch.zeros(5, 2), chunk_size="2")  # wrong
net.unroll(torch.zeros(5, 2), 1)  # wrong
net.zero_states("all")  # wrong
net.set_states([torch.zeros(2)])  # wrong
net.save_states(None)  # wrong
net.load_states("states.pt", device=0.5)  # wrong
states: dict[str, float] = net.get_states()  # wrong
total: str = net.num_parameters().total  # wrong

# a layer of one's own
layer = tt.Layer(4)
layer.add_state(1)  # wrong
layer.add_parameter("beta", "0.9")  # wrong
layer.add_parameter("beta", 0.9, constraint=torch.sigmoid)  # wrong
tt.Constraint("half", 0.5, torch.log)  # wrong


class Mine(snn.LeakyIntegrator, firing="B"):  # wrong
    """Fires by name."""


# functions
tt.functional.halflife_to_decay("10")  # wrong
decay: Tensor = tt.functional.halflife_to_decay(10.0)  # wrong
tt.functional.hippo_decays(8)  # wrong
tt.functional(10.0)  # wrong
tt.functional.halflife(10.0)  # wrong
surrogates.sigmoid("4")  # wrong
surrogates.tanh(4.0)  # wrong
quantizers.bernoulli(0.5)  # wrong
plot.raster([[0.0, 1.0]])  # wrong
plot.traces(torch.zeros(5, 4), "1.0")  # wrong

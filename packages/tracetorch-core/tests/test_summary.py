"""The summary of a sequence says what the sequence does, and leaves the model as it was."""

from __future__ import annotations

import logging

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, Trace


class Net(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.drop = nn.Linear(3, 4), nn.Dropout(0.9)
        self.lif, self.mid, self.hidden = AdaptiveLIF(4), nn.Linear(4, 2), [Trace(2)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hidden[0](self.mid(self.lif(3 * self.drop(self.inward(x)))))
        return y


class Looking(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() else x[:, :2]


def net(kind: type[Net] = Net) -> Net:
    torch.manual_seed(1)
    return kind()


def sequence() -> Tensor:
    return torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Net, Looking])
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 0, 2, 6, 1])])
def test_rates_and_silence_are_those_of_the_loop(kind: type[Net], lengths: Tensor | None) -> None:
    x = sequence()
    model = net().eval()
    fired, own = torch.zeros(4), 0
    with torch.no_grad():
        for t, timestep in enumerate(x):
            y = model.lif(3 * model.inward(timestep))
            going = slice(None) if lengths is None else lengths > t
            fired += (y[going] != 0).sum(0)
            own += y[going].numel()
    rows = {row.name: row for row in net(kind).summary(x, lengths).rows}
    assert [*rows] == ["inward", "drop", "lif", "mid", "hidden.0"]
    assert rows["lif"].rate == pytest.approx(fired.sum().item() / own)
    assert rows["lif"].silent == (fired == 0).sum().item()
    assert rows["lif"].neurons == 4
    assert rows["inward"].rate is None


def test_shapes_sizes_and_operations() -> None:
    x = sequence()
    summary = net().summary(x)
    rows = {row.name: row for row in summary.rows}
    assert (rows["inward"].input, rows["inward"].output) == ((5, 3), (5, 4))
    assert (rows["lif"].input, rows["hidden.0"].output) == ((5, 4), (5, 2))
    assert (rows["lif"].state_size, rows["lif"].state_bytes) == (8, 32)
    assert summary.operations is not None
    assert rows["inward"].operations == (6 * 5 * 12, 6 * 5 * 12, 0)
    spikes = round(rows["lif"].rate * 6 * 5 * 4)  # type: ignore[operator]
    assert rows["mid"].operations == (6 * 5 * 8, 0, 2 * spikes)
    assert rows["lif"].operations is None


def test_it_says_what_is_fused_and_folded_and_why_not(caplog: pytest.LogCaptureFixture) -> None:
    class Listing(Trace):
        gains = [1.0]  # noqa: RUF012 - that is the point

        def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return super().step(states, x * self.gains[0], p)

    model = net(Looking)
    model.hidden = [Listing(2)]
    with caplog.at_level(logging.INFO, "tracetorch"):
        summary = model.summary(sequence())
    rows = {row.name: row for row in summary.rows}
    assert (rows["lif"].path, rows["lif"].why) == ("fused", "")
    assert rows["hidden.0"].path == "stepped"
    assert "reads Listing.gains, a list" in rows["hidden.0"].why
    assert summary.unfolded is not None
    assert summary.unfolded.startswith("forward looks at values")
    lines = str(summary).splitlines()
    assert lines[-2].startswith("stepped: forward looks at values")
    assert lines[-1].startswith("hidden.0 is stepped: its step reads Listing.gains")
    assert net().summary(sequence()).unfolded == ""


def test_it_names_the_layers_that_are_silent() -> None:
    model = net()
    nn.init.constant_(model.inward.weight, -0.0)
    nn.init.constant_(model.inward.bias, -1.0)
    model.hidden[0].beta = 0.5
    lines = str(model.summary(sequence())).splitlines()
    assert "4 of 4" in lines[3]
    assert "silent: lif" in lines


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = net().train(training)
    model(sequence()[0])
    states = model.get_states()
    random = torch.random.get_rng_state()
    model.summary(sequence())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training is model.drop.training is training
    after = model.get_states()
    assert after.keys() == states.keys()
    assert all(after[name] is state for name, state in states.items())
    assert not model.inward._forward_hooks
    assert model.lif.tt.passage is None


def test_an_error_leaves_it_too() -> None:
    model = net()
    model(sequence()[0])
    states = model.get_states()
    with pytest.raises(ValueError, match=r"x must be \[T, B, …\]"):
        model.summary(torch.ones(3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.summary(torch.ones(3, 2, 7))
    assert all(model.get_states()[name] is state for name, state in states.items())
    assert not model.inward._forward_hooks
    assert model.lif.tt.passage is None
    assert model.training


def test_a_hook_and_a_layer_that_is_not_called_are_said() -> None:
    model = net()
    model.spare = Trace(2)
    model.inward.register_forward_hook(lambda module, inputs, output: None)
    summary = model.summary(sequence())
    assert summary.unfolded == "Linear has hooks, which run at every timestep"
    rows = {row.name: row for row in summary.rows}
    assert (rows["spare"].path, rows["spare"].why) == ("", "it is not called")
    assert "spare: it is not called" in str(summary).splitlines()


def test_rows_add_up_to_the_model() -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mid = nn.utils.parametrizations.weight_norm(self.mid)
            self.attention = nn.MultiheadAttention(2, 1)
            self.own = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.own * super().forward(x)
            z: Tensor = self.attention(y[:, None], y[:, None], y[:, None])[0]
            return z

    summary = Odd().summary(sequence())
    assert sum(row.parameters for row in summary.rows) == summary.parameters.total
    assert {row.name for row in summary.rows} >= {"", "mid", "attention", "lif"}
    assert str(summary).splitlines()[1].startswith("(the model)")


def test_no_samples_have_no_rate() -> None:
    lengths = torch.zeros(5, dtype=torch.int64)
    row = next(row for row in net().summary(sequence(), lengths).rows if row.name == "lif")
    assert (row.rate, row.silent) == (None, None)


def test_what_is_no_sequence_is_said() -> None:
    with pytest.raises(TypeError, match=r"summary: x must be a tensor \[T, B, …\], got a list"):
        net().summary([1])  # type: ignore[arg-type]

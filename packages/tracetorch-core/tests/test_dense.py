"""Nested, packed and sparse tensors: one error that names the way to a dense one, and it is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.testing import Trace

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype stage|beta state):UserWarning")

PARTS = [torch.rand(5, 3), torch.rand(2, 3)]
PAD = "torch.nn.utils.rnn.pad_sequence(x.unbind())"
LENGTHS = "torch.tensor([len(one) for one in x.unbind()])"
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "nested": (
        lambda: torch.nested.nested_tensor(PARTS),
        f"a nested one; {PAD} is [T, B, …], and {LENGTHS} its lengths",
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor(PARTS, layout=torch.jagged),
        f"a nested one; {PAD} is [T, B, …], and {LENGTHS} its lengths",
    ),
    "packed": (
        lambda: nn.utils.rnn.pack_sequence(PARTS),
        "a PackedSequence; torch.nn.utils.rnn.pad_packed_sequence gives x and lengths",
    ),
    "coo": (
        lambda: torch.rand(4, 2, 3).to_sparse(),
        "one of torch.sparse_coo; x.to_dense() is a dense one",
    ),
    "csr": (
        lambda: torch.rand(2, 3).to_sparse_csr(),
        "one of torch.sparse_csr; x.to_dense() is a dense one",
    ),
}


class Net(tt.Model):
    """A layer behind a matrix product, which takes some of these tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.trace = nn.Linear(3, 3), Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.trace(self.fc(x))
        return y


CALLS: dict[str, tuple[Callable[[Net, Any], object], str]] = {
    "a layer": (
        lambda net, x: net.trace(x),
        "Trace(3, beta=0.8, dim=-1): the input x must be a floating-point tensor",
    ),
    "a layer's sequence": (
        lambda net, x: net.trace.unroll(x),
        "Trace(3, beta=0.8, dim=-1): unroll takes a tensor [T, …]",
    ),
    "a model's sequence": (
        lambda net, x: net.unroll(x),
        "unroll: x must be a tensor [T, B, …]",
    ),
    "a model's sequence, batch first": (
        lambda net, x: net.unroll(x, time_dim=1),
        "unroll: x must be a tensor [T, B, …]",
    ),
    "a summary": (
        lambda net, x: net.summary(x),
        "summary: x must be a tensor [T, B, …]",
    ),
    "check_unroll": (tt.check_unroll, "check_unroll: x must be a tensor [T, B, …]"),
    "operations": (
        lambda net, x: tt.measures.operations(net, x),
        "operations: x must be a tensor [T, B, …]",
    ),
    "a measure": (
        lambda _, x: tt.measures.firing_rate(x),
        "firing_rate: spikes must be a real tensor [T, B, …]",
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_dense_is_named_with_its_remedy(kind: str, call: str) -> None:
    net, (make, remedy), (run, must) = Net(), KINDS[kind], CALLS[call]
    net.trace(torch.ones(2, 3))
    before = net.get_states()
    with pytest.raises(TypeError, match=f"^{re.escape(f'{must}, got {remedy}')}$"):
        run(net, make())
    assert net.get_states()["trace.mem"] is before["trace.mem"]


@pytest.mark.parametrize("kind", ["nested", "jagged", "packed"])
def test_the_remedy_gives_each_sequence_what_it_gets_alone(kind: str) -> None:
    net, x = Net(), KINDS[kind][0]()
    if kind == "packed":
        padded, lengths = nn.utils.rnn.pad_packed_sequence(x)
    else:
        padded, lengths = (eval(code, {"torch": torch, "x": x}) for code in (PAD, LENGTHS))
    found = net.unroll(padded, lengths=lengths)
    for index, part in enumerate(PARTS):
        net.zero_states()
        torch.testing.assert_close(found[: len(part), index], net.unroll(part))


def test_a_dense_tensor_of_any_make_is_taken() -> None:
    x = torch.rand(4, 2, 3)
    made = [x, x.transpose(0, 1).contiguous().transpose(0, 1), nn.Parameter(x), x.expand(4, 2, 3)]
    found = [Trace(3).unroll(each) for each in made]
    assert all(torch.equal(one, found[0]) for one in found)

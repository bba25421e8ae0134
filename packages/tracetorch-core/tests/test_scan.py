"""Scans of other functions than Mamba's: the kernel gives what the steps give.

With ``TRACETORCH_TEST_BACKEND=triton`` Triton's kernels do, in ``TRACETORCH_TEST_DEVICE=cuda``'s
memory or, with ``TRITON_INTERPRET=1``, in the CPU's: ``test_triton.py`` runs this file that way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch.choice import choosing
from tracetorch.engine import scan as scans
from tracetorch.engine.scan import Scan
from tracetorch.engine.scan_kernel import ScanKernel
from tracetorch.states import restarted

Ends = tuple[Tensor, Tensor]
BACKEND = os.environ.get("TRACETORCH_TEST_BACKEND", "cpp")
DEVICE = os.environ.get("TRACETORCH_TEST_DEVICE", "cpu")
PERIOD, WIDTH, TILE = ScanKernel.period, ScanKernel.width, ScanKernel.tile


def gated(h: Tensor, u: Tensor, key: Tensor, gate: Tensor, rate: Tensor) -> Ends:
    """Nonlinear in the state, two functions to hold, a branch."""
    forget = torch.sigmoid(gate + rate)
    h = forget * torch.tanh(h) + (1 - forget) * u * key
    return h, torch.where(h > 0, h * key, u - h)


def summed(h: Tensor, weight: Tensor, u: Tensor) -> Ends:
    """Arithmetic alone, nothing that varies over the states."""
    return h + weight * u, h


def constant(h: Tensor, bias: Tensor, key: Tensor) -> Ends:
    """A share that does not depend on the state, an input that nothing depends on."""
    return 0.5 * h + key, key * 2 + 0 * bias.detach()


SCANS = (
    Scan("gated", gated, {"u": "d", "key": "n", "gate": "d", "rate": "dn"}),
    Scan("summed", summed, {"weight": "dn", "u": "d"}),
    Scan("constant", constant, {"bias": "dn", "key": "n"}),
)
each = pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.name)


def fused(scan: Scan, h: Tensor, *inputs: Tensor, resets: Tensor | None = None) -> Ends:
    assert scans._failure(scan, h.dtype, BACKEND, True) is None
    with choosing(BACKEND):
        found = scan.sequence(h, *inputs, owner=scan, resets=resets)
    assert found is not None
    return found


def stepped(scan: Scan, h: Tensor, *inputs: Tensor, resets: Tensor | None = None) -> Ends:
    axes, ys = scan.axes.values(), []
    steps = next(len(i) for i, axis in zip(inputs, axes, strict=True) if axis != "dn")
    for t in range(steps):
        if resets is not None:
            h = restarted(h, resets[t])
        now = [i if axis == "dn" else i[t] for i, axis in zip(inputs, axes, strict=True)]
        h, y = scan.step(h, *now)
        ys.append(y)
    return h, torch.stack(ys)


def leaves(
    scan: Scan, steps: int, around: Sequence[int], channels: int, states: int
) -> list[Tensor]:
    """A state and inputs, in float64, that require gradients."""
    shapes = {
        "d": (steps, *around, channels),
        "n": (steps, *around, states),
        "dn": (channels, states),
    }
    sizes = [(*around, channels, states), *(shapes[axis] for axis in scan.axes.values())]
    return [
        torch.randn(size, dtype=torch.float64, device=DEVICE, requires_grad=True) for size in sizes
    ]


def results(run: Callable[..., Ends], scan: Scan, given: Sequence[Tensor]) -> list[Tensor]:
    h, y = run(scan, *given)
    loss = (y.sin() + y).sum() + (h.cos() * h).sum()
    return [y, h, *torch.autograd.grad(loss, given, materialize_grads=True)]


@each
@settings(max_examples=25 if BACKEND == "cpp" else 8)
@given(
    steps=st.sampled_from([1, 2, PERIOD - 1, PERIOD, PERIOD + 1, 2 * PERIOD]),
    around=st.lists(st.integers(0, 3), max_size=2),
    channels=st.sampled_from([1, 3, 17, WIDTH, WIDTH + 5]),
    states=st.sampled_from([1, 2, 5, TILE, TILE + 1]),
)
def test_kernels_are_steps(
    scan: Scan, steps: int, around: list[int], channels: int, states: int
) -> None:
    given = leaves(scan, steps, around, channels, states)
    for got, expected in zip(
        results(fused, scan, given), results(stepped, scan, given), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@each
@settings(max_examples=25 if BACKEND == "cpp" else 8)
@given(
    steps=st.sampled_from([1, 2, PERIOD, PERIOD + 1, 2 * PERIOD]),
    around=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    states=st.sampled_from([1, TILE + 1]),
    rate=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_samples_restart(
    scan: Scan, steps: int, around: list[int], states: int, rate: float
) -> None:
    given, resets = leaves(scan, steps, around, 5, states), torch.rand(steps, around[0]) < rate
    run = {way: functools.partial(way, resets=resets.to(DEVICE)) for way in (fused, stepped)}
    for got, expected in zip(*(results(way, scan, given) for way in run.values()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@each
def test_first_and_second_derivatives_agree_with_differences(scan: Scan) -> None:
    given = leaves(scan, 3, [2], 2, 2)
    assert torch.autograd.gradcheck(lambda *a: fused(scan, *a), given)
    # random sums of the second derivatives, by one difference each
    assert torch.autograd.gradgradcheck(lambda *a: fused(scan, *a), given, fast_mode=True)
    resets = torch.tensor([[False, True], [True, False], [False, True]], device=DEVICE)
    run = functools.partial(fused, scan, resets=resets)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


def ways(scan: Scan, given: Sequence[Tensor], run: Callable[..., Ends]) -> Iterator[Tensor]:
    """First and second derivatives of one end by one leaf, the others constant."""
    for end in (0, 1):
        for own in range(len(given)):
            held = [g.detach().requires_grad_(k == own) for k, g in enumerate(given)]
            value = run(scan, *held)[end]
            if not value.requires_grad:
                value = value + 0 * held[own].sum()
            (first,) = torch.autograd.grad(
                value.square().sum(), held[own], create_graph=True, materialize_grads=True
            )
            yield first
            loss = first.square().sum() + 0 * held[own].sum()
            yield torch.autograd.grad(loss, held[own])[0]


@each
def test_one_input_and_one_end_alone(scan: Scan) -> None:
    given = leaves(scan, PERIOD + 1, [2], 3, 2)
    for got, expected in zip(ways(scan, given, fused), ways(scan, given, stepped), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@each
def test_the_number_of_threads_changes_nothing(scan: Scan) -> None:
    given = leaves(scan, PERIOD + 1, [3], 2 * WIDTH + 1, TILE + 1)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            h, y = fused(scan, *given)
            gradients = torch.autograd.grad(y.sum() + h.sum(), given, materialize_grads=True)
            runs.append([y, h, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(map(torch.equal, other, runs[0]))


@each
def test_the_operators_pass_torchs_own_checks(scan: Scan) -> None:
    h, *inputs = leaves(scan, PERIOD + 1, [2], 3, 2)
    fused(scan, h, *inputs)
    start, *plain = (t.detach() for t in (h, *inputs))
    resets = (torch.rand(PERIOD + 1, 2, device=DEVICE) < 0.2).to(torch.uint8)
    for flags in (None, resets):
        operator = torch.ops.tracetorch.scan.default
        torch.library.opcheck(operator, (h, inputs, flags, scan.name, BACKEND, True))
        torch.library.opcheck(operator, (start, plain, flags, scan.name, BACKEND, False))
        y, new, kept = operator(start, plain, flags, scan.name, BACKEND, True)
        for cotangents in ([y, new], [None, new], [y, None]):
            operator = torch.ops.tracetorch.scan_backward.default
            torch.library.opcheck(operator, (cotangents, kept, plain, flags, scan.name, BACKEND))


def test_states_are_kept_once_a_period_and_only_for_training() -> None:
    scan = SCANS[0]
    h, *inputs = (t.detach() for t in leaves(scan, 2 * PERIOD + 1, [2], 3, 5))
    fused(scan, h, *inputs)
    operator = torch.ops.tracetorch.scan
    shapes = [tuple(t.shape) for t in operator(h, inputs, None, scan.name, BACKEND, True)]
    assert shapes == [(2 * PERIOD + 1, 2, 3), (2, 3, 5), (3, 2, 5, 3)]
    assert len(operator(h, inputs, None, scan.name, BACKEND, False)) == 2
    kept = operator(h, inputs, None, scan.name, BACKEND, True)[2]
    for block in range(3):
        until = [t if axis == "dn" else t[: block * PERIOD]
                 for t, axis in zip(inputs, scan.axes.values(), strict=True)]  # fmt: skip
        state = h if block == 0 else stepped(scan, h, *until)[0]
        torch.testing.assert_close(kept[block].mT, state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("lane", "real", "why"),
    [
        (lambda h, u: (h + u.cumsum(-1), h), torch.float64, "cumsum at .*test_scan.py"),
        (lambda h, u: (u, 2 * u), torch.float64, "new states do not depend on the old ones"),
        (lambda h, u: (h + u, h), torch.bfloat16, "no kernels for states in torch.bfloat16"),
        (lambda h, u: (h + u, (h + u).sum()), torch.float64, "has no row|not elementwise"),
    ],
    ids=["no row", "no memory", "type", "a sum"],
)
def test_what_has_no_kernel_is_said(lane: Callable[..., Ends], real: torch.dtype, why: str) -> None:
    scan = Scan("refused", lane, {"u": "d"})
    refusal = scans._failure(scan, real, BACKEND, True)
    with pytest.raises(scans.Refused, match=why) as refused:
        scan.kernel(real, False)
    assert refusal == str(refused.value)


def test_an_axis_must_be_known() -> None:
    with pytest.raises(ValueError, match="scan odd: u must vary over d, n or dn, not b"):
        Scan("odd", summed, {"u": "b"})

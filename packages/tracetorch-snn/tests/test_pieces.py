"""Resets, refractory period, adaptation and graded spikes: in any combination, on any layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from tracetorch import snn
from tracetorch.snn import quantizers, resets, surrogates

Array = NDArray[np.float64]
FIRING = [cls for cls in snn.LAYERS if cls.firing]
SOME = [snn.LIB, snn.DSRLITS]


@dataclass(frozen=True)
class Pieces:
    """What a layer may be given."""

    reset: str = "subtract"
    value: float = 0.0
    delayed: bool = False
    detach: bool = False
    refractory: int = 0
    adaptive: bool = False
    graded: bool = False
    jump_detached: bool = False

    def arguments(self) -> dict[str, Any]:
        flags = {"delayed": self.delayed, "detach": self.detach}
        made = {
            "subtract": lambda: resets.subtract(**flags),
            "to": lambda: resets.to(self.value, **flags),
            "never": resets.never,
        }[self.reset]()
        jump = torch.tensor([0.3, 0.1, 0.5, 0.2])
        adaptation = snn.Adaptation(0.7, jump, detach=self.jump_detached) if self.adaptive else None
        return {
            "reset": made,
            "refractory": self.refractory,
            "adaptation": adaptation,
            "graded": self.graded,
        }


ALL = st.builds(
    Pieces,
    reset=st.sampled_from(["subtract", "to", "never"]),
    value=st.sampled_from([0.0, -0.3, 0.2]),
    delayed=st.booleans(),
    detach=st.booleans(),
    refractory=st.integers(0, 3),
    adaptive=st.booleans(),
    graded=st.booleans(),
    jump_detached=st.booleans(),
)


def split(u: Array, dual: bool) -> list[Array]:
    return [np.where(u >= 0, u, 0.0), np.where(u < 0, u, 0.0)] if dual else [u]


def reference(
    a: Any, pieces: Pieces, v: dict[str, Array], xs: Array
) -> tuple[Array, dict[str, Array]]:
    """The equations, one timestep and one line after another."""
    signs = ["pos_", "neg_"] if a.dual else [""]
    s: dict[str, Array] = defaultdict(lambda: np.zeros(xs.shape[1:]))
    outs = []
    for x in xs:
        inflow = split(x, a.dual)
        if a.synapse:
            for h, i in zip(signs, inflow, strict=True):
                s[h + "syn"] = v[h + "alpha"] * s[h + "syn"] + (1 - v[h + "alpha"]) * i
            inflow = split(sum(s[h + "syn"] for h in signs), a.dual)
        if a.recurrent:
            for h, back in zip(signs, split(s["prev_output"], a.dual), strict=True):
                s[h + "rec"] = v[h + "gamma"] * s[h + "rec"] + (1 - v[h + "gamma"]) * back
            traces = split(sum(s[h + "rec"] for h in signs), a.dual)
            inflow = [
                i + v[h + "rec_weight"] * r for h, i, r in zip(signs, inflow, traces, strict=True)
            ]
        resting = s["waiting"] > 0
        for h, i in zip(signs, inflow, strict=True):
            moved = v[h + "beta"] * s[h + "mem"] + i
            s[h + "mem"] = np.where(resting, s[h + "mem"], moved)
        if pieces.delayed and pieces.reset != "never":
            apply(pieces, s, signs, s["due_count"], s["due_taken"])
        mem = sum(s[h + "mem"] for h in signs)
        low, high = (
            (v["threshold"],) * 2 if a.suffix == "B" else (v["neg_threshold"], v["pos_threshold"])
        )
        pos = ((mem > high + s["raised"]) & ~resting).astype(float)
        neg = ((-mem > low + s["raised"]) & ~resting & (a.suffix != "B")).astype(float)
        up, down = (v["pos_scale"], v["neg_scale"]) if a.suffix == "TS" else (1.0, 1.0)
        out = up * pos - down * neg
        count, taken = pos + neg, pos * high - neg * low
        if pieces.adaptive:
            s["raised"] = v["rho"] * s["raised"] + v["jump"] * count
        s["waiting"] = np.where(count > 0, pieces.refractory, np.maximum(s["waiting"] - 1, 0))
        s["due_count"], s["due_taken"] = count, taken
        if not pieces.delayed and pieces.reset != "never":
            apply(pieces, s, signs, count, taken)
        out = out * abs(mem) if pieces.graded else out
        s["prev_output"] = out
        outs.append(out)
    return np.stack(outs), s


def apply(
    pieces: Pieces, s: dict[str, Array], signs: list[str], count: Array, taken: Array
) -> None:
    for h in signs:
        if pieces.reset == "to":
            s[h + "mem"] = np.where(count > 0, pieces.value / len(signs), s[h + "mem"])
        else:
            s[h + "mem"] = s[h + "mem"] - taken / len(signs)


@given(pieces=ALL, cls=st.sampled_from(FIRING), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_stepped_and_unrolled_are_the_equations(
    pieces: Pieces, cls: type[snn.Layer], seed: int, anatomy: Any, build: Any
) -> None:
    layer = build(cls, 4, **pieces.arguments())
    names = [*anatomy(cls).parameters, *(["rho", "jump"] if pieces.adaptive else [])]
    v = {name: getattr(layer, name).detach().numpy() for name in names}
    xs = np.random.default_rng(seed).normal(0, 0.8, (25, 3, 4))
    outs, states = reference(anatomy(cls), pieces, v, xs)
    assert outs.any()
    with tt.backends.use("eager"):
        stepped = torch.stack([layer(x) for x in torch.tensor(xs)])
    np.testing.assert_allclose(stepped.detach().numpy(), outs, rtol=1e-11, atol=1e-11)
    for name, state in layer.get_states().items():
        key = name
        if name == "due":
            key = "due_count" if pieces.reset == "to" else "due_taken"
        np.testing.assert_allclose(state.detach().numpy(), states[key], rtol=1e-11, atol=1e-11)
    expected = layer.get_states()
    layer.zero_states()
    torch.testing.assert_close(layer.unroll(torch.tensor(xs)), stepped, rtol=1e-11, atol=1e-11)
    for name, state in layer.get_states().items():
        torch.testing.assert_close(state, expected[name], rtol=1e-11, atol=1e-11)


EACH = [
    Pieces("subtract", delayed=True),
    Pieces("to", -0.3),
    Pieces("to", delayed=True, detach=True),
    Pieces("never"),
    Pieces(refractory=2),
    Pieces(adaptive=True),
    Pieces(adaptive=True, jump_detached=True),
    Pieces(graded=True),
    Pieces("to", 0.2, True, False, 1, True, True),
]


@pytest.mark.parametrize("cls", SOME)
@pytest.mark.parametrize("pieces", EACH, ids=repr)
def test_each_piece_is_fused(pieces: Pieces, cls: type[snn.Layer], build: Any) -> None:
    layer = build(cls, 4, **pieces.arguments())
    layer.unroll(torch.rand(3, 2, 4, dtype=torch.float64))
    assert tt.backends.status(layer) == {"": "ready"}


@pytest.mark.parametrize("cls", SOME)
@pytest.mark.parametrize("pieces", [EACH[2], EACH[-1]], ids=repr)
def test_pieces_keep_the_contract(pieces: Pieces, cls: type[snn.Layer], build: Any) -> None:
    x = torch.randn(8, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tt.testing.check_layer(lambda: build(cls, 4, **pieces.arguments()), x)


# what is cut, or gated by a decision, has no differences
SMOOTH = [
    pieces for pieces in EACH if not (pieces.detach or pieces.refractory or pieces.jump_detached)
]


@pytest.mark.parametrize("pieces", SMOOTH, ids=repr)
def test_gradients_are_those_of_a_smooth_neuron(pieces: Pieces, build: Any) -> None:
    """With the probability itself as what is emitted, differences of the loss are its gradients."""
    smooth = {"spike_fn": surrogates.sigmoid(2.0), "quant_fn": torch.nn.Identity()}
    x = torch.randn(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tt.testing.gradients_match_differences(
        lambda: build(snn.SLIT, 4, **pieces.arguments(), **smooth), x
    )


def test_a_detached_reset_has_the_gradient_of_a_constant() -> None:
    layer = snn.LIB(1, 0.8, 1.0, reset=resets.subtract(detach=True)).double()
    beta, theta = layer.beta.item(), layer.threshold.item()
    x = torch.tensor([1.2, 0.3, 0.7, 0.9], dtype=torch.float64).reshape(4, 1, 1).requires_grad_()
    layer.unroll(x).sum().backward()
    mem, spikes, slopes = 0.0, [], []
    surrogate = surrogates.sigmoid(4.0)
    for value in x.detach().flatten().tolist():
        mem = beta * mem + value
        u = torch.tensor(mem - theta, dtype=torch.float64, requires_grad=True)
        slopes.append(float(torch.autograd.grad(surrogate(u), u)[0]))
        spikes.append(float(mem > theta))
        mem -= spikes[-1] * theta
    wanted = [sum(beta ** (t - k) * slopes[t] for t in range(k, 4)) for k in range(4)]
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.flatten().numpy(), wanted, rtol=1e-10)


def test_a_detached_jump_has_the_gradient_of_a_constant() -> None:
    adaptation = snn.Adaptation(0.7, 0.5, detach=True)
    layer = snn.LIB(1, 0.8, 1.0, reset=resets.never(), adaptation=adaptation).double()
    names = ("beta", "threshold", "rho", "jump")
    beta, theta, rho, jump = (getattr(layer, name).item() for name in names)
    x = torch.tensor([1.2, 0.3, 0.7, 0.9], dtype=torch.float64).reshape(4, 1, 1).requires_grad_()
    layer.unroll(x).sum().backward()
    mem, raised, by_jump, slopes, to_jump = 0.0, 0.0, 0.0, [], []
    surrogate = surrogates.sigmoid(4.0)
    for value in x.detach().flatten().tolist():
        mem = beta * mem + value
        u = torch.tensor(mem - theta - raised, dtype=torch.float64, requires_grad=True)
        slopes.append(float(torch.autograd.grad(surrogate(u), u)[0]))
        to_jump.append(-slopes[-1] * by_jump)
        spike = float(u > 0)
        raised, by_jump = rho * raised + jump * spike, rho * by_jump + spike
    wanted = [sum(beta ** (t - k) * slopes[t] for t in range(k, 4)) for k in range(4)]
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.flatten().numpy(), wanted, rtol=1e-10)
    # of softplus, d jump / d raw
    slope = 1 - np.exp(-jump)
    np.testing.assert_allclose(layer.raw_jump.grad.numpy(), [sum(to_jump) * slope], rtol=1e-10)
    assert by_jump > 0


def test_a_piece_costs_nothing_where_it_is_not_asked_for() -> None:
    plain, given = snn.DSRLITS(3), snn.DSRLITS(3, reset=resets.subtract(), refractory=0)
    assert plain.kernel_source() == given.kernel_source()
    assert plain.get_states().keys() == given.get_states().keys()
    assert "due" not in repr(plain.tt.states)


def test_what_a_layer_was_given_is_shown() -> None:
    layer = snn.LIB(2, reset=resets.to(0.0, delayed=True), refractory=2, graded=True)
    assert repr(layer).endswith("dim=-1, reset=to(0.0, delayed=True), refractory=2, graded=True)")
    assert "rho=0.9, jump=0.2" in repr(snn.LIB(2, adaptation=snn.Adaptation(0.9, 0.2)))
    detached = snn.LIB(2, adaptation=snn.Adaptation(0.9, 0.2, detach=True))
    assert repr(detached).endswith("dim=-1, jump_detached=True)")


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: snn.LIB(2, reset="zero"), TypeError, "LIB: reset must be made by snn.resets"),
        (lambda: snn.LIB(2, reset=resets.to), TypeError, "LIB: reset must be made by snn.resets"),
        (
            lambda: snn.LIB(2, refractory=-1),
            ValueError,
            "LIB: refractory must be a .* in 0…256, got -1",
        ),
        (lambda: snn.LIB(2, refractory=257), ValueError, "timesteps in 0…256, got 257"),
        (lambda: snn.LIB(2, refractory=1.5), TypeError, "refractory must be a number of timesteps"),
        (lambda: snn.LIB(2, refractory=True), TypeError, "refractory must be a number of timeste"),
        (lambda: snn.LIB(2, adaptation=0.3), TypeError, "adaptation must be snn.Adaptation"),
        (lambda: snn.LIB(2, graded=1), TypeError, "graded must be True or False, got 1"),
        (lambda: snn.Adaptation(detach=1), TypeError, "Adaptation: detach must be True or False"),
        (lambda: snn.LIB(2, adaptation=snn.Adaptation(1.5)), ValueError, "LIB: rho must be in"),
        (lambda: snn.LIB(2, adaptation=snn.Adaptation(jump=-1.0)), ValueError, "LIB: jump must be"),
        (lambda: snn.LI(2, refractory=1), TypeError, "LI: .*unexpected keyword.* 'refractory'"),
        (lambda: snn.LIB(2, feedback=len), TypeError, "feedback must be a module, or None, got <b"),
        (lambda: resets.to(float("nan")), ValueError, "value must be finite, got nan"),
        (lambda: resets.to("0"), TypeError, "value must be a number, got '0'"),
        (lambda: resets.subtract(detach=1), TypeError, "detach must be True or False, got 1"),
    ],
)
def test_bad_pieces_are_named(make: Callable[[], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_without_a_leak_the_membrane_is_the_sum(dtype: torch.dtype) -> None:
    layer = snn.LI(3, learn_beta=False).to(dtype)
    layer.raw_beta.fill_(40.0)
    x = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    total, sums = torch.zeros(2, 3, dtype=dtype), []
    for value in x:
        total = total + value
        sums.append(total)
    assert torch.equal(layer.unroll(x), torch.stack(sums))
    assert torch.equal(layer.mem, total)


def test_timesteps_are_integers_of_any_kind() -> None:
    layer, delay = snn.LIB(2, refractory=np.int64(2)), snn.Delay(2, 1.0, np.int16(3))  # type: ignore[arg-type]
    assert type(layer.refractory) is type(delay.longest) is int
    assert (layer.refractory, delay.longest) == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_longest_refractory_period_ends_in_half_precision(dtype: torch.dtype) -> None:
    layer = snn.LIB(1, 0.5, 1.0, refractory=256).to(dtype)
    out: Tensor = layer.unroll(torch.full((600, 1, 1), 3.0, dtype=dtype))
    assert out.flatten().nonzero().flatten().tolist() == [0, 257, 514]


def test_quantizers_that_draw_wait_and_adapt_too(build: Any) -> None:
    layer = build(snn.LIB, 4, refractory=1, quant_fn=quantizers.bernoulli())
    spikes = layer.unroll(torch.full((200, 3, 4), 0.4, dtype=torch.float64))
    assert spikes.any()
    assert not (spikes[1:] * spikes[:-1]).any()


# ------------------------------------------------------------------ feedback


@pytest.mark.parametrize("cls", [snn.LIB, snn.SLIB, snn.RLITS])
def test_feedback_is_what_a_loop_of_ones_own_adds_to_the_input(
    cls: type[snn.Layer], build: Any
) -> None:
    weights = nn.Linear(4, 4, dtype=torch.float64)
    layer, plain = build(cls, 4, feedback=weights), build(cls, 4)
    x = torch.randn(12, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out, outs = torch.zeros(3, 4, dtype=torch.float64), []
    for now in x:
        out = plain(now + weights(out))
        outs.append(out)
    expected = torch.stack(outs)
    assert expected.any()
    y = layer.unroll(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.square().sum(), weights.weight)
    found = torch.autograd.grad(y.square().sum(), weights.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


class Wide(nn.Module):
    """Puts out float64."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.double()


def test_feedback_of_another_type_becomes_the_inputs() -> None:
    layer, like = (snn.LIB(3, feedback=m) for m in (Wide(), nn.Linear(3, 3, bias=False)))
    with torch.no_grad():
        like.feedback.weight.copy_(0.5 * torch.eye(3))
    x = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([like(now) for now in x])
    torch.testing.assert_close(torch.stack([layer(now) for now in x]), expected)
    layer.zero_states()
    torch.testing.assert_close(layer.unroll(x), expected)


def test_an_error_within_a_sequence_with_feedback_is_the_layers_own() -> None:
    layer = snn.LIB(3, spike_fn=lambda u: u.sum(), feedback=nn.Linear(3, 3))
    said = []
    for run, x in ((layer, torch.rand(2, 3)), (layer.unroll, torch.rand(4, 2, 3))):
        with pytest.raises(tt.StateError, match="spike_fn must return") as caught:
            run(x)
        assert caught.value.layer is layer
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_an_error_of_a_layer_within_the_feedback_is_that_layers() -> None:
    inner = snn.LIB(3)
    layer = snn.LIB(4, feedback=nn.Sequential(nn.Linear(4, 5), inner))
    for run, x in ((layer, torch.rand(2, 4)), (layer.unroll, torch.rand(5, 2, 4))):
        with pytest.raises(tt.StateError, match=r"LIB\(3.* has 5 neurons") as caught:
            run(x)
        assert caught.value.layer is inner


def test_feedback_by_a_convolution_sees_the_layout_of_the_input() -> None:
    convolution = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    layer = snn.LIB(2, 0.5, 0.3, dim=-3, feedback=convolution)
    frames = torch.rand(4, 1, 2, 5, 5)
    plain, out = snn.LIB(2, 0.5, 0.3, dim=-3), torch.zeros(1, 2, 5, 5)
    for frame in frames:
        out = plain(frame + convolution(out))
        assert torch.equal(layer(frame), out)


def _with_feedback(build: Any, **pieces: Any) -> snn.Layer:
    torch.manual_seed(0)
    feedback = nn.Linear(4, 4, dtype=torch.float64)
    layer: snn.Layer = build(snn.SLITS, 4, feedback=feedback, **pieces)
    return layer


def _inputs(steps: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(steps, 3, 4, dtype=torch.float64, generator=generator)


def _measured(layer: Any, run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Outputs, final states and all gradients of a sequence from fresh states."""
    layer.zero_states()
    layer.zero_grad()
    x = _inputs().requires_grad_()
    y = run(x)
    (y.sin().sum() + sum(s.square().sum() for s in layer.get_states().values())).backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    assert x.grad is not None
    return {"y": y, "grad x": x.grad, **layer.get_states(), **grads}


def _same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert expected["y"].any()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=name)


def _changes() -> list[Callable[[Any], None]]:
    def reset(layer: Any) -> None:
        layer.reset, layer.refractory = resets.to(0.1), 2

    def function(layer: Any) -> None:
        layer.spike_fn = torch.sigmoid

    def surrogate(layer: Any) -> None:
        layer.spike_fn = surrogates.atan(3.0)

    def weights(layer: Any) -> None:
        layer.feedback = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()

    def values(layer: Any) -> None:
        layer.beta = 0.3

    return [reset, function, surrogate, weights, values]


def test_a_sequence_with_feedback_is_its_steps_whatever_was_changed_before(build: Any) -> None:
    """One layer, changed again and again: what serves its sequences is not what it was."""
    layer = _with_feedback(build, refractory=1)
    stepped: Any = lambda x: torch.stack([layer(timestep) for timestep in x])  # noqa: E731
    for change in [lambda layer: None, *_changes()]:
        change(layer)
        _same(_measured(layer, layer.unroll), _measured(layer, stepped))


def test_a_sequence_with_feedback_is_one_kernel_for_each_timestep(build: Any) -> None:
    layer = _with_feedback(build)
    found: list[str] = []
    for _ in range(2):  # the first timestep of all has to find its kernel
        layer.zero_states()
        seen, after = set(), [layer.unroll(_inputs()).grad_fn]
        while after:
            node = after.pop()
            if node is not None and node not in seen:
                seen.add(node)
                after += [each for each, _ in node.next_functions]
        found = [node.name() for node in seen]
        assert found.count("_FusedBackward") == found.count("AddmmBackward0") == 12


class _Net(tt.Model):
    def __init__(self, layer: snn.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 2 * self.layer(x)
        return y


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 5}, {"chunk_size": 5, "recompute": True}],
    ids=["whole", "chunks", "recomputed"],
)
def test_a_folded_model_around_feedback_is_the_loop(build: Any, options: Any) -> None:
    net, lengths = _Net(_with_feedback(build)), torch.tensor([12, 7, 1])
    got = _measured(net, lambda x: net.unroll(x, lengths=lengths, fold=True, **options))
    _same(got, _measured(net, lambda x: net.unroll(x, lengths=lengths, fold=False)))


def test_a_compiled_sequence_with_feedback_is_its_steps(build: Any) -> None:
    layer = _with_feedback(build)
    torch._dynamo.reset()
    got = _measured(layer, torch.compile(layer.unroll, backend="eager"))
    _same(got, _measured(layer, layer.unroll))


@pytest.mark.parametrize(
    "holds",
    # a module sees the layout of the input, and a linear layer takes one only
    [each for each in tt.testing.PROPERTIES if each is not tt.testing.dim_is_a_layout],
    ids=lambda each: each.__name__,
)
def test_feedback_keeps_the_contract(holds: Callable[..., None], build: Any) -> None:
    def make() -> snn.Layer:
        torch.manual_seed(0)
        layer: snn.Layer = build(snn.SLIB, 4, feedback=nn.Linear(4, 4, dtype=torch.float64))
        return layer

    x = torch.randn(6, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    holds(make, x)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            nn.Linear(4, 3),
            r"feedback must return a tensor of the input's shape \[2, 4\], got shape \[2",
        ),
        (nn.LSTM(4, 4), r"feedback must return a tensor of the input's shape \[2, 4\], got \("),
    ],
)
def test_feedback_of_another_shape_is_named(module: nn.Module, says: str) -> None:
    with pytest.raises(tt.StateError, match=says):
        snn.LIB(4, feedback=module)(torch.rand(2, 4))

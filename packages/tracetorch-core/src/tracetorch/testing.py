"""A layer held to the contract: in one call, or one property at a time. Knows no test runner.

Each property is a function of a factory and a sample sequence that raises ``AssertionError`` where
the layer breaks it. ``PROPERTIES`` lists them, for ``pytest.mark.parametrize`` and the like.

The three layers at the end are small, complete and importable: something to try a property, a
trainer or a file on.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tracetorch import constraints
from tracetorch.errors import StateError
from tracetorch.layer import Layer

__all__ = [
    "PROPERTIES",
    "AdaptiveLIF",
    "StateSpace",
    "Trace",
    "check_layer",
    "compiling_is_exact",
    "copies_keep_states",
    "detaching_cuts_the_graph",
    "dim_is_a_layout",
    "gradients_match_differences",
    "masks_restart_samples",
    "misfits_are_refused",
    "precision_is_kept",
    "samples_are_independent",
    "states_follow_the_module",
    "states_round_trip",
    "step_equals_unroll",
    "zeroing_restarts",
]

Make = Callable[[], Layer]
Property = Callable[[Make, Tensor], None]


def check_layer(
    make: Make,
    x: Tensor,
    properties: Sequence[Property] | None = None,
    smooth: bool = False,
) -> None:
    """Hold a layer to everything the library relies on.

    Args:
        make: returns a new layer, each time of the same configuration; its class must be
            importable (pickle asks for it).
        x: a float64 sample sequence ``[T, …]``, time first, of at least 4 timesteps. The batch is
            dimension 0 of a timestep; give at least two samples.
        properties: which to check; all of ``PROPERTIES`` where None. A layer that draws random
            numbers cannot keep those that compare parts of a batch.
        smooth: the layer is differentiable as written, without surrogate gradients: compare its
            gradients with finite differences too.

    Raises:
        AssertionError: a property does not hold; the message names it and what differs.
        TypeError: ``x`` is no float64 tensor, or ``make`` returns no layer.
        ValueError: ``x`` is too short.

    Example:
        >>> import torch, tracetorch as tt
        >>> from tracetorch import testing
        >>> testing.check_layer(lambda: testing.Trace(3), torch.randn(5, 2, 3).double())

        In pytest, one test per property::

            @pytest.mark.parametrize("holds", testing.PROPERTIES, ids=lambda p: p.__name__)
            def test_contract(holds):
                holds(MyLayer, x)
    """
    chosen = [*(PROPERTIES if properties is None else properties)]
    if smooth:
        chosen.append(gradients_match_differences)
    for holds in chosen:
        holds(make, x)


def _property(check: Property) -> Property:
    """Give the check a checked sample and a fixed seed; its failures name layer and property."""

    @functools.wraps(check)
    def checked(make: Make, x: Tensor) -> None:
        layer = make()
        if not isinstance(layer, Layer):
            raise TypeError(f"make must return a tt.Layer, got {layer!r}")
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            got = x.dtype if isinstance(x, Tensor) else repr(x)
            raise TypeError(f"x must be a float64 tensor [T, …], got {got}")
        if x.ndim < 2 or len(x) < 4:
            raise ValueError(f"x must be [T, …] with at least 4 timesteps, got {list(x.shape)}")
        broken = f"{layer!r} breaks {check.__name__}"
        try:
            check(_twins(make, layer), x.detach())
        except AssertionError as error:
            raise AssertionError(f"{broken}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{broken}: raised {type(error).__name__}: {error}") from error

    return checked


def _twins(make: Make, original: Layer) -> Make:
    """A factory of layers with the original's parameters, also where ``make`` draws them."""

    def twin() -> Layer:
        layer = make().double()
        layer.load_state_dict(original.state_dict())
        return layer

    return twin


@_property
def step_equals_unroll(make: Make, x: Tensor) -> None:
    """``unroll`` has the outputs, final states and all gradients of calling step by step."""

    def stepped(layer: Layer, x: Tensor) -> Tensor:
        return torch.stack([layer(timestep) for timestep in x])

    def unrolled(layer: Layer, x: Tensor) -> Tensor:
        return layer.unroll(x)

    for warm in (0, len(x) // 2):
        expected = _everything(make(), x, warm, stepped)
        got = _everything(make(), x, warm, unrolled)
        _assert(got.keys() == expected.keys(), f"{sorted(got)} instead of {sorted(expected)}")
        for name, value in expected.items():
            _close(f"{name} of unroll", got[name], value)


@_property
def dim_is_a_layout(make: Make, x: Tensor) -> None:
    """The same numbers come out wherever the neurons are placed."""
    reference, rank = make(), x.ndim - 1
    home = reference.dim % rank
    y = _run(reference, x)
    for dim in range(-rank, rank):
        layer, place = make(), dim % rank
        layer.dim = dim
        moved = _run(layer, x.movedim(home + 1, place + 1))
        _close(f"the output at dim={dim}", moved, y.movedim(home + 1, place + 1))
        for name, state in reference.get_states().items():
            expected = state.movedim(home, place) if state.is_floating_point() else state
            _close(f"the state {name} at dim={dim}", layer.get_states()[name], expected)


@_property
def samples_are_independent(make: Make, x: Tensor) -> None:
    """What a sample gives does not depend on the rest of its batch."""
    if not _batched(make(), x):
        return
    y = _run(make(), x)
    for sample in range(x.shape[1]):
        alone = _run(make(), x[:, sample : sample + 1])
        _close(f"sample {sample} alone", alone, y[:, sample : sample + 1])


@_property
def zeroing_restarts(make: Make, x: Tensor) -> None:
    """After ``zero_states`` a layer is as if new: the same answer, bit for bit."""
    layer = make()
    first = _run(layer, x)
    layer.zero_states()
    _assert(not layer.get_states(), f"zero_states left {sorted(layer.get_states())}")
    _same("the output after zero_states", _run(layer, x), first)


@_property
def states_round_trip(make: Make, x: Tensor) -> None:
    """The states say everything about the past: another layer goes on from them exactly."""
    half = len(x) // 2
    layer, heir = make(), make()
    _run(layer, x[:half])
    states = layer.get_states()
    rest = _run(layer, x[half:])
    heir.set_states(states)
    for name, state in heir.get_states().items():
        _same(f"the state {name} after set_states", state, states[name])
    _same("the output from states put in place", _run(heir, x[half:]), rest)


@_property
def detaching_cuts_the_graph(make: Make, x: Tensor) -> None:
    """``detach_states`` keeps the values, and no gradient passes it."""
    half = len(x) // 2
    layer, past = make(), x[:half].clone().requires_grad_()
    _run(layer, past)
    before = layer.get_states()
    layer.detach_states()
    for name, state in layer.get_states().items():
        _same(f"the state {name} after detach_states", state, before[name].detach())
        _assert(not state.requires_grad, f"the state {name} still requires a gradient")
    rest = _run(layer, x[half:].clone().requires_grad_())
    if rest.requires_grad:
        (gradient,) = torch.autograd.grad(rest.sum(), past, allow_unused=True)
        _assert(gradient is None, "a gradient reached the input before detach_states")


@_property
def states_follow_the_module(make: Make, x: Tensor) -> None:
    """``.double()`` takes the states along; a ``state_dict`` holds none of them."""
    half = len(x) // 2
    layer = make().float()
    keys = set(layer.state_dict())
    _run(layer, x[:half].float())
    before = layer.get_states()
    _assert(set(layer.state_dict()) == keys, f"states are in the state_dict: {set(before)}")
    layer.double()
    for name, state in layer.get_states().items():
        expected = before[name].double() if state.is_floating_point() else before[name]
        _same(f"the state {name} after double()", state, expected)
    _run(layer, x[half:])


@_property
def copies_keep_states(make: Make, x: Tensor) -> None:
    """A deep copy, a pickle and ``torch.save`` after a step with a graph go on alike."""
    half = len(x) // 2
    layer = make()
    _run(layer, x[:half].clone().requires_grad_())
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = {
        "copy.deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),  # noqa: S301 - our own bytes
        "torch.save": torch.load(saved, weights_only=False),
    }
    before = layer.get_states()
    rest = _run(layer, x[half:])
    for how, twin in copies.items():
        for name, state in before.items():
            _same(f"the state {name} by {how}", twin.get_states()[name], state.detach())
            _assert(
                not twin.get_states()[name].requires_grad, f"the state {name} by {how} has a graph"
            )
        _same(f"the output by {how}", _run(twin, x[half:]), rest)


@_property
def compiling_is_exact(make: Make, x: Tensor) -> None:
    """``TTcompile`` changes no output; ``TTdecompile`` gives the very same parameters back."""
    layer = make()
    y, parameters = _run(layer, x), dict(layer.named_parameters())
    values = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.zero_states()
    layer.TTcompile()
    _close("the output while compiled", _run(layer, x), y)
    while_compiled = layer.state_dict()
    layer.TTdecompile()
    layer.zero_states()
    for kind, held in (("compiled", while_compiled), ("decompiled", layer.state_dict())):
        _assert(held.keys() == values.keys(), f"the state_dict {kind} has {sorted(held)}")
        for name, value in values.items():
            _same(f"{name} in the state_dict {kind}", held[name], value)
    again = dict(layer.named_parameters())
    _assert(again.keys() == parameters.keys(), f"the parameters are now {sorted(again)}")
    for name, parameter in parameters.items():
        _assert(again[name] is parameter, f"the parameter {name} is another object")
    _same("the output after TTdecompile", _run(layer, x), y)


@_property
def precision_is_kept(make: Make, x: Tensor) -> None:
    """A bf16 or fp16 input gets an output of its dtype, from states in the promoted dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        rounded = x.to(dtype)
        layer, reference = make().float(), make().float()
        y, expected = _run(layer, rounded), _run(reference, rounded.float())
        _assert(y.dtype == dtype, f"an input of {dtype} gave an output of {y.dtype}")
        for name, state in reference.get_states().items():
            _close(f"the state {name} from {dtype}", layer.get_states()[name], state, 1e-5)
        _close(f"the output from {dtype}", y, expected.to(dtype), 2 * torch.finfo(dtype).eps)


@_property
def masks_restart_samples(make: Make, x: Tensor) -> None:
    """``zero_states(mask)``: masked samples are as if new, the others as if nothing happened."""
    half, layer = len(x) // 2, make()
    _run(layer, x[:half])
    before = layer.get_states()
    if not before:
        return
    mask = torch.arange(x.shape[1]) % 2 == 0
    if not _batched(layer, x):
        _refused("an unbatched state", lambda: layer.zero_states(mask), layer, before)
        return
    longer = torch.cat([mask, mask])
    _refused("a mask of another length", lambda: layer.zero_states(longer), layer, before)
    layer.zero_states(mask)
    got, whole, fresh = _run(layer, x[half:]), _run(make(), x)[half:], _run(make(), x[half:])
    _close("the output of restarted samples", got[:, mask], fresh[:, mask])
    _close("the output of the other samples", got[:, ~mask], whole[:, ~mask])


@_property
def misfits_are_refused(make: Make, x: Tensor) -> None:
    """Another batch, rank or dtype than the standing states' is an error that changes nothing."""
    layer = make()
    _run(layer, x[:2])
    before = layer.get_states()
    if not before:
        return
    timestep = x[2]
    misfits = {"another rank": timestep[None] if layer.dim < 0 else timestep[..., None]}
    if _batched(layer, x):
        misfits["a batch twice as large"] = torch.cat([timestep, timestep])
        misfits["a batch of one"] = timestep[:1] if len(timestep) > 1 else timestep[:0]
    for what, misfit in misfits.items():
        message = _refused(what, functools.partial(layer, misfit), layer, before)
        for said in ("zero_states()", str(list(misfit.shape))):
            _assert(said in message, f"{what}: the message does not say {said}: {message}")
    lower = make().float()
    _run(lower, x[:2].float())
    standing = lower.get_states()
    _refused("an input of a wider dtype", lambda: lower(timestep), lower, standing)


@_property
def gradients_match_differences(make: Make, x: Tensor) -> None:
    """Gradients with respect to input and parameters agree with finite differences."""
    layer = make()
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    values = [dict(layer.named_parameters())[name].detach().requires_grad_() for name in names]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        layer.zero_states()
        raw = dict(zip(names, parameters, strict=True))
        y: Tensor = torch.func.functional_call(
            _Unrolled(layer), {f"layer.{k}": v for k, v in raw.items()}, x
        )
        return y

    torch.autograd.gradcheck(run, (x.clone().requires_grad_(), *values))


PROPERTIES: tuple[Property, ...] = (
    step_equals_unroll,
    dim_is_a_layout,
    samples_are_independent,
    zeroing_restarts,
    states_round_trip,
    detaching_cuts_the_graph,
    states_follow_the_module,
    copies_keep_states,
    compiling_is_exact,
    precision_is_kept,
    masks_restart_samples,
    misfits_are_refused,
)


class _Unrolled(torch.nn.Module):
    """A layer's ``unroll`` as a ``forward``."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.unroll(x)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _run(layer: Layer, x: Tensor) -> Tensor:
    with _seeded():
        return torch.stack([layer(timestep) for timestep in x])


def _batched(layer: Layer, x: Tensor) -> bool:
    return layer.dim % (x.ndim - 1) != 0


def _everything(
    layer: Layer, x: Tensor, warm: int, run: Callable[[Layer, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Outputs, final states and every gradient of a weighted sum of both."""
    if warm:
        _run(layer, x[:warm])
    layer.detach_states()
    standing = {n: s for n, s in layer.get_states().items() if s.is_floating_point()}
    incoming = {f"the incoming state {n}": s.requires_grad_() for n, s in standing.items()}
    inputs = x[warm:].clone().requires_grad_()
    with _seeded():
        y = run(layer, inputs)
    found = {"the output": y}
    found.update((f"the final state {name}", s) for name, s in layer.get_states().items())
    with _seeded():
        parts = [(v * _weights(v)).sum() for v in found.values() if v.is_floating_point()]
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


def _weights(value: Tensor) -> Tensor:
    # randn_like would follow the layout in memory, which may differ between two equal answers
    return torch.randn(value.shape, dtype=value.dtype, device=value.device)


def _refused(what: str, call: Callable[[], object], layer: Layer, before: dict[str, Tensor]) -> str:
    try:
        call()
    except StateError as error:
        after = layer.get_states()
        unchanged = after.keys() == before.keys() and all(after[n] is before[n] for n in before)
        _assert(unchanged, f"{what} was refused, but changed the states")
        return str(error)
    raise AssertionError(f"{what} was not refused with a StateError")


def _assert(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _same(what: str, got: Tensor, expected: Tensor) -> None:
    _close(what, got, expected, tolerance=0.0)


def _close(what: str, got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        got,
        expected,
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda difference: f"{what} differs: {difference}",
    )


class Trace(Layer):
    """A leaky trace of the input: one state, one parameter."""

    def __init__(self, num_neurons: int, beta: float | Tensor = 0.8, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_parameter("beta", beta, constraint=constraints.sigmoid)

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        mem = p.beta * states.mem + x
        return {"mem": mem}, mem


class AdaptiveLIF(Layer):
    """A spiking neuron whose threshold rises with each spike: two states, three parameters.

    The gradient of the spike is that of a sigmoid.
    """

    def __init__(
        self,
        num_neurons: int,
        beta: float | Tensor = 0.9,
        rho: float | Tensor = 0.95,
        jump: float | Tensor = 0.5,
        dim: int = -1,
        beta_rank: int = 1,
        learn_jump: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "raised")
        self.add_parameter("beta", beta, rank=beta_rank, constraint=constraints.sigmoid)
        self.add_parameter("rho", rho, rank=0, constraint=constraints.sigmoid)
        self.add_parameter("jump", jump, learn=learn_jump, constraint=constraints.softplus)

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        mem = p.beta * states.mem + x
        over = mem - 1.0 - states.raised
        soft = torch.sigmoid(4.0 * over)
        spike = (over > 0).to(mem.dtype) + (soft - soft.detach())
        raised = p.rho * states.raised + p.jump * spike
        return {"mem": mem - spike, "raised": raised}, spike


class StateSpace(Layer):
    """Per neuron ``order`` traces, mixed into ``out_size`` outputs: a state of shape ``[N, S]``."""

    def __init__(self, num_neurons: int, out_size: int = 2, order: int = 3, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        sizes = (num_neurons, order)
        self.add_state("h", sizes=sizes)
        decays = torch.linspace(0.3, 0.9, num_neurons * order).reshape(sizes)
        self.add_parameter("a", decays, shape=sizes, constraint=constraints.sigmoid)
        gains = torch.linspace(-1.0, 1.0, num_neurons * order).reshape(sizes)
        self.add_parameter("c", gains, shape=sizes, raw_name="c")
        mixed = torch.linspace(-0.5, 1.0, num_neurons * out_size).reshape(num_neurons, out_size)
        self.add_parameter("w", mixed, shape=(num_neurons, out_size), raw_name="w")

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        h = p.a * states.h + x.unsqueeze(-1)
        return {"h": h}, torch.tanh((p.c * h).sum(-1)) @ p.w

"""A layer held to the contract: in one call, or one property at a time. Knows no test runner.

Each property is a function of a factory and a sample sequence that raises ``AssertionError`` where
the layer breaks it. ``PROPERTIES`` lists them, for ``pytest.mark.parametrize`` and the like.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.layer import Layer
from tracetorch.recorder import record
from tracetorch.testing import comparing
from tracetorch.testing.property import Make, Property, property_of
from tracetorch.testing.restarting import (
    masks_restart_samples,
    resets_are_masks,
    zeroing_restarts,
)


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


@property_of
def step_equals_unroll(make: Make, x: Tensor) -> None:
    """``unroll`` has the outputs, final states and all gradients of calling step by step."""

    def stepped(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        return {"the output": torch.stack([layer(timestep) for timestep in x])}

    def unrolled(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        return {"the output": layer.unroll(x)}

    for warm in (0, len(x) // 2):
        expected = comparing.everything(make(), x, warm, stepped)
        got = comparing.everything(make(), x, warm, unrolled)
        comparing.demand(
            got.keys() == expected.keys(), f"{sorted(got)} instead of {sorted(expected)}"
        )
        for name, value in expected.items():
            comparing.close(f"{name} of unroll", got[name], value)


@property_of
def recording_is_of_the_steps(make: Make, x: Tensor) -> None:
    """What is recorded of ``unroll`` are the states after each timestep, with their gradients."""

    def stepped(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {}
        for timestep in x:
            for name, value in {"in": timestep, "out": layer(timestep)}.items():
                seen.setdefault(name, []).append(value)
            for name in layer.tt.declaration.states:
                seen.setdefault(name, []).append(layer.get_states()[name])
        return {f"the recorded {name}": torch.stack(values) for name, values in seen.items()}

    def recorded(layer: Layer, x: Tensor) -> dict[str, Tensor]:
        with record(layer, "*", detach=False) as rec:
            layer.unroll(x)
        return {f"the recorded {name}": value for name, value in rec.items()}

    for warm in (0, len(x) // 2):
        expected = comparing.everything(make(), x, warm, stepped)
        got = comparing.everything(make(), x, warm, recorded)
        for name, value in expected.items():
            comparing.close(name, got[name], value)


@property_of
def dim_is_a_layout(make: Make, x: Tensor) -> None:
    """The same numbers come out wherever the neurons are placed."""
    reference, rank = make(), x.ndim - 1
    home = reference.dim % rank
    y = comparing.stepped(reference, x)
    for dim in range(-rank, rank):
        layer, place = make(), dim % rank
        layer.dim = dim
        moved = comparing.stepped(layer, x.movedim(home + 1, place + 1))
        comparing.close(f"the output at dim={dim}", moved, y.movedim(home + 1, place + 1))
        for name, state in reference.get_states().items():
            expected = state.movedim(home, place) if state.is_floating_point() else state
            comparing.close(f"the state {name} at dim={dim}", layer.get_states()[name], expected)


@property_of
def samples_are_independent(make: Make, x: Tensor) -> None:
    """What a sample gives does not depend on the rest of its batch."""
    if not comparing.batched(make(), x):
        return
    y = comparing.stepped(make(), x)
    for sample in range(x.shape[1]):
        alone = comparing.stepped(make(), x[:, sample : sample + 1])
        comparing.close(f"sample {sample} alone", alone, y[:, sample : sample + 1])


@property_of
def states_round_trip(make: Make, x: Tensor) -> None:
    """The states say everything about the past: another layer goes on from them exactly."""
    half = len(x) // 2
    layer, heir = make(), make()
    comparing.stepped(layer, x[:half])
    states = layer.get_states()
    rest = comparing.stepped(layer, x[half:])
    heir.set_states(states)
    for name, state in heir.get_states().items():
        comparing.same(f"the state {name} after set_states", state, states[name])
    comparing.same("the output from states put in place", comparing.stepped(heir, x[half:]), rest)


@property_of
def detaching_cuts_the_graph(make: Make, x: Tensor) -> None:
    """``detach_states`` keeps the values, and no gradient passes it."""
    half = len(x) // 2
    layer, past = make(), x[:half].clone().requires_grad_()
    comparing.stepped(layer, past)
    before = layer.get_states()
    layer.detach_states()
    for name, state in layer.get_states().items():
        comparing.same(f"the state {name} after detach_states", state, before[name].detach())
        comparing.demand(not state.requires_grad, f"the state {name} still requires a gradient")
    rest = comparing.stepped(layer, x[half:].clone().requires_grad_())
    if rest.requires_grad:
        (gradient,) = torch.autograd.grad(rest.sum(), past, allow_unused=True)
        comparing.demand(gradient is None, "a gradient reached the input before detach_states")


@property_of
def states_follow_the_module(make: Make, x: Tensor) -> None:
    """``.double()`` takes the states along; a ``state_dict`` holds none of them."""
    half = len(x) // 2
    layer = make().float()
    keys = set(layer.state_dict())
    comparing.stepped(layer, x[:half].float())
    before = layer.get_states()
    comparing.demand(
        set(layer.state_dict()) == keys, f"states are in the state_dict: {set(before)}"
    )
    layer.double()
    for name, state in layer.get_states().items():
        expected = before[name].double() if state.is_floating_point() else before[name]
        comparing.same(f"the state {name} after double()", state, expected)
    comparing.stepped(layer, x[half:])


@property_of
def copies_keep_states(make: Make, x: Tensor) -> None:
    """A deep copy, a pickle and ``torch.save`` after a step with a graph go on alike."""
    half = len(x) // 2
    layer = make()
    comparing.stepped(layer, x[:half].clone().requires_grad_())
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = {
        "copy.deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),  # noqa: S301 - our own bytes
        "torch.save": torch.load(saved, weights_only=False),
    }
    before = layer.get_states()
    rest = comparing.stepped(layer, x[half:])
    for how, twin in copies.items():
        for name, state in before.items():
            comparing.same(f"the state {name} by {how}", twin.get_states()[name], state.detach())
            comparing.demand(
                not twin.get_states()[name].requires_grad, f"the state {name} by {how} has a graph"
            )
        comparing.same(f"the output by {how}", comparing.stepped(twin, x[half:]), rest)


@property_of
def compiling_is_exact(make: Make, x: Tensor) -> None:
    """``TTcompile`` changes no output; ``TTdecompile`` gives the very same parameters back."""
    layer = make()
    y, parameters = comparing.stepped(layer, x), dict(layer.named_parameters())
    values = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.zero_states()
    layer.TTcompile()
    comparing.close("the output while compiled", comparing.stepped(layer, x), y)
    while_compiled = layer.state_dict()
    layer.TTdecompile()
    layer.zero_states()
    for kind, held in (("compiled", while_compiled), ("decompiled", layer.state_dict())):
        comparing.demand(held.keys() == values.keys(), f"the state_dict {kind} has {sorted(held)}")
        for name, value in values.items():
            comparing.same(f"{name} in the state_dict {kind}", held[name], value)
    again = dict(layer.named_parameters())
    comparing.demand(again.keys() == parameters.keys(), f"the parameters are now {sorted(again)}")
    for name, parameter in parameters.items():
        comparing.demand(again[name] is parameter, f"the parameter {name} is another object")
    comparing.same("the output after TTdecompile", comparing.stepped(layer, x), y)


@property_of
def precision_is_kept(make: Make, x: Tensor) -> None:
    """A bf16 or fp16 input gets an output of its dtype, from states in the promoted dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        rounded = x.to(dtype)
        layer, reference = make().float(), make().float()
        y, expected = (
            comparing.stepped(layer, rounded),
            comparing.stepped(reference, rounded.float()),
        )
        comparing.demand(y.dtype == dtype, f"an input of {dtype} gave an output of {y.dtype}")
        for name, state in reference.get_states().items():
            comparing.close(f"the state {name} from {dtype}", layer.get_states()[name], state, 1e-5)
        comparing.close(
            f"the output from {dtype}", y, expected.to(dtype), 2 * torch.finfo(dtype).eps
        )


@property_of
def misfits_are_refused(make: Make, x: Tensor) -> None:
    """Another batch, rank or dtype than the standing states' is an error that changes nothing."""
    layer = make()
    comparing.stepped(layer, x[:2])
    before = layer.get_states()
    if not before:
        return
    timestep = x[2]
    misfits = {"another rank": timestep[None] if layer.dim < 0 else timestep[..., None]}
    if comparing.batched(layer, x):
        misfits["a batch twice as large"] = torch.cat([timestep, timestep])
        misfits["a batch of one"] = timestep[:1] if len(timestep) > 1 else timestep[:0]
    for what, misfit in misfits.items():
        message = comparing.refusal(what, functools.partial(layer, misfit), layer, before)
        for said in ("zero_states()", str(list(misfit.shape))):
            comparing.demand(said in message, f"{what}: the message does not say {said}: {message}")
    lower = make().float()
    comparing.stepped(lower, x[:2].float())
    standing = lower.get_states()
    comparing.refusal("an input of a wider dtype", lambda: lower(timestep), lower, standing)


@property_of
def gradients_match_differences(make: Make, x: Tensor) -> None:
    """Gradients with respect to input and parameters agree with finite differences."""
    layer = make()
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    values = [dict(layer.named_parameters())[name].detach().requires_grad_() for name in names]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        layer.zero_states()
        raw = dict(zip(names, parameters, strict=True))
        y: Tensor = torch.func.functional_call(
            comparing.Unrolled(layer), {f"layer.{k}": v for k, v in raw.items()}, x
        )
        return y

    torch.autograd.gradcheck(run, (x.clone().requires_grad_(), *values))


PROPERTIES: tuple[Property, ...] = (
    step_equals_unroll,
    recording_is_of_the_steps,
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
    resets_are_masks,
    misfits_are_refused,
)
"""What :func:`check_layer` checks, one function ``(make, x)`` for each property."""

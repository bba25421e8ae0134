"""A module's ``step`` → two graphs: the timestep, and its vector-Jacobian product.

The step runs on a stand-in for its module, over a small sample, while every operation of torch that
it calls is written down; then torch's own autograd runs backward through it and is written down
too, so that a surrogate keeps its own derivative. A step that looks at its data (branches on it,
takes it to Python or NumPy) is refused. (Tensors on the ``meta`` device would forbid it by
themselves, but they bring in torch's compiler, seconds of import.) So is one that comes out
otherwise for a sample of another size, for parameters of another shape, without gradients, or the
next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tracetorch import generators
from tracetorch.effective import weights_of
from tracetorch.engine.graph import Graph, Node, Untranslated, draws_of, ordered, read_by, verify
from tracetorch.engine.ops import TABLE
from tracetorch.engine.recorder import Draws, Recorder
from tracetorch.engine.request import Subject
from tracetorch.engine.standin import Scene
from tracetorch.looks import Blind, Looked
from tracetorch.randomness import RANDOM
from tracetorch.reasons import Refused, Unfused

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Traced:
    """A timestep and its vector-Jacobian product over named inputs.

    Attributes:
        states: labels of the states, in the layer's order: their names, unless one is x or y.
        parameters: labels of what else the step reads, in the order kernels take it: the layer's
            parameters, then weights of its submodules by their dotted names.
        forward: ``new <state>`` and ``y`` over the inputs ``<state>``, ``x``, ``<parameter>``.
        backward: ``grad <input>`` over these and ``grad new <state>``, ``grad y``; inputs that
            nothing depends on are absent.
    """

    states: tuple[str, ...]
    parameters: tuple[str, ...]
    forward: Mapping[str, Node]
    backward: Mapping[str, Node]

    def __post_init__(self) -> None:
        plain = {*self.states, "x", *self.parameters}
        cotangents = {f"grad {name}" for name in _outputs(self.states)}
        verify(self.forward, plain)
        verify(self.backward, plain | cotangents)

    @cached_property
    def operations(self) -> int:
        """How many there are in a timestep, forward."""
        return sum(node.op in TABLE for node in ordered(self.forward.values()))

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return bool(draws_of(self.forward.values()))

    @cached_property
    def _reads(self) -> dict[str, set[str]]:
        """Of each input with a gradient, what that is computed from."""
        return {n.removeprefix("grad "): read_by([node]) for n, node in self.backward.items()}

    def reached(self, inputs: Iterable[str], again: bool) -> set[str]:
        """The outputs that have a gradient where these inputs do.

        ``again``: what reaches a state counts in the timesteps that follow, too.
        """
        known = set(inputs)
        while True:
            read = {name for at in known for name in self._reads.get(at, ())}
            found = {name for name in _outputs(self.states) if f"grad {name}" in read}
            more = {name for name in self.states if again and f"new {name}" in found}
            if more <= known:
                return found
            known |= more

    def remembered(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """The states whose past is needed to compute these outputs of ``backward``."""
        read = read_by(self.backward[name] for name in outputs)
        needed = {name for name in self.states if name in read}
        while True:
            read = read_by(self.forward[f"new {name}"] for name in needed)
            grown = needed | {name for name in self.states if name in read}
            if grown == needed:
                return tuple(name for name in self.states if name in needed)
            needed = grown


def scene_of(subject: Subject) -> Scene:
    """A stand-in for what computes a timestep, with the weights that it did not declare."""
    return Scene(subject.module, weights_of(subject.module, subject.declaration.parameters))


def trace(subject: Subject, scene: Scene, dtype: torch.dtype, ndim: int) -> Traced:
    """Trace a step for inputs of ``ndim`` dimensions, computing in ``dtype``.

    Args:
        subject: what computes it.
        scene: what stands in for it; notes what it reads.
        dtype: of states and parameters.
        ndim: dimensions of a timestep.

    Raises:
        Refused: the step does something the engine has no kernel for; the reason says what.
    """
    weights = weights_of(subject.module, subject.declaration.parameters)
    _check_sizes(subject, weights)
    graph = Graph()
    # the dimensions around the neurons: of size 2, of others that all differ, and from 1 on
    around = [(2,) * (ndim - 1), range(3, ndim + 2), range(1, ndim)]
    recorders = [Recorder((*sizes, subject.neurons), dtype, graph) for sizes in around]
    with generators.left_alone(), torch.inference_mode(False):
        traced, other = (_sampled(subject, scene, weights, one) for one in recorders[:2])
        plain = _sampled(subject, scene, weights, recorders[2], plain=True)
    if traced != other:
        raise Refused(Unfused.OTHERWISE, "for another number of samples, or each time it is called")
    if traced.forward != plain.forward:
        raise Refused(Unfused.OTHERWISE, "without gradients, or by its parameters' shapes")
    return traced


def _sampled(
    subject: Subject,
    scene: Scene,
    weights: Mapping[str, Tensor],
    recorder: Recorder,
    plain: bool = False,
) -> Traced:
    """The step over one sample.

    Parameters are as large as the input, so that no gradient is a sum; ``plain``: of their own
    shapes instead, without gradients and so without the backward graph.
    """
    declared = subject.declaration
    states, own, more = (
        tuple(map(_label, names)) for names in (declared.states, declared.parameters, weights)
    )
    shapes = dict.fromkeys((*states, "x", *own, *more), recorder.shape)
    if plain:
        shapes |= {_label(name): spec.shape for name, spec in declared.parameters.items()}
        shapes |= {_label(name): tuple(weight.shape) for name, weight in weights.items()}
    # weights have their own type, so that what is computed of them alone is as rounded as in eager
    types = {_label(name): weight.dtype for name, weight in weights.items()}
    inputs = {name: recorder.given(name, shapes[name], types.get(name)) for name in shapes}
    cotangents = {name: recorder.given(f"grad {name}") for name in _outputs(states)}
    scene.given = {name: inputs[_label(name)] for name in weights}
    scene.stream = Draws(recorder)
    with (
        torch.set_grad_enabled(not plain),
        _own_hooks(),
        torch.autograd.set_detect_anomaly(False),
        recorder,
    ):
        if not plain:
            for tensor in inputs.values():
                tensor.requires_grad_()
        fields = declared.state_fields(*(inputs[name] for name in states))
        parameters = declared.parameter_fields(*(inputs[name] for name in own))
        new, y = _blindly(lambda: scene.root.step(fields, inputs["x"], parameters))
        if new.keys() != declared.states.keys():
            raise Refused(Unfused.NAMES, sorted(new), sorted(declared.states))
        ends = (*(new[name] for name in declared.states), y)
        outputs = dict(zip(_outputs(states), ends, strict=True))
        forward = {name: recorder.output(name, value) for name, value in outputs.items()}
        backward = {} if plain else _backward(recorder, outputs, inputs, cotangents)
    # the step may have handled what was refused, and computed something else instead
    for refused in (recorder.refused, scene.refused):
        if refused is not None:
            raise refused
    return Traced(states, (*own, *more), forward, backward)


def _label(name: str) -> str:
    """By what a state, parameter or weight is known here, where the input is x and the output y."""
    return f"own {name}" if name in ("x", "y", RANDOM) else name


def trace_function(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[str], dtype: torch.dtype
) -> Traced:
    """Trace an elementwise function of a state ``h`` and inputs, that returns new h and y.

    Raises:
        Refused: it does something the engine has no kernel for; the message says what.
    """
    recorder = Recorder((2,), dtype, Graph())
    with torch.inference_mode(False), torch.enable_grad(), _own_hooks(), recorder:
        held = {name: recorder.given(name).requires_grad_() for name in ("h", *inputs)}
        cotangents = {name: recorder.given(f"grad {name}") for name in _outputs(("h",))}
        outputs = dict(zip(_outputs(("h",)), function(*held.values()), strict=True))
        forward = {name: recorder.output(name, value) for name, value in outputs.items()}
        backward = _backward(recorder, outputs, held, cotangents)
    return Traced(("h",), tuple(inputs), forward, backward)


def _own_hooks() -> saved_tensors_hooks:
    """What surrounds us may have hooks on saved tensors (checkpointing has): not for the sample."""
    return saved_tensors_hooks(_same_tensor, _same_tensor)


def _same_tensor(tensor: Tensor) -> Tensor:
    return tensor


def _blindly(compute: Callable[[], _Found]) -> _Found:
    try:
        with Blind():
            return compute()
    except Looked as looked:
        raise Refused(Unfused.LOOKS, looked) from None


def _outputs(states: Sequence[str]) -> tuple[str, ...]:
    return (*(f"new {name}" for name in states), "y")


def _backward(
    recorder: Recorder,
    outputs: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
) -> dict[str, Node]:
    reached = [name for name, value in outputs.items() if value.requires_grad]
    if not reached:
        return {}
    end = _Seeded.apply([cotangents[name] for name in reached], *(outputs[n] for n in reached))
    # not torch.autograd.grad, within which nothing looks out for what a derivative looks at
    run = torch.autograd.Variable._execution_engine.run_backward
    seed = torch.ones_like(end)
    gradients = _blindly(
        lambda: run((end,), (seed,), False, False, tuple(inputs.values()), True, False)
    )
    try:
        return {
            f"grad {name}": recorder.gradient(gradient)
            for name, gradient in zip(inputs, gradients, strict=True)
            if gradient is not None
        }
    except Untranslated as why:
        raise Refused(Unfused.RESULT, why) from None


class _Seeded(torch.autograd.Function):
    """Starts a backward pass from given cotangents.

    ``torch.autograd.grad`` takes them too, but then imports a symbolic algebra system to compare
    their shapes.
    """

    @staticmethod
    def forward(ctx: Any, cotangents: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        return None, *ctx.cotangents


def _check_sizes(subject: Subject, weights: Mapping[str, Tensor]) -> None:
    neurons = (subject.neurons,)
    for name, state in subject.declaration.states.items():
        if state.sizes != neurons:
            raise Refused(Unfused.STATE_SIZES, name, state.sizes)
    for name, spec in subject.declaration.parameters.items():
        if spec.shape not in ((), neurons):
            raise Refused(Unfused.SIZES, name, spec.shape)
    for name, weight in weights.items():
        if not weight.is_floating_point() or tuple(weight.shape) not in ((), neurons):
            raise Refused(Unfused.SIZES, name, f"{list(weight.shape)} in {weight.dtype}")

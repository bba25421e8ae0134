"""A program run twice: as the library runs it, and as the loop of eager steps that defines it.

Both sides have modules, globals and generators of their own. After every call, what it returned or
raised and all that the model holds are compared.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blocks
import numpy as np
import torch
import tracetorch as tt
from programs import NEURONS, Call, Program
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


# nothing is to be learned from going on: both sides said no, or what remains is not comparable
class Over(Exception):
    pass


class Failure(AssertionError):
    """The two sides differ, or one raised what it should not have."""


class Side:
    """One of the two: a module made of the program's source, a model, what was put out so far."""

    def __init__(self, program: Program, eager: bool) -> None:
        self.eager, self.program = eager, program
        self.dtype = getattr(torch, program.dtype)
        name = f"soaked_{'eager' if eager else 'library'}"
        self.module: Any = types.ModuleType(name)
        sys.modules[name] = self.module
        seeded(program.seed)
        exec(compile(program.source(), f"<{name}>", "exec"), vars(self.module))
        self.model = self.module.Net().to(self.dtype)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.optimizer: Any = None

    def within(self) -> contextlib.AbstractContextManager[Any]:
        return tt.backends.use("eager") if self.eager else contextlib.nullcontext()

    def sequence(self, T: int, B: int, seed: int, **_: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = 1.5 * torch.randn(T, B, NEURONS, generator=generator, dtype=torch.float64) + 0.3
        return x.to(self.dtype)

    def forget(self) -> None:
        self.inputs, self.outputs = [], []

    def held(self) -> dict[str, Any]:
        """All that a call may have changed."""
        model = self.model
        found: dict[str, Any] = {f"state {n}": s for n, s in model.get_states().items()}
        found.update({f"parameter {n}": p for n, p in model.named_parameters()})
        found.update({f"buffer {n}": b for n, b in model.named_buffers()})
        found["effects"] = model.effects()
        found["modes"] = [m.training for m in model.modules()]
        found["generators"] = (
            torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(),
        )  # fmt: skip
        return found


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


# ------------------------------------------------------------------ sequences


def looped(side: Side, x: Tensor, given: dict[str, Any]) -> Any:
    """The definition of ``unroll``, from the public parts of a model."""
    model, lengths = side.model, given.get("lengths")
    x = x.movedim(given.get("time_dim", 0), 0)
    every, ys = given.get("detach_every"), []
    lengths = None if lengths is None else torch.tensor(lengths)
    for t, x_t in enumerate(x):
        active = None if lengths is None else lengths > t
        if every and t and t % every == 0:
            before = model.get_states()
            model.detach_states()
            _keep(model, active, before)
        before = model.get_states()
        y = model(x_t)
        if active is not None:
            _keep(model, active, before)
            y = tree_map(lambda leaf, a=active: torch.where(_at(a, leaf), leaf, 0 * leaf), y)
        ys.append(y)
    return tree_map(lambda *leaves: _placed(torch.stack(leaves), given), *ys)


def _placed(y: Tensor, given: dict[str, Any]) -> Tensor:
    place = given.get("time_dim", 0)
    if not -y.ndim <= place < y.ndim:
        raise ValueError(f"no dimension {place}")
    return y.movedim(0, place)


def _at(active: Tensor, value: Tensor) -> Tensor:
    return active.view(-1, *(1,) * (value.ndim - 1))


def _keep(model: Any, active: Tensor | None, before: dict[str, Tensor]) -> None:
    """States of samples that are not active as before, except what has no samples."""
    if active is None or bool(active.all()):
        return
    now, found = model.get_states(), {}
    for name, state in now.items():
        if state.dtype == torch.int64:
            found[name] = state
            continue
        old = before.get(name, torch.zeros_like(state))
        found[name] = torch.where(_at(active, state), state, old)
    model.set_states(found, strict=False)


def unrolled(side: Side, x: Tensor, given: dict[str, Any]) -> Any:
    if side.eager:
        return looped(side, x, given)
    options = {k: v for k, v in given.items() if k not in ("T", "B", "seed")}
    modes = side.model.training and blocks.MODES in side.program.flags
    if modes or ("lengths" in options and blocks.BATCH in side.program.flags):
        options["fold"] = False  # what mixes samples or timesteps is over those of all timesteps
    if "lengths" in options:
        options["lengths"] = torch.tensor(options["lengths"])
    return side.model.unroll(x, **options)


def _given(side: Side, given: dict[str, Any]) -> Tensor:
    return side.sequence(**given).movedim(0, given.get("time_dim", 0))


def call_unroll(side: Side, **given: Any) -> Any:
    x = _given(side, given).requires_grad_()
    y = unrolled(side, x, given)
    side.inputs.append(x)
    side.outputs += [leaf for leaf in tree_leaves(y) if leaf.is_floating_point()]
    return y


def call_step(side: Side, **given: Any) -> Any:
    ys = []
    for x in side.sequence(**given):
        x.requires_grad_()
        y = side.model(x)
        ys += tree_leaves(y)
        side.inputs.append(x)
        side.outputs += [leaf for leaf in tree_leaves(y) if leaf.is_floating_point()]
    return ys


def call_no_grad(side: Side, **given: Any) -> Any:
    with torch.no_grad():
        return unrolled(side, _given(side, given), given)


def call_inference(side: Side, **given: Any) -> Any:
    with torch.inference_mode():
        y = unrolled(side, _given(side, given), given)
    return tree_map(Tensor.clone, y)


def call_thread(side: Side, **given: Any) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            with side.within():
                found.append(call_unroll(side, **given))
        except BaseException as error:
            found.append(error)

    seed = torch.initial_seed()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    assert torch.initial_seed() == seed
    return found[0]


def call_autocast(side: Side, **given: Any) -> Any:
    """Only kinds and shapes: half the digits flip spikes."""
    for quiet in (False, True):
        if quiet:
            side.model.zero_states()
            continue
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            y = unrolled(side, _given(side, given).float(), given)
    side.forget()
    return [(list(leaf.shape), str(leaf.dtype)) for leaf in tree_leaves(y)]


def call_gradients(side: Side, seed: int, **_: Any) -> Any:
    """Of all that was put out and stands since the graph was last cut."""
    generator = torch.Generator().manual_seed(seed)
    ends = [*side.outputs, *side.model.get_states().values()]
    ends = [end for end in ends if end.requires_grad]
    sources = [*side.inputs, *side.model.parameters()]
    sources = [source for source in sources if source.requires_grad]
    if not ends or not sources:
        side.forget()
        return []
    weights = [torch.randn(end.shape, generator=generator, dtype=torch.float64) for end in ends]
    weights = [w.to(end) for w, end in zip(weights, ends, strict=True)]
    found = torch.autograd.grad(ends, sources, weights, allow_unused=True)
    side.model.detach_states()
    side.forget()
    return [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]


# ------------------------------------------------------------------ states and models


def call_zero_states(side: Side, **_: Any) -> Any:
    side.model.zero_states()


def call_zero_some(side: Side, mask: list[bool]) -> Any:
    side.model.zero_states(torch.tensor(mask))


def call_select(side: Side, index: list[int]) -> Any:
    side.model.select_states(torch.tensor(index))


def call_detach(side: Side, **_: Any) -> Any:
    side.model.detach_states()


def call_mode(side: Side, training: bool) -> Any:
    side.model.train(training)


def call_compile(side: Side, T: int, B: int, seed: int) -> Any:
    """A sequence with constants, and back."""
    before = [*side.model.parameters()]
    side.model.TTcompile()
    try:
        with torch.no_grad():
            return unrolled(side, side.sequence(T, B, seed), {})
    finally:
        side.model.TTdecompile()
        assert all(p is q for p, q in zip(before, side.model.parameters(), strict=True))


def call_save(side: Side, suffix: str) -> Any:
    """Through a file, and the same states from it."""
    side.model.detach_states()
    side.forget()
    if side.eager:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"states{suffix}"
        side.model.save_states(path)
        side.model.zero_states()
        side.model.load_states(path)


def call_checkpoint(side: Side, **_: Any) -> Any:
    side.model.detach_states()
    side.forget()
    if side.eager:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        tt.save_checkpoint(path, side.model, place=3)
        side.model.zero_states()
        torch.rand(3)
        try:
            assert tt.load_checkpoint(path, side.model) == {"place": 3}
        except tt.CheckpointError as error:
            if "inference_mode" in str(error):  # a layer that forward made there
                raise Over from None
            raise


def call_set_states(side: Side, **_: Any) -> Any:
    if not side.eager:
        states = side.model.get_states()
        side.model.zero_states()
        side.model.set_states(states, strict=False)


def call_copy(side: Side, **_: Any) -> Any:
    _replaced(side, copy.deepcopy)


def call_pickle(side: Side, **_: Any) -> Any:
    if blocks.OPAQUE not in side.program.flags:
        _replaced(side, lambda model: pickle.loads(pickle.dumps(model)))


def _replaced(side: Side, by: Callable[[Any], Any]) -> None:
    """Another model in its place; what hangs on the old one's graph is no longer asked for."""
    if blocks.OPAQUE in side.program.flags or side.program.flags & {blocks.EFFECT}:
        side.model.detach_states()  # what a copy shares is not the library's
    elif not side.eager:
        try:
            side.model = by(side.model)
        except RuntimeError as error:
            if "Only Tensors created explicitly" not in str(error):  # a user's own, in the graph
                raise
            raise Over from None
    side.model.detach_states()
    side.forget()
    side.optimizer = None


def call_optimizer(side: Side, seed: int, **_: Any) -> Any:
    """A step down the gradient of what was put out."""
    ends = [end for end in side.outputs if end.requires_grad]
    side.optimizer = side.optimizer or torch.optim.SGD(side.model.parameters(), 0.01)
    side.optimizer.zero_grad()
    if ends:
        sum(end.square().mean() for end in ends).backward()
        torch.nn.utils.clip_grad_norm_(side.model.parameters(), 1.0)
        side.optimizer.step()
    side.model.detach_states()
    side.forget()


def call_dtypes(side: Side, **_: Any) -> Any:
    """Through single precision and back."""
    side.model.detach_states()
    side.forget()
    side.model.float()
    side.model.to(side.dtype)


def call_state_dict(side: Side, **_: Any) -> Any:
    held = {
        name: value * 0.99 if value.is_floating_point() else value
        for name, value in side.model.state_dict().items()
    }
    side.model.load_state_dict(held)
    side.model.detach_states()
    side.forget()


def call_flag(side: Side, **_: Any) -> Any:
    side.model.flag = False


# ------------------------------------------------------------------ modes and transforms


def _fresh(side: Side) -> None:
    side.model.zero_states()
    side.forget()


def _total(side: Side, x: Tensor) -> Tensor:
    side.model.zero_states()
    y = unrolled(side, x, {})
    side.model.zero_states()
    return sum(leaf.sum() for leaf in tree_leaves(y))


def call_functional_call(side: Side, T: int, B: int, seed: int) -> Any:
    _fresh(side)
    x = side.sequence(T, B, seed)
    held = {n: (0.9 * p).detach() for n, p in side.model.named_parameters()}
    y = torch.func.functional_call(side.model, held, (x[0],))
    _fresh(side)
    return y


def call_func_grad(side: Side, T: int, B: int, seed: int) -> Any:
    x = side.sequence(T, B, seed)
    try:
        return torch.func.grad(lambda x: _total(side, x))(x)
    finally:
        _fresh(side)


def call_vmap(side: Side, T: int, B: int, seed: int) -> Any:
    x = torch.stack([side.sequence(T, B, seed + k) for k in range(2)])
    side.model.eval()
    try:
        if side.eager:
            return torch.stack([_total(side, one) for one in x])
        return torch.func.vmap(lambda one: _total(side, one), randomness="different")(x)
    finally:
        _fresh(side)


def call_jvp(side: Side, T: int, B: int, seed: int) -> Any:
    x = side.sequence(T, B, seed)
    try:
        return torch.func.jvp(lambda x: _total(side, x), (x,), (torch.ones_like(x),))
    finally:
        _fresh(side)


def call_fake(side: Side, T: int, B: int, seed: int) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    _fresh(side)
    x = side.sequence(T, B, seed)
    if side.eager:
        with torch.no_grad():
            y = unrolled(side, x, {})
    else:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            y = side.model.unroll(mode.from_tensor(x))
            side.model.zero_states()
    _fresh(side)
    return [(list(leaf.shape), str(leaf.dtype)) for leaf in tree_leaves(y)]


def call_make_fx(side: Side, T: int, B: int, seed: int) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    x = side.sequence(T, B, seed)
    with torch.no_grad():
        _fresh(side)
        run: Any = lambda x: _total(side, x)  # noqa: E731
        run = run if side.eager else make_fx(run)(side.sequence(T, B, seed + 1))
        _fresh(side)
        seeded(seed)
        return run(x)


def call_jit(side: Side, T: int, B: int, seed: int) -> Any:
    x = side.sequence(T, B, seed)
    with torch.no_grad():
        _fresh(side)
        run = side.model
        if not side.eager:
            try:
                run = torch.jit.trace(side.model, (x[0],), check_trace=False, strict=False)
            except RuntimeError as error:
                # of what forward returns; of a parameter that torch cannot find
                if "Tracer cannot infer type" in str(error) or "Cannot insert a" in str(error):
                    raise Over from None
                raise
            _fresh(side)
        y = run(x[0])
        _fresh(side)
        return y


def call_check(side: Side, T: int, B: int, seed: int) -> Any:
    if not side.eager:
        # spikes that fall within rounding of a threshold are other spikes
        tolerance = 1e-4 if side.dtype == torch.float32 else 1e-7
        x = side.sequence(T + 1, B, seed)
        try:
            with torch.enable_grad():
                tt.check_unroll(side.model, x, rtol=tolerance, atol=tolerance)
        except tt.StateError:  # of another batch than the states that stand
            raise Over from None


def call_summary(side: Side, T: int, B: int, seed: int) -> Any:
    if not side.eager:
        assert str(side.model.summary(side.sequence(T, B, seed)))


def call_record(side: Side, T: int, B: int, seed: int) -> Any:
    with torch.no_grad(), tt.record(side.model, detach=True) as recorded:
        unrolled(side, side.sequence(T, B, seed), {})
        return {name: recorded[name] for name in recorded}


CALLS: dict[str, Callable[..., Any]] = {
    name.removeprefix("call_"): function
    for name, function in list(globals().items())
    if name.startswith("call_")
}


# ------------------------------------------------------------------ both sides


def run(program: Program) -> int:
    """Run it; Failure says where the sides differ. Returns how many calls were compared."""
    with _quiet():
        sides = [Side(program, eager=False), Side(program, eager=True)]
        _compare("what they begin with", sides[0].held(), sides[1].held(), program)
        for number, call in enumerate(program.calls):
            try:
                _both(sides, call, number, program)
            except Over:
                return number
            except Failure as failure:
                raise Failure(f"call {number}, {call}: {failure}") from failure.__cause__
    return len(program.calls)


def _both(sides: list[Side], call: Call, number: int, program: Program) -> None:
    library, eager = sides
    before = {name: state.detach().clone() for name, state in library.model.get_states().items()}
    found, error = _outcome(library, call, number)
    if isinstance(error, tt.FoldError):
        if "for the first time" in str(error) and blocks.LATER in program.flags:
            raise Over
        asked = call.given.get("fold") or call.given.get("recompute")
        if not asked:
            raise Failure("FoldError that nobody asked for") from error
        _same_states("after a FoldError the states", library.model.get_states(), before)
        found, error = _outcome(library, _without(call, "fold", "recompute"), number)
    wanted, reference = _outcome(eager, call, number)
    if error is not None or reference is not None:
        _both_raise(error, reference, program)
        if call.name not in ("step", "vmap", "func_grad", "jvp"):
            _same_states("after an error the states", library.model.get_states(), before)
        raise Over
    _compare("the result", found, wanted, program)
    _compare("what the model holds", library.held(), eager.held(), program, drawn=call.name)


def _outcome(side: Side, call: Call, number: int) -> tuple[Any, BaseException | None]:
    seeded(number)
    try:
        with side.within():
            return CALLS[call.name](side, **call.given), None
    except Over:
        raise
    except Exception as error:
        return None, error


def _without(call: Call, *names: str) -> Call:
    return Call(call.name, {k: v for k, v in call.given.items() if k not in names})


def _both_raise(error: BaseException | None, other: BaseException | None, program: Program) -> None:
    if error is None:
        raise Failure(f"only the loop raises {other!r}") from other
    if other is None:
        raise Failure(f"only the library raises {error!r}") from error
    kinds = {type(error), type(other)}
    if len(kinds) > 1 and not isinstance(error, type(other)) and not isinstance(other, type(error)):
        raise Failure(f"the library raises {error!r}, the loop {other!r}") from error


def _same_states(what: str, found: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    if found.keys() != before.keys():
        raise Failure(f"{what} are {sorted(found)}, were {sorted(before)}")
    for name, state in found.items():
        if not torch.equal(state.nan_to_num(7), before[name].nan_to_num(7)):
            raise Failure(f"{what} are not as before: {name}")


DIGITS = {torch.float64: 1e-7, torch.float32: 2e-4}


def _compare(what: str, found: Any, wanted: Any, program: Program, drawn: str = "") -> None:
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            raise Failure(f"{what}: {sorted(found)}, not {sorted(wanted)}")
        for name in wanted:
            if name == "generators" and drawn in ("vmap", "make_fx", "checkpoint", "fake", "jit"):
                continue
            _compare(f"{what}, {name}", found[name], wanted[name], program)
    elif isinstance(wanted, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(wanted):
            raise Failure(f"{what}: {found}, not {wanted}")
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            _compare(f"{what}[{place}]", one, other, program)
    elif isinstance(wanted, Tensor):
        _alike(what, found, wanted)
    elif isinstance(wanted, float):
        if not np.isclose(found, wanted, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise Failure(f"{what}: {found}, not {wanted}")
    elif found != wanted:
        raise Failure(f"{what}: {found!r}, not {wanted!r}")


def _alike(what: str, found: Tensor, wanted: Tensor) -> None:
    ways = [(t.shape, t.dtype, t.requires_grad) for t in (found, wanted)]
    if ways[0] != ways[1]:
        raise Failure(f"{what}: shape, dtype, requires_grad are {ways[0]}, not {ways[1]}")
    if not wanted.is_floating_point():
        if not torch.equal(found, wanted):
            raise Failure(f"{what}: {found}, not {wanted}")
        return
    digits = DIGITS.get(wanted.dtype, 1e-2)
    scale = max(
        1.0, float(wanted.detach().abs().nan_to_num(0, 0, 0).max() if wanted.numel() else 0)
    )
    if not torch.allclose(found, wanted, rtol=digits, atol=digits * scale, equal_nan=True):
        raise Failure(f"{what} differs by {float((found - wanted).abs().max()):.3g}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

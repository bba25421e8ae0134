"""What transforms, modes, optimizers and threads leave behind: usable, or named at once."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace


class Net(tt.Model):
    """A layer with a kernel, one with few operations, one without a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lif, self.rest = nn.Linear(3, 3), AdaptiveLIF(3), [Trace(3)]
        self.space = StateSpace(3, out_size=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.space(self.rest[0](self.lif(self.linear(x))))
        return y


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def sequence(steps: int = 4, batch: int = 2, seed: int = 4) -> Tensor:
    return torch.randn(steps, batch, 3, generator=torch.Generator().manual_seed(seed))


def looped(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


def fresh(x: Tensor) -> Tensor:
    return looped(net(), x)


# ---------------------------------------------------------------------- transforms that have ended


def _vmap(model: Net) -> None:
    torch.func.vmap(model)(torch.randn(5, 2, 3))


def _vmap_sequence(model: Net) -> None:
    torch.func.vmap(model.unroll)(torch.randn(5, 4, 2, 3))


def _grad(model: Net) -> None:
    torch.func.grad(lambda x: model(x).sum())(torch.randn(2, 3))


def _grad_of_parameters(model: Net) -> None:
    held = {name: p.detach() for name, p in model.named_parameters()}
    call = torch.func.functional_call
    torch.func.grad(lambda held: call(model, held, (torch.randn(2, 3),)).sum())(held)


def _grad_per_sample(model: Net) -> None:
    run = torch.func.grad(lambda x: model.unroll(x).sum())
    torch.func.vmap(run)(torch.randn(5, 4, 2, 3))


def _jvp(model: Net) -> None:
    torch.func.jvp(model, (torch.randn(2, 3),), (torch.ones(2, 3),))


def _jacrev(model: Net) -> None:
    torch.func.jacrev(model)(torch.randn(2, 3))


def _jacfwd(model: Net) -> None:
    torch.func.jacfwd(model)(torch.randn(2, 3))


def _functionalized(model: Net) -> None:
    torch.func.functionalize(model)(torch.randn(2, 3))


def _dual(model: Net) -> None:
    with torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(torch.randn(2, 3), torch.ones(2, 3)))


TRANSFORMS: dict[str, Callable[[Net], None]] = {
    f.__name__.strip("_"): f
    for f in (
        _vmap, _vmap_sequence, _grad, _grad_of_parameters, _grad_per_sample, _jvp, _jacrev,
        _jacfwd, _functionalized, _dual,
    )
}  # fmt: skip

USES: dict[str, Callable[[Net, Path], Any]] = {
    "call": lambda model, path: model(torch.randn(2, 3)),
    "unroll": lambda model, path: model.unroll(sequence()),
    "fold": lambda model, path: model.unroll(sequence(), fold=True),
    "repr": lambda model, path: repr(model),
    "summary": lambda model, path: model.summary(),
    "get": lambda model, path: [state + 1 for state in model.get_states().values()],
    "read": lambda model, path: None if model.lif.mem is None else model.lif.mem + 1,
    "save": lambda model, path: model.save_states(path / "states.safetensors"),
    "save as pt": lambda model, path: model.save_states(path / "states.pt"),
    "detach": lambda model, path: model.detach_states(),
    "mask": lambda model, path: model.zero_states(torch.tensor([True, False])),
    "select": lambda model, path: model.select_states(torch.tensor([1, 0])),
    "lengths": lambda model, path: model.unroll(sequence(), lengths=torch.tensor([4, 2])),
    "copy": lambda model, path: copy.deepcopy(model)(torch.randn(2, 3)),
    "double": lambda model, path: model.double(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_a_transform_leaves_is_usable_or_named(
    transform: str, use: str, tmp_path: Path
) -> None:
    model = net()
    TRANSFORMS[transform](model)
    names = {f"{name}.{state}" for name, layer in model.named_layers() for state in layer.tt.states}
    said, found = "zero_states()", "lif.mem"
    try:
        USES[use](model, tmp_path)
    except tt.StateError as error:  # names layer, state and remedy
        said = str(error)
        layer = "lif" if use == "read" else error.name  # of which no model knows
        found = f"{layer}.{said.partition(' state ')[2].split()[0]}"
    assert "zero_states()" in said
    assert found in names
    # nothing is broken for good, and what is said is what helps
    model.float().zero_states()
    x = sequence()
    torch.testing.assert_close(model.unroll(x), fresh(x))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_states_that_are_zeroed_within_a_transform_leave_nothing(transform: str) -> None:
    model = net()

    class Zeroed(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            self.inner.zero_states()
            return y

        def unroll(self, x: Tensor, **options: Any) -> Tensor:
            y: Tensor = self.inner.unroll(x, **options)
            self.inner.zero_states()
            return y

    TRANSFORMS[transform](Zeroed())  # type: ignore[arg-type]
    assert model.get_states() == {}
    torch.testing.assert_close(looped(model, sequence()), fresh(sequence()))


# ---------------------------------------------------------------------- inference


def gradients(model: Net, x: Tensor, run: Callable[[Net, Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(model, x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *[p.grad for p in model.parameters()]]


WARM: dict[str, Callable[[Net, Tensor], Any]] = {
    "steps": looped,
    "sequence": lambda model, x: model.unroll(x),
    "folded": lambda model, x: model.unroll(x, fold=True),
    "chunks": lambda model, x: model.unroll(x, chunk_size=2),
}
THEN: dict[str, Callable[[Net, Tensor], Tensor]] = {
    **WARM,
    "recomputed": lambda model, x: model.unroll(x, recompute=True, chunk_size=2),
    "lengths": lambda model, x: model.unroll(x, lengths=torch.tensor([4, 3])),
    "eager": lambda model, x: _eagerly(model, x),
    "selected": lambda model, x: (model.select_states(torch.tensor([0, 1])), looped(model, x))[1],
    "masked": lambda model, x: (model.zero_states(torch.zeros(2) > 0), looped(model, x))[1],
    "detached": lambda model, x: (model.detach_states(), model.unroll(x))[1],
}


def _eagerly(model: Net, x: Tensor) -> Tensor:
    with tt.backends.use("eager"):
        y: Tensor = model.unroll(x)
    return y


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("warm", WARM)
def test_states_of_inference_go_on_in_training(warm: str, then: str) -> None:
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        model = net()
        with mode():
            WARM[warm](model, sequence(seed=5))
        found.append(gradients(model, sequence(), THEN[then]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("run", WARM)
def test_what_first_runs_in_inference_trains_and_is_fused_afterwards(run: str) -> None:
    found, status = [], []
    for mode in (torch.no_grad, torch.inference_mode):
        model = net()
        with mode():
            WARM[run](model, sequence(seed=5))
        model.zero_states()
        found.append(gradients(model, sequence(), WARM[run]))
        status.append(tt.backends.status(model))
    torch.testing.assert_close(found[1], found[0])
    assert status[1] == status[0]


def test_a_model_made_and_compiled_in_inference_goes_on_outside() -> None:
    expected = gradients(net(), sequence(), looped)
    model = net()
    model.TTcompile()
    with torch.inference_mode():
        model.unroll(sequence())
    model.TTdecompile()
    model.zero_states()
    torch.testing.assert_close(gradients(model, sequence(), looped), expected)


def test_states_of_inference_are_copied_saved_and_loaded(tmp_path: Path) -> None:
    model = net()
    with torch.inference_mode():
        model.unroll(sequence(seed=5))
    path = tmp_path / "states.pt"
    model.save_states(path)
    heirs = [net(), copy.deepcopy(model), net()]
    heirs[0].load_states(path)
    heirs[2].set_states(model.get_states())
    expected = gradients(model, sequence(), looped)
    for heir in heirs:
        torch.testing.assert_close(gradients(heir, sequence(), looped), expected)


# ---------------------------------------------------------------------- new values of parameters


def perturbed(model: nn.Module) -> dict[str, Tensor]:
    """Other values for everything that it learns."""
    torch.manual_seed(8)
    return {name: p.detach() + 0.3 * torch.rand_like(p) for name, p in model.named_parameters()}


class Flat(tt.Model):
    """All parameters are torch's to see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lif, self.leak = nn.Linear(3, 3), AdaptiveLIF(3), Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(self.lif(self.linear(x)))
        return y


def flat() -> Flat:
    torch.manual_seed(3)
    return Flat()


def _ema(model: Flat) -> Flat:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.module.unroll(sequence())  # constants are there, and become old
    averaged.module.zero_states()
    for _ in range(2):
        nn.utils.vector_to_parameters(
            torch.cat([p.flatten() for p in perturbed(model).values()]), model.parameters()
        )
        averaged.update_parameters(model)
    return averaged.module


def _swa(model: Flat) -> Flat:
    averaged = AveragedModel(model)
    averaged.module.unroll(sequence())
    averaged.module.zero_states()
    averaged.update_parameters(model)
    model.load_state_dict({**model.state_dict(), **perturbed(model)})
    averaged.update_parameters(model)
    return averaged.module


def _loaded(model: Flat) -> Flat:
    model.load_state_dict({**model.state_dict(), **perturbed(model)})
    return model


def _assigned(model: Flat) -> Flat:
    model.load_state_dict({**model.state_dict(), **perturbed(model)}, assign=True)
    return model


def _data(model: Flat) -> Flat:
    for name, value in perturbed(model).items():
        model.get_parameter(name).data = value
    return model


def _in_place(model: Flat) -> Flat:
    for p in model.parameters():
        p.data.mul_(0.9)
    return model


def _without_gradients(model: Flat) -> Flat:
    with torch.no_grad():
        for name, value in perturbed(model).items():
            model.get_parameter(name).copy_(value)
    return model


def _through_numpy(model: Flat) -> Flat:
    for p in model.parameters():
        p.detach().numpy()[...] *= 0.9
    return model


def _one_entry(model: Flat) -> Flat:
    model.lif.raw_beta.data[1] += 1
    return model


def _swapped(model: Flat) -> Flat:
    model.lif.raw_beta.data, model.leak.raw_beta.data = (
        model.leak.raw_beta.data,
        model.lif.raw_beta.data + 0.5,
    )
    return model


def _optimizer(model: Flat) -> Flat:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model


def _fused_optimizer(model: Flat) -> Flat:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model


def _vector(model: Flat) -> Flat:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(0.9 * vector, model.parameters())
    return model


def _objects(model: Flat) -> Flat:
    for layer in (model.lif, model.leak):
        layer.raw_beta = nn.Parameter(layer.raw_beta.detach() + 0.4)
    return model


def _objects_behind_its_back(model: Flat) -> Flat:
    for layer in (model.lif, model.leak):
        layer._parameters["raw_beta"] = nn.Parameter(layer.raw_beta.detach() + 0.4)
    return model


def _initialized(model: Flat) -> Flat:
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def _widened(model: Flat) -> Flat:
    return model.double().float()


GIVEN: dict[str, Callable[[Flat], Flat]] = {
    f.__name__.strip("_"): f
    for f in (
        _ema, _swa, _loaded, _assigned, _data, _in_place, _without_gradients, _through_numpy,
        _one_entry, _swapped, _optimizer, _fused_optimizer, _vector, _objects,
        _objects_behind_its_back, _initialized, _widened,
    )
}  # fmt: skip


@pytest.mark.parametrize("grad", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("how", GIVEN)
def test_new_values_of_parameters_are_computed_with(how: str, compiled: bool, grad: bool) -> None:
    model, x = flat(), sequence()
    if compiled:
        model.TTcompile()
    with torch.set_grad_enabled(grad):
        model.unroll(x)
        before = model.get_states()
        model.zero_states()
        looped(model, x)
        model.zero_states()
    given = GIVEN[how](model)
    anew = flat()
    anew.load_state_dict({name: value.clone() for name, value in given.state_dict().items()})
    if compiled:
        anew.TTcompile()
    with torch.set_grad_enabled(grad):
        for run in (looped, lambda m, x: m.unroll(x)):
            assert torch.equal(run(given, x), run(anew, x))
            found = given.get_states()
            for name, state in anew.get_states().items():
                assert torch.equal(found[name], state)
            given.zero_states()
            anew.zero_states()
    assert torch.allclose(found["lif.mem"], before["lif.mem"]) == (how == "widened")
    for name, layer in given.named_layers():
        other = dict(anew.named_layers())[name]
        assert repr(layer) == repr(other)
        assert torch.equal(layer.beta, other.beta)


# ---------------------------------------------------------------------- threads


class Slow(nn.Module):
    """Lets other threads in."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.002)
        return x


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """What each returned or raised, begun at once."""
    barrier, found = threading.Barrier(count), [None] * count

    def one(place: int) -> None:
        barrier.wait()
        try:
            found[place] = run(place)
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


CALLS: dict[str, Callable[[Net, Tensor], Any]] = {
    "step": lambda model, x: model(x[0]),
    "loop": looped,
    "unroll": lambda model, x: model.unroll(x),
    "folded": lambda model, x: model.unroll(x, fold=True),
    "stepped": lambda model, x: model.unroll(x, fold=False),
    "recomputed": lambda model, x: model.unroll(x, recompute=True).sum().backward(),
}


@pytest.mark.parametrize("known", [True, False], ids=["decided before", "at first"])
@pytest.mark.parametrize("slow", [True, False], ids=["slow", "fast"])
@pytest.mark.parametrize("calls", [("unroll",), ("unroll", "step"), tuple(CALLS)], ids=str)
def test_threads_that_share_a_model_are_told_and_it_goes_on_working(
    calls: tuple[str, ...], slow: bool, known: bool
) -> None:
    model, x = net(), sequence()
    if slow:
        model.linear = nn.Sequential(Slow(), model.linear)
    if known:
        model.unroll(x)

    def run(place: int) -> None:
        for _ in range(5):
            model.zero_states()
            CALLS[calls[place % len(calls)]](model, x)

    for error in in_threads(6, run):
        assert error is None or isinstance(error, (RuntimeError, tt.StateError)), repr(error)
        assert error is None or "in use in another thread" in str(error), repr(error)
    model.zero_states()
    torch.testing.assert_close(model.unroll(x), fresh(x))
    model.zero_states()
    torch.testing.assert_close(looped(model, x), fresh(x))
    assert tt.check_unroll(model, x) is None


def test_a_second_thread_is_told_what_to_do_and_the_first_gets_its_answer() -> None:
    model, x = net(), sequence()
    inside, told = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is first:
                inside.set()
                told.wait(10)
            return x

    model.linear = nn.Sequential(Waiting(), model.linear)
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(model.unroll(x, fold=False)))
    first.start()
    assert inside.wait(10)
    try:
        for call in CALLS.values():
            with pytest.raises(RuntimeError, match=r"^Net is in use in another thread: .*deepcopy"):
                call(model, x)
    finally:
        told.set()
        first.join()
    torch.testing.assert_close(found[0], fresh(x))
    model.zero_states()
    torch.testing.assert_close(model.unroll(x), fresh(x))


def test_copies_in_threads_get_their_own_answers() -> None:
    model, x = net(), sequence()
    copies = [copy.deepcopy(model) for _ in range(6)]
    for y in in_threads(6, lambda place: copies[place].unroll(x)):
        torch.testing.assert_close(y, fresh(x))


def test_threads_may_take_turns() -> None:
    model, x, lock = net(), sequence(), threading.Lock()

    def run(place: int) -> Tensor:
        with lock:
            model.zero_states()
            y: Tensor = model.unroll(x)
            return y

    for y in in_threads(6, run):
        torch.testing.assert_close(y, fresh(x))


def test_after_an_error_within_a_call_another_thread_may_call() -> None:
    model, x = net(), sequence()
    model(x[0])
    for call in (model, model.unroll):
        with pytest.raises((tt.StateError, RuntimeError)):
            call(torch.randn(4, 5, 3) if call is not model else torch.randn(5, 3))
    model.zero_states()
    (found,) = in_threads(1, lambda place: model.unroll(x))
    torch.testing.assert_close(found, fresh(x))


# ---------------------------------------------------------------------- samples selected


class Noisy(tt.Layer):
    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("mem")
        self.uniform = tt.Random()

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = 0.9 * states.mem + x + self.uniform(x)
        return {"mem": mem}, mem


INDICES: dict[str, Tensor] = {
    "reorder": torch.tensor([2, 0, 3, 1]),
    "repeat": torch.tensor([1, 1, 1, 0, 3, 3]),
    "drop": torch.tensor([3]),
    "from the end": torch.tensor([-1, 0]),
    "none": torch.tensor([], dtype=torch.int64),
    "mask": torch.tensor([True, False, True, False]),
    "short integers": torch.tensor([3, 2], dtype=torch.int32),
    "bytes": torch.tensor([3, 0, 2], dtype=torch.uint8),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("run", [looped, lambda m, x: m.unroll(x)], ids=["steps", "sequence"])
def test_selected_samples_go_on_as_if_they_had_always_been_there(
    name: str, run: Callable[[Any, Tensor], Tensor]
) -> None:
    index = INDICES[name]
    places = index if index.dtype == torch.bool else index.long()
    past, future = sequence(batch=4), sequence(batch=4, seed=5)[:, places]
    model, always = net(), net()
    run(model, past)
    model.select_states(index)
    looped(always, past[:, places])
    for name_, state in always.get_states().items():
        torch.testing.assert_close(model.get_states()[name_], state)
    if future.shape[1]:
        torch.testing.assert_close(run(model, future), looped(always, future))


def test_gradients_pass_a_selection_to_the_samples_it_takes() -> None:
    model, x = net(), sequence(batch=4).requires_grad_()
    looped(model, x)
    model.select_states(torch.tensor([2, 2, 0]))
    looped(model, sequence(batch=3)).square().sum().backward()
    reached = [bool(x.grad[:, sample].any()) for sample in range(4)]
    assert reached == [True, False, True, False]
    other = net()
    again = x.detach()[:, [2, 2, 0]].requires_grad_()
    looped(other, again)
    looped(other, sequence(batch=3)).square().sum().backward()
    torch.testing.assert_close(x.grad[:, 2], again.grad[:, 0] + again.grad[:, 1])


def test_a_selection_copies_what_it_takes() -> None:
    model = net()
    model(sequence(batch=4)[0])
    before = model.get_states()
    model.select_states(torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        for name, state in model.get_states().items():
            assert state.data_ptr() != before[name].data_ptr()


def test_before_the_first_timestep_there_is_nothing_to_select() -> None:
    model = net()
    model.select_states(torch.tensor([1, 0]))
    assert model.get_states() == {}


@pytest.mark.parametrize(
    ("index", "kind", "says"),
    [
        (torch.tensor([0, 4]), ValueError, r"selects samples 0…4, the state mem .* batch of 4"),
        (torch.tensor([-5]), ValueError, r"selects samples -5…-5, .* batch of 4"),
        (
            torch.tensor([0.0, 1.0]),
            TypeError,
            r"tensor of integers, .* mask over it, got .*float32",
        ),
        (torch.tensor([1j]), TypeError, "got torch.complex64"),
        (torch.tensor([[0, 1]]), ValueError, r"must have one dimension, got shape \[1, 2\]"),
        (torch.tensor(1), ValueError, r"must have one dimension, got shape \[\]"),
        (torch.tensor([True, False]), ValueError, r"has 2 entries, the state mem .* batch of 4"),
        (slice(0, 2), TypeError, "got slice"),
        (None, TypeError, "got None"),
    ],
)
def test_a_selection_that_cannot_be_changes_nothing(
    index: Any, kind: type[Exception], says: str
) -> None:
    model = net()
    looped(model, sequence(batch=4))
    before = model.get_states()
    with pytest.raises(kind, match=says):
        model.select_states(index)
    assert all(model.get_states()[name] is state for name, state in before.items())


def test_a_selection_that_a_later_layer_cannot_follow_changes_no_earlier_one() -> None:
    model = net()
    looped(model, sequence(batch=4))
    model.space.zero_states()
    model.space(torch.randn(2, 3))
    before = model.get_states()
    with pytest.raises(tt.StateError, match=r"^layer 'space', .*the state h .* has a batch of 2"):
        model.select_states(torch.tensor([3, 2]))
    assert all(model.get_states()[name] is state for name, state in before.items())


def test_an_unbatched_state_has_no_samples_to_select() -> None:
    layer = Trace(3)
    layer(torch.randn(3))
    with pytest.raises(tt.StateError, match="takes no samples that could be selected"):
        layer.select_states(torch.tensor([0]))


def test_neurons_at_another_place_are_none_of_the_samples() -> None:
    layer = Trace(3, dim=1)
    x = torch.randn(4, 3, 2)
    layer(x)
    layer.select_states(torch.tensor([3, 1]))
    torch.testing.assert_close(layer.mem, x[[3, 1]])


def test_the_random_numbers_of_a_layer_go_on_where_they_were() -> None:
    layer, x = Noisy(3), sequence(batch=2)
    looped(layer, x)
    seed, mem = layer.random.clone(), layer.mem
    layer.select_states(torch.tensor([1, 0]))
    assert torch.equal(layer.random, seed)
    assert torch.equal(layer.mem, mem[[1, 0]])
    other = Noisy(3)
    other.set_states({"mem": mem[[1, 0]], "random": seed})
    assert torch.equal(looped(layer, x), looped(other, x))


def test_a_beam_search_is_the_search_of_each_beam_alone() -> None:
    model, x, beams = net(), sequence(steps=6, batch=3), [0, 1, 2]
    paths = [[beam] for beam in beams]
    for timestep in x:
        scores = model(timestep[[path[-1] % 3 for path in paths]]).sum(-1)
        best = scores.topk(3).indices[torch.tensor([0, 0, 2])]
        model.select_states(best)
        paths = [paths[place] + [place] for place in best.tolist()]
    for at, path in enumerate(paths):
        alone = net()
        for step, place in enumerate(path[:-1]):
            alone(x[step][[place % 3]])
        for name, state in alone.get_states().items():
            torch.testing.assert_close(model.get_states()[name][[at]], state)

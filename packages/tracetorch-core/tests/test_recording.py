"""Recording: what it keeps is what a loop would have seen, and the model runs as if it were not."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import tracetorch as tt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from tracetorch import measures
from tracetorch.calls import subject_of
from tracetorch.engine.serving import programs
from tracetorch.reasons import Unfoldable, Unfolded
from tracetorch.testing import AdaptiveLIF, Trace


class Net(tt.Model):
    """Two layers, the first with two states."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(3, 4)
        self.lif, self.out = AdaptiveLIF(4), Trace(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.lif(2 * self.inward(x)))
        return y


def net() -> Net:
    torch.manual_seed(1)
    return Net().double()


def sequence(steps: int = 9, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(steps, batch, 3, generator=generator, dtype=torch.float64)


def watched(model: Net, x: Tensor) -> dict[str, Tensor]:
    """The same by hand: step, and look."""
    found: dict[str, list[Tensor]] = {}
    for timestep in x:
        model(timestep)
        for name, state in model.get_states().items():
            found.setdefault(name, []).append(state)
    return {name: torch.stack(states) for name, states in found.items()}


@given(
    every=st.integers(1, 4),
    chunk=st.none() | st.integers(1, 10),
    fold=st.sampled_from([None, False]),
    split=st.integers(0, 9),
    detach_every=st.none() | st.integers(1, 4),
)
def test_what_is_recorded_is_what_a_loop_sees(
    every: int, chunk: int | None, fold: bool | None, split: int, detach_every: int | None
) -> None:
    model, x = net(), sequence()
    with torch.no_grad():
        expected = watched(net(), x)
        with tt.record(model, "*.mem", "lif.raised", every=every) as rec:
            for timestep in x[:split]:
                model(timestep)
            if split < len(x):
                options: Any = {"chunk_size": chunk, "fold": fold, "detach_every": detach_every}
                model.unroll(x[split:], **options)
    assert [*rec] == ["lif.mem", "lif.raised", "out.mem"]
    for name, values in rec.items():
        torch.testing.assert_close(values, expected[name][::every], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["lif.mem", "lif.raised", "lif.out", "lif.in", "out.mem"])
def test_gradients_flow_through_what_is_recorded(name: str, recompute: bool) -> None:
    found = []
    for options in ({"fold": False}, {"recompute": recompute, "chunk_size": 4}):
        model, x = net(), sequence().requires_grad_()
        with tt.record(model, "*", detach=False, every=2) as rec:
            y = model.unroll(x, **options)
        loss = rec[name].sin().sum() + y.cos().sum()
        found.append(torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_flow_through_recorded_states() -> None:
    layer = AdaptiveLIF(2).double()

    def recorded(x: Tensor) -> Tensor:
        layer.zero_states()
        with tt.record(layer, "mem", detach=False) as rec:
            layer.unroll(x)
        return rec["mem"] ** 2

    def looped(x: Tensor) -> Tensor:
        layer.zero_states()
        return torch.stack([(layer(t), layer.mem)[1] for t in x]) ** 2

    found = []
    for run in (recorded, looped):
        x = 0.3 * torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0)).double()
        x.requires_grad_()
        (slope,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        found += torch.autograd.grad((slope**2).sum(), x)
    torch.testing.assert_close(*found)


def test_a_model_that_is_recorded_stays_folded_and_fused(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    with caplog.at_level(logging.INFO, "tracetorch"), tt.record(model) as rec:
        model.unroll(sequence(), fold=True)
    assert "step" not in caplog.text
    for layer, states in ((model.lif, ("mem", "raised")), (model.out, ("mem",))):
        assert [p.plan.program.recorded for p in programs(subject_of(layer).findings)] == [states]
    assert [*rec] == ["lif.mem", "lif.raised", "lif.out", "out.mem", "out.out"]


def test_kernels_give_out_nothing_that_is_not_asked_for() -> None:
    model = net()
    with tt.record(model, "lif.raised"):
        model.unroll(sequence())
    assert [p.plan.program.recorded for p in programs(subject_of(model.lif).findings)] == [
        ("raised",)
    ]
    assert [p.plan.program.recorded for p in programs(subject_of(model.out).findings)] == [()]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_sequences_larger_than_caches_are_recorded_exactly(stored: torch.dtype) -> None:
    x = torch.randn(500, 16, 512, generator=torch.Generator().manual_seed(0)).to(stored)
    fused, stepped = AdaptiveLIF(512), AdaptiveLIF(512)
    with torch.no_grad(), tt.record(fused, "mem", "raised") as rec:
        fused.unroll(x)
    with torch.no_grad(), tt.record(stepped, "mem", "raised") as expected:
        for timestep in x:
            stepped(timestep)
    for name, values in rec.items():
        assert values.dtype == torch.float32
        assert torch.equal(values, expected[name])


def test_lengths_leave_zeros_after_a_samples_end() -> None:
    model, x = net(), sequence(6, 3)
    lengths = torch.tensor([6, 0, 4])
    with tt.record(model, "lif.mem", "out.out") as rec:
        y = model.unroll(x, lengths=lengths)
    assert rec.lengths is not None
    assert rec.lengths.tolist() == lengths.tolist()
    torch.testing.assert_close(rec["out.out"], y.detach())
    for sample, length in enumerate(lengths.tolist()):
        alone = watched(net(), x[:length, sample : sample + 1])
        values = rec["lif.mem"][:, sample : sample + 1]
        assert not values[length:].any()
        if length:
            torch.testing.assert_close(values[:length], alone["lif.mem"].detach())


def test_samples_that_go_on_in_another_call_have_a_mask_and_no_lengths() -> None:
    model, x = net(), sequence(3)
    with tt.record(model, "lif.mem") as rec:
        model.unroll(x, lengths=torch.tensor([3, 1]))
        assert rec["lif.mem"].shape[0] == 3
        model(x[0])
    assert rec.mask is not None
    assert rec.mask.tolist() == [[True, True], [True, False], [True, False], [True, True]]
    with pytest.raises(tt.RecordError, match=r"ended and gone on in another call.*mask \[T, B\]"):
        _ = rec.lengths


def test_nothing_is_left_after_the_block_or_an_exception() -> None:
    model = net()
    recording = tt.record(model)
    rec = recording.__enter__()
    model(sequence()[0])
    assert not recording.__exit__(RuntimeError, RuntimeError("mine"), None)
    assert [layer.tt.passage for _, layer in model.named_layers()] == [None, None]
    model(sequence()[0])
    assert len(rec["lif.mem"]) == 1


def test_recordings_nest_and_end_in_any_order() -> None:
    model, x = net(), sequence()
    one, other = tt.record(model, "lif.mem"), tt.record(model, "lif.*", every=2)
    first = one.__enter__()
    model.unroll(x[:4])
    second = other.__enter__()
    model.unroll(x[4:6])
    one.__exit__(None, None, None)
    model.unroll(x[6:8])
    other.__exit__(None, None, None)
    model(x[8])
    expected = watched(net(), x)["lif.mem"].detach()
    torch.testing.assert_close(first["lif.mem"], expected[:6])
    torch.testing.assert_close(second["lif.mem"], expected[4:8:2])


class Failing(Net):
    """Breaks off between its layers when it is told to."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(2 * self.inward(x))
        if self.error is not None and len(x) > 2:
            raise self.error
        y: Tensor = self.out(x)
        return y


def test_a_sequence_that_fails_leaves_the_recording_as_it_was() -> None:
    model, x = Failing().double(), sequence()
    with tt.record(model) as rec:
        model.unroll(x[:3])
        before = {name: values.clone() for name, values in rec.items()}
        model.error = RuntimeError("mine")
        with pytest.raises(RuntimeError, match="mine"):
            model.unroll(x[3:])
    assert rec.keys() == before.keys()
    assert all(torch.equal(rec[name], values) for name, values in before.items())


def test_a_fold_that_is_given_up_is_recorded_once() -> None:
    model, x = Failing().double(), sequence()
    model.unroll(x)
    model.zero_states()
    model.error = Unfoldable(Unfolded.SOMETIMES, "Trace")
    with tt.record(model, "lif.mem") as rec:
        model.unroll(x)
    assert len(rec["lif.mem"]) == len(x)


def test_a_limit_is_an_error_before_it_is_exceeded() -> None:
    model, x = net(), sequence()
    needed = 9 * 2 * 4 * 8
    with tt.record(model, "lif.mem", limit=needed) as rec:
        model.unroll(x)
        assert rec.nbytes == needed
        states = model.get_states()
        for call in (lambda: model(x[0]), lambda: model.unroll(x[:2])):
            with pytest.raises(
                tt.RecordError, match=r"layer 'lif', AdaptiveLIF.*exceed limit=576 b"
            ):
                call()
        assert all(model.get_states()[name] is state for name, state in states.items())
        rec.clear()
        model.unroll(x)
    assert len(rec["lif.mem"]) == 9


def test_another_batch_is_refused_by_name_and_changes_nothing() -> None:
    model = net()
    with tt.record(model, "lif.mem") as rec:
        model.unroll(sequence(3, 2))
        model.zero_states()
        with pytest.raises(tt.RecordError, match=r"mem of timesteps \[5, 4\] .* \[2, 4\] .* clear"):
            model.unroll(sequence(3, 5))
        assert not model.get_states()
    assert rec["lif.mem"].shape == (3, 2, 4)


def test_what_others_write_into_an_output_is_not_recorded() -> None:
    layer = Trace(2)
    with tt.record(layer, "*") as rec:
        x = torch.ones(3, 1, 2)
        layer.unroll(x).zero_()
        x.zero_()
    assert rec["out"].any(-1).all()
    assert rec["in"].eq(1).all()


def test_what_is_chosen() -> None:
    model = net()
    for what, names in (
        (("lif",), ["lif.mem", "lif.raised", "lif.out"]),
        ((model.out,), ["out.mem", "out.out"]),
        ((AdaptiveLIF, "out.in"), ["lif.mem", "lif.raised", "lif.out", "out.in"]),
        (("l?f.r*",), ["lif.raised"]),
        (("*.out",), ["lif.out", "out.out"]),
    ):
        with tt.record(model, *what) as rec:
            model(sequence()[0])
        assert [*rec] == names


@pytest.mark.parametrize(
    ("what", "options", "error", "words"),
    [
        (
            ("lif.men",),
            {},
            ValueError,
            r"nothing in the model's tt layers fits 'lif.men'; there is lif.mem",
        ),
        ((3,), {}, TypeError, "name, a tt.Layer or a class of them, got 3"),
        ((), {"every": 0}, ValueError, "every must be .* at least 1, got 0"),
        ((), {"every": 1.5}, TypeError, "every must be an integer.*1.5"),
        ((), {"detach": 1}, TypeError, "detach must be True or False, got 1"),
        ((), {"limit": -1}, ValueError, "limit must be .*, got -1"),
    ],
)
def test_bad_arguments(
    what: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = net()
    with pytest.raises(error, match=words), tt.record(model, *what, **options):
        pass
    assert model.lif.tt.passage is None


def test_what_is_not_there_is_said() -> None:
    with tt.record(net(), "lif.mem") as rec:
        for name, words in (("lif.mem", "has not been computed yet"), ("x", "is not recorded")):
            with pytest.raises(KeyError, match=f"{words}; this recording is of lif.mem"):
                _ = rec[name]
        with pytest.raises(tt.RecordError, match="nothing has been recorded that could be saved"):
            rec.save("rec.npz")
    assert len(rec) == 0


def test_compiled_models_and_transforms_are_refused_with_the_reason() -> None:
    model = net()
    with pytest.raises(tt.RecordError, match="record the model itself, uncompiled"):
        tt.record(torch.compile(model)).__enter__()
    with (
        tt.record(model, "lif.mem"),
        pytest.raises(tt.RecordError, match=r"within transforms of torch\.func"),
    ):
        vmap(model)(sequence())
    model.zero_states()
    model(sequence()[0])


def test_copies_hold_no_recorder() -> None:
    model = net()
    with tt.record(model, "lif.mem") as rec:
        twin = copy.deepcopy(model)
        twin(sequence()[0])
    assert len(rec) == 0


def test_files_hold_what_was_recorded(tmp_path: Path) -> None:
    layer = Trace(2)
    with tt.record(layer, "mem", "out") as rec:
        layer.unroll(torch.randn(3, 1, 2).bfloat16())
    rec.save(tmp_path / "rec.npz")
    rec.save(tmp_path / "rec.safetensors")
    arrays, tensors = np.load(tmp_path / "rec.npz"), safetensors.torch.load_file(
        tmp_path / "rec.safetensors"
    )  # fmt: skip
    assert {*arrays} == {*tensors} == {"mem", "out"}
    assert tensors["out"].dtype == torch.bfloat16
    for name, values in rec.items():
        assert torch.equal(tensors[name], values)
        np.testing.assert_array_equal(arrays[name], values.float().numpy())
        np.testing.assert_array_equal(rec.numpy()[name], arrays[name])
    with pytest.raises(ValueError, match=r"must end in \.npz or \.safetensors, got '.*rec\.h5'"):
        rec.save(tmp_path / "rec.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"rec.npz", "rec.safetensors"}


def test_a_mask_is_in_the_file(tmp_path: Path) -> None:
    model = net()
    with tt.record(model, "lif.mem") as rec:
        model.unroll(sequence(3), lengths=torch.tensor([3, 1]))
    rec.save(tmp_path / "rec.npz")
    assert np.load(tmp_path / "rec.npz")["mask"].sum(0).tolist() == [3, 1]


def test_its_repr_has_the_sizes() -> None:
    layer = Trace(250)
    with tt.record(layer) as rec:
        layer(torch.ones(2, 250))
        layer(torch.ones(2, 250))
        text = repr(rec)
    assert text.splitlines() == [
        "Recording(8.0 kB)",
        "  mem: [2, 2, 250] float32, 4.0 kB",
        "  out: [2, 2, 250] float32, 4.0 kB",
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_recording_of_a_gpu_may_be_kept_elsewhere() -> None:
    model = net().cuda()
    with tt.record(model, "lif.mem", device="cpu") as rec:
        model.unroll(sequence().cuda())
    torch.testing.assert_close(rec["lif.mem"], watched(net(), sequence())["lif.mem"].detach())


def test_a_recording_may_be_kept_on_another_device() -> None:
    layer = Trace(2)
    with tt.record(layer, "mem", device="meta") as rec:
        layer.unroll(torch.ones(3, 1, 2))
    assert rec["mem"].device.type == "meta"
    assert rec["mem"].shape == (3, 1, 2)


# ---------------------------------------------------------------------- what a stranger found


def test_lengths_and_a_recomputation_go_together() -> None:
    found = []
    for recompute in (False, True):
        model, x = net(), sequence()
        with tt.record(model, "lif.mem", detach=False) as rec:
            y = model.unroll(x, lengths=torch.tensor([9, 4]), recompute=recompute)
        loss = y.sin().sum() + rec["lif.mem"].cos().sum()
        found.append(torch.autograd.grad(loss, [*model.parameters()]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_lengths_are_those_of_each_name(tmp_path: Path) -> None:
    one, other = net(), net()
    with tt.record(nn.ModuleDict({"one": one, "other": other}), "*.out.out") as rec:
        one.unroll(sequence(3), lengths=torch.tensor([1, 2]))
        other.unroll(sequence(5), lengths=torch.tensor([5, 4]))
    lengths = {name: rec.lengths_of(name) for name in rec}
    assert {name: own.tolist() for name, own in lengths.items() if own is not None} == {
        "one.out.out": [1, 2],
        "other.out.out": [5, 4],
    }
    with pytest.raises(tt.RecordError, match=r"ask by name, as in lengths_of\(name\)"):
        _ = rec.lengths
    rates: Any = measures.firing_rate(rec)
    for name, values in rec.items():
        torch.testing.assert_close(rates[name], measures.firing_rate(values, lengths=lengths[name]))
    rec.save(tmp_path / "rec.npz")
    assert np.load(tmp_path / "rec.npz")["one.out.out.mask"].sum(0).tolist() == [1, 2]


def test_nothing_that_is_recorded_is_shared_with_the_model() -> None:
    layer = Trace(2)
    with torch.no_grad(), tt.record(layer) as rec:
        layer(torch.ones(1, 2))
        layer.mem.zero_()
        assert rec["mem"].tolist() == [[[1.0, 1.0]]]
        rec["mem"].fill_(9.0)
    assert layer.mem.tolist() == [[0.0, 0.0]]


def test_a_recording_that_cannot_begin_leaves_nothing_behind() -> None:
    other = Trace(3)

    class Begins(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if len(x) > 2:
                with tt.record(nn.ModuleList([other, self.lif])):
                    pass
            return y

    model = Begins().double()
    with pytest.raises(tt.RecordError, match="cannot begin or end within a forward pass"):
        model.unroll(sequence(), fold=True)
    assert other.tt.passage is None
    assert model.lif.tt.passage is None


def test_a_layer_with_samples_elsewhere_is_named() -> None:
    class Doubled(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.lif(torch.cat([self.inward(x)] * 2))
            return y

    model = Doubled().double()
    with (
        tt.record(model, "lif.mem"),
        pytest.raises(tt.LayerError, match=r"over 2 samples needs them at dim"),
    ):
        model.unroll(sequence(), lengths=torch.tensor([9, 4]), fold=False)


def test_brackets_in_a_name_are_letters() -> None:
    class Keyed(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.held = {"q[1]": Trace(2)}

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.held["q[1]"](x)
            return y

    for what in ("held.q[1].mem", "held.q[1].*", "*.mem"):
        with tt.record(Keyed(), what) as rec:
            pass
        assert "held.q[1].mem" in repr(rec)

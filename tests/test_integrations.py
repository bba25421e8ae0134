"""Training loops, averages, metrics and loaders of others, used as they come."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tracetorch import rnn, snn

T, SAMPLES, BATCH = 12, 24, 8


class Net(tt.Model):
    """Spikes, a recurrent layer and dropout, four features to two classes."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8),
            snn.SRLIB(8),
            nn.Dropout(dropout),
            rnn.GRU(8, 6),
            nn.Linear(6, 2),
            snn.LI(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Sequence(nn.Module):
    """A whole sequence from fresh states within one ``forward``."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        self.net.zero_states()
        y: Tensor = self.net.unroll(x, time_dim=1)
        return y


def samples() -> TensorDataset:
    """Sequences ``[B, T, 4]`` and classes."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(SAMPLES, T, 4, generator=generator)
    return TensorDataset(x, torch.randint(2, (SAMPLES,), generator=generator))


def loss_of(y: Tensor, target: Tensor) -> Tensor:
    """Of outputs ``[B, T, 2]``."""
    return nn.functional.cross_entropy(y.float().mean(1), target)


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), 0.02)


def plainly(epochs: int = 2, amp: bool = False) -> Net:
    """The loop that the others are held to."""
    torch.manual_seed(0)
    net = Net()
    sequence, optimizer = Sequence(net), adam(net)
    for _ in range(epochs):
        for x, target in DataLoader(samples(), BATCH, generator=torch.Generator()):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                y = sequence(x)
            optimizer.zero_grad()
            loss_of(y, target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net


def assert_same(one: nn.Module, other: nn.Module) -> None:
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


# ------------------------------------------------------------------ Lightning


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package; its advice is not ours to heed."""
    found = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def trainer(lightning: Any, epochs: int = 2, **options: Any) -> Any:
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, **{**dict.fromkeys(quiet, False), **options}
    )


def lit(lightning: Any, file: Path | None = None) -> Any:
    """A module that holds a net, and goes on with the run in a file where there is one."""

    class Lit(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.sequence = Sequence(Net())
            self.begin, self.losses = 0, []

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, target = batch
            loss = loss_of(self.sequence(x), target)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = adam(self)
            if file is not None and file.exists():
                rest = tt.load_checkpoint(file, self.sequence, optimizer=optimizer)
                self.begin = rest["position"]
            return optimizer

        def train_dataloader(self) -> DataLoader[Any]:
            batches = [*range(SAMPLES)][self.begin * BATCH :]
            # without a generator of its own it draws from the global one
            generator = torch.Generator()
            chosen = torch.utils.data.Subset(samples(), batches)
            return DataLoader(chosen, BATCH, generator=generator)

        def on_train_batch_end(self, *_: object) -> None:
            if file is not None and not file.exists():
                optimizer = self.trainer.optimizers[0]
                tt.save_checkpoint(file, self.sequence, optimizer=optimizer, position=1)

    return Lit()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_is_the_plain_loop(lightning: Any, precision: str) -> None:
    module = lit(lightning)
    trainer(lightning, precision=precision).fit(module)
    assert_same(module.sequence.net, plainly(amp=precision == "bf16-mixed"))
    assert module.sequence.net.tt.last is None


def test_a_run_of_lightning_is_gone_on_with(
    lightning: Any, tmp_path: Path, equal: Callable[[object, object], bool]
) -> None:
    """In the middle of an epoch; weights, moments, states and generators are those of no stop."""
    whole, other = lit(lightning, tmp_path / "run.pt"), lit(lightning, tmp_path / "run.pt")
    trainer(lightning, 1).fit(whole)
    end = torch.get_rng_state()
    torch.manual_seed(5)
    trainer(lightning, 1).fit(other)
    assert other.losses == whole.losses[1:]
    assert_same(other, whole)
    assert equal(other.sequence.net.get_states(), whole.sequence.net.get_states())
    assert torch.equal(torch.get_rng_state(), end)


# ------------------------------------------------------------------ Accelerate


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """The package, without what it keeps for the process."""
    found = pytest.importorskip("accelerate")
    found.state.AcceleratorState._reset_state(True)
    yield found
    found.state.AcceleratorState._reset_state(True)
    found.state.GradientState._reset_state()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_is_the_plain_loop(accelerate: Any, precision: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    torch.manual_seed(0)
    net = Net()
    sequence = Sequence(net)
    data = DataLoader(samples(), BATCH, generator=torch.Generator())
    prepared, optimizer, loader = accelerator.prepare(sequence, adam(net), data)
    for _ in range(2):
        for x, target in loader:
            optimizer.zero_grad()
            accelerator.backward(loss_of(prepared(x), target))
            optimizer.step()
    assert_same(net, plainly(amp=precision == "bf16"))
    assert net.tt.last is None


def test_a_run_of_accelerate_is_gone_on_with(
    accelerate: Any, tmp_path: Path, equal: Callable[[object, object], bool]
) -> None:
    accelerator = accelerate.Accelerator(cpu=True)

    def begun(seed: int) -> tuple[Any, Any, Any]:
        torch.manual_seed(seed)
        sequence, generator = Sequence(Net()), torch.Generator()
        loader = DataLoader(samples(), BATCH, generator=generator)
        prepared: tuple[Any, Any, Any] = accelerator.prepare(sequence, adam(sequence), loader)
        return prepared

    def train(sequence: Any, optimizer: Any, loader: Any, stop: int | None = None) -> list[float]:
        losses = []
        for x, target in [*loader][:stop]:
            loss = loss_of(sequence(x), target)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        return losses

    sequence, optimizer, loader = begun(0)
    train(sequence, optimizer, loader, 1)
    file = tmp_path / "run.pt"
    tt.save_checkpoint(file, accelerator.unwrap_model(sequence), optimizer=optimizer, position=1)
    rest = accelerator.skip_first_batches(loader, 1)
    losses, end = train(sequence, optimizer, rest), torch.get_rng_state()
    other, its_optimizer, its_loader = begun(1)
    position = tt.load_checkpoint(file, accelerator.unwrap_model(other), optimizer=its_optimizer)[
        "position"
    ]
    rest = accelerator.skip_first_batches(its_loader, position)
    assert train(other, its_optimizer, rest) == losses
    assert_same(other, sequence)
    assert equal(other.net.get_states(), sequence.net.get_states())
    assert torch.equal(torch.get_rng_state(), end)


# ------------------------------------------------------------------ torchmetrics


def test_a_metric_beside_a_net_counts_every_sample_of_ragged_sequences() -> None:
    """Its answer after several batches is that of counting by hand, over own timesteps alone."""
    torchmetrics = pytest.importorskip("torchmetrics")
    accuracy = torchmetrics.classification.MulticlassAccuracy(2, average="micro")
    torch.manual_seed(0)
    net, right, of = Net(dropout=0.0), 0, 0
    for x, target in DataLoader(samples(), 7):
        net.zero_states()
        lengths = torch.arange(len(x)) % T + 1
        y = net.unroll(x, time_dim=1, lengths=lengths)
        own = torch.arange(T) < lengths[:, None]
        accuracy.update(y[own], target[:, None].expand(-1, T)[own])
        for sample, goal, length in zip(y, target, lengths, strict=True):
            right += int((sample[:length].argmax(-1) == goal).sum())
            of += int(length)
    assert accuracy.compute().item() == pytest.approx(right / of)
    assert 0 < right < of


# ------------------------------------------------------------------ torch's own


def test_an_averaged_model_is_the_mean_of_raw_weights_and_has_states_of_its_own() -> None:
    torch.manual_seed(0)
    net = Net(dropout=0.0)
    average, optimizer, past = AveragedModel(net), adam(net), []
    x = samples().tensors[0].movedim(1, 0)
    for _ in range(3):
        net.zero_states()
        loss = net.unroll(x).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(net)
        past.append({name: p.detach().clone() for name, p in net.named_parameters()})
    mean = Net(dropout=0.0)
    mean.load_state_dict({n: torch.stack([w[n] for w in past]).mean(0) for n in past[0]})
    before = net.get_states()
    average.module.zero_states()
    torch.testing.assert_close(average.module.unroll(x), mean.unroll(x), rtol=1e-5, atol=1e-5)
    assert all(net.get_states()[name] is state for name, state in before.items())


class Leaks(tt.Model):
    """Two leaky integrators, smooth in all of their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), snn.SLI(3, alpha=0.4), nn.Tanh(), snn.LI(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def leaks_by_hand(p: dict[str, Tensor], x: Tensor, states: list[Tensor]) -> Tensor:
    """The same, with its states handed around."""
    syn, mem, out = states
    alpha, beta, last = (p[n].sigmoid() for n in ("1.raw_alpha", "1.raw_beta", "3.raw_beta"))
    ys = []
    for timestep in x:
        syn = alpha * syn + (1 - alpha) * (timestep @ p["0.weight"].T + p["0.bias"])
        mem = beta * mem + syn
        out = last * out + mem.tanh()
        ys.append(out)
    states[:] = [syn, mem, out]
    return torch.stack(ys)


def test_lbfgs_calls_its_closure_again_from_the_same_states() -> None:
    """Over two pieces of a stream: a closure begins by putting back what the piece began with."""
    torch.manual_seed(0)
    net = Leaks().double()
    by_hand = {n: p.detach().clone().requires_grad_() for n, p in net.net.named_parameters()}
    x = torch.randn(10, 2, 4, dtype=torch.float64)
    target = torch.randn(10, 2, 3, dtype=torch.float64)
    options: dict[str, Any] = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}
    ours = torch.optim.LBFGS(net.parameters(), **options)
    theirs = torch.optim.LBFGS(by_hand.values(), **options)
    held = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(3)]
    for part, goal in zip(x.split(5), target.split(5), strict=True):
        begun, calls = net.get_states(), []

        def closure(part: Tensor = part, goal: Tensor = goal) -> Tensor:
            net.zero_states()
            net.set_states(begun, strict=False)  # noqa: B023
            ours.zero_grad()
            loss = (net.unroll(part) - goal).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            calls.append(loss.item())  # noqa: B023
            return loss

        def reference(part: Tensor = part, goal: Tensor = goal) -> Tensor:
            theirs.zero_grad()
            loss = (leaks_by_hand(by_hand, part, [*held]) - goal).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        ours.step(closure)
        theirs.step(reference)
        assert len(calls) > 2
        # on with the weights that were found
        net.zero_states()
        net.set_states(begun, strict=False)
        with torch.no_grad():
            net.unroll(part)
            leaks_by_hand(by_hand, part, held)
    for name, parameter in net.net.named_parameters():
        torch.testing.assert_close(parameter, by_hand[name], rtol=1e-8, atol=1e-8)


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    torch.manual_seed(0)
    net = Net(dropout=0.0).double()
    x = samples().tensors[0]
    sequence, twin = Sequence(net), Sequence(copy.deepcopy(net))
    (sequence(x.double()).square().mean()).backward()
    for part in x.double().split(BATCH):
        (twin(part).square().mean() * len(part) / len(x)).backward()
    for one, other in zip(sequence.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-12)


def test_a_gradient_scaler_changes_no_bit_and_leaves_out_what_overflows() -> None:
    """Scales are powers of two; a step whose gradients are not finite is none."""
    torch.manual_seed(0)
    net = Net(dropout=0.0)
    twin = copy.deepcopy(net)
    x, target = samples().tensors
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for module in (net, twin):
        sequence, optimizer = Sequence(module), torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                y = sequence(x)
            loss = loss_of(y, target)
            optimizer.zero_grad()
            if module is net:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    assert_same(net, twin)
    assert scaler.get_scale() == 2.0**13
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler.scale(1e3 * loss_of(Sequence(net)(x), target)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same(net, twin)
    assert scaler.get_scale() == 2.0**126


# ------------------------------------------------------------------ loaders


class Ragged(Dataset[Any]):
    """Sequences of their own lengths, made spikes by a layer that the data set holds."""

    def __init__(self) -> None:
        self.encoder = snn.LIB(4, threshold=0.5)
        self.x = samples().tensors[0]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        self.encoder.zero_states()
        with torch.no_grad():
            return self.encoder.unroll(self.x[index, : 1 + index % T])


def together(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(sequences), torch.tensor([*map(len, sequences)])


class Pieces(Dataset[Any]):
    """A stream ``[T, B, 4]`` cut into pieces: a batch each, in order."""

    def __init__(self) -> None:
        self.x = samples().tensors[0].movedim(1, 0)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.x.chunk(4)[index]


forked = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)


@forked
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_of_a_loader_keep_states_of_their_own_and_give_lengths() -> None:
    """The padded batches, and what is learned from them, are those without workers."""
    data, nets = Ragged(), []
    for workers in (0, 2):
        torch.manual_seed(0)
        net = Net(dropout=0.0)
        optimizer = adam(net)
        data.encoder.zero_states()
        context = "fork" if workers else None
        loader = DataLoader(
            data, 5, num_workers=workers, collate_fn=together, multiprocessing_context=context
        )
        for x, lengths in loader:
            net.zero_states()
            y = net.unroll(x, lengths=lengths)
            optimizer.zero_grad()
            (y.sum(0) / lengths[:, None]).square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        nets.append(net)
    assert data.encoder.get_states() == {}
    assert_same(*nets)


@forked
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_pieces_of_a_stream_come_in_order_from_several_workers() -> None:
    torch.manual_seed(0)
    net = Net(dropout=0.0)
    data = Pieces()
    loader = DataLoader(
        data, batch_size=None, shuffle=False, num_workers=2, multiprocessing_context="fork"
    )
    with torch.no_grad():
        whole = net.unroll(data.x)
        net.zero_states()
        pieces = torch.cat([net.unroll(piece) for piece in loader])
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)

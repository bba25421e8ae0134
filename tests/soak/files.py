"""Malformed files: an error of the library's own or a right reading, and nothing half-loaded."""

from __future__ import annotations

import copy
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from safetensors.torch import save as packed
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tracetorch import seals, state_files
from tracetorch.engine import build
from tracetorch.generators import everywhere


class Net(tt.Model):
    """Two layers, one of them where torch does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.held = [tt.testing.AdaptiveLIF(3)]
        self.trace = tt.testing.Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(self.held[0](self.linear(x)))


# ------------------------------------------------------------------ damage to bytes


def _flipped(rng: random.Random, data: bytes, _: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _truncated(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), len(data) - rng.randint(1, 70), 0, 8))]


def _extended(rng: random.Random, data: bytes, other: bytes) -> bytes:
    more = rng.choice((rng.randbytes(rng.randint(1, 90)), bytes(rng.randint(1, 90)), other, data))
    return rng.choice((data + more, more + data))


def _headed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The first part of another file."""
    size = rng.randint(1, min(len(data), len(other)) - 1)
    return rng.choice((other[:size] + data[size:], data[:size] + other[size:]))


def _overwritten(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(data))
    size = rng.randint(1, 40)
    filling = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return data[:start] + filling + data[start + size :]


def _cut_out(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, stop = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:start] + data[stop:]


DAMAGES = (_flipped, _truncated, _extended, _headed, _overwritten, _cut_out)


# ------------------------------------------------------------------ damage to what it says

ODD = (
    None, True, 0, -1, 2**70, 1e308, float("nan"), "", "x", "float32", [], [1, 2], {}, {"a": 1},
    b"x", torch.zeros(0), torch.zeros(3), torch.zeros(2, 3, dtype=torch.float64),
    torch.tensor([1, 2]), torch.full((2, 3), float("nan")), [2, 3], (2, 3),
)  # fmt: skip


def _changed(rng: random.Random, content: Any, odd: tuple[Any, ...]) -> Any:
    """One entry somewhere in nested dicts and lists left out, renamed, or something else."""
    content = copy.deepcopy(content)
    place = content
    while True:
        keys = [*place] if isinstance(place, dict) else [*range(len(place))]
        if not keys:
            return content
        key = rng.choice(keys)
        deeper = isinstance(place[key], (dict, list)) and len(place[key]) > 0
        if deeper and rng.random() < 0.8:
            place = place[key]
            continue
        if isinstance(place, dict) and rng.random() < 0.4:
            value = place.pop(key)
            if rng.random() < 0.6:
                place[rng.choice((f"{key}x", "", "trace.mem", 7))] = value
        else:
            place[key] = rng.choice(odd)
        return content


def _sealed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    seals.seal(buffer)
    return buffer.getvalue()


def _archive(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _forged(rng: random.Random, data: bytes, suffix: str) -> bytes:
    """A whole file with a right digest that says something else."""
    if suffix == ".pt":
        content = _archive(data)
        if "tracetorch" in content and rng.random() < 0.7:
            said = _changed(rng, json.loads(content["tracetorch"]), _JSON)
            return _sealed({**content, "tracetorch": json.dumps(said)})
        return _sealed(_changed(rng, content, ODD))
    tensors, said = _of_safetensors(data)
    if rng.random() < 0.6:
        said = _changed(rng, said, _JSON)
    else:
        tensors = {str(name): value for name, value in _changed(rng, tensors, _TENSORS).items()}
    manifest = json.dumps(said)
    digest = state_files._digest(manifest, tensors)
    return packed(tensors, {"tracetorch": manifest, "sha256": digest})


_JSON = tuple(
    odd for odd in ODD if isinstance(odd, (type(None), bool, int, float, str, list, dict))
)
_TENSORS = tuple(odd for odd in ODD if isinstance(odd, Tensor))


def _of_safetensors(data: bytes) -> tuple[dict[str, Tensor], Any]:
    from safetensors.torch import load

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return load(data), json.loads(metadata["tracetorch"])


# ------------------------------------------------------------------ what may happen


class Reader:
    """A kind of file: how a good one is made, read, and what must stay as it was."""

    def __init__(self, suffix: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.suffix, self.path = suffix, folder / f"file{suffix}"
        self.model = Net()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.model(torch.randn(2, 3)).sum().backward()
        self.optimizer.step()
        self.model.detach_states()
        self.kinds: tuple[type[Exception], ...] = (tt.StateFileError, tt.StateError)
        self.write()
        self.good = self.path.read_bytes()
        self.content = self.held()
        self.model.unroll(torch.randn(3, 2, 3))
        self.write()
        self.other = self.path.read_bytes()

    def write(self) -> None:
        self.model.save_states(self.path)

    def read(self) -> None:
        self.model.load_states(self.path)

    def held(self) -> Any:
        return _copied((self.model.get_states(), self.model.state_dict()))

    def check(self, how: str, data: bytes) -> bool:
        """Read it; whether it was taken. AssertionError where something else happens."""
        self.path.write_bytes(data)
        before = self.held()
        try:
            self.read()
        except self.kinds:
            assert _same(self.held(), before), f"{how}: refused, but something has changed"
            return False
        if how != "forged":
            assert _same(self.held(), self.content), f"{how}: read, but not what was saved"
        self.model.unroll(torch.randn(2, 2, 3))  # what was taken can be gone on with
        return True


class Checkpoints(Reader):
    def write(self) -> None:
        self.kinds = (tt.CheckpointError,)
        tt.save_checkpoint(self.path, self.model, optimizer=self.optimizer, epoch=3)

    def read(self) -> None:
        tt.load_checkpoint(self.path, self.model, optimizer=self.optimizer)

    def held(self) -> Any:
        return _copied((*super().held(), self.optimizer.state_dict(), everywhere()))

    def check(self, how: str, data: bytes) -> bool:
        model, optimizer = self.model, self.optimizer
        self.model = copy.deepcopy(model)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        try:
            return super().check(how, data)
        finally:
            self.model, self.optimizer = model, optimizer


def _copied(held: Any) -> Any:
    """As it is now, without the graph."""
    return tree_map(
        lambda v: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v), held
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if hasattr(one, "dtype"):
        return bool((one == other).all())
    return bool(one == other)


# ------------------------------------------------------------------ kernels and graphs


def _kernels(seed: int, folder: Path) -> Callable[[random.Random], str]:
    """Damaged entries of the cache are made anew, and compute what they should."""
    cache = build.cache_folder()

    def check(rng: random.Random) -> str:
        layer, x = tt.testing.Trace(3), torch.ones(4, 2, 3)
        with torch.no_grad():
            expected = layer.unroll(x)
        entry = max(cache.glob("*.so"), key=lambda path: path.stat().st_mtime)
        data = entry.read_bytes()
        damage = rng.choice(DAMAGES)
        # a new file: the old one is mapped into this process
        entry.unlink()
        entry.write_bytes(damage(rng, data, bytes(reversed(data[:4000]))))
        entry.chmod(0o700)
        build._loaded.clear()
        layer = tt.testing.Trace(3)
        with torch.no_grad():
            assert torch.equal(layer.unroll(x), expected)
        for path in cache.glob("*.so"):
            if path == entry:
                assert build._sealed(path) or path.read_bytes() != data
        return damage.__name__

    return check


def _graphs(folder: Path) -> Callable[[random.Random], str]:
    """NIR files: read as they are, or refused by name."""
    import nir
    from tracetorch import snn
    from tracetorch.snn.nir import NIRError, from_nir, to_nir

    path = folder / "graph.nir"
    weights = nn.Sequential(nn.Linear(3, 4), snn.LIB(4, 0.9), nn.Linear(4, 2), snn.SLIB(2))
    graph = to_nir(weights, (3,), dt=1e-3)
    nir.write(path, graph)
    good = path.read_bytes()
    others = good[::-1]

    def forged(rng: random.Random) -> str:
        content = _changed(rng, graph.to_dict(), (*_JSON, *(t.numpy() for t in _TENSORS)))
        try:
            made = nir.dict2NIRNode(content)
        except Exception:
            return "not made"
        from_nir(made)
        return "taken"

    def check(rng: random.Random) -> str:
        if rng.random() < 0.4:
            try:
                return forged(rng)
            except (NIRError, TypeError, ValueError):
                return "refused"
        damage = rng.choice(DAMAGES)
        path.write_bytes(damage(rng, good, others))
        try:
            from_nir(path)
        except NIRError:
            return "refused"
        return "taken"

    return check


# ------------------------------------------------------------------ many of them


def run(seed: int, count: int) -> str:
    """So many files of each kind; AssertionError or another error is a finding, with its seed."""
    said = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers = {
            "states .safetensors": Reader(".safetensors", folder),
            "states .pt": Reader(".pt", folder),
            "checkpoints": Checkpoints(".ckpt.pt", folder),
        }
        for kind, reader in readers.items():
            taken = 0
            for number in range(count):
                rng = random.Random(f"{seed} {kind} {number}")
                damage = rng.choice((*DAMAGES, None, None, None))
                how, data = "forged", b""
                if damage is not None:
                    how = damage.__name__.strip("_")
                    data = damage(rng, reader.good, reader.other)
                    if data == reader.other:
                        continue
                else:
                    suffix = ".safetensors" if kind.endswith("safetensors") else ".pt"
                    data = _forged(rng, reader.good, suffix)
                try:
                    taken += reader.check(how, data)
                except Exception as error:
                    raise AssertionError(f"{kind}, number {number}, {how}: {error!r}") from error
            said.append(f"{count} {kind} ({taken} readable)")
        graphs, kernels = _graphs(folder), _kernels(seed, folder)
        for kind, check, times in (
            ("graphs", graphs, count), ("kernels", kernels, max(1, count // 100))
        ):  # fmt: skip
            for number in range(times):
                try:
                    check(random.Random(f"{seed} {kind} {number}"))
                except Exception as error:
                    raise AssertionError(f"{kind}, number {number}: {error!r}") from error
            said.append(f"{times} {kind}")
    return ", ".join(said)

"""Malformed files: an error of the library's own or a right reading, and nothing half-loaded."""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import os
import random
import tempfile
import warnings
from collections import Counter
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
    if suffix != ".safetensors":
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

    def check(self, how: str, data: bytes) -> str:
        """Read it; what became of it. AssertionError where something else happens."""
        if data == self.other:
            return "unchanged"
        self.path.write_bytes(data)
        before = self.held()
        try:
            self.read()
        except self.kinds:
            assert _same(self.held(), before), f"{how}: refused, but something has changed"
            return "refused"
        if how != "forged":
            assert _same(self.held(), self.content), f"{how}: read, but not what was saved"
        self.model.unroll(torch.randn(2, 2, 3))  # what was taken can be gone on with
        return "taken"


class Checkpoints(Reader):
    def write(self) -> None:
        self.kinds = (tt.CheckpointError,)
        tt.save_checkpoint(self.path, self.model, optimizer=self.optimizer, epoch=3)

    def read(self) -> None:
        tt.load_checkpoint(self.path, self.model, optimizer=self.optimizer)

    def held(self) -> Any:
        return _copied((*super().held(), self.optimizer.state_dict(), everywhere()))

    def check(self, how: str, data: bytes) -> str:
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


def _read(reader: Reader) -> Callable[[random.Random], str]:
    """Damaged and forged files of a kind."""

    def check(rng: random.Random) -> str:
        damage = rng.choice((*DAMAGES, None, None, None))
        if damage is None:
            return reader.check("forged", _forged(rng, reader.good, reader.suffix))
        return reader.check(damage.__name__.strip("_"), damage(rng, reader.good, reader.other))

    return check


# ------------------------------------------------------------------ kernels and graphs


def _kernels(folder: Path) -> Callable[[random.Random], str]:
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

    def read(source: Any) -> str:
        try:
            from_nir(source)
        except NIRError:
            return "refused"
        except ValueError as error:
            if "preset must say" not in str(error):  # a graph need not say it
                raise
        return "taken"

    def check(rng: random.Random) -> str:
        if rng.random() >= 0.4:
            damage = rng.choice(DAMAGES)
            path.write_bytes(damage(rng, good, others))
            return _bounded(lambda: read(path))
        content = _changed(rng, graph.to_dict(), (*_JSON, *(t.numpy() for t in _TENSORS)))
        try:
            made = nir.dict2NIRNode(content)
        except Exception:
            return "not made"
        return read(made)

    return check


def _bounded(work: Callable[[], str]) -> str:
    """In a process of its own: HDF5 follows some damaged references in a circle, for ever."""
    if not hasattr(os, "fork"):
        return work()
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(20, exit=True, file=said)
            try:
                outcome = work()
            except Exception as error:
                outcome = f"wrong: {error!r}"
            faulthandler.cancel_dump_traceback_later()
            said.write(outcome)
            said.flush()
            os._exit(0)
        os.waitpid(child, 0)
        said.seek(0)
        outcome = said.read()
    if "h5py" in outcome.partition("File ")[2].partition("\n")[0]:
        return "without end in HDF5"
    if outcome not in ("refused", "taken"):
        raise AssertionError(outcome or "the process that read it has died")
    return outcome


# ------------------------------------------------------------------ many of them


def run(seed: int, count: int) -> str:
    """So many files of each kind; all that is found is raised together, each with its number."""
    said, found = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = {
            "states .safetensors": _read(Reader(".safetensors", folder)),
            "states .pt": _read(Reader(".pt", folder)),
            "checkpoints": _read(Checkpoints(".ckpt.pt", folder)),
            "graphs": _graphs(folder),
            "kernels": _kernels(folder),
        }
        for kind, check in checks.items():
            outcomes: Counter[str] = Counter()
            for number in range(max(1, count // 100) if kind == "kernels" else count):
                rng = random.Random(f"{seed} {kind} {number}")
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        outcomes[check(rng)] += 1
                except Exception as error:
                    outcomes["wrong"] += 1
                    found.append(f"{kind}, number {number}: {error!r}")
            said.append(f"{kind}: {', '.join(f'{n} {what}' for what, n in outcomes.items())}")
    if found:
        raise AssertionError("\n".join(found))
    return "; ".join(said)

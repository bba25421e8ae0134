"""The two formats, written out; damage, files of something else, and hostile ones are refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch.testing import AdaptiveLIF, Trace

Tensors = dict[str, Tensor]
Manifest = dict[str, Any]


class Net(tt.Model):
    """Two layers in a dict, three states."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {"leak": Trace(2), "lif": AdaptiveLIF(2)}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.held["lif"](self.held["leak"](x))
        return y


class Holder(tt.Model):
    """Holds layers that the test calls itself."""

    def __init__(self, *held: tt.Layer) -> None:
        super().__init__()
        self.held = held


def stepped() -> Net:
    model = Net()
    model(torch.tensor([[0.5, 2.0], [1.5, -1.0], [0.25, 3.0]]))
    return model


def everything(model: tt.Model) -> dict[str, Tensor | None]:
    layers = list(model.named_layers())
    states = {f"{name}.{s}": getattr(layer, s) for name, layer in layers for s in layer.tt.states}
    return {**states, **parameters(model)}


def refused(
    model: tt.Model, path: Path, kind: type[Exception], *says: str, strict: bool = True
) -> str:
    """Loading raises and says the path and each of ``says``; nothing has changed."""
    before, values = everything(model), {k: p.clone() for k, p in parameters(model).items()}
    with pytest.raises(kind) as raised:
        model.load_states(path, strict=strict)
    after = everything(model)
    assert after.keys() == before.keys()
    assert all(after[name] is thing for name, thing in before.items())
    assert all(torch.equal(p, values[name]) for name, p in parameters(model).items())
    for text in (str(path), *says):
        assert text in str(raised.value)
    assert type(raised.value) is kind
    return str(raised.value)


def parameters(model: tt.Model) -> Tensors:
    return {f"{n}.{k}": p for n, layer in model.named_layers() for k, p in layer.named_parameters()}


# ---------------------------------------------------------------- the formats, written out here


def unpacked(path: Path) -> tuple[Manifest, Tensors]:
    data = path.read_bytes()
    if path.suffix == ".pt":
        comment = zipfile.ZipFile(path).comment
        assert comment == data[-64:] == hashlib.sha256(data[:-64]).hexdigest().encode()
        content = torch.load(io.BytesIO(data), weights_only=True)
        return json.loads(content["tracetorch"]), content["tensors"]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return json.loads(header["__metadata__"]["tracetorch"]), safetensors.torch.load(data)


def sealed(archive: bytes) -> bytes:
    body = archive[:-2] + b"\x40\x00"
    return body + hashlib.sha256(body).hexdigest().encode()


def torch_saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def digest(manifest: str, tensors: Tensors) -> str:
    parts = [manifest.encode()]
    for name, tensor in sorted(tensors.items()):
        said = f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0"
        parts += [said.encode(), bytes(tensor.contiguous().untyped_storage())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def pack(path: Path, manifest: object, tensors: Tensors) -> None:
    """Write a file whose digest is right, whatever it holds."""
    text = json.dumps(manifest)
    if path.suffix == ".pt":
        path.write_bytes(sealed(torch_saved({"tracetorch": text, "tensors": tensors})))
    else:
        metadata = {"tracetorch": text, "sha256": digest(text, tensors)}
        apart = {name: tensor.clone() for name, tensor in tensors.items()}
        path.write_bytes(safetensors.torch.save(apart, metadata))


def test_a_file_is_what_this_page_says(path: Path) -> None:
    model = stepped()
    model.held["lif"].raised = None
    model.save_states(path)
    manifest, tensors = unpacked(path)
    trace, lif = "tracetorch.testing.Trace", "tracetorch.testing.AdaptiveLIF"
    kept = {"shape": [3, 2], "dtype": "float32", "parameters": "float32"}
    absent = {"shape": None, "dtype": None, "parameters": "float32"}
    assert manifest == {
        "format": "tracetorch-states-1",
        "version": tt.__version__,
        "states": {
            "held.leak.mem": {"layer": trace, **kept},
            "held.lif.mem": {"layer": lif, **kept},
            "held.lif.raised": {"layer": lif, **absent},
        },
    }
    assert tensors.keys() == model.get_states().keys()
    assert all(torch.equal(tensors[n], s.detach()) for n, s in model.get_states().items())
    again = Net()
    pack(path, manifest, tensors)
    assert again.load_states(path) == ([], [])
    assert all(torch.equal(again.get_states()[n], t) for n, t in tensors.items())


# ---------------------------------------------------------------- damage


def damaged(data: bytes, how: str) -> Iterator[bytes]:
    draw = random.Random(how)
    for _ in range(200):
        at, other = draw.randrange(len(data)), draw.randrange(len(data))
        broken = bytearray(data)
        if how == "truncated":
            broken = broken[:at]
        elif how == "a bit flipped":
            broken[at] ^= 1 << draw.randrange(8)
        elif how == "a run overwritten":
            broken[at : at + 64] = bytes(draw.randrange(256) for _ in broken[at : at + 64])
        elif how == "bytes swapped":
            broken[at], broken[other] = broken[other], broken[at]
        elif how == "bytes inserted":
            broken[at:at] = broken[other : other + 8]
        if broken != data:
            yield bytes(broken)


@pytest.mark.parametrize(
    "how",
    ["truncated", "a bit flipped", "a run overwritten", "bytes swapped", "bytes inserted"],
)
def test_damage_is_found_and_changes_nothing(path: Path, how: str) -> None:
    model = stepped()
    model.save_states(path)
    data, tried = path.read_bytes(), 0
    for broken in damaged(data, how):
        path.write_bytes(broken)
        message = refused(model, path, tt.StateFileError)
        assert any(word in message for word in ("damaged", "truncated", "has the format"))
        tried += 1
    assert tried > 150
    path.write_bytes(data)
    model.load_states(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 4096,
        b"mem,0.5\n",
        b"\x89PNG\r\n\x1a\n",
        pickle.dumps({"mem": 1}),
        torch_saved({"mem": torch.ones(2)}),
        sealed(torch_saved({"mem": torch.ones(2)})),
        sealed(torch_saved([torch.ones(2)])),
        sealed(torch_saved({"tracetorch": "{}", "tensors": {"mem": 1}})),
        safetensors.torch.save({"mem": torch.ones(2)}),
        safetensors.torch.save({"mem": torch.ones(2)}, {"tracetorch": "no json", "sha256": ""}),
        safetensors.torch.save({"mem": torch.ones(2)}, {"tracetorch": "[]", "sha256": ""}),
        safetensors.torch.save({}),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(stepped(), path, tt.StateFileError)


def test_a_file_of_weights_is_told_from_one_of_states(path: Path) -> None:
    weights = {"fc.weight": torch.ones(2, 3)}
    if path.suffix == ".pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    refused(stepped(), path, tt.StateFileError, "weights are for load_state_dict()")


def test_a_file_with_the_other_formats_suffix_is_refused(path: Path, tmp_path: Path) -> None:
    model = stepped()
    model.save_states(path)
    other = tmp_path / ("other.pt" if path.suffix == ".safetensors" else "other.safetensors")
    other.write_bytes(path.read_bytes())
    refused(model, other, tt.StateFileError)


@pytest.mark.parametrize("name", ["states", "states.pth", "states.PT", "states.pt.gz", ".pt"])
def test_another_suffix_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    wrong = tmp_path / name
    says = "a state file is .safetensors or .pt, got the suffix", repr(wrong.suffix)
    refused(stepped(), wrong, ValueError, *says)
    with pytest.raises(ValueError, match=r"a state file is \.safetensors or \.pt, got the suffix"):
        stepped().save_states(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(path: Path) -> None:
    refused(stepped(), path, FileNotFoundError)


# ---------------------------------------------------------------- files of another model


def _edits() -> dict[str, tuple[Callable[[Manifest, Tensors], Any], type[Exception], str]]:
    name = "held.leak.mem"

    def both(change: Callable[[dict[str, Any]], Any]) -> Callable[[Manifest, Tensors], Any]:
        return lambda m, t: [change(held) for held in (m["states"], t)]

    def record(**fields: Any) -> Callable[[Manifest, Tensors], Any]:
        return lambda m, t: m["states"][name].update(fields)

    def tensor(new: Tensor) -> Callable[[Manifest, Tensors], Any]:
        said = {"shape": list(new.shape), "dtype": str(new.dtype).removeprefix("torch.")}
        return lambda m, t: [m["states"][name].update(said), t.update({name: new})]

    broken, unfit = tt.StateFileError, tt.StateError
    return {
        "tensor renamed": (lambda m, t: t.update(other=t.pop(name)), broken,
                           "names the states ['held.leak.mem', 'held.lif.mem', "
                           "'held.lif.raised'] but holds ['held.lif.mem', 'held.lif.raised', "
                           "'other']"),
        "tensor missing": (lambda m, t: t.pop(name), broken, "but holds ['held.lif.mem', 'held"),
        "tensor extra": (lambda m, t: t.update(other=torch.ones(2)), broken, "names the states"),
        "record missing": (lambda m, t: m["states"].pop(name), broken, "names the states"),
        "record extra": (lambda m, t: m["states"].update(other=m["states"][name]), broken,
                         "names the states"),
        "said not to be there": (record(shape=None, dtype=None), broken, "names the states"),
        "all renamed": (both(lambda d: d.update({"held.leak.mum": d.pop(name)})), unfit,
                        "unknown ['held.leak.mum'], missing ['held.leak.mem']; pass strict=False"),
        "all missing": (both(lambda d: d.pop(name)), unfit,
                        "unknown [], missing ['held.leak.mem']"),
        "all extra": (both(lambda d: d.update({"x.mem": d[name]})), unfit,
                      "unknown ['x.mem'], missing []"),
        "nothing held": (both(lambda d: d.clear()), unfit, "missing ['held.leak.mem', 'held.lif"),
        "another class": (record(layer="my.Trace"), unfit,
                          "held.leak.mem was saved of a my.Trace, not of a "
                          "tracetorch.testing.Trace; pass strict=False"),
        "a lie about the shape": (record(shape=[3, 9]), broken,
                                  "says that held.leak.mem is [3, 9] float32, but holds [3, 2] "
                                  "float32"),
        "a lie about the dtype": (record(dtype="int32"), broken,
                                  "is [3, 2] int32, but holds [3, 2] float32"),
        "another shape": (tensor(torch.zeros(3, 5)), unfit,
                          "layer 'held.leak', Trace(2, beta=0.8, dim=-1): "),
        "another rank": (tensor(torch.zeros(())), unfit, "a state mem of shape [] does not fit"),
        "another dtype": (tensor(torch.zeros(3, 2).long()), unfit,
                          "the state mem must be a floating-point tensor, got torch.int64"),
        "complex": (tensor(torch.zeros(3, 2) + 0j), unfit, "got torch.complex64"),
        "a later format": (lambda m, t: m.update(format="tracetorch-states-12", version="3.4.5"),
                           broken, "was written by traceTorch 3.4.5 in the format "
                           f"'tracetorch-states-12', and traceTorch {tt.__version__} reads up to "
                           "'tracetorch-states-1'; install that version or a later one: pip "
                           "install --upgrade tracetorch, or those parts of it that you have"),
        "no format that was": (lambda m, t: m.update(format="tracetorch-states-0"), broken,
                               "has the format 'tracetorch-states-0', this version reads "
                               "'tracetorch-states-1'"),
        "the format of others": (lambda m, t: m.update(format="tracetorch-others-2"), broken,
                                 "has the format 'tracetorch-others-2', this version reads"),
        "no format": (lambda m, t: m.pop("format"), broken, "has the format None"),
        "no version": (lambda m, t: m.pop("version"), broken, "KeyError: 'version'"),
        "no states": (lambda m, t: m.pop("states"), broken, "KeyError: 'states'"),
        "an unknown field": (record(color="red"), broken, "'color'"),
        "a missing field": (lambda m, t: m["states"][name].pop("layer"), broken, "'layer'"),
    }  # fmt: skip


@pytest.mark.parametrize("edit", _edits())
def test_a_file_with_a_right_digest_is_still_checked(path: Path, edit: str) -> None:
    change, kind, says = _edits()[edit]
    model = stepped()
    model.save_states(path)
    manifest, tensors = unpacked(path)
    change(manifest, tensors)
    pack(path, manifest, tensors)
    refused(model, path, kind, says)


def test_states_of_one_layer_must_share_a_batch(path: Path) -> None:
    model = stepped()
    model.save_states(path)
    manifest, tensors = unpacked(path)
    manifest["states"]["held.lif.raised"]["shape"] = [4, 2]
    pack(path, manifest, {**tensors, "held.lif.raised": torch.zeros(4, 2)})
    refused(model, path, tt.StateError, "layer 'held.lif'", "disagree on the shape")


def test_a_later_misfit_leaves_earlier_layers_alone(path: Path) -> None:
    other = Holder(Trace(2), Trace(3))
    other.held[0](torch.ones(1, 2)), other.held[1](torch.ones(1, 3))
    other.save_states(path)
    model = Holder(Trace(2), Trace(4))
    model.held[0](torch.ones(1, 2)), model.held[1](torch.ones(1, 4))
    for strict in (True, False):
        refused(model, path, tt.StateError, "layer 'held.1', Trace(4", "[1, 3]", strict=strict)


def test_not_strict_takes_what_the_names_fit(path: Path) -> None:
    model = stepped()
    model.save_states(path)
    manifest, tensors = unpacked(path)
    for held in (manifest["states"], tensors):
        held["unknown.mem"] = held["held.leak.mem"]
        del held["held.lif.mem"]
    manifest["states"]["held.leak.mem"]["layer"] = "my.Trace"
    pack(path, manifest, tensors)
    other = Net()
    other(torch.zeros(3, 2))
    before = other.get_states()
    misfits = other.load_states(path, strict=False)
    assert misfits.missing == ["held.lif.mem"]
    assert misfits.unexpected == ["unknown.mem"]
    after = other.get_states()
    assert after["held.lif.mem"] is before["held.lif.mem"]
    for name in ("held.leak.mem", "held.lif.raised"):
        assert torch.equal(after[name], model.get_states()[name])
    assert sorted(after) == sorted(before)


# ---------------------------------------------------------------- hostile pickles


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "pack_hostile",
    [
        lambda evil: torch_saved({"tracetorch": "{}", "tensors": evil}),
        lambda evil: sealed(torch_saved({"tracetorch": "{}", "tensors": evil})),
        lambda evil: sealed(torch_saved(evil)),
        lambda evil: sealed(pickle.dumps(evil) + b"\0\0"),
        lambda evil: pickle.dumps(evil),
    ],
)
def test_a_hostile_pickle_is_refused_and_not_run(
    tmp_path: Path, pack_hostile: Callable[[object], bytes]
) -> None:
    path, mark = tmp_path / "states.pt", tmp_path / "mark"
    content = pack_hostile(Hostile(mark))
    path.write_bytes(content)
    refused(stepped(), path, tt.StateFileError)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()

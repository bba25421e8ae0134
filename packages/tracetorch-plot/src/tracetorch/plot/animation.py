"""Figures that move, as files: spikes as they come, feature maps as they change.

Knows writers of files, no window: a file is complete, or there is none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tracetorch.plot import style
from tracetorch.plot.activity import raster
from tracetorch.plot.arguments import Array, Data, checked_count, levels, sample_of
from tracetorch.plot.maps import arrangement, colours, feature_maps, mosaic

FRAMES = 100

Show: TypeAlias = Callable[[int], object]


def animate(
    values: Data,
    path: str | os.PathLike[str],
    *,
    fps: float = 20.0,
    every: int | None = None,
    name: str | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Path:
    """Spikes as a raster that fills with time, or feature maps timestep by timestep, as a file.

    Args:
        values: ``[T, N]`` or ``[T, B, N]`` for a raster; ``[T, B, H, W]`` or ``[T, B, C, H, W]``
            for maps; one sample is drawn. A tensor, an array, or a recording.
        path: ``….gif`` is written by Pillow, ``….mp4`` by ffmpeg. A file that is there is replaced.
        fps: frames per second, above 0.
        every: a frame for each so many timesteps, at least 1; None: as few as keep to 100 frames.
        name: which of a recording; None: the only one, or the only output (``….out``).
        sample: which one of the batch, in ``0 … B − 1``.
        ax: where to draw, its whole figure is what moves; a new figure where None.

    Returns:
        The path of the file.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: another suffix, an ``fps`` or ``every`` out of range, a shape that is another or
            empty, no such name or sample, or a value that is not finite.
        RuntimeError: ``….mp4`` where there is no ffmpeg.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Image.open(animate(torch.eye(5), f"{folder}/spikes.gif")) as image:
        ...         image.n_frames
        5
    """
    path = Path(path)
    writer = _writer(path, fps)
    found = sample_of("values", values, name=name, sample=sample, kinds=("out",))
    if every is None:
        every = -(-len(found) // FRAMES)
    timesteps = range(0, len(found), checked_count("every", every))
    draw = {2: _spikes, 3: _maps, 4: _maps}.get(found.ndim)
    if draw is None:
        raise ValueError(
            "values must be [T, N], [T, B, N], [T, B, H, W] or [T, B, C, H, W], got a sample of "
            f"{list(found.shape)}"
        )
    drawn, show = draw(ax, found)
    _write(writer, drawn.figure.figure, path, show, timesteps)
    return path


def _writer(path: Path, fps: float) -> AbstractMovieWriter:
    (rate,) = levels("fps", fps)
    if rate <= 0:
        raise ValueError(f"fps must be above 0, got {fps!r}")
    if path.suffix.lower() == ".gif":
        return PillowWriter(rate)  # type: ignore[arg-type]
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"path must end in .gif or .mp4, got {str(path)!r}")
    if not FFMpegWriter.isAvailable():
        raise RuntimeError(f"path {str(path)!r} needs ffmpeg, which is not found; .gif does not")
    return FFMpegWriter(rate)  # type: ignore[arg-type]


def _write(
    writer: AbstractMovieWriter, figure: Figure, path: Path, show: Show, timesteps: Iterable[int]
) -> None:
    """All frames into a file beside the path, which then takes its place."""
    with _settled(figure), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        with writer.saving(figure, str(unfinished), figure.dpi):
            for timestep in timesteps:
                show(timestep)
                writer.grab_frame()
        os.replace(unfinished, path)


@contextmanager
def _settled(figure: Figure) -> Iterator[None]:
    """Where things stand is found once, not for every frame again."""
    figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        if engine is not None:
            figure.set_layout_engine(engine)


def _spikes(ax: Axes | None, values: Array) -> tuple[Axes, Show]:
    """A raster of all, of which no frame shows more than has come."""
    ax = raster(values, ax=ax)
    come = Rectangle((-0.5, -0.5), 0.0, values.shape[1], transform=ax.transData)
    for artist in (*ax.collections, *ax.images):
        artist.set_clip_path(come)
    now = ax.axvline(0.0, color=style.inside(ax), linewidth=0.8)

    def show(timestep: int) -> None:
        come.set_width(timestep + 1.0)
        now.set_xdata([timestep + 0.5, timestep + 0.5])
        for artist in (*ax.collections, *ax.images):
            artist.set_clip_path(come)

    return ax, show


def _maps(ax: Axes | None, values: Array) -> tuple[Axes, Show]:
    """The maps of each timestep in the colours of all."""
    channels = values if values.ndim == 4 else values[:, None]
    ax = feature_maps(channels[0], ax=ax)
    image, columns = ax.images[0], arrangement(*channels.shape[1:])
    image.set(**colours(channels))
    title = ax.set_title("timestep 0", color=style.outside(ax), fontsize="medium")

    def show(timestep: int) -> None:
        image.set_data(mosaic(channels[timestep], columns))
        title.set_text(f"timestep {timestep}")

    return ax, show

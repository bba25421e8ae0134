"""Command lines: options and their kinds, a checkpoint to go on from, errors in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

# ------------------------------------------------------------------ options


class CommandLine(argparse.ArgumentParser):
    """A parser with a line for each option, and those that every example has.

    Args:
        script: its ``__file__``; the figure is saved beside it.
        description: its docstring.
    """

    def __init__(self, script: str, description: str | None) -> None:
        super().__init__(description=description)
        self.script = Path(script)

    def option(
        self,
        flag: str,
        kind: Callable[[str], object],
        default: object,
        text: str,
        choices: Iterable[object] | None = None,
    ) -> None:
        """One option; its default is said in the help, unless there is none."""
        said = "" if default is None else f" ({default})"
        # argparse puts values where there is a percent sign, as there may be in a file's name
        said = f"{text}{said}".replace("%", "%%")
        allowed = None if choices is None else [*choices]
        self.add_argument(flag, type=kind, default=default, choices=allowed, help=said)

    def usual(self, on_any_device: bool = True) -> None:
        """Device (of a script that runs on any), threads, seed and figure."""
        if on_any_device:
            self.option("--device", device, torch.device("cpu"), "cpu, cuda, cuda:1, ...")
        self.option("--threads", threads, 1, "CPU threads; more only where cores are idle")
        self.option("--seed", seed, 0, "of weights and order, not of what is held out")
        self.figure()

    def figure(self) -> None:
        """Where to save it; beside the script, if it is not said."""
        self.option("--figure", figure_file, self.script.with_suffix(".png"), "where to save it")

    def checkpointed(self, when: str) -> None:
        """A file to save the run to, ``when``, and whether to go on from it."""
        self.option("--checkpoint", in_a_folder, None, f"saved {when}; none without")
        self.add_argument("--resume", action="store_true", help="go on from --checkpoint")


def positive(text: str) -> int:
    """An integer from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {number}")
    return number


def share(text: str) -> float:
    """A number in 0…1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be in 0...1, got {number}")
    return number


MOST_THREADS = 1024
# an example's test is drawn from this one, whatever the seed of a run
HELD_OUT_SEED = 2**31


def seed(text: str) -> int:
    """An integer that generators take and that is not the test's own."""
    number = int(text)
    if not 0 <= number < HELD_OUT_SEED:
        raise argparse.ArgumentTypeError(f"must be in 0...{HELD_OUT_SEED - 1}, got {number}")
    return number


def threads(text: str) -> int:
    """A number of threads that a machine may have."""
    number = positive(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_THREADS}, got {number}")
    return number


def device(text: str) -> torch.device:
    """A device that torch can use here."""
    try:
        torch.zeros(1, device=text).item()
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not usable here: {first_line(error)}"
        ) from error


def folder(text: str) -> Path:
    """A folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path}")
    return path


def file(text: str) -> Path:
    """A file that exists."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def in_a_folder(text: str) -> Path:
    """A file, to be or that is, in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path


def figure_file(text: str) -> Path:
    """A file that matplotlib can write."""
    suffixes = sorted(FigureCanvasAgg.filetypes)
    if Path(text).suffix[1:] not in suffixes:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(suffixes)}")
    return in_a_folder(text)


# ------------------------------------------------------------------ a run


class Checkpoint:
    """A run's file, if it was given one.

    Args:
        options: of a command line that is ``checkpointed``.
        must_agree: the options in which a run that is gone on with may not differ.
        model: the net that learns.
        objects: by name, what else ``tt.save_checkpoint`` takes as it is: optimizers, generators,
            other nets; and plain values that a run which is gone on with may not differ in either,
            such as a digest of the data.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        must_agree: Sequence[str],
        model: nn.Module,
        **objects: Any,
    ) -> None:
        self.file, self.resume = options.checkpoint, options.resume
        self.settings = {name: getattr(options, name) for name in must_agree}
        self.model, self.objects = model, objects

    def begin(self) -> dict[str, Any]:
        """Go on from the file, and what was saved as the position; empty for a new run.

        Raises:
            ValueError: it does not fit, or would be overwritten.
            FileNotFoundError: there is none to go on from.
        """
        if self.resume:
            if self.file is None:
                raise ValueError("--resume needs the --checkpoint to go on from")
            if not self.file.exists():
                raise FileNotFoundError(f"there is no {self.file} yet; leave out --resume")
            return tt.load_checkpoint(self.file, self.model, settings=self.settings, **self.objects)
        if self.file is not None and self.file.exists():
            raise ValueError(f"{self.file} exists: go on from it with --resume, or move it")
        return {}

    def save(self, **position: Any) -> None:
        """The run as it is, at this position: numbers, text, tensors, lists and dicts of them."""
        if self.file is not None:
            tt.save_checkpoint(
                self.file, self.model, settings=self.settings, **self.objects, **position
            )


def saved_values(file: Path) -> dict[str, Any]:
    """Of a checkpoint the ``settings`` and the position by name, without its net.

    Raises:
        ValueError: it is no file of :class:`Checkpoint`, or is damaged.
        FileNotFoundError: there is none.
    """
    values = tt.checkpoint_values(file)
    if "settings" not in values:
        raise ValueError(f"{file} is no checkpoint of a run: it holds no settings")
    return values


def first_line(error: Exception) -> str:
    """Of what an error says; its kind, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """What a user can mend ends the script with one line, an interruption with none."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None

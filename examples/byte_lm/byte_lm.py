"""A language model of bytes learns from text, is measured against compressors, and writes.

The text is Python's own (``help()`` and the standard library), or any that ``--data`` names. It is
read in streams whose states are carried from step to step; the gradient is cut between them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command_line import (
    Checkpoint,
    CommandLine,
    above_zero,
    errors_in_a_line,
    in_a_folder,
    positive,
)
from compressors import LOOKS_BACK, alone, primed
from language_models import BLOCKS, SHAPES, ByteLM
from text_generation import written
from texts import Corpus, Streams, corpus

POINTS = 8  # of the curve, at equal distances in steps
WARM_UP = 0.05  # of the steps; then the step size falls to 0 in a line
LARGEST_GRADIENT = 1.0
BEFORE = b"\n"  # a text's first byte is predicted from it
READ_AT_ONCE = 2048  # timesteps of the held-out text
LINES = ("--", ":", "-.")  # of the compressors
MUST_AGREE = (
    *("model", "width", "blocks", "batch_size", "timesteps", "detach_every", "steps"),
    *("learning_rate", "seed", "text"),
)
DETERMINED = ("width", "blocks", "steps", "learning_rate")  # by the model, unless they are given

Point = list[float]  # steps, bytes read, seconds of processor time, bits per byte


# ------------------------------------------------------------------ learning


class Run:
    """A net, its optimizer and its streams, and how far it is."""

    def __init__(self, options: argparse.Namespace, texts: Corpus) -> None:
        torch.manual_seed(options.seed)
        self.options, self.texts = options, texts
        self.model = ByteLM(options.model, options.width, options.blocks).to(options.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.98))
        self.streams = Streams(
            texts.train, options.batch_size, options.timesteps, seed=options.seed
        )
        self.checkpoint = Checkpoint(options, MUST_AGREE, self.model, optimizer=self.optimizer)
        self.step, self.seconds, self.curve = 0, 0.0, list[Point]()

    def begin(self) -> None:
        """Go on from the checkpoint, if so asked."""
        if position := self.checkpoint.begin():
            self.step, self.seconds = position["step"], position["seconds"]
            self.curve = position["curve"]

    def save(self) -> None:
        """To the checkpoint, if there is to be one."""
        self.checkpoint.save(step=self.step, seconds=self.seconds, curve=self.curve)

    def advance(self) -> float:
        """One window of every stream, one step of the optimizer; bits per byte of the window."""
        began = time.process_time()
        device, every = self.options.device, self.options.detach_every
        window = self.streams.window(self.step)
        self.model.detach_states()
        if window.fresh.any():
            self.model.zero_states(window.fresh.to(device))
        logits = self.model.unroll(window.read.to(device), detach_every=every)
        loss = F.cross_entropy(logits.flatten(0, 1), window.next.flatten().to(device))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * share_of_rate(self.step, self.options.steps)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - began
        return loss.item() / math.log(2)

    def measure(self) -> None:
        """A point of the curve."""
        seen = self.step * self.options.batch_size * self.options.timesteps
        bits = bits_per_byte(self.model, self.texts.held_out)
        self.curve.append([self.step, seen, self.seconds, bits])


def share_of_rate(step: int, steps: int) -> float:
    """Of the highest step size, in 0…1."""
    return min((step + 1) / (WARM_UP * steps + 1), (steps - step) / steps)


@torch.no_grad()
def bits_per_byte(model: ByteLM, text: Tensor) -> float:
    """Of a text ``[N]`` read from its first byte to its last, each predicted from those before it.

    The model goes on with the states that it had.
    """
    device = next(model.parameters()).device
    states = model.get_states()
    model.zero_states()
    read = torch.cat([torch.tensor([*BEFORE]), text[:-1].long()])[:, None].to(device)
    next_, nats = text.long().to(device), 0.0
    for part, target in zip(read.split(READ_AT_ONCE), next_.split(READ_AT_ONCE), strict=True):
        nats += F.cross_entropy(model.unroll(part)[:, 0], target, reduction="sum").item()
    model.set_states(states)
    return nats / len(text) / math.log(2)


def learn(run: Run) -> None:
    """Up to the last step, or the one to stop at; points of the curve and checkpoints meanwhile."""
    last = min(run.options.steps, run.options.stop_at or run.options.steps)
    points = {run.options.steps * point // POINTS for point in range(1, POINTS + 1)}
    bar = tqdm(range(run.step, last), initial=run.step, total=last, desc="learning")
    mean = None
    for _ in bar:
        bits = run.advance()
        mean = bits if mean is None else 0.98 * mean + 0.02 * bits
        bar.set_postfix(bits_per_byte=f"{mean:.2f}")
        if run.step in points:
            run.measure()
        if run.step in points or run.step == last:
            run.save()


# ------------------------------------------------------------------ what came of it


def results_of(run: Run) -> dict[str, Any]:
    """What is said, drawn and written to a file."""
    held_out = run.texts.held_out.numpy().tobytes()
    return {
        "model": run.options.model,
        "seed": run.options.seed,
        "parameters": run.model.num_parameters().total,
        "text": run.options.text,
        "curve": run.curve,
        "alone": alone(held_out),
        "primed": primed(held_out, run.texts.train[-LOOKS_BACK:].numpy().tobytes()),
    }


def say(results: dict[str, Any], bits: float, seconds: float) -> None:
    """The table of bits per byte."""
    name = f"{results['model']}, {results['parameters']:,} parameters"
    rows = {name: bits, **{f"{n} of it alone": b for n, b in results["alone"].items()}}
    rows |= {f"{n} primed with the rest": b for n, b in results["primed"].items()}
    print(f"text: {results['text']} held out; {seconds:.0f} s of processor time")
    for row, number in rows.items():
        print(f"{row:<40} {number:6.3f} bits per byte")


def save_figure(results: dict[str, Any], file: Path) -> None:
    """The learning curve, and the compressors as lines across it."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    ax = figure.subplots()
    _, read, _, bits = zip(*results["curve"], strict=True)
    ax.plot([number / 1e6 for number in read], bits, marker=".", label="the model")
    for style, (name, level) in zip(LINES, results["alone"].items(), strict=True):
        ax.axhline(level, color="0.4", linewidth=1.0, linestyle=style, label=name)
    ax.set(xlabel="text read [MB]", ylabel="held-out text [bits per byte]")
    ax.set_title(f"{results['model']}, {results['parameters']:,} parameters")
    ax.legend()
    figure.savefig(file, dpi=120)


def write_text(run: Run) -> None:
    """What comes after the prompt, and how fast it came."""
    options = run.options
    prompt = BEFORE + options.generate.encode()
    generator = torch.Generator().manual_seed(options.seed)
    began = time.perf_counter()
    text = written(run.model, prompt, options.length, options.temperature, generator)
    rate = options.length / (time.perf_counter() - began)
    print(f"{options.generate}{text.decode(errors='replace')}")
    print(f"[{rate:.0f} tokens per second]")


# ------------------------------------------------------------------ the command line


def file_or_folder(text: str) -> Path:
    """One that exists."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder {path}")
    return path


def command_line() -> CommandLine:
    """The options."""
    parser = CommandLine(__file__, __doc__)
    said = "of the model's own"
    parser.add_argument("--model", choices=[*BLOCKS], default="mamba", help="(%(default)s)")
    parser.option("--data", file_or_folder, None, "text; Python's own without")
    parser.option("--width", positive, None, f"between blocks; {said} without")
    parser.option("--blocks", positive, None, f"how many; {said} without")
    parser.option("--batch-size", positive, 16, "streams")
    parser.option("--timesteps", positive, 64, "of each stream per step")
    parser.option("--detach-every", positive, None, "timesteps, the gradient is cut; --timesteps")
    parser.option("--steps", positive, None, f"of the optimizer, in all; {said} without")
    parser.option("--stop-at", positive, None, "step, to go on from later with --resume")
    parser.option("--learning-rate", above_zero, None, f"of Adam; {said} without")
    parser.usual()
    parser.checkpointed(f"{POINTS} times and at the end")
    parser.option("--results", in_a_folder, None, "JSON, for bits_curves.py; none without")
    parser.option("--generate", str, None, "a prompt to go on from, in the end")
    parser.option("--length", positive, 400, "bytes of what is generated")
    parser.option("--temperature", above_zero, 0.7, "of what is generated")
    return parser


def determined(options: argparse.Namespace, texts: Corpus) -> argparse.Namespace:
    """The options, with what follows from others."""
    for name in DETERMINED:
        if getattr(options, name) is None:
            setattr(options, name, getattr(SHAPES[options.model], name))
    options.detach_every = options.detach_every or options.timesteps
    options.text = texts.signature()
    return options


def main() -> None:
    """Learn, measure, draw and write, by the command line's options."""
    options = command_line().parse_args()
    torch.set_num_threads(options.threads)
    with errors_in_a_line():
        texts = corpus(options.data)
        run = Run(determined(options, texts), texts)
        run.begin()
        learn(run)
        finish(run)


def finish(run: Run) -> None:
    """What is to be said and saved of it as it is."""
    options, results = run.options, results_of(run)
    measured = bool(run.curve) and run.curve[-1][0] == run.step
    bits = run.curve[-1][-1] if measured else bits_per_byte(run.model, run.texts.held_out)
    say(results, bits, run.seconds)
    if options.results:
        options.results.write_text(json.dumps(results))
    if run.curve:
        save_figure(results, options.figure)
        print(f"figure: {options.figure}")
    if options.generate is not None:
        write_text(run)


if __name__ == "__main__":
    main()

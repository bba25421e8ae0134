"""Learns which birds sing in recordings, listens to soundscapes, and writes a submission.

The data are those of BirdCLEF+ 2026 or, without --data, synthetic ones in the same layout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bird_corpus import Corpus, read_corpus, row_id, write_table
from bird_figures import save_figure
from bird_nets import NETS, TIMESTEPS, BirdNet, patches, pooled
from bird_scores import macro_roc_auc
from bird_songs import Size, synthesise
from bird_sounds import SAMPLE_RATE, read_any_sound, read_sound
from bird_streams import Frames, Streams, class_weights, examples_of, heard_in, multi_hot
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from tracetorch import measures, snn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import command_line

# in which a run that is gone on with may not differ; the last is that of the data
AGREED = ("model", "batch", "learning_rate", "mixup", "held_out", "seed", "fingerprint")
CORPUS_SEED = 2026
FITTED = 200  # examples whose frames are normalised and, if it spikes, the net calibrated by
CALIBRATED = 16
TOGETHER = 16  # soundscapes that are listened to at a time


class Run:
    """A net that learns from a corpus.

    Args:
        options: of the command line.
        corpus: whose audio has been checked.
    """

    def __init__(self, options: argparse.Namespace, corpus: Corpus) -> None:
        self.corpus, self.kind, self.device = corpus, options.model, options.device
        apart = torch.Generator().manual_seed(command_line.HELD_OUT_SEED)
        learned, self.held_out = corpus.held_out(options.held_out, apart)
        self.frames = Frames(options.room * 1e9)
        self.examples = examples_of(corpus.recordings, learned)
        self.generator = torch.Generator().manual_seed(options.seed)
        labels = len(corpus.labels)
        chance = (options.mixup, self.generator)
        self.streams = Streams(self.examples, labels, self.frames, options.batch, *chance)
        torch.manual_seed(options.seed)
        self.net = BirdNet(self.kind, labels).to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), options.learning_rate)
        self.weights = class_weights(self.examples, labels).to(self.device)
        self.curves: dict[str, list[float]] = {"loss": [], "macro ROC-AUC": []}
        heard = [windows[k] for windows in self.held_out.values() for k in sorted(windows)]
        self.truth = multi_hot(heard, labels).bool()
        macro_roc_auc(torch.zeros(self.truth.shape), self.truth)  # raises now, not after an epoch

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.curves["loss"])

    def prepare(self) -> None:
        """Normalise by some examples; of a spiking net, scale weights until every layer fires."""
        generator = torch.Generator().manual_seed(command_line.HELD_OUT_SEED)
        some = torch.randperm(len(self.examples), generator=generator)[:FITTED].tolist()
        frames = torch.stack(
            [self.frames.window(self.examples[place], generator) for place in some]
        ).to(self.device)
        self.net.normal.fit(frames)
        if self.kind == "spiking":
            snn.init.calibrate(self.net, patches(frames[:CALIBRATED]), rate=(0.05, 0.2))

    def learn(self) -> None:
        """An epoch: a window of every stream at a time, states carried on and the graph cut."""
        losses = []
        for frames, heard, fresh in self.streams.epoch():
            self.net.detach_states()
            self.net.zero_states(fresh.to(self.device))
            logits = pooled(self.net.unroll(patches(frames.to(self.device))))
            loss = F.binary_cross_entropy_with_logits(
                logits, heard.to(self.device), pos_weight=self.weights
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        self.curves["loss"].append(sum(losses) / len(losses))
        self.curves["macro ROC-AUC"].append(self.test()[0])

    def test(self) -> tuple[float, list[float]]:
        """ROC-AUC on the held-out soundscapes: the mean, and of each label."""
        scores = self.listen(list(self.held_out))
        found = [scores[file][sorted(windows)] for file, windows in self.held_out.items()]
        return macro_roc_auc(torch.cat(found), self.truth)

    def listen(self, files: list[Path]) -> dict[Path, Tensor]:
        """Logits of every window of these soundscapes ``[windows, labels]``."""
        found: dict[Path, Tensor] = {}
        for start in range(0, len(files), TOGETHER):
            some = files[start : start + TOGETHER]
            frames = [self.frames.soundscape(file) for file in some]
            found |= dict(zip(some, heard_in(self.net, frames), strict=True))
        return found


def learn(run: Run, epochs: int, checkpoint: command_line.Checkpoint) -> None:
    """Up to so many epochs, counted from the run's beginning."""
    bar = tqdm(range(run.epoch, epochs), initial=run.epoch, total=epochs, desc="learning")
    for _ in bar:
        run.learn()
        bar.set_postfix({name: f"{curve[-1]:.3f}" for name, curve in run.curves.items()})
        checkpoint.save(curves=run.curves)


# ------------------------------------------------------------------ results


def report(run: Run) -> None:
    """How good it is on the held-out soundscapes, and what a minute costs."""
    mean, areas = run.test()
    windows = sum(map(len, run.held_out.values()))
    for label, area in zip(run.corpus.labels, areas, strict=True):
        if area == area:
            print(f"  {label}: {area:.3f}")
    counting = sum(area == area for area in areas)
    print(f"held out: {len(run.held_out)} soundscapes, {windows} labelled windows of 5 s")
    print(f"macro ROC-AUC: {mean:.4f} over {counting} labels that are heard, of {len(areas)}")
    file = next(iter(run.held_out))
    x = patches(run.frames.soundscape(file)[None].to(run.device))
    run.net.zero_states()
    total = measures.operations(run.net, x).total
    minutes = len(x) / TIMESTEPS / 12
    print(
        f"a minute: {total.dense / minutes / 1e6:.1f} M operations if none is skipped; effective "
        f"{total.macs / minutes / 1e6:.1f} M multiply-accumulates and "
        f"{total.acs / minutes / 1e6:.1f} M accumulates, "
        f"{measures.energy(total) / minutes * 1e6:.0f} uJ"
    )


def submit(run: Run, rows: tuple[str, ...], file: Path) -> None:
    """Probabilities of every row that is asked for, in the columns that are asked for."""
    chances = {}
    for soundscape, logits in run.listen(list(run.corpus.tests)).items():
        for window, row in enumerate(logits.sigmoid().tolist()):
            chances[row_id(soundscape, window)] = [f"{chance:.6f}" for chance in row]
    columns = ("row_id", *run.corpus.labels)
    write_table(file, columns, ((row, *chances[row]) for row in rows))
    print(f"submission: {file}, {len(rows)} rows")


def draw(run: Run, file: Path, sound: Path | None) -> None:
    """The curve, and a held-out soundscape in which much is heard, or a sound of your own."""
    if sound is None:
        held_out = run.held_out
        busiest = max(held_out, key=lambda name: len(frozenset().union(*held_out[name].values())))
        truth, waveform, curves = held_out[busiest], read_sound(busiest), run.curves
    else:
        busiest, truth, waveform, curves = sound, None, read_any_sound(sound), {}
    frames, seconds = run.frames.of(waveform), len(waveform) / SAMPLE_RATE
    save_figure(
        *(file, run.net, run.kind, run.corpus.labels, frames, seconds, busiest.name),
        *(curves, truth),
    )
    print(f"figure: {file}")


# ------------------------------------------------------------------ command line


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    line = command_line.CommandLine(__file__, __doc__)
    line.option("--data", command_line.folder, None, "the real data, or any in their layout")
    line.option("--corpus", Path, None, "folder to keep synthetic data in; none without")
    line.add_argument("--model", choices=[*NETS], default="ssm", help="(%(default)s)")
    line.option("--epochs", command_line.positive, 16, "from the run's beginning")
    line.option("--batch", command_line.positive, 16, "streams at a time")
    line.option("--learning-rate", command_line.above_zero, 2e-3, "of Adam")
    line.option("--mixup", command_line.share, 0.5, "share of windows that get another mixed in")
    line.option("--held-out", command_line.share, 0.4, "share of the labelled soundscapes")
    line.option("--room", command_line.above_zero, 2.0, "gigabytes for frames that are kept")
    line.option("--listen", command_line.file, None, "draw this sound instead of a soundscape")
    submission = Path(__file__).with_name("submission.csv")
    line.option("--submission", command_line.in_a_folder, submission, "where to write it")
    line.usual()
    line.checkpointed("after every epoch")
    return line.parse_args(arguments)


@contextmanager
def data_of(options: argparse.Namespace) -> Iterator[Path]:
    """The folder that is read: the user's, or one that synthetic data are written to."""
    if options.data is not None:
        yield options.data
    elif options.corpus is not None:
        synthesise(options.corpus, Size(), CORPUS_SEED)
        yield options.corpus
    else:
        with tempfile.TemporaryDirectory() as folder:
            synthesise(Path(folder) / "birds", Size(), CORPUS_SEED)
            yield Path(folder) / "birds"


def main() -> None:
    """Learn, test, submit and draw, by the command line's options."""
    options = options_of()
    torch.set_num_threads(options.threads)
    with command_line.errors_in_a_line(), data_of(options) as folder:
        corpus = read_corpus(folder)
        corpus.check_audio()
        rows = corpus.asked()
        if options.listen is not None:
            read_any_sound(options.listen)
        if corpus.unknown:
            print(f"not in taxonomy.csv, left out: {', '.join(corpus.unknown)}")
        options.fingerprint = corpus.fingerprint
        run = Run(options, corpus)
        checkpoint = command_line.Checkpoint(
            options, AGREED, run.net, optimizer=run.optimizer, generator=run.generator
        )
        run.curves = checkpoint.begin().get("curves", run.curves)
        if not run.epoch:
            run.prepare()
        learn(run, options.epochs, checkpoint)
        report(run)
        if rows:
            submit(run, rows, options.submission)
        else:
            print("no test soundscapes: nothing to submit")
        draw(run, options.figure, options.listen)


if __name__ == "__main__":
    main()

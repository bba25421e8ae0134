"""A synthetic corpus in the layout of BirdCLEF+ 2026: eight made-up species. Knows no network.

Nothing in it was recorded. Individuals of a species differ in pitch, tempo and timbre; a
recording holds one of them near the microphone, a soundscape several at different distances, over
each other and over noise, none of which is in another file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from bird_corpus import TAXONOMY, TRAIN, WINDOWS, row_id, write_table
from bird_sounds import SAMPLE_RATE, WINDOW_SECONDS
from numpy.typing import NDArray
from tqdm import tqdm

Wave = NDArray[np.float64]  # [samples]
FORMAT = "synthetic birds 1"
HARMONICS = range(1, 9)
FALL = 4600.0, 2100.0  # Hz
STREAMS = {"Train": 1, "Test": 2}  # of random numbers; recordings have 0
HEARD = 0.25  # seconds of a song within a window that make it heard there

# ------------------------------------------------------------------ individuals and their songs


@dataclass(frozen=True)
class Individual:
    """A singer: pitch and tempo as factors, timbre in 0…1, and a generator for what varies."""

    pitch: float
    tempo: float
    timbre: float
    random: np.random.Generator

    @classmethod
    def born(cls, random: np.random.Generator) -> Individual:
        """One of its own."""
        pitch, tempo = np.exp(random.normal(0.0, (0.08, 0.12)))
        return cls(float(pitch), float(tempo), float(random.random()), random)

    def samples(self, seconds: float) -> int:
        """Of something that takes so long on average."""
        return round(seconds / self.tempo * np.exp(self.random.normal(0.0, 0.05)) * SAMPLE_RATE)

    def note(self, hertz: Wave) -> Wave:
        """A tone along these frequencies, faded in and out, with a weak octave as is its timbre."""
        drift = self.pitch * np.exp(self.random.normal(0.0, 0.01))
        phase = 2 * np.pi * np.cumsum(hertz * drift) / SAMPLE_RATE + self.random.uniform(0, 6.28)
        tone: Wave = np.sin(phase) + 0.3 * self.timbre * np.sin(2 * phase)
        return tone * faded(len(hertz))

    def hiss(self, samples: int, low: float, high: float) -> Wave:
        """Noise between two frequencies in Hz, faded in and out."""
        spectrum = np.fft.rfft(self.random.normal(size=samples))
        hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
        spectrum[(hertz < low * self.pitch) | (hertz > high * self.pitch)] = 0
        noise = np.fft.irfft(spectrum, samples)
        return noise / (noise.std() + 1e-9) * faded(samples)


def faded(samples: int) -> Wave:
    """0 to 1 within a fifth of the samples, and back at the end."""
    up = np.linspace(0, 5, samples)
    return np.minimum(np.minimum(up, up[::-1]), 1.0)


def apart(notes: Sequence[Wave], rest: int) -> Wave:
    """One after the other, with as many silent samples between them."""
    silence = np.zeros(rest)
    return np.concatenate([part for note in notes for part in (note, silence)][:-1])


def sweep(bird: Individual, start: float, end: float) -> Wave:
    """Three notes that glide from one frequency to the other."""
    notes = [np.geomspace(start, end, bird.samples(0.3)) for _ in range(3)]
    return apart([bird.note(note) for note in notes], bird.samples(0.12))


def trill(bird: Individual) -> Wave:
    """A fast run of equal, short notes."""
    count = bird.random.integers(16, 30)
    notes = [bird.note(np.linspace(5200, 4900, bird.samples(0.035))) for _ in range(count)]
    return apart(notes, bird.samples(0.02))


def two_notes(bird: Individual) -> Wave:
    """High and low in turn."""
    notes = [np.full(bird.samples(0.14), hertz) for _ in range(4) for hertz in (3700.0, 2900.0)]
    return apart([bird.note(note) for note in notes], bird.samples(0.05))


def caw(bird: Individual) -> Wave:
    """Three calls of many harmonics that rise and fall together."""
    calls = []
    for _ in range(3):
        bend = np.sin(np.linspace(0, np.pi, bird.samples(0.35)))
        calls.append(np.sum([bird.note(k * (560 + 180 * bend)) / k**0.5 for k in HARMONICS], 0))
    return apart(calls, bird.samples(0.2))


def warble(bird: Individual) -> Wave:
    """A long note that swings around its pitch."""
    t = np.arange(bird.samples(1.3)) / SAMPLE_RATE
    return bird.note(3400 + 700 * np.sin(2 * np.pi * 9 * bird.tempo * t))


def croak(bird: Individual) -> Wave:
    """Pulses of low noise."""
    pulses = [bird.hiss(bird.samples(0.09), 900, 2200) for _ in range(bird.random.integers(5, 9))]
    return apart(pulses, bird.samples(0.11))


def buzz(bird: Individual) -> Wave:
    """A long, high noise that pulsates."""
    noise = bird.hiss(bird.samples(2.5), 6400, 7800)
    t = np.arange(len(noise)) / SAMPLE_RATE
    return noise * (0.55 + 0.45 * np.sin(2 * np.pi * 30 * bird.tempo * t))


class Species(NamedTuple):
    """A row of the taxonomy, how it sings, and how often it is recorded."""

    label: str
    taxon: str
    class_name: str
    name: str
    sing: Callable[[Individual], Wave]
    common: float

    def row(self, columns: Sequence[str], **more: str) -> list[str]:
        """What a table says of it; what is not known is empty."""
        said = {
            "primary_label": self.label,
            "inat_taxon_id": self.taxon,
            "scientific_name": f"Synthesis {self.name.replace(' ', '-')}",
            "common_name": f"Synthetic {self.name}",
            "class_name": self.class_name,
            "author": "bird_songs.py",
            "collection": "synthetic",
            "rating": "0.0",
        }
        return [(said | more).get(column, "") for column in columns]


SPECIES = (
    Species("1161364", "1161364", "Amphibia", "croaker", croak, 0.6),
    Species("47158son01", "47158", "Insecta", "buzzer", buzz, 0.8),
    Species("caller1", "900003", "Aves", "cawing caller", caw, 1.0),
    Species("faller1", "900004", "Aves", "falling chirper", lambda bird: sweep(bird, *FALL), 1.3),
    Species(
        "riser1", "900005", "Aves", "rising chirper", lambda bird: sweep(bird, *FALL[::-1]), 1.0
    ),
    Species("triller1", "900006", "Aves", "triller", trill, 1.6),
    Species("twonote1", "900007", "Aves", "two-noter", two_notes, 1.0),
    Species("warbler1", "900008", "Aves", "warbler", warble, 0.7),
)

# ------------------------------------------------------------------ sounds


def background(random: np.random.Generator, samples: int) -> Wave:
    """Noise that falls towards high frequencies, swelling and fading like wind; deviation 1."""
    size = 2 ** (samples - 1).bit_length()  # of which a Fourier transform is fast
    spectrum = np.fft.rfft(random.normal(size=size))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.maximum(hertz, 100) ** random.uniform(0.3, 0.8))[:samples]
    knots = np.exp(random.normal(0, 0.4, size=samples // (2 * SAMPLE_RATE) + 2))
    noise *= np.interp(np.linspace(0, len(knots) - 1, samples), np.arange(len(knots)), knots)
    return noise / noise.std()


def far_away(song: Wave, random: np.random.Generator, decibels: float) -> Wave:
    """A song so much louder than a background of deviation 1, with echoes of it."""
    song = song / np.sqrt(np.mean(song**2)) * 10 ** (decibels / 20)
    wet = np.concatenate([song, np.zeros(SAMPLE_RATE // 5)])
    for _ in range(3):
        delay = random.integers(SAMPLE_RATE // 100, SAMPLE_RATE // 5)
        wet[delay : delay + len(song)] += random.uniform(0, 0.3) * song
    return wet


def put(sound: Wave, song: Wave, at: int) -> None:
    """Add it there, as far as it reaches."""
    part = song[: len(sound) - at]
    sound[at : at + len(part)] += part


def recording(species: Species, other: Species | None, random: np.random.Generator) -> Wave:
    """Some seconds of one individual that is near, and of another species far behind it."""
    sound = background(random, round(random.uniform(6, 9) * SAMPLE_RATE))
    for kind, decibels in ((species, random.uniform(0, 16)), (other, random.uniform(-10, -2))):
        if kind is None:
            continue
        bird, at = Individual.born(random), round(random.uniform(0, 0.6) * SAMPLE_RATE)
        while at < len(sound) - SAMPLE_RATE // 2:
            song = far_away(kind.sing(bird), random, decibels)
            put(sound, song, at)
            at += len(song) + round(random.uniform(0.1, 1.2) * SAMPLE_RATE)
    return sound


def soundscape(seconds: int, random: np.random.Generator) -> tuple[Wave, list[set[str]]]:
    """A place for so many seconds, and the labels that are heard in each window of it."""
    sound = background(random, seconds * SAMPLE_RATE)
    heard: list[set[str]] = [set() for _ in range(seconds // WINDOW_SECONDS)]
    for species in SPECIES:
        if random.random() > 0.4:
            continue
        bird, decibels = Individual.born(random), random.uniform(-10, 8)
        for _ in range(random.integers(1, 2 + seconds // 12)):
            song = species.sing(bird)
            at = int(random.integers(0, max(1, len(sound) - len(song))))
            put(sound, far_away(song, random, decibels + random.normal(0, 1)), at)
            for window, labels in enumerate(heard):
                start, end = (k * WINDOW_SECONDS * SAMPLE_RATE for k in (window, window + 1))
                if min(at + len(song), end) - max(at, start) >= HEARD * SAMPLE_RATE:
                    labels.add(species.label)
    return sound, heard


# ------------------------------------------------------------------ the corpus


@dataclass(frozen=True)
class Size:
    """Of a corpus: recordings of a species on average, soundscapes and their seconds."""

    recordings: int = 24
    soundscapes: int = 28
    tests: int = 3
    seconds: int = 60


def synthesise(folder: Path, size: Size, seed: int) -> None:
    """Write the corpus of this seed into a folder that is empty or absent.

    One that holds this very corpus is left as it is, and finished if it was interrupted.

    Raises:
        ValueError: something else is in it.
    """
    said = {"format": FORMAT, "seed": seed, **asdict(size)}
    mark = folder / "synthetic.json"
    whole, begun = (json.dumps(said | {"finished": finished}) for finished in (True, False))
    there = mark.read_text() if mark.is_file() else ""
    if there == whole:
        return
    if there != begun and folder.exists() and any(folder.iterdir()):
        what = "another" if there else "no"
        raise ValueError(f"{folder} is not empty and holds {what} synthetic corpus")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(begun)
    _write(folder, size, seed)
    mark.write_text(whole)


def _write(folder: Path, size: Size, seed: int) -> None:
    write_table(folder / "taxonomy.csv", TAXONOMY, [species.row(TAXONOMY) for species in SPECIES])
    singers = [
        species for species in SPECIES for _ in range(round(species.common * size.recordings))
    ]
    with tqdm(total=len(singers) + size.soundscapes + size.tests, desc="synthesising") as bar:
        rows = []
        for number, species in enumerate(singers):
            random = np.random.default_rng([seed, 0, number])
            others = [other for other in SPECIES if other is not species]
            other = others[random.integers(len(others))] if random.random() < 0.25 else None
            name = f"{species.label}/XS{number:06d}.ogg"
            write_sound(folder / "train_audio" / name, recording(species, other, random), random)
            second = str([other.label] if other else [])
            rows.append(species.row(TRAIN, secondary_labels=second, filename=name))
            bar.update()
        write_table(folder / "train.csv", TRAIN, rows)
        labels = _write_soundscapes(folder, "Train", size.soundscapes, size.seconds, seed, bar)
        write_table(folder / "train_soundscapes_labels.csv", WINDOWS, labels)
        windows = _write_soundscapes(folder, "Test", size.tests, size.seconds, seed, bar)
    even = [1 / len(SPECIES)] * len(SPECIES)
    asked = [[row_id(Path(row[0]), int(row[1]) // WINDOW_SECONDS), *even] for row in windows]
    columns = ("row_id", *(species.label for species in SPECIES))
    write_table(folder / "sample_submission.csv", columns, asked)


def _write_soundscapes(
    folder: Path, kind: str, count: int, seconds: int, seed: int, bar: tqdm[Any]
) -> list[tuple[str, str, str, str]]:
    """Their windows, as rows; of some that of the labels comes twice, as in the real table."""
    rows = []
    for number in range(count):
        random = np.random.default_rng([seed, STREAMS[kind], number])
        name = f"BC2026_{kind}_{number:04d}_S{number % 5:02d}_20260101_050000.ogg"
        sound, heard = soundscape(seconds, random)
        write_sound(folder / f"{kind.lower()}_soundscapes" / name, sound, random)
        for window, labels in enumerate(heard):
            start, end = (str(k * WINDOW_SECONDS) for k in (window, window + 1))
            row = (name, start, end, ";".join(sorted(labels)))
            rows += [row] * (2 if kind == "Train" and random.random() < 0.05 else 1)
        bar.update()
    return rows


def write_sound(file: Path, sound: Wave, random: np.random.Generator) -> None:
    """A file of Ogg Vorbis at 32 kHz, as loud as chance has it, never clipped.

    In blocks, for libsndfile's encoder takes a long sound at once on its stack.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sound = sound / np.abs(sound).max() * 10 ** random.uniform(-0.8, -0.1)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, format="OGG", subtype="VORBIS") as stream:
        for start in range(0, len(sound), SAMPLE_RATE):
            stream.write(sound[start : start + SAMPLE_RATE])

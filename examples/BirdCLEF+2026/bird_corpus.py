"""A folder in the layout of BirdCLEF+ 2026, read and checked. Knows no network and no score.

Labels are text, never numbers. What is wrong is a ``ValueError`` or ``FileNotFoundError`` that
names file and line.
"""

from __future__ import annotations

import ast
import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bird_sounds import WINDOW_SECONDS, check_sound, windows_of
from tqdm import tqdm

TAXONOMY = ("primary_label", "inat_taxon_id", "scientific_name", "common_name", "class_name")
TRAIN = (
    *("primary_label", "secondary_labels", "type", "latitude", "longitude", "scientific_name"),
    *("common_name", "class_name", "inat_taxon_id", "author", "license", "rating", "url"),
    *("filename", "collection"),
)
WINDOWS = ("filename", "start", "end", "primary_label")

Classes = frozenset[int]  # places of labels in the taxonomy


@dataclass(frozen=True)
class Corpus:
    """What can be learned from and what is asked for.

    Attributes:
        labels: of the taxonomy's rows, in their order: the classes, the submission's columns.
        recordings: by file, the classes that are heard somewhere in it.
        soundscapes: by file, the classes of each of its windows that somebody has labelled; window
            ``k`` is the seconds from ``5 k`` to ``5 (k + 1)``.
        tests: files that predictions are asked for.
        rows: that ``sample_submission.csv`` has.
        unknown: secondary labels that the taxonomy does not have, and which were left out.
    """

    labels: tuple[str, ...]
    recordings: dict[Path, Classes]
    soundscapes: dict[Path, dict[int, Classes]]
    tests: tuple[Path, ...]
    rows: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of audio."""
        return (*self.recordings, *self.soundscapes, *self.tests)

    @property
    def fingerprint(self) -> str:
        """Of labels, names of files and what is heard in them; the same wherever the folder is."""
        found = hashlib.sha256(repr(self.labels).encode())
        for file, classes in self.recordings.items():
            found.update(f"{file.parent.name}/{file.name}{sorted(classes)}".encode())
        for file, windows in self.soundscapes.items():
            found.update(f"{file.name}{[(k, sorted(windows[k])) for k in windows]}".encode())
        return found.hexdigest()[:16]

    def check_audio(self) -> None:
        """Look at the header and the end of every file.

        Raises:
            ValueError: one cannot be read, or labels go on where its sound has ended.
        """
        for file in tqdm(self.files, desc="checking audio"):
            check_sound(file)
        for file, windows in self.soundscapes.items():
            if max(windows) >= windows_of(file):
                raise ValueError(
                    f"train_soundscapes_labels.csv labels {row_id(file, max(windows))}, but {file} "
                    f"ends before"
                )

    def asked(self) -> tuple[str, ...]:
        """The submission's rows: the sample's, then what it leaves out of the test soundscapes.

        None where there are none of those, as in what the competition gives away.

        Raises:
            ValueError: the sample has a row that is of no test soundscape.
        """
        if not self.tests:
            return ()
        rows = {row_id(file, k): None for file in self.tests for k in range(windows_of(file))}
        if amiss := [row for row in self.rows if row not in rows]:
            raise ValueError(
                f"sample_submission.csv asks for {amiss[0]}, which is no window of a file in "
                f"test_soundscapes"
            )
        return tuple(dict.fromkeys([*self.rows, *rows]))

    def held_out(
        self, share: float, generator: torch.Generator
    ) -> tuple[dict[Path, dict[int, Classes]], dict[Path, dict[int, Classes]]]:
        """Labelled soundscapes to learn from, and those to be held out: at least one, whole files.

        Raises:
            ValueError: there is none.
        """
        if not self.soundscapes:
            raise ValueError("train_soundscapes_labels.csv has no row: nothing can be held out")
        names = sorted(self.soundscapes)
        count = max(1, round(share * len(names)))
        drawn = set(torch.randperm(len(names), generator=generator)[:count].tolist())
        parts: tuple[dict[Path, dict[int, Classes]], ...] = ({}, {})
        for place, name in enumerate(names):
            parts[place in drawn][name] = self.soundscapes[name]
        return parts[0], parts[1]


def row_id(soundscape: Path, window: int) -> str:
    """What the submission calls a window: the file's stem and the window's end in seconds."""
    return f"{soundscape.stem}_{(window + 1) * WINDOW_SECONDS}"


def read_corpus(folder: Path) -> Corpus:
    """Everything but the audio, of which it is only seen that it is there.

    Raises:
        FileNotFoundError: a table or an audio file that a table names is not there.
        ValueError: a table has not the columns it should, or says what cannot be.
    """
    labels = read_taxonomy(folder / "taxonomy.csv")
    places = {label: place for place, label in enumerate(labels)}
    recordings, unknown = _recordings(folder, places)
    windows = folder / "train_soundscapes_labels.csv"
    if not windows.is_file():
        windows = folder / "train_soundscapes" / windows.name
    soundscapes = read_windows(windows, folder / "train_soundscapes", places)
    tests = tuple(sorted((folder / "test_soundscapes").glob("*.ogg")))
    rows = read_rows(folder / "sample_submission.csv", labels)
    return Corpus(labels, recordings, soundscapes, tests, rows, unknown)


def read_taxonomy(file: Path) -> tuple[str, ...]:
    """Its labels, in the order of its rows."""
    labels: list[str] = []
    for place, row in table(file, TAXONOMY):
        if not row["primary_label"] or row["primary_label"] in labels:
            raise ValueError(f"{place}: the label {row['primary_label']!r} is empty or comes twice")
        labels.append(row["primary_label"])
    if not labels:
        raise ValueError(f"{file} has no row")
    return tuple(labels)


def _recordings(
    folder: Path, places: dict[str, int]
) -> tuple[dict[Path, Classes], tuple[str, ...]]:
    found: dict[Path, Classes] = {}
    unknown: set[str] = set()
    for place, row in table(folder / "train.csv", TRAIN):
        second = set(_listed(place, row["secondary_labels"]))
        unknown |= second - places.keys()
        named = [row["primary_label"], *(second & places.keys())]
        file = _there(place, folder / "train_audio", row["filename"])
        found[file] = found.get(file, frozenset()) | _classes(place, named, places)
    if not found:
        raise ValueError(f"{folder / 'train.csv'} has no row")
    return found, tuple(sorted(unknown))


def read_windows(file: Path, audio: Path, places: dict[str, int]) -> dict[Path, dict[int, Classes]]:
    """By soundscape and window, the classes heard; what several rows say of a window is joined.

    A row without a label says that nothing is heard. A window without a row is not in the result.

    Args:
        file: the table; ``start`` and ``end`` in seconds, or as ``hours:minutes:seconds``.
        audio: the folder of the soundscapes.
        places: of the labels among the classes.
    """
    found: dict[Path, dict[int, Classes]] = {}
    for place, row in table(file, WINDOWS):
        start, end = _seconds(place, row["start"]), _seconds(place, row["end"])
        first = round(start / WINDOW_SECONDS)
        if (start, end) != (first * WINDOW_SECONDS, (first + 1) * WINDOW_SECONDS):
            raise ValueError(
                f"{place}: from {row['start']} to {row['end']} is no window of {WINDOW_SECONDS} s"
            )
        named = [label.strip() for label in row["primary_label"].split(";") if label.strip()]
        windows = found.setdefault(_there(place, audio, row["filename"]), {})
        windows[first] = windows.get(first, frozenset()) | _classes(place, named, places)
    return found


def read_rows(file: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """The rows that a submission is asked for.

    Raises:
        ValueError: its columns are not ``row_id`` and the taxonomy's labels in their order.
    """
    wanted = ("row_id", *labels)
    rows = []
    for _, row in table(file, wanted):
        if tuple(row) != wanted:
            raise ValueError(
                f"{file} has not the columns row_id and the taxonomy's labels, in order"
            )
        rows.append(row["row_id"])
    return tuple(rows)


def table(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table that has these columns, each with the words that name its place.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lacks a column, or a row has more or fewer fields than there are columns.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        try:
            reader = csv.reader(stream)
            header = next(reader, [])
            if lacking := [name for name in columns if name not in header]:
                more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
                raise ValueError(f"{file} lacks the columns {', '.join(lacking[:3])}{more}")
            for fields in filter(None, reader):
                place = f"{file}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise ValueError(
                        f"{place}: {len(fields)} fields, where {len(header)} should be"
                    )
                yield place, dict(zip(header, fields, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read as a table: {error}") from error


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table, in place of one that is there only when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    with open(beside, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    beside.replace(file)


def _classes(place: str, named: Sequence[str], places: dict[str, int]) -> Classes:
    for label in named:
        if label not in places:
            raise ValueError(f"{place}: the label {label!r} is not in taxonomy.csv")
    return frozenset(places[label] for label in named)


def _listed(place: str, text: str) -> list[str]:
    """Of a Python list as text; empty labels are none."""
    try:
        listed = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(label, str) for label in listed):
        raise ValueError(f"{place}: secondary_labels is no list of labels in quotes: {text!r}")
    return [label for label in listed if label]


def _seconds(place: str, text: str) -> float:
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        raise ValueError(f"{place}: {text!r} is no time") from None
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def _there(place: str, folder: Path, name: str) -> Path:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{place}: there is no file {file}")
    return file

"""The birds example: the layout read, sounds, scores, minutes in pieces, resumption, bad input."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile", reason="the birds example reads audio by soundfile")

FOLDER = Path(__file__).parents[1] / "examples" / "BirdCLEF+2026"
RATE = 32_000
TRAIN = (
    "primary_label,secondary_labels,type,latitude,longitude,scientific_name,common_name,"
    "class_name,inat_taxon_id,author,license,rating,url,filename,collection"
)


@pytest.fixture
def birds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("birds")


@pytest.fixture
def module(birds: ModuleType) -> Callable[[str], ModuleType]:
    return importlib.import_module


@pytest.fixture
def main(
    birds: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    return in_process(birds)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny synthetic corpus."""
    folder = tmp_path_factory.mktemp("birds") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        songs = importlib.import_module("bird_songs")
        songs.synthesise(folder, songs.Size(2, soundscapes=4, tests=2, seconds=15), seed=1)
    return folder


@pytest.fixture
def tiny(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "tiny"))


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[object, ...]:
    return ("--figure", tmp_path / "f.png", "--submission", tmp_path / "submission.csv")


def rows_of(file: Path) -> list[list[str]]:
    with open(file, newline="") as stream:
        return list(csv.reader(stream))


# ------------------------------------------------------------------ the layout


def a_corpus(folder: Path) -> Path:
    """By hand, as the real one is: labels that look like numbers, joined, twice, in lists."""
    sounds = {
        "train_audio/0047/a.ogg": 6,
        "train_audio/47158son01/b.ogg": 6,
        "train_soundscapes/s_1.ogg": 15,
        "test_soundscapes/t_1.ogg": 10,
    }
    for name, seconds in sounds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * np.random.default_rng(0).normal(size=seconds * RATE)
        soundfile.write(folder / name, noise, RATE, format="OGG", subtype="VORBIS")
    (folder / "taxonomy.csv").write_text(
        "primary_label,inat_taxon_id,scientific_name,common_name,class_name\n"
        '47158son01,47158,Insecta,"Insect, no. 1",Insecta\n'
        "0047,47,Rana one,Frog,Amphibia\n"
        "1e5,100000,Avis,Bird,Aves\n"
    )
    (folder / "train.csv").write_text(
        f"{TRAIN}\n"
        "0047,\"['1e5', '']\",,1.5,,Rana,\"Frog, a\",Amphibia,47,me,cc,4.0,u,0047/a.ogg,XC\n"
        "47158son01,\"['other1']\",,,,I,I,Insecta,47158,me,cc,,u,47158son01/b.ogg,iNat\n"
    )
    (folder / "train_soundscapes_labels.csv").write_text(
        "filename,start,end,primary_label\n"
        "s_1.ogg,00:00:10,00:00:15,0047;1e5\n"
        "s_1.ogg,0,5,47158son01\n"
        "s_1.ogg,00:00:10,00:00:15,0047;1e5\n"
        "s_1.ogg,0,5,1e5\n"
    )
    (folder / "sample_submission.csv").write_text(
        "row_id,47158son01,0047,1e5\nt_1_10,0.3,0.3,0.3\nt_1_5,0.3,0.3,0.3\n"
    )
    return folder


def test_the_layout_is_read_as_text(module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    folder = a_corpus(tmp_path)
    corpus = module("bird_corpus").read_corpus(folder)
    assert corpus.labels == ("47158son01", "0047", "1e5")
    assert corpus.recordings == {
        folder / "train_audio/0047/a.ogg": {1, 2},
        folder / "train_audio/47158son01/b.ogg": {0},
    }
    assert corpus.unknown == ("other1",)
    # rows of one window are joined, and what no row is of is not known
    assert corpus.soundscapes == {folder / "train_soundscapes/s_1.ogg": {2: {1, 2}, 0: {0, 2}}}
    assert corpus.asked() == ("t_1_10", "t_1_5")
    corpus.check_audio()
    labels = folder / "train_soundscapes_labels.csv"
    labels.rename(folder / "train_soundscapes" / labels.name)  # wherever it lies
    assert module("bird_corpus").read_corpus(folder) == corpus


def test_a_synthetic_corpus_is_in_the_layout(
    module: Callable[[str], ModuleType], written: Path
) -> None:
    songs, corpora = module("bird_songs"), module("bird_corpus")
    header, *train = rows_of(written / "train.csv")
    assert ",".join(header) == TRAIN
    assert all(row[header.index("filename")].startswith(f"{row[0]}/") for row in train)
    assert any(row[1] != "[]" for row in train)
    corpus = corpora.read_corpus(written)
    corpus.check_audio()
    assert not corpus.unknown
    assert corpus.labels == tuple(row[0] for row in rows_of(written / "taxonomy.csv")[1:])
    assert set().union(*corpus.recordings.values()) == set(range(len(corpus.labels)))
    assert [set(windows) for windows in corpus.soundscapes.values()] == [{0, 1, 2}] * 4
    assert corpus.asked() == corpus.rows
    assert corpus.rows[:4] == tuple(
        f"BC2026_Test_000{k}_S0{k}_20260101_050000_{end}"
        for k, end in [(0, 5), (0, 10), (0, 15), (1, 5)]
    )
    songs.synthesise(written, songs.Size(2, 4, 2, 15), seed=1)  # left as it is
    with pytest.raises(ValueError, match="is not empty and holds another synthetic corpus"):
        songs.synthesise(written, songs.Size(2, 4, 2, 15), seed=2)
    with pytest.raises(ValueError, match="is not empty and holds no synthetic corpus"):
        songs.synthesise(written / "train_audio", songs.Size(2, 4, 2, 15), seed=1)


def test_a_synthesis_that_was_interrupted_is_finished(
    module: Callable[[str], ModuleType], written: Path, tiny: Path
) -> None:
    songs, sounds = module("bird_songs"), module("bird_sounds")
    mark = tiny / "synthetic.json"
    mark.write_text(mark.read_text().replace("true", "false"))
    (tiny / "train.csv").unlink()
    lost = sorted((tiny / "train_audio").rglob("*.ogg"))[3]
    lost.write_bytes(b"half")
    songs.synthesise(tiny, songs.Size(2, 4, 2, 15), seed=1)
    assert (tiny / "train.csv").read_bytes() == (written / "train.csv").read_bytes()
    again = sounds.read_sound(lost)
    assert torch.equal(again, sounds.read_sound(written / lost.relative_to(tiny)))


def test_songs_lie_where_the_labels_say(module: Callable[[str], ModuleType]) -> None:
    """A soundscape with no background but the songs: silent windows are those without a label."""
    songs = module("bird_songs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(songs, "background", lambda random, samples: np.zeros(samples))
        sound, heard = songs.soundscape(60, np.random.default_rng(3))
    power = (sound.reshape(12, -1) ** 2).mean(-1)
    labelled = np.array([bool(labels) for labels in heard])
    assert 0 < labelled.sum() < 12 or labelled.all()
    assert power[labelled].min() > 0
    # what reaches over from a window into the next is less than a quarter of a second, or an echo
    assert (power[~labelled] < power[labelled].mean() / 4).all()


# ------------------------------------------------------------------ sounds


def test_a_sound_is_what_was_written(module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sounds = module("bird_sounds")
    t = np.arange(3 * RATE) / RATE
    stereo = 0.4 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 880 * t)], -1)
    file = tmp_path / "stereo.wav"
    soundfile.write(file, stereo, RATE, subtype="FLOAT")
    mono = torch.from_numpy(stereo.mean(-1)).float()
    torch.testing.assert_close(sounds.read_sound(file), mono)
    torch.testing.assert_close(sounds.read_sound(file, 1.5), mono[: 3 * RATE // 2])
    assert sounds.windows_of(file) == 1


def test_another_sample_rate_is_resampled_to_listen_to(
    module: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    sounds = module("bird_sounds")
    file = tmp_path / "cd.wav"
    for rate in (44_100, 22_050):
        t = np.arange(rate) / rate
        soundfile.write(file, 0.5 * np.sin(2 * np.pi * 440 * t), rate, subtype="FLOAT")
        found = sounds.read_any_sound(file)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
        expected = torch.from_numpy(tone).float()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)
        with pytest.raises(ValueError, match=rf"cd.wav is sampled at {rate} Hz, not at 32000$"):
            sounds.check_sound(file)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_what_is_no_whole_sound_is_refused(
    module: Callable[[str], ModuleType], tmp_path: Path, kept: float
) -> None:
    sounds, file = module("bird_sounds"), tmp_path / "a.ogg"
    noise = 0.1 * np.random.default_rng(0).normal(size=6 * RATE)
    soundfile.write(file, noise, RATE, format="OGG", subtype="VORBIS")
    sounds.check_sound(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    for read in (sounds.check_sound, sounds.read_sound, sounds.read_any_sound):
        with pytest.raises(ValueError, match=r"a\.ogg (cannot be read|is truncated|holds no)"):
            read(file)


# ------------------------------------------------------------------ scores


def test_areas_are_those_of_scikit_learn(module: Callable[[str], ModuleType]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is what it is held to")
    scores, random = module("bird_scores"), torch.Generator().manual_seed(0)
    given = torch.randn(400, 6, generator=random)
    given[:, 3] = given[:, 3].round()  # ties
    given[:, 4] = 0.5
    truth = torch.rand(400, 6, generator=random) < torch.tensor([0.5, 0.01, 0.9, 0.3, 0.2, 0.0])
    mean, areas = scores.macro_roc_auc(given, truth)
    expected = [
        metrics.roc_auc_score(truth[:, k].numpy(), given[:, k].double().numpy()) for k in range(5)
    ]
    assert areas[:5] == pytest.approx(expected, abs=1e-12)
    assert areas[5] != areas[5]  # nobody heard it
    assert mean == pytest.approx(np.mean(expected), abs=1e-12)


def test_an_area_is_the_share_of_pairs_in_order(module: Callable[[str], ModuleType]) -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.9, 0.4])
    truth = torch.tensor([False, True, False, False, True, True])
    pairs = [
        float(one > other) + 0.5 * float(one == other)
        for one in scores[truth]
        for other in scores[~truth]
    ]
    assert module("bird_scores").roc_auc(scores, truth) == pytest.approx(sum(pairs) / len(pairs))


def test_nothing_to_score_is_said(module: Callable[[str], ModuleType]) -> None:
    scores, none = module("bird_scores"), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="no label is heard in some held-out windows"):
        scores.macro_roc_auc(torch.rand(3, 2), none)
    with pytest.raises(ValueError, match="scores are not finite: the net has diverged"):
        scores.macro_roc_auc(torch.tensor([[0.1, torch.nan]]), none[:1])


# ------------------------------------------------------------------ streams and minutes


def test_mixing_adds_powers_and_joins_labels(module: Callable[[str], ModuleType]) -> None:
    one, other = torch.rand(3, 5, 4), torch.rand(3, 5, 4)
    heard = torch.tensor([[1.0, 0.0, 0.0]] * 3), torch.tensor([[0.0, 1.0, 0.0]] * 3)
    share = torch.tensor([0.25, 0.6, 0.9])
    frames, labels = module("bird_streams").mixed((one, heard[0]), (other, heard[1]), share)
    part = share[:, None, None]
    torch.testing.assert_close(frames.exp(), part * one.exp() + (1 - part) * other.exp())
    assert labels.tolist() == [[1, 1, 0]] * 3


def test_rare_labels_weigh_more(module: Callable[[str], ModuleType]) -> None:
    streams = module("bird_streams")
    heard = [{0}] * 79 + [{0, 1}] + [{2}] * 20
    examples = [streams.Example(Path("x"), None, frozenset(classes)) for classes in heard]
    weights = streams.class_weights(examples, 4)
    expected = [1.0, 99**0.5, 2.0, 1.0]  # the first is the rule, the last is never heard
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_an_epoch_shows_every_example(module: Callable[[str], ModuleType], written: Path) -> None:
    """Streams that mix nothing in: each window is that of its example, as loud as it may be."""
    streams, corpora = module("bird_streams"), module("bird_corpus")
    corpus = corpora.read_corpus(written)
    examples = streams.examples_of({}, corpus.soundscapes)
    assert len(examples) == 12
    frames = streams.Frames(1e9)
    made = streams.Streams(examples, 8, frames, 5, 0.0, torch.Generator().manual_seed(0))
    assert made.updates == 3
    shown = []
    for window, heard, fresh in made.epoch():
        assert window.shape == (5, 320, 64)
        assert fresh.shape == (5,)
        for own, classes in zip(window, heard, strict=True):
            for place, example in enumerate(examples):
                start = example.window * 320
                apart = own - frames.soundscape(example.file)[start : start + 320]
                if apart.std() < 1e-4:
                    assert apart.abs().max() <= 1.4 + 1e-4
                    assert set(classes.nonzero()[:, 0].tolist()) == example.classes
                    shown.append(place)
    assert len(shown) == 15
    assert set(shown) == set(range(12))


def test_frames_are_the_same_whether_or_not_they_are_kept(
    module: Callable[[str], ModuleType], written: Path
) -> None:
    streams = module("bird_streams")
    keeping, reading = streams.Frames(1e9), streams.Frames(1.0)
    for file in sorted(written.rglob("*.ogg"))[:3]:
        assert keeping.recording(file) is keeping.recording(file)
        assert torch.equal(reading.recording(file), keeping.recording(file))
        assert not reading.kept


@pytest.mark.parametrize("kind", ["ssm", "spiking"])
def test_a_minute_in_pieces_is_the_minute(module: Callable[[str], ModuleType], kind: str) -> None:
    """Five seconds at a time with the states carried on, sounds of several lengths at once."""
    nets, streams = module("bird_nets"), module("bird_streams")
    torch.manual_seed(0)
    net = nets.BirdNet(kind, 5).double()
    sounds = [torch.randn(windows * 320, 64).double() for windows in (3, 12, 1)]
    found = streams.heard_in(net, sounds)
    for sound, own in zip(sounds, found, strict=True):
        net.zero_states()
        with torch.no_grad():
            whole = net.unroll(nets.patches(sound[None]))[:, 0]
        expected = torch.stack([nets.pooled(part) for part in whole.split(80)])
        torch.testing.assert_close(own, expected, atol=1e-9, rtol=0.0)
    # what was heard before matters: the last window alone is answered otherwise
    alone = streams.heard_in(net, [sounds[1][-320:]])[0]
    assert (alone[0] - found[1][-1]).abs().max() > 1e-3


def test_a_sound_in_pieces_is_the_sound(module: Callable[[str], ModuleType]) -> None:
    """From samples to logits, as a microphone would give them."""
    nets, streams = module("bird_nets"), module("bird_streams")
    torch.manual_seed(0)
    net, front = nets.BirdNet("ssm", 5), nets.front_end()
    sound = 0.1 * torch.randn(3 * 5 * RATE)
    whole = streams.heard_in(net, [streams.Frames(0.0).of(sound)])[0]
    net.zero_states()
    before, found = None, []
    with torch.no_grad():
        for piece in sound.split(5 * RATE):
            frames, before = front.stream(piece, before)
            found.append(nets.pooled(net.unroll(nets.patches(frames[None])))[0])
    torch.testing.assert_close(torch.stack(found), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ssm", "spiking"])
def test_listening_leaves_a_net_as_it_was(module: Callable[[str], ModuleType], kind: str) -> None:
    nets, streams = module("bird_nets"), module("bird_streams")
    net = nets.BirdNet(kind, 5)
    streams.heard_in(net, [torch.randn(320, 64)])
    assert net.get_states() == {}
    net.unroll(torch.randn(3, 2, 4, 64))
    before = net.get_states()
    streams.heard_in(net, [torch.randn(320, 64)])
    after = net.get_states()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert net.training


def test_only_the_first_layer_of_the_spiking_net_multiplies(
    module: Callable[[str], ModuleType],
) -> None:
    from tracetorch import measures

    nets = module("bird_nets")
    torch.manual_seed(0)
    net = nets.BirdNet("spiking", 5)
    rows = measures.operations(net, torch.randn(40, 2, 4, 64)).rows
    convolutions, *others = rows
    assert convolutions == "front.0"
    assert rows["front.0"].macs == rows["front.0"].dense == 40 * 2 * 28 * 16 * 36
    assert all(rows[name].macs == 0 for name in others)
    assert sum(rows[name].acs for name in others) > 0


# ------------------------------------------------------------------ the whole


def test_it_learns_from_files_and_writes_a_submission(
    birds: ModuleType, module: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    songs = module("bird_songs")
    corpus = tmp_path / "corpus"
    songs.synthesise(corpus, songs.Size(6, soundscapes=8, tests=1, seconds=20), seed=2)
    options = ["--data", corpus, "--epochs", "10", "--batch", "8", "--held-out", "0.5"]
    options += ["--figure", tmp_path / "f.png", "--submission", tmp_path / "submission.csv"]
    command = [sys.executable, FOLDER / "birds.py", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "learning: 100%" in done.stderr
    said = re.search(
        r"^macro ROC-AUC: (\d\.\d+) over \d labels that are", done.stdout, re.MULTILINE
    )
    assert said
    assert float(said[1]) > 0.7  # 0.5 is chance; the long run reaches 0.98
    assert re.search(r"^held out: 4 soundscapes, 16 labelled windows", done.stdout, re.MULTILINE)
    assert (tmp_path / "f.png").stat().st_size > 30_000
    found, asked = rows_of(tmp_path / "submission.csv"), rows_of(corpus / "sample_submission.csv")
    assert found[0] == asked[0]
    assert [row[0] for row in found] == [row[0] for row in asked]
    chances = np.array([row[1:] for row in found[1:]], dtype=float)
    assert chances.min() >= 0
    assert chances.max() <= 1
    assert chances.std() > 0.05


def test_a_submission_is_what_is_heard_alone(
    main: Callable[..., None],
    birds: ModuleType,
    module: Callable[[str], ModuleType],
    written: Path,
    outputs: tuple[object, ...],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run.pt"
    main("--data", written, "--epochs", 1, "--checkpoint", run, *outputs)
    net, streams = module("bird_nets").BirdNet("ssm", 8), module("bird_streams")
    from tracetorch import load_checkpoint

    optimizer, generator = torch.optim.Adam(net.parameters()), torch.Generator()
    load_checkpoint(run, net, optimizer=optimizer, generator=generator)
    test = sorted((written / "test_soundscapes").glob("*.ogg"))[1]
    heard = streams.heard_in(net, [streams.Frames(0.0).soundscape(test)])[0].sigmoid()
    submission = {row[0]: row[1:] for row in rows_of(tmp_path / "submission.csv")}
    row = [float(chance) for chance in submission[f"{test.stem}_10"]]
    assert row == pytest.approx(heard[1].tolist(), abs=2e-5)


def test_a_sound_of_ones_own_is_drawn(
    main: Callable[..., None], written: Path, outputs: tuple[object, ...], tmp_path: Path
) -> None:
    sound = tmp_path / "own.wav"
    soundfile.write(sound, 0.1 * np.random.default_rng(0).normal(size=22_050 * 3), 22_050)
    options = ("--data", written, "--epochs", 1, "--model", "spiking", *outputs)
    main(*options, "--listen", sound)
    assert (tmp_path / "f.png").stat().st_size > 20_000


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("kind", ["ssm", "spiking"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None],
    written: Path,
    outputs: tuple[object, ...],
    tmp_path: Path,
    kind: str,
    equal: Callable[[object, object], bool],
) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    common = ("--data", written, "--model", kind, "--batch", 6, *outputs)
    main(*common, "--epochs", 3, "--checkpoint", whole)
    submission = (tmp_path / "submission.csv").read_bytes()
    main(*common, "--epochs", 1, "--checkpoint", parts)
    assert not equal(torch.load(whole), torch.load(parts))
    main(*common, "--epochs", 3, "--checkpoint", parts, "--resume")
    assert equal(torch.load(whole), torch.load(parts))
    assert (tmp_path / "submission.csv").read_bytes() == submission


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None],
    module: Callable[[str], ModuleType],
    written: Path,
    tiny: Path,
    outputs: tuple[object, ...],
    tmp_path: Path,
) -> None:
    file = tmp_path / "run.pt"
    common = (*outputs, "--checkpoint", file)
    main(*common, "--data", written, "--epochs", 1)
    before, figure = file.read_bytes(), tmp_path / "f.png"
    figure.unlink()
    labels = tiny / "train_soundscapes_labels.csv"
    labels.write_text(labels.read_text().replace(";", ";riser1;"))
    for options, words in [
        (("--data", written), r"run.pt exists: go on from it with --resume, or move it"),
        (("--data", written, "--resume", "--model", "spiking"), r"(its model is|does not fit) .*"),
        (("--data", written, "--resume", "--batch", 5), r"its batch is 16, not 5"),
        (("--data", tiny, "--resume"), r"its fingerprint is '\w+', not '\w+'"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*common, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


# ------------------------------------------------------------------ bad input


def without(file: Path, column: str) -> None:
    rows = rows_of(file)
    place = rows[0].index(column)
    lines = [",".join(f'"{cell}"' for k, cell in enumerate(row) if k != place) for row in rows]
    file.write_text("\n".join(lines) + "\n")


def replaced(file: Path, one: str, other: str) -> None:
    text = file.read_text()
    assert one in text
    file.write_text(text.replace(one, other, 1))


def spoilt(folder: Path, pattern: str, spoil: Callable[[Path], object]) -> None:
    spoil(sorted(folder.glob(pattern))[0])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2_000])


def slower(file: Path) -> None:
    soundfile.write(file, np.zeros(48_000), 16_000, format="OGG", subtype="VORBIS")


def shorter(file: Path) -> None:
    soundfile.write(file, np.zeros(6 * RATE), RATE, format="OGG", subtype="VORBIS")


FIRST_AUDIO, SOUNDSCAPES = "train_audio/*/*.ogg", "train_soundscapes/*.ogg"
TEST = "test_soundscapes/*.ogg"
LABELS = "train_soundscapes_labels.csv"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no taxonomy": (lambda at: (at / "taxonomy.csv").unlink(), r"there is no file \S+taxonomy.csv"),
    "no train": (lambda at: (at / "train.csv").unlink(), r"there is no file \S+train.csv"),
    "no labels": (lambda at: (at / LABELS).unlink(), r"there is no file \S+_labels.csv"),
    "no sample": (
        lambda at: (at / "sample_submission.csv").unlink(),
        r"there is no file \S+sample_submission.csv",
    ),
    "a column": (
        lambda at: without(at / "train.csv", "filename"),
        r"\S+train.csv lacks the columns filename",
    ),
    "all columns": (
        lambda at: (at / "train.csv").write_text("a,b\n1,2\n"),
        r"\S+train.csv lacks the columns primary_label, secondary_labels, type and 12 more",
    ),
    "empty": (
        lambda at: (at / "taxonomy.csv").write_text(""),
        r"\S+taxonomy.csv lacks the columns primary_label, inat_taxon_id, .* and 2 more",
    ),
    "no text": (
        lambda at: (at / "train.csv").write_bytes(b"\xff\xfe\x00"),
        r"\S+train.csv cannot be read as a table: .*",
    ),
    "a row cut off": (
        lambda at: replaced(at / "taxonomy.csv", ",Aves\n", "\n"),
        r"\S+taxonomy.csv, line 4: 4 fields, where 5 should be",
    ),
    "a label twice": (
        lambda at: replaced(at / "taxonomy.csv", "riser1", "faller1"),
        r"\S+taxonomy.csv, line \d: the label 'faller1' is empty or comes twice",
    ),
    "an unknown label": (
        lambda at: replaced(at / "train.csv", "\n1161364,", "\n1161365,"),
        r"\S+train.csv, line 2: the label '1161365' is not in taxonomy.csv",
    ),
    "an unknown label in a soundscape": (
        lambda at: replaced(at / LABELS, ".ogg,0,5,", ".ogg,0,5,nobody;"),
        r"\S+_labels.csv, line 2: the label 'nobody' is not in taxonomy.csv",
    ),
    "no list": (
        lambda at: replaced(at / "train.csv", ",[],", ",[riser1],"),
        r"\S+train.csv, line \d+: secondary_labels is no list of labels in quotes: '\[riser1\]'",
    ),
    "no window": (
        lambda at: replaced(at / LABELS, ".ogg,0,5,", ".ogg,0,7,"),
        r"\S+_labels.csv, line 2: from 0 to 7 is no window of 5 s",
    ),
    "no time": (
        lambda at: replaced(at / LABELS, ".ogg,0,5,", ".ogg,zero,5,"),
        r"\S+_labels.csv, line 2: 'zero' is no time",
    ),
    "other columns asked": (
        lambda at: replaced(
            at / "sample_submission.csv", "1161364,47158son01", "47158son01,1161364"
        ),
        r"\S+sample_submission.csv has not the columns row_id and the taxonomy's labels, in order",
    ),
    "no recording": (
        lambda at: spoilt(at, FIRST_AUDIO, Path.unlink),
        r"\S+train.csv, line 2: there is no file \S+XS000000.ogg",
    ),
    "no soundscape": (
        lambda at: spoilt(at, SOUNDSCAPES, Path.unlink),
        r"\S+_labels.csv, line 2: there is no file \S+.ogg",
    ),
    "no test": (
        lambda at: spoilt(at, TEST, Path.unlink),
        r"sample_submission.csv asks for \S+_5, which is no window of a file in test_soundscapes",
    ),
    "not audio": (
        lambda at: spoilt(at, FIRST_AUDIO, lambda file: file.write_bytes(b"not audio" * 99)),
        r"\S+XS000000.ogg cannot be read as audio: .*",
    ),
    "cut off": (
        lambda at: spoilt(at, TEST, cut),
        r"\S+.ogg is truncated: it ends before the last .*",
    ),
    "another rate": (
        lambda at: spoilt(at, FIRST_AUDIO, slower),
        r"\S+XS000000.ogg is sampled at 16000 Hz, not at 32000",
    ),
    "nothing heard": (
        lambda at: (at / LABELS).write_text(
            re.sub(r"(?m)(\.ogg,\d+,\d+),.*$", r"\1,", (at / LABELS).read_text())
        ),
        r"no label is heard in some held-out windows and not in others",
    ),
    "nothing labelled": (
        lambda at: (at / LABELS).write_text("filename,start,end,primary_label\n"),
        r"train_soundscapes_labels.csv has no row: nothing can be held out",
    ),
    "too short for its labels": (
        lambda at: spoilt(at, SOUNDSCAPES, shorter),
        r"train_soundscapes_labels.csv labels \S+_15, but \S+.ogg ends before",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_a_line_before_anything_is_learned(
    main: Callable[..., None],
    tiny: Path,
    outputs: tuple[object, ...],
    tmp_path: Path,
    case: str,
) -> None:
    spoil, words = BAD[case]
    spoil(tiny)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(SystemExit) as caught:
        main("--data", tiny, "--epochs", 1, "--checkpoint", checkpoint, *outputs)
    assert re.fullmatch(f"error: {words}", str(caught.value))
    assert not checkpoint.exists()
    assert not (tmp_path / "submission.csv").exists()


def test_without_test_soundscapes_nothing_is_submitted(
    main: Callable[..., None], tiny: Path, outputs: tuple[object, ...], tmp_path: Path
) -> None:
    """As the public part of the real data has none."""
    shutil.rmtree(tiny / "test_soundscapes")
    main("--data", tiny, "--epochs", 1, *outputs)
    assert not (tmp_path / "submission.csv").exists()
    assert (tmp_path / "f.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model lstm", "--model: invalid choice: 'lstm'"),
        ("--data nowhere", "--data: there is no folder nowhere"),
        ("--listen nowhere.wav", "--listen: there is no file nowhere.wav"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--mixup 1.5", "--mixup: must be in 0...1, got 1.5"),
        ("--learning-rate nan", "--learning-rate: must be a finite number above 0, got nan"),
        ("--submission nowhere/s.csv", "--submission: the folder nowhere does not exist"),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err

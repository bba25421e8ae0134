"""The spoken example: files, splits, ragged batches, three equal nets, exact resumption."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import wave
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from tracetorch import rnn
from tracetorch.measures import operations

FOLDER = Path(__file__).parents[1] / "examples" / "spoken"
DIGITS = Path(__file__).parents[2] / "shared" / "data" / "spoken-digits"
KINDS = ("spiking", "ssm", "gru")

needs_aeon = pytest.mark.skipif(find_spec("aeon") is None, reason="aeon's data is not installed")
needs_digits = pytest.mark.skipif(not DIGITS.is_dir(), reason=f"there is no {DIGITS}")


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("listen")


@pytest.fixture
def timeseries(listen: ModuleType) -> ModuleType:
    return importlib.import_module("timeseries")


@pytest.fixture
def spoken_digits(listen: ModuleType) -> ModuleType:
    return importlib.import_module("spoken_digits")


@pytest.fixture
def utterances(listen: ModuleType) -> ModuleType:
    return importlib.import_module("utterances")


@pytest.fixture
def listeners(listen: ModuleType) -> ModuleType:
    return importlib.import_module("listeners")


@pytest.fixture
def listening(listen: ModuleType) -> ModuleType:
    return importlib.import_module("listening")


@pytest.fixture
def main(
    listen: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    return in_process(listen)


HEADER = """#a comment
@problemName Tiny
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true a b c
@data
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A set of two dimensions and three classes, of different frequency, 5 to 20 timesteps."""
    folder, random = tmp_path / "Tiny", np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("TRAIN", 36), ("TEST", 30)):
        lines = []
        for place in range(count):
            when = np.arange(random.integers(5, 21)) + random.uniform(0, 20)
            wave_ = np.sin(2 * np.pi * when * (0.05, 0.15, 0.3)[place % 3])
            frames = np.stack([wave_, 0.1 * random.normal(size=len(when))])
            numbers = ":".join(",".join(f"{value:.4f}" for value in one) for one in frames)
            lines.append(f"{numbers}:{'abc'[place % 3]}\n")
        (folder / f"Tiny_{part}.ts").write_text(HEADER + "".join(lines))
    return folder


def write_wav(
    file: Path, content: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2
) -> None:
    with wave.open(str(file), "wb") as sound:
        sound.setframerate(rate)
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.writeframes(content.tobytes())


@pytest.fixture
def said(tmp_path: Path) -> Path:
    """Recordings of three speakers, ten digits and seven takes, 400 to 2000 samples of noise."""
    folder, random = tmp_path / "said", np.random.default_rng(0)
    folder.mkdir()
    for digit in range(10):
        for speaker in ("ann", "ben", "cleo"):
            for index in range(7):
                noise = random.integers(-9000, 9000, random.integers(400, 2000)).astype("<i2")
                write_wav(folder / f"{digit}_{speaker}_{index}.wav", noise)
    return folder


# ------------------------------------------------------------------ .ts files


def test_sequences_are_read_as_they_are_written(timeseries: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "set.ts"
    file.write_text(HEADER + "1.5,2,-5e-1:4,5,6:b\n\n 7 : -8 : c \n")
    found = timeseries.read(file)
    assert [one.tolist() for one in found.frames] == [
        [[1.5, 4.0], [2.0, 5.0], [-0.5, 6.0]],
        [[7.0, -8.0]],
    ]
    assert found[1:] == (["b", "c"], ["a", "b", "c"], 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "is no .ts file: it is not text"),
        ("a,b\n1,2\n", "is no .ts file: it has no line @data"),
        (HEADER, "has no sequence after @data"),
        (HEADER.replace("@dimensions 2\n", ""), "has no line @dimensions"),
        (HEADER.replace("@dimensions 2", "@dimensions two"), "must be a number from 1, got two"),
        (HEADER.replace("Stamps false", "Stamps true"), "@timeStamps must be false, got true"),
        (HEADER.replace("true a b c", "false"), "@classLabel must be true and name the classes"),
        (HEADER + "1:2:a\n1,2:3,4:5,6:b\n", "line 11: 2 dimensions and a class, .* got 3$"),
        (HEADER + "1,2:3:a\n", r"line 10: dimensions of different lengths \[1, 2\]"),
        (HEADER + "1:2:d\n", "line 10: 'd' is none of the classes a b c"),
        (HEADER + "1:?:a\n", "line 10: could not convert string to float: '?'"),
        (HEADER + "1:nan:a\n", "line 10: a value is not finite"),
    ],
)
def test_something_else_is_no_ts_file(
    main: Callable[..., None], tiny: Path, content: str | bytes, words: str
) -> None:
    file = tiny / "Tiny_TEST.ts"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=rf"^error: {re.escape(str(file))}.*{words}") as raised:
        main("--data", tiny)
    assert "\n" not in str(raised.value)


def test_both_files_of_a_set_must_be_of_the_same_classes(
    main: Callable[..., None], tiny: Path
) -> None:
    (tiny / "Tiny_TEST.ts").write_text(HEADER.replace("a b c", "a b d") + "1:2:a\n")
    with pytest.raises(SystemExit, match=r"Tiny: the two files are of different dimensions or cl"):
        main("--data", tiny)


@needs_aeon
def test_japanese_vowels_are_those_that_are_known(timeseries: ModuleType) -> None:
    folder = timeseries.japanese_vowels()
    corpus = timeseries.load(folder)
    assert corpus.classes == [str(speaker) for speaker in range(1, 10)]
    assert Counter(corpus.learn.classes.tolist()) == dict.fromkeys(range(9), 30)
    tested = [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert corpus.test.classes.bincount().tolist() == tested
    lengths = {len(one) for part in (corpus.learn, corpus.test) for one in part.frames}
    assert (min(lengths), max(lengths)) == (7, 29)
    last = (folder / "JapaneseVowels_TEST.ts").read_text().splitlines()[-1].split(":")
    expected = np.stack([np.fromstring(one, sep=",") for one in last[:-1]], 1)
    np.testing.assert_allclose(corpus.test.frames[-1].numpy(), expected, rtol=1e-6)


# ------------------------------------------------------------------ WAV files


def test_samples_are_those_of_the_file(spoken_digits: ModuleType, tmp_path: Path) -> None:
    content = np.array([0, 1, -1, 32767, -32768], "<i2")
    write_wav(tmp_path / "sound.wav", content)
    found = spoken_digits.samples(tmp_path / "sound.wav")
    assert found.tolist() == (content / 32768).tolist()


def damaged(folder: Path) -> dict[str, Callable[[Path], None]]:
    """What may be wrong with a file."""
    return {
        "text": lambda file: file.write_text("this is no sound"),
        "empty": lambda file: file.write_bytes(b""),
        "cut": lambda file: file.write_bytes(file.read_bytes()[:30]),
        "half": lambda file: file.write_bytes(file.read_bytes()[:-201]),
        "rate": lambda file: write_wav(file, np.zeros(900, "<i2"), rate=16000),
        "stereo": lambda file: write_wav(file, np.zeros(900, "<i2"), channels=2),
        "bytes": lambda file: write_wav(file, np.zeros(900, "u1"), width=1),
        "short": lambda file: write_wav(file, np.zeros(255, "<i2")),
        "silent": lambda file: write_wav(file, np.zeros(0, "<i2")),
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("text", "is no WAV file that can be read: "),
        ("empty", "is no WAV file that can be read: it ends"),
        ("cut", "is no WAV file that can be read: it ends"),
        ("half", r"is cut off: \d+ of \d+ samples"),
        ("rate", "must be of 8000 Hz, 1 channel and 16 bits, got 16000 Hz, 1 channel and 16 bits"),
        ("stereo", "must be of .*, got 8000 Hz, 2 channels and 16 bits"),
        ("bytes", "must be of .*, got 8000 Hz, 1 channel and 8 bits"),
        ("short", "is too short: 255 samples, a frame takes 256"),
        ("silent", "is too short: 0 samples, a frame takes 256"),
    ],
)
def test_something_else_is_no_sound(
    main: Callable[..., None], said: Path, damage: str, words: str
) -> None:
    file = said / "3_ben_4.wav"
    damaged(said)[damage](file)
    with pytest.raises(SystemExit, match=rf"^error: {re.escape(str(file))} {words}") as raised:
        main("--data", said)
    assert "\n" not in str(raised.value)


def test_other_names_are_refused(main: Callable[..., None], said: Path) -> None:
    (said / "3_ben_4.wav").rename(said / "three.wav")
    with pytest.raises(SystemExit, match=r"three.wav is not named \{digit\}_\{speaker\}_\{index"):
        main("--data", said)


@pytest.mark.parametrize("held_out", [(), ("ben",), ("cleo", "ann")])
def test_no_test_recording_is_learnt_from(
    spoken_digits: ModuleType, said: Path, held_out: tuple[str, ...]
) -> None:
    """Recordings are told by their content: all are different."""
    corpus = spoken_digits.load(said, held_out)
    front = spoken_digits.LogMel(8000, 32, 256, 80)
    seen = 0
    for part, is_test in ((corpus.learn, False), (corpus.test, True)):
        keys = {one.tobytes(): n for n, one in enumerate(map(torch.Tensor.numpy, part.frames))}
        for file in said.glob("*.wav"):
            digit, speaker, index = file.stem.split("_")
            wanted = speaker in held_out if held_out else int(index) < 5
            frames = front(spoken_digits.samples(file))
            found = keys.get((frames - frames.max()).numpy().tobytes())
            assert (found is not None) == (wanted == is_test)
            if found is not None:
                assert part.classes[found] == int(digit)
                assert part.speakers[found] == speaker
                seen += 1
    assert seen == 210


def test_speakers_to_hold_out_must_be_some_of_those_there(
    main: Callable[..., None], said: Path, tiny: Path
) -> None:
    for data, speakers, words in [
        (said, ("dora",), "said has no speaker 'dora', but ann, ben, cleo$"),
        (said, ("ben", "ann", "cleo"), "all speakers are held out: there is nothing to learn"),
        (tiny, ("ben",), "--held-out is for spoken digits: "),
    ]:
        with pytest.raises(SystemExit, match=rf"^error: .*{words}"):
            main("--data", data, "--held-out", *speakers)


@needs_digits
def test_real_digits_are_split_as_is_customary(spoken_digits: ModuleType) -> None:
    corpus = spoken_digits.load(DIGITS)
    assert Counter(zip(corpus.test.classes.tolist(), corpus.test.speakers, strict=True)) == (
        Counter({(d, s): 5 for d in range(10) for s in {*corpus.test.speakers}})
    )
    assert (len(corpus.learn.frames), len(corpus.test.frames)) == (2700, 300)
    assert len({*corpus.test.speakers}) == 6


# ------------------------------------------------------------------ ragged batches


def some(utterances: ModuleType, count: int = 50, seed: int = 0) -> object:
    """Utterances of 1 to 12 timesteps and 3 features; the first of them is its number."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=generator).tolist()
    frames = [torch.randn(length, 3, generator=generator) for length in lengths]
    for number, one in enumerate(frames):
        one[0, 0] = number
    classes = torch.randint(4, (count,), generator=generator)
    return utterances.Utterances(frames, classes, [f"{n % 3}" for n in range(count)])


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_hold_every_utterance_once_and_zeros_after_it(
    utterances: ModuleType, shuffled: bool
) -> None:
    all_ = some(utterances)
    generator = torch.Generator().manual_seed(0) if shuffled else None
    seen = []
    for x, lengths, classes in utterances.batches(all_, 8, generator):
        for b, (length, class_) in enumerate(zip(lengths, classes, strict=True)):
            number = int(x[0, b, 0])
            assert torch.equal(x[:length, b], all_.frames[number])
            assert not x[length:, b].any()
            assert class_ == all_.classes[number]
            seen.append(number)
    assert sorted(seen) == [*range(50)]


def test_an_order_is_another_each_time_and_the_generators_own(utterances: ModuleType) -> None:
    def order(generator: torch.Generator) -> list[int]:
        drawn = utterances.batches(some(utterances), 8, generator)
        return [int(n) for batch in drawn for n in batch.x[0, :, 0]]

    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    first, second = order(one), order(one)
    assert first != second
    other.set_state(torch.Generator().manual_seed(0).get_state())
    assert order(other) == first
    assert order(other) == second


def test_a_rehearsal_sees_nothing_of_the_test(utterances: ModuleType) -> None:
    learn, test = some(utterances, 90), some(utterances, 10, seed=1)
    corpus = utterances.Corpus("all", list("abcd"), learn, test)
    rehearsed = utterances.rehearsal(corpus)
    parts = [[int(one[0, 0]) for one in part.frames] for part in (rehearsed.learn, rehearsed.test)]
    assert sorted(parts[0] + parts[1]) == [*range(90)]
    kinds = list(zip(learn.classes.tolist(), learn.speakers, strict=True))
    held = Counter(kinds[number] for number in parts[1])
    assert held == {key: n // 5 for key, n in Counter(kinds).items() if n >= 5}
    held_back = zip(parts[1], rehearsed.test.frames, strict=True)
    assert all(torch.equal(learn.frames[number], one) for number, one in held_back)


# ------------------------------------------------------------------ nets


@pytest.mark.parametrize(("features", "classes"), [(12, 9), (32, 10)])
@pytest.mark.parametrize("neurons", [64, 128])
def test_nets_are_of_equal_size(
    listeners: ModuleType, features: int, classes: int, neurons: int
) -> None:
    nets = [listeners.listener(kind, features, classes, neurons) for kind in KINDS]
    sizes = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in nets]
    assert max(sizes) / min(sizes) < 1.02
    assert sizes[2] == 3 * neurons * (features + neurons + 2) + classes * (neurons + 1)


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 6, 5, generator=generator), torch.tensor([20, 3, 1, 17, 8, 20])


@pytest.fixture(params=KINDS)
def net(listeners: ModuleType, request: pytest.FixtureRequest) -> nn.Module:
    """Of 5 features and 4 classes, with spikes and a front that does something."""
    torch.manual_seed(0)
    net = listeners.listener(request.param, 5, 4, 16)
    x, lengths = ragged()
    net.front.fit(2 * x + 1)
    net.begin(x, lengths)
    return net


def test_what_is_in_the_padding_does_not_matter(net: nn.Module) -> None:
    """Scores and gradients, bit for bit; nor how much of it there is, but for rounding."""
    x, lengths = ragged()
    targets, found = torch.tensor([0, 1, 2, 3, 0, 1]), []
    other, longer = x.clone(), torch.cat([x, torch.full((9, 6, 5), 1e3)])
    for b, length in enumerate(lengths):
        other[length:, b] = 1e3 * torch.randn(20 - length, 5)
    for given in (x, other, longer):
        net.zero_grad()
        scores = net.classify(given, lengths)
        nn.functional.cross_entropy(scores, targets).backward()
        found.append([scores.detach(), *(p.grad.clone() for p in net.parameters())])
    assert all(map(torch.equal, found[0], found[1]))
    for one, wanted in zip(found[2], found[0], strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-5, rtol=1e-4)
    assert any(grad.any() for grad in found[0][1:])


@torch.no_grad()
def test_an_utterance_among_others_is_answered_as_alone(net: nn.Module) -> None:
    x, lengths = ragged()
    together = net.classify(x, lengths)
    for b, length in enumerate(lengths):
        alone = net.classify(x[:length, b : b + 1], lengths[b : b + 1])
        torch.testing.assert_close(together[b], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["spiking", "ssm"])
def test_frames_one_by_one_give_the_mean_that_is_the_answer(
    listeners: ModuleType, kind: str
) -> None:
    torch.manual_seed(0)
    net, (x, _) = listeners.listener(kind, 5, 4, 16), ragged()
    net.begin(x, torch.full((6,), 20))
    answer = net.classify(x, torch.full((6,), 20))
    net.zero_states()
    torch.testing.assert_close(sum(map(net, x)) / 20, answer, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_gru_is_its_equations(listeners: ModuleType) -> None:
    torch.manual_seed(0)
    net, (x, _) = listeners.listener("gru", 5, 4, 7), ragged()
    net.front.fit(3 * x - 1)
    mean, deviation = (part.double().numpy() for part in (net.front.mean, net.front.deviation))
    into, back, bias_in, bias_back = (p.double().numpy() for p in net.gru.parameters())
    hidden, heard = np.zeros(7), []
    for frame in (x[:11, 0].double().numpy() - mean) / deviation:
        given, kept = into @ frame + bias_in, back @ hidden + bias_back
        reset, update = 1 / (1 + np.exp(-(given + kept)[:14].reshape(2, 7)))
        new = np.tanh(given[14:] + reset * kept[14:])
        hidden = (1 - update) * new + update * hidden
        heard.append(hidden)
    weight, bias = (p.double().numpy() for p in net.head.parameters())
    found = net.classify(x[:, :1], torch.tensor([11]))[0]
    np.testing.assert_allclose(found, weight @ np.mean(heard, 0) + bias, atol=1e-5)


def test_both_layers_fire_in_the_band_from_the_beginning(listeners: ModuleType) -> None:
    torch.manual_seed(0)
    net, (x, lengths) = listeners.listener("spiking", 5, 4, 48), ragged()
    net.begin(x, lengths)
    for out in net.within(x, lengths).values():
        assert 0.05 <= out.sum() / (lengths.sum() * out.shape[-1]) <= 0.15


def test_costs_are_counted_by_hand(listeners: ModuleType) -> None:
    torch.manual_seed(0)
    x, lengths = ragged()
    frames = int(lengths.sum())
    spiking = listeners.listener("spiking", 5, 4, 16)
    spiking.begin(x, lengths)
    width = spiking.net[0].out_features
    first, second = (int(out.sum()) for out in spiking.within(x, lengths).values())
    assert first > 0
    assert spiking.cost(x, lengths) == (
        frames * (5 * width + width**2 + 4 * width),
        frames * 5 * width,
        first * width + second * 4,
    )
    gru = listeners.listener("gru", 5, 4, 16)
    twin = operations(rnn.GRU(5, 16), x, lengths).total
    assert gru.cost(x, lengths).dense == twin.dense + frames * 16 * 4
    assert gru.cost(x, lengths).macs == twin.macs + frames * 16 * 4


# ------------------------------------------------------------------ learning


def reached(said: str, count: int) -> float:
    """The percentage in the last line."""
    found = re.fullmatch(rf"accuracy: (\d+\.\d) % of {count}", said.splitlines()[-1])
    assert found, said
    return float(found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_draws_and_says_how_well(
    main: Callable[..., None],
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    figure, size = tmp_path / "figure.png", ("--neurons", 24, "--batch-size", 6, "--epochs", 16)
    main(*size, "--data", tiny, "--model", kind, "--figure", figure)
    said = capsys.readouterr().out
    assert said.startswith("Tiny: 36 utterances to learn from, 30 to test on\n")
    assert ("a neuron fires in " in said) == (kind == "spiking")
    assert reached(said, 30) > 70  # of three classes
    assert figure.stat().st_size > 30_000


@needs_aeon
def test_it_learns_japanese_vowels(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("--epochs", 6, "--figure", tmp_path / "figure.png")
    said = capsys.readouterr()
    assert "spiking: 100%" in said.err
    assert reached(said.out, 370) > 85  # of nine classes


@needs_digits
def test_it_learns_real_digits_of_a_speaker_it_has_heard(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for digit in range(10):
        for index in range(20):
            name = f"{digit}_jackson_{index}.wav"
            (few / name).symlink_to(DIGITS / name)
    main("--data", few, "--epochs", 6, "--batch-size", 10, "--figure", tmp_path / "figure.png")
    assert reached(capsys.readouterr().out, 50) > 70  # of ten classes


def test_nothing_of_the_test_gets_into_the_weights(
    listen: ModuleType, listening: ModuleType, tiny: Path
) -> None:
    """Other held-out utterances, the same net."""
    weights = []
    for _ in range(2):
        options = argparse.Namespace(
            data=tiny, held_out=[], rehearse=False, model="spiking", neurons=8, epochs=2,
            batch_size=8, learning_rate=1e-2, seed=0, device=torch.device("cpu"),
            checkpoint=None, resume=False,
        )  # fmt: skip
        run = listening.Run(options, listen.corpus_of(options))
        run.learn()
        weights.append(run.net.state_dict())
        (tiny / "Tiny_TEST.ts").write_text(HEADER + "5,6,7:8,9,10:a\n")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# ------------------------------------------------------------------ checkpoints

SMALL = ("--neurons", 8, "--batch-size", 12, "--epochs", 5)


def parts(file: Path) -> dict[str, object]:
    saved: dict[str, object] = torch.load(file, weights_only=True)
    return saved


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None],
    listening: ModuleType,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    equal: Callable[[object, object], bool],
) -> None:
    whole, stopped = tmp_path / "whole.pt", tmp_path / "stopped.pt"
    monkeypatch.setattr(listening, "SAVE_EVERY", 2)
    common = (*SMALL, "--data", tiny, "--model", kind, "--figure", tmp_path / "figure.png")
    main(*common, "--checkpoint", whole)
    one_pass, passes = listening.Run._pass, iter(range(3))

    def until_it_is_interrupted(run: object) -> float:
        if next(passes, None) is None:
            raise KeyboardInterrupt
        return float(one_pass(run))

    with monkeypatch.context() as patched:
        patched.setattr(listening.Run, "_pass", until_it_is_interrupted)
        with pytest.raises(SystemExit, match=r"^130$"):
            main(*common, "--checkpoint", stopped)
    assert parts(stopped)["values"]["epoch"] == 2
    torch.manual_seed(123)
    main(*common, "--checkpoint", stopped, "--resume")
    assert equal(parts(whole), parts(stopped))
    assert len(parts(whole)["values"]["curve"]) == 5


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], tiny: Path, tmp_path: Path
) -> None:
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = (*SMALL, "--epochs", 2, "--figure", figure, "--checkpoint", file, "--data", tiny)
    main(*common)
    before = file.read_bytes()
    figure.unlink()
    for options, words in [
        ((), "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--model", "gru"), "of another run: its model is 'spiking', not 'gru'"),
        (("--resume", "--neurons", 9), "of another run: its neurons is 8, not 9"),
        (("--resume", "--epochs", 3), "of another run: its epochs is 2, not 3"),
        (("--resume", "--rehearse"), "of another run: its corpus is 'Tiny: .*', not 'Tiny, reh.*'"),
    ]:
        with pytest.raises(SystemExit, match=rf"^error: .*{words}$"):
            main(*common, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_something_else_is_no_checkpoint(
    main: Callable[..., None], tiny: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "run.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(str(file))}") as raised:
        main(*SMALL, "--data", tiny, "--checkpoint", file, "--resume")
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------ comparing


def test_all_nets_are_compared_and_go_on(
    listen: ModuleType,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compared = importlib.import_module("listeners_compared")
    runs, figure = tmp_path / "runs", tmp_path / "figure.png"
    runs.mkdir()
    options = ("--data", tiny, *SMALL, "--epochs", 2, "--seeds", 2, "--runs", runs)
    monkeypatch.setattr(sys, "argv", ["", *map(str, options), "--figure", str(figure)])
    threads = torch.get_num_threads()
    compared.main()
    said = capsys.readouterr().out
    for kind in KINDS:
        assert re.search(rf"^\| {kind} \| [\d,]+ \| \d+\.\d ± \d+\.\d % \|", said, re.MULTILINE)
    assert figure.stat().st_size > 10_000
    assert {file.name for file in runs.iterdir()} == {
        f"{kind}-{seed}.pt" for kind in KINDS for seed in range(2)
    }
    before = {file: file.read_bytes() for file in runs.iterdir()}
    compared.main()
    torch.set_num_threads(threads)
    again = capsys.readouterr().out

    def without_times(text: str) -> str:
        return re.sub(r" \| (\d+ s)? *\|$", "", text, flags=re.MULTILINE)

    assert without_times(said) == without_times(again)
    assert before == {file: file.read_bytes() for file in runs.iterdir()}


# ------------------------------------------------------------------ bad options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--data nowhere", "--data: there is no folder nowhere"),
        ("--model elman", "--model: invalid choice: 'elman'"),
        ("--neurons 0", "--neurons: must be at least 1, got 0"),
        ("--learning-rate inf", "--learning-rate: must be a finite number above 0, got inf"),
        ("--figure figure.doc", "--figure: figure.doc must end in one of "),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


def test_missing_data_is_said_in_a_line(
    main: Callable[..., None],
    timeseries: ModuleType,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SystemExit, match=r"^error: .* holds neither \.wav nor \.ts files$"):
        main("--data", FOLDER / "figures")
    (tiny / "Tiny_TEST.ts").unlink()
    with pytest.raises(SystemExit, match=r"^error: .*No such file or directory: '.*Tiny_TEST.ts'$"):
        main("--data", tiny)
    monkeypatch.setattr(timeseries, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: JapaneseVowels .* pip install --no-deps aeon, "):
        main()

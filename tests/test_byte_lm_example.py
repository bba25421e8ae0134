"""The byte language model: texts kept apart, states carried, bits that add up, exact resumption."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "examples" / "byte_lm"
TINY = ("--width", 8, "--blocks", 1, "--batch-size", 4, "--timesteps", 16, "--steps", 12)
KINDS = ["mamba", "ssm", "spiking", "mixed", "lstm"]


@pytest.fixture
def byte_lm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("byte_lm")


@pytest.fixture
def texts(byte_lm: ModuleType) -> ModuleType:
    return importlib.import_module("texts")


@pytest.fixture
def models(byte_lm: ModuleType) -> ModuleType:
    return importlib.import_module("language_models")


@pytest.fixture
def main(
    byte_lm: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    return in_process(byte_lm)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of 3000 bytes, in which what follows is certain."""
    file = tmp_path / "text.txt"
    file.write_bytes(b"abcdefghijklmnopqrstuvwxyz, 12\n" * 100)
    return file


# ------------------------------------------------------------------ texts


def test_nothing_held_out_is_learned_from(texts: ModuleType) -> None:
    """No paragraph of it, not even with other line breaks, and always the same one."""
    found = texts.corpus(None)
    train, held_out = (part.numpy().tobytes() for part in found)
    assert 0.03 < len(held_out) / len(train) < 0.1
    assert len(train) > 4_000_000

    def paragraphs(whole: bytes) -> set[bytes]:
        return {b" ".join(part.split()) for part in whole.split(b"\n\n")}

    common = paragraphs(train) & paragraphs(held_out)
    # texts are joined by single line breaks, so that their first and last paragraphs are longer
    assert max(map(len, common)) < texts.LONG
    assert found.signature() == texts.corpus(None).signature()


def test_which_text_is_held_out_goes_by_its_name_alone(texts: ModuleType) -> None:
    words = b"these are the words of number %d, and of no other one of them"
    named = [(f"text {number}", words % number) for number in range(200)]
    train, held_out = ({*part.split(b"\n")} for part in texts.split(named))
    assert held_out
    assert train.isdisjoint(held_out)
    assert train | held_out == {text for _, text in named}
    fewer = {*texts.split(named[50:])[1].split(b"\n")}
    assert fewer == held_out & {text for _, text in named[50:]}


def test_a_copy_of_what_is_held_out_is_taken_out(texts: ModuleType) -> None:
    long, short = b"a paragraph of\n  many words that nobody writes twice by chance", b"return x"
    named = [(f"text {number}", b"") for number in range(100)]
    in_train = next(name for name, _ in named if zlib.crc32(name.encode()) % 20)
    in_test = next(name for name, _ in named if not zlib.crc32(name.encode()) % 20)
    copied = b"a heading\n\n    " + b"\n  ".join(long.split()) + b"\n\n" + short
    train, held_out = texts.split([(in_train, copied), (in_test, long + b"\n\n" + short)])
    assert train == b"a heading\n\n" + short
    assert held_out == long + b"\n\n" + short


def test_the_end_of_a_file_or_folder_is_held_out(texts: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_bytes(bytes(range(256)) * 2)
    (tmp_path / "a").write_bytes(b"0123456789" * 10)
    whole = b"0123456789" * 10 + bytes(range(256)) * 2
    train, held_out = texts.corpus(tmp_path)
    assert train.numpy().tobytes() + held_out.numpy().tobytes() == whole
    assert len(held_out) == 612 // 20
    (tmp_path / "a").write_bytes(whole)
    mapped = texts.corpus(tmp_path / "a")
    assert all(map(torch.equal, mapped, (train, held_out)))


# ------------------------------------------------------------------ streams


def test_every_stream_goes_on_where_it_was_and_reads_all_of_the_text(texts: ModuleType) -> None:
    text = torch.randint(256, (1003,), dtype=torch.uint8)
    streams = texts.Streams(text, count=3, timesteps=10, seed=5)
    windows = [streams.window(number) for number in range(100)]
    read, after, fresh = (torch.stack(part) for part in zip(*windows, strict=True))
    assert torch.equal(fresh.sum(0), torch.ones(3, dtype=torch.long))
    for stream in range(3):
        passed = read[:, :, stream].flatten()
        begin = int(fresh[:, stream].nonzero()) * 10
        assert torch.equal(passed.roll(-begin), text[:1000].long())
        assert torch.equal(after[:, :, stream].flatten().roll(-begin), text[1:1001].long())
    again = texts.Streams(text, count=3, timesteps=10, seed=5).window(107)
    assert all(map(torch.equal, again, windows[7]))
    assert not torch.equal(texts.Streams(text, 3, 10, seed=6).window(0).read, windows[0].read)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_carried_until_a_stream_begins_anew(
    byte_lm: ModuleType, texts: ModuleType, models: ModuleType, kind: str
) -> None:
    """Stepping byte by byte from a stream's beginning gives what the windows gave."""
    torch.manual_seed(0)
    model = models.ByteLM(kind, 8, 1)
    text = torch.randint(97, 123, (101,), dtype=torch.uint8)
    streams, logits = texts.Streams(text, count=2, timesteps=10, seed=0), []
    with torch.no_grad():
        for number in range(20):
            window = streams.window(number)
            model.zero_states(window.fresh)
            logits.append(model.unroll(window.read))
        found = torch.cat(logits)
        for stream in range(2):
            model.zero_states()
            begin = -int(streams.begins[stream]) % streams.windows * 10
            alone = torch.stack([model(byte[None].long())[0] for byte in text[:100]])
            torch.testing.assert_close(
                found[begin : begin + 100, stream], alone, atol=1e-4, rtol=1e-4
            )


# ------------------------------------------------------------------ models


def test_nets_have_equally_many_parameters(models: ModuleType) -> None:
    assert models.SHAPES.keys() == models.BLOCKS.keys()
    counts = [
        models.ByteLM(kind, shape.width, shape.blocks).num_parameters().learnable
        for kind, shape in models.SHAPES.items()
    ]
    assert max(counts) / min(counts) < 1.02


def test_the_baseline_is_torchs_own_with_its_states_carried_by_hand(models: ModuleType) -> None:
    """Gradients over three windows, the graph cut after each."""
    torch.manual_seed(0)
    model, read = models.ByteLM("lstm", 5, 1), torch.randint(256, (3, 7, 2))
    own, lstm, states = model.blocks[0].inner[0], nn.LSTM(5, 5), None
    for name, weight in own.named_parameters():
        lstm.get_parameter(f"{name}_l0").data.copy_(weight)
    for window in read:
        model.detach_states()
        model.unroll(window).logsumexp(-1).mean().backward()
    found = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    for window in read:
        x = model.embedding(window)
        y, (h, c) = lstm(model.blocks[0].norm(x), states)
        states = h.detach(), c.detach()
        model.head(model.norm(x + y)).logsumexp(-1).mean().backward()
    expected = {name: w.grad for name, w in model.named_parameters() if "inner" not in name}
    for name, weight in lstm.named_parameters():
        expected[f"blocks.0.inner.0.{name.removesuffix('_l0')}"] = weight.grad
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_learning_is_that_of_a_loop(
    byte_lm: ModuleType, models: ModuleType, kind: str
) -> None:
    """Gradients of a window, cut in its middle, from a state that is carried in."""
    torch.manual_seed(0)
    model, read = models.ByteLM(kind, 8, 1).double(), torch.randint(256, (2, 12, 3))
    gradients = []
    for unrolled in (True, False):
        model.zero_states()
        model.zero_grad()
        for window in read:
            model.detach_states()
            if unrolled:
                logits = model.unroll(window, detach_every=6)
            else:
                stepped = []
                for number, step in enumerate(window):
                    if number == 6:
                        model.detach_states()
                    stepped.append(model(step))
                logits = torch.stack(stepped)
            logits.logsumexp(-1).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-7)


# ------------------------------------------------------------------ measuring


def test_bits_are_those_of_each_byte_after_all_before_it(
    byte_lm: ModuleType, models: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_lm, "READ_AT_ONCE", 7)
    torch.manual_seed(0)
    model, text = models.ByteLM("mamba", 8, 1).double(), torch.randint(256, (30,))
    model(torch.tensor([3, 4]))
    before = model.get_states()
    found = byte_lm.bits_per_byte(model, text.byte())
    after = model.get_states()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.zero_states()
    chances, last = [], torch.tensor([10])
    with torch.no_grad():
        for byte in text:
            chances.append(model(last).softmax(-1)[0, byte].item())
            last = byte[None]
    assert found == pytest.approx(-sum(map(math.log2, chances)) / 30)


def test_a_compressor_that_has_seen_the_text_needs_nothing_for_it(byte_lm: ModuleType) -> None:
    compressors = importlib.import_module("compressors")
    generator = torch.Generator().manual_seed(0)
    noise = bytes(torch.randint(256, (20_000,), generator=generator).tolist())
    assert all(8 <= bits < 8.3 for bits in compressors.alone(noise).values())
    other = bytes(reversed(noise))
    assert all(8 <= bits < 8.3 for bits in compressors.primed(noise, other).values())
    assert all(bits < 0.3 for bits in compressors.primed(noise, other + noise).values())
    few = bytes(torch.randint(2, (20_000,), generator=generator).tolist())
    assert all(1 <= bits < 1.5 for bits in compressors.alone(few).values())


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("kind", ["mamba", "spiking", "lstm"])
def test_what_is_written_is_what_reading_all_of_it_anew_says(models: ModuleType, kind: str) -> None:
    """Cold, it is the likeliest byte each time; the model is as it was."""
    written = importlib.import_module("text_generation").written
    torch.manual_seed(0)
    model = models.ByteLM(kind, 8, 1)
    model(torch.tensor([3, 4]))
    before = model.get_states()
    text = written(model, b"\ndef ", 12, 1e-4, torch.Generator().manual_seed(0))
    after = model.get_states()
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = [*b"\ndef "]
    with torch.no_grad():
        for _ in range(12):
            model.zero_states()
            whole.append(int(model.unroll(torch.tensor(whole)[:, None], fold=False)[-1].argmax()))
    assert [*text] == whole[5:]
    warm = [written(model, b"a", 40, 1.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


# ------------------------------------------------------------------ learning


def test_it_learns_measures_and_writes(tmp_path: Path) -> None:
    """Of a text that is not repeated, far better than the shares of single bytes would allow."""
    (tmp_path / "topics.txt").write_text("\n".join(topics[name] for name in sorted(topics)))
    options = (
        *("--data", tmp_path / "topics.txt"),
        *("--width", "32", "--blocks", "1", "--batch-size", "8", "--timesteps", "64"),
        *("--steps", "120", "--learning-rate", "0.01", "--generate", "def ", "--length", "50"),
        *("--figure", tmp_path / "figure.png", "--results", tmp_path / "run.json"),
    )
    command = [sys.executable, FOLDER / "byte_lm.py", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "learning: 100%" in done.stderr
    said = re.search(r"^mamba, [\d,]+ parameters +(\d\.\d+) bits per byte$", done.stdout, re.M)
    assert said
    assert float(said[1]) < 3.5  # from the shares of single bytes: 4.6
    for name in ("zlib", "bz2", "lzma"):
        assert re.search(rf"^{name} of it alone +[12]\.\d+ bits per byte$", done.stdout, re.M)
    assert re.search(r"^def .*\[\d+ tokens per second\]$", done.stdout, re.M | re.S)
    assert (tmp_path / "figure.png").stat().st_size > 15_000
    curve = json.loads((tmp_path / "run.json").read_text())["curve"]
    assert [step for step, *_ in curve] == [15, 30, 45, 60, 75, 90, 105, 120]
    assert f"{curve[-1][-1]:.3f}" == said[1]


# ------------------------------------------------------------------ checkpoints


def saved(file: Path) -> dict[str, object]:
    """All of a checkpoint but what the clock says."""
    content = torch.load(file)
    content["values"]["seconds"] = None
    content["values"]["curve"] = [
        [step, seen, bits] for step, seen, _, bits in content["values"]["curve"]
    ]
    return content


@pytest.mark.parametrize("kind", ["mamba", "spiking", "lstm"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None],
    text: Path,
    tmp_path: Path,
    kind: str,
    equal: Callable[[object, object], bool],
) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    common = (*TINY, "--model", kind, "--data", text, "--figure", tmp_path / "figure.png")
    main(*common, "--checkpoint", whole)
    main(*common, "--checkpoint", parts, "--stop-at", 7)
    assert not equal(saved(whole), saved(parts))
    main(*common, "--checkpoint", parts, "--resume")
    one, other = saved(whole), saved(parts)
    assert equal(one, other)
    assert other["values"]["step"] == 12
    states = other["objects"]["model"]["states"]
    assert all(len(state) == 4 for of in states.values() for state in of.values())
    assert [step for step, *_ in other["values"]["curve"]] == [1, 3, 4, 6, 7, 9, 10, 12]


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], text: Path, tmp_path: Path
) -> None:
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = (*TINY, "--data", text, "--figure", figure, "--checkpoint", file)
    main(*common, "--stop-at", 2)
    before = file.read_bytes()
    figure.unlink()
    other = tmp_path / "other.txt"
    other.write_bytes(text.read_bytes()[1:])
    for options, words in [
        ((), "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--model", "lstm"), "is of another run: its model is 'mamba', not 'lstm'"),
        (("--resume", "--width", 16), "is of another run: its width is 8, not 16"),
        (("--resume", "--steps", 13), "is of another run: its steps is 12, not 13"),
        (("--resume", "--data", other), "is of another run: its text is '.*', not '.*'"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*common, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"weights": torch.ones(2)}])
def test_something_else_is_no_checkpoint(
    main: Callable[..., None], text: Path, tmp_path: Path, content: object
) -> None:
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    before = file.read_bytes()
    with pytest.raises(SystemExit, match=rf"^error: {re.escape(str(file))} .*no file of .*$"):
        main(*TINY, "--data", text, "--checkpoint", file, "--resume")
    assert file.read_bytes() == before


# ------------------------------------------------------------------ comparing


def test_runs_are_put_side_by_side(
    main: Callable[..., None],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bits_curves = importlib.import_module("bits_curves")
    files, figure = [], tmp_path / "compared.png"

    def compare(*names: Path) -> None:
        arguments = [*map(str, names), "--figure", str(figure)]
        monkeypatch.setattr(sys, "argv", ["bits_curves.py", *arguments])
        bits_curves.main()

    for number, options in enumerate([("--seed", 1), ("--seed", 0), ("--model", "lstm")]):
        files.append(tmp_path / f"{number}.json")
        common = (*TINY, "--data", text, "--figure", tmp_path / "figure.png")
        main(*common, "--results", files[-1], *options)
    capsys.readouterr()
    compare(*files)
    bits = [json.loads(file.read_text())["curve"][-1][-1] for file in files]
    rows = capsys.readouterr().out
    assert f"| mamba | {bits[1]:.3f}, {bits[0]:.3f} |" in rows
    assert f"| lstm | {bits[2]:.3f} |" in rows
    assert figure.stat().st_size > 10_000
    (tmp_path / "other.json").write_text(files[0].read_text().replace("bytes,", "bytes;"))
    with pytest.raises(SystemExit, match=r"^error: the runs are of other texts: .*$"):
        compare(*files, tmp_path / "other.json")
    for content in ("", "{}", "[]", '{"model": "a", "text": "b", "curve": []}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(SystemExit, match=r"^error: .*other.json holds no results of a .*$"):
            compare(tmp_path / "other.json")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model transformer", "--model: invalid choice: 'transformer'"),
        ("--steps 0", "--steps: must be at least 1, got 0"),
        ("--learning-rate inf", "--learning-rate: must be a finite number above 0, got inf"),
        ("--temperature 0", "--temperature: must be a finite number above 0, got 0.0"),
        ("--data nowhere.txt", "--data: there is no file or folder nowhere.txt"),
        ("--results nowhere/run.json", "--results: the folder nowhere does not exist"),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no text: 0 bytes"),
        (b"a", "holds no text: 1 bytes"),
        (b"too short", "the text to learn from has 8 bytes; 4 streams of 16 .* need 65"),
    ],
)
def test_a_text_that_is_too_short_is_refused(
    main: Callable[..., None], tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "text").mkdir()
    file = tmp_path / "text" / "of.txt"
    file.write_bytes(content)
    for place in (file, file.parent):
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*TINY, "--data", place, "--figure", tmp_path / "figure.png")

"""What the examples share: options, checkpoints that are gone on with, errors in one line."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tracetorch as tt
from torch import nn

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("common.command_line")


# ------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("positive", "1", 1),
        ("above_zero", "1e-3", 1e-3),
        ("share", "0", 0.0),
        ("share", "1", 1.0),
        ("seed", "0", 0),
        ("seed", "2147483647", 2**31 - 1),
        ("device", "cpu", torch.device("cpu")),
        ("threads", "1024", 1024),
    ],
)
def test_a_value_in_its_range_is_taken(
    command_line: ModuleType, kind: str, text: str, value: object
) -> None:
    assert getattr(command_line, kind)(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("positive", "0", "must be at least 1, got 0"),
        ("above_zero", "0", "must be a finite number above 0, got 0.0"),
        ("above_zero", "inf", "must be a finite number above 0, got inf"),
        ("above_zero", "nan", "must be a finite number above 0, got nan"),
        ("share", "1.01", "must be in 0...1, got 1.01"),
        ("share", "nan", "must be in 0...1, got nan"),
        ("seed", "-1", "must be in 0...2147483647, got -1"),
        ("seed", "2147483648", "must be in 0...2147483647, got 2147483648"),
        ("device", "abacus", "'abacus' is not usable here"),
        ("device", "meta", "'meta' is not usable here: Tensor.item() cannot be called on meta"),
        ("threads", "100000000000", "must be at most 1024, got 100000000000"),
        ("folder", "nowhere", "there is no folder nowhere"),
        ("file", ".", "there is no file ."),
        ("in_a_folder", "nowhere/run.pt", "the folder nowhere does not exist"),
        ("in_a_folder", ".", ". is a folder"),
        ("figure_file", "figure.doc", "figure.doc must end in one of "),
        ("figure_file", "nowhere/figure.png", "the folder nowhere does not exist"),
    ],
)
def test_a_value_out_of_its_range_is_refused_and_said(
    command_line: ModuleType, kind: str, text: str, words: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(words)}"):
        getattr(command_line, kind)(text)


def test_help_says_every_default_whatever_is_in_a_name(
    command_line: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_line.CommandLine(str(tmp_path / "100%s.py"), "What it does.")
    parser.option("--share", command_line.share, 0.5, "of 100 %")
    parser.option("--kind", str, "a", "one of two", choices=["a", "b"])
    parser.option("--file", command_line.file, None, "none without")
    parser.usual()
    parser.checkpointed("now and then")
    with pytest.raises(SystemExit, match=r"^0$"):
        parser.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of 100 % (0.5)" in said
    assert "one of two (a)" in said
    assert "--file FILE none without -" in said
    assert "100%s.png)" in said.replace(" ", "")
    assert "saved now and then; none without" in said
    assert parser.parse_args([]).figure == tmp_path / "100%s.png"


def test_a_script_for_one_device_has_no_option_for_it(command_line: ModuleType) -> None:
    parser = command_line.CommandLine("script.py", None)
    parser.usual(on_any_device=False)
    assert vars(parser.parse_args([])).keys() == {"threads", "seed", "figure"}


# ------------------------------------------------------------------ checkpoints


class Run:
    """A net and its optimizer, some steps on, and the options of its command line."""

    def __init__(
        self, command_line: ModuleType, *arguments: object, width: int = 3, data: str = "some"
    ) -> None:
        parser = command_line.CommandLine("script.py", None)
        parser.option("--rate", float, 0.1, "")
        parser.usual()
        parser.checkpointed("at the end")
        self.options = parser.parse_args(list(map(str, arguments)))
        torch.manual_seed(self.options.seed)
        self.net, self.generator = nn.Linear(width, 1), torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.Adam(self.net.parameters(), self.options.rate)
        self.checkpoint = command_line.Checkpoint(
            self.options,
            ("seed", "rate"),
            self.net,
            optimizer=self.optimizer,
            generator=self.generator,
            data=data,
        )

    def steps(self, count: int) -> torch.Tensor:
        for _ in range(count):
            x = torch.rand(4, self.net.in_features, generator=self.generator)
            self.optimizer.zero_grad()
            (self.net(x) * torch.rand(())).sum().backward()  # torch's own generator is used, too
            self.optimizer.step()
        return self.net.weight.detach().clone()


@pytest.fixture
def start(command_line: ModuleType) -> Callable[..., Run]:
    return lambda *arguments, **kwargs: Run(command_line, *arguments, **kwargs)


def test_a_run_goes_on_as_if_it_had_never_stopped(
    start: Callable[..., Run], command_line: ModuleType, tmp_path: Path
) -> None:
    file, position = tmp_path / "run.pt", {"step": 3, "curve": [0.5, 0.25], "left": torch.arange(3)}
    whole = start()
    whole.checkpoint.save(step=0)
    assert whole.checkpoint.begin() == {}
    expected = whole.steps(7)
    first = start("--checkpoint", file)
    assert first.checkpoint.begin() == {}
    first.steps(3)
    first.checkpoint.save(**position)
    first.steps(2)  # lost: not saved
    again = start("--checkpoint", file, "--resume")
    found = again.checkpoint.begin()
    assert torch.equal(found.pop("left"), position["left"])
    assert found == {"step": 3, "curve": [0.5, 0.25]}
    assert torch.equal(again.steps(4), expected)
    saved = command_line.saved_values(file)
    assert saved["settings"] == {"seed": 0, "rate": 0.1}
    assert saved["curve"] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("arguments", "kwargs", "words"),
    [
        ((), {}, "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--seed", 1), {}, "is of another run: its seed is 0, not 1"),
        (("--resume", "--rate", 0.2), {}, "is of another run: its rate is 0.1, not 0.2"),
        (("--resume",), {"data": "other"}, "of another run: its data is 'some', not 'other'"),
        (("--resume",), {"width": 4}, "does not fit model, Linear: "),
    ],
)
def test_a_file_of_another_run_is_left_alone_and_so_is_the_run(
    start: Callable[..., Run],
    tmp_path: Path,
    arguments: tuple[object, ...],
    kwargs: dict[str, object],
    words: str,
) -> None:
    file = tmp_path / "run.pt"
    first = start("--checkpoint", file)
    first.steps(1)
    first.checkpoint.save(step=1)
    before = file.read_bytes()
    other = start("--checkpoint", file, *arguments, **kwargs)
    weight = other.net.weight.clone()
    with pytest.raises(ValueError, match=re.escape(words)):
        other.checkpoint.begin()
    assert torch.equal(other.net.weight, weight)
    assert file.read_bytes() == before


def test_resuming_needs_a_file(start: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--resume needs the --checkpoint to go on from$"):
        start("--resume").checkpoint.begin()
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        start("--resume", "--checkpoint", tmp_path / "none.pt").checkpoint.begin()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "does not end with the SHA-256 of its content"),
        (torch.ones(2), "does not end with the SHA-256 of its content"),
        ({"step": 1}, "is no checkpoint of a run: it holds no settings"),
    ],
)
def test_values_are_read_out_of_checkpoints_only(
    command_line: ModuleType, tmp_path: Path, content: object, words: str
) -> None:
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        tt.save_checkpoint(file, nn.Linear(1, 1), **content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} {words}"):
        command_line.saved_values(file)


# ------------------------------------------------------------------ errors


def test_what_a_user_can_mend_is_a_line_and_a_fault_is_not(command_line: ModuleType) -> None:
    said = pytest.raises(SystemExit, match=r"^error: no such thing$")
    with said, command_line.errors_in_a_line():
        raise ValueError("no such thing")
    said = pytest.raises(SystemExit, match=r"^error: .*No such file or directory: 'nowhere'$")
    with said, command_line.errors_in_a_line():
        Path("nowhere").read_text()
    with pytest.raises(SystemExit) as ended, command_line.errors_in_a_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    with pytest.raises(KeyError), command_line.errors_in_a_line():
        raise KeyError("a fault of the script")

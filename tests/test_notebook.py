"""The notebook for newcomers, executed as Jupyter does: what it reaches, draws and links to."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FILE = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed() -> NotebookNode:
    notebook = nbformat.read(FILE, as_version=4)
    here = {"metadata": {"path": str(FILE.parent)}}
    return NotebookClient(notebook, timeout=120, kernel_name="python3", resources=here).execute()


@pytest.fixture
def said(executed: NotebookNode) -> str:
    """Everything printed."""
    return "".join(each.text for each in outputs(executed) if each.output_type == "stream")


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


def test_nothing_that_came_out_is_stored() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_the_net_learns_what_a_single_timestep_does_not_say(said: str) -> None:
    told = re.search(r"after one timestep (\d+)%, after 40 (\d+)%", said)
    assert told
    first, last = map(int, told.groups())
    assert first < 45
    assert last >= 95
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\d\.\d+)", said)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 2


def test_what_it_says_of_sequences_and_files_is_so(said: str) -> None:
    assert "the same: True" in said
    assert "goes on from {'step': 300}" in said
    assert "the same answer: True" in said
    spikes = re.findall(r"spikes \[\[(.*?)\]\]", said)
    assert spikes == ["0.0, 1.0, 0.0", "1.0, 1.0, 0.0", "0.0, 1.0, 0.0"]
    share = re.search(r"timesteps with a spike: (\d+)%", said)
    assert share
    assert 5 < int(share[1]) < 70


def test_the_summary_finds_every_layer_in_a_kernel(said: str) -> None:
    rows = re.findall(r"^(hidden|readout) .* fused *$", said, re.MULTILINE)
    assert rows == ["hidden", "readout"]
    assert "silent:" not in said


def test_its_figures_are_shown_as_pictures(executed: NotebookNode) -> None:
    pictures = [
        each.data["image/png"] for each in outputs(executed) if "image/png" in each.get("data", {})
    ]
    assert len(pictures) == 4
    assert all(len(b64decode(picture)) > 10_000 for picture in pictures)


def test_nothing_warns(executed: NotebookNode) -> None:
    assert [each.text for each in outputs(executed) if each.get("name") == "stderr"] == []


def test_its_links_lead_somewhere() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) >= 5
    assert [link for link in links if not (FILE.parent / link).exists()] == []

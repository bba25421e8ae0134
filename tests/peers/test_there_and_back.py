"""A net of snnTorch, ported, trained for a step, and given to snnTorch and Norse as a NIR graph.

What docs/coming-from.md says of it is what is run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
STEPS, BATCH = 100, 16
ROUNDED = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's blocks, one after the other; files are written to a folder of the test."""
    for name in ("snntorch", "norse"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own, on import
            pytest.importorskip(name, reason=f"needs {name}", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").partition(
        "\n### A net of snnTorch, there and back\n"
    )
    text = section[2].partition("\n## ")[0]
    return iter(re.findall(r"(?s)```python\n(.+?)```", text))


def run(story: Iterator[str], names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        exec(next(story), names)


def test_a_net_of_snntorch_is_ported_trained_and_given_back(story: Iterator[str]) -> None:
    x = 3 * torch.randn(STEPS, BATCH, 8) + 1
    targets = torch.arange(BATCH) % 4
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "snn": snn, "tt": tt, "x": x, "targets": targets,
    }  # fmt: skip

    run(story, names)
    theirs = names["theirs"]
    spikes = torch.stack([theirs(x_t) for x_t in x])
    assert 0.02 < spikes.mean() < 0.9
    loss = names["sf"].ce_count_loss()(spikes, targets)
    loss.backward()

    run(story, names)
    net = names["net"]
    torch.testing.assert_close(names["loss"], loss, **ROUNDED)
    learned = dict(theirs.named_parameters())
    assert learned.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    for name, weight in learned.items():
        assert weight.grad.abs().max() > 1e-4
        torch.testing.assert_close(net.net.get_parameter(name).grad, weight.grad, **ROUNDED)
    optimizer.step()
    for name, weight in learned.items():
        torch.testing.assert_close(net.net.get_parameter(name), weight, **ROUNDED)

    run(story, names)
    in_snntorch = names["in_snntorch"].double()  # its importer has rounded weights to single
    net.zero_states()
    with torch.no_grad():
        trained = net.unroll(x)
        again = torch.stack([out(in_snntorch(x_t)) for x_t in x])
        state, norse = None, []
        for x_t in x:
            y, state = names["in_norse"](x_t, state)
            norse.append(y)
    assert not torch.equal(trained, spikes)
    assert torch.equal(again, trained)
    assert torch.equal(torch.stack(norse), trained)


def out(given: Any) -> Tensor:
    """The output of an imported graph, with or without its states."""
    return given[0] if isinstance(given, tuple) else given

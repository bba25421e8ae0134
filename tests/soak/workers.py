"""Models in eight threads, and in forked and spawned processes, at once."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import tracetorch as tt
from leaks import Net

COUNT = 8


def trained(model: Net, seed: int) -> list[Any]:
    """A few steps of training of a copy, as numbers; what processes are sent, they share."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    found = []
    for number in range(4):
        x = torch.rand(3 + number, 2, 4, generator=generator)
        model.zero_states()
        y = model.unroll(x, fold=False if number == 1 else None, recompute=number == 2)
        optimizer.zero_grad()
        y.square().sum().backward()
        optimizer.step()
        found.append(float(y.detach().sum()))
        with torch.no_grad():
            model.zero_states()
            found.append([float(model(step).sum()) for step in x])
    return found


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    barrier, found = threading.Barrier(COUNT), [None] * COUNT

    def one(place: int) -> None:
        barrier.wait()
        try:
            found[place] = work(place)
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a thread hangs"
    return found


def shared(model: Net, seed: int) -> None:
    """Threads that share one model are told so, or get an answer; then it works as before."""

    def work(place: int) -> None:
        for _ in range(10):
            model.zero_states()
            model.unroll(torch.rand(4, 2, 4))

    for error in in_threads(work):
        if error is not None:
            assert isinstance(error, (RuntimeError, tt.StateError)), repr(error)
            assert "in use in another thread" in str(error), repr(error)


def run(seed: int, count: int) -> str:
    """So many rounds; AssertionError is a finding."""
    for number in range(count):
        torch.manual_seed(seed + number)
        model = Net()
        expected = [trained(model, place) for place in range(COUNT)]
        copies = [copy.deepcopy(model) for _ in range(COUNT)]
        found = in_threads(lambda place: trained(copies[place], place))  # noqa: B023
        assert found == expected, f"threads: {found} are not {expected}"
        shared(copy.deepcopy(model), seed)
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            with ProcessPoolExecutor(2, context) as pool:
                jobs = [pool.submit(trained, model, place) for place in range(COUNT)]
                found = [job.result(timeout=600) for job in jobs]
            assert found == expected, f"{method}: {found} are not {expected}"
        assert trained(model, 0) == expected[0]
    return f"{count} rounds of {COUNT} threads, of forked and of spawned processes"

"""Blocks of memory that are used again: never two tensors at once, bounded, given back."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import testing
from tracetorch.engine import memory

MEGABYTE = 1 << 20


def filled(pool: memory.Pool, size: int, value: int) -> Tensor:
    return pool.take(size).fill_(value)


def test_a_block_comes_back_with_the_last_tensor_on_it() -> None:
    pool = memory.Pool(10 * MEGABYTE)
    tensor = filled(pool, MEGABYTE, 1)
    place, part = tensor.data_ptr(), tensor[5:]
    del tensor
    assert pool.waiting == 0
    other = filled(pool, MEGABYTE, 2)
    assert other.data_ptr() != place
    assert set(part.tolist()) == {1}
    del part
    assert pool.waiting >= MEGABYTE
    assert pool.take(MEGABYTE).data_ptr() == place


def test_only_a_block_of_about_the_size_is_taken() -> None:
    pool = memory.Pool(10 * MEGABYTE)
    place = pool.take(MEGABYTE).data_ptr()
    small = pool.take(MEGABYTE // 2)
    assert pool.waiting >= MEGABYTE
    assert small.data_ptr() != place
    assert pool.take(MEGABYTE * 9 // 10).data_ptr() == place


def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    pool = memory.Pool(5 * MEGABYTE // 2)
    held = [pool.take(MEGABYTE) for _ in range(4)]
    places = [tensor.data_ptr() for tensor in held]
    while held:
        held.pop(0)
    assert 2 * MEGABYTE <= pool.waiting <= 5 * MEGABYTE // 2
    assert {pool.take(MEGABYTE).data_ptr(), pool.take(MEGABYTE).data_ptr()} <= set(places[2:])
    pool.trim(0)
    assert pool.waiting == 0


def test_threads_never_share_a_block() -> None:
    pool, wrong = memory.Pool(8 * MEGABYTE), []

    def work(value: int) -> None:
        for _ in range(200):
            tensor = filled(pool, MEGABYTE // 4, value)
            if not bool((tensor == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.waiting <= 8 * MEGABYTE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_tensors_are_aligned_and_nobodys_view(dtype: torch.dtype) -> None:
    tensor = memory.empty((300, 1000), dtype, torch.device("cpu"))
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((300, 1000), dtype, True)
    assert tensor.data_ptr() % 64 == 0
    assert tensor._base is None


def test_outputs_that_are_kept_stay_as_they_are() -> None:
    """Ten sequences one after the other, their outputs and gradients held or let go."""
    layer, held = testing.Trace(64), []
    x = torch.randn(10, 100, 16, 64, requires_grad=True)
    for k in range(10):
        layer.zero_states()
        y = layer.unroll(x[k])
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        if k % 3 == 0:
            held.append((k, y, gradient))
        del y, gradient
    with tt.backends.use("eager"):
        for k, y, gradient in held:
            layer.zero_states()
            expected = layer.unroll(x[k])
            torch.testing.assert_close(y, expected)
            (expected,) = torch.autograd.grad(expected.square().sum(), x)
            torch.testing.assert_close(gradient, expected)


def test_an_output_may_be_written_into_shared_and_saved(tmp_path: Path) -> None:
    layer, x = testing.Trace(64), torch.randn(100, 16, 64)
    y = layer.unroll(x.requires_grad_())
    expected = y.detach().clone()
    rectified = torch.nn.functional.relu(y, inplace=True)
    assert torch.equal(rectified, expected.relu())
    rectified.sum().backward()
    torch.save(rectified.detach(), tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), expected.relu())
    shared = rectified.detach().share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, expected.relu())


def test_the_cache_can_be_emptied() -> None:
    layer = testing.Trace(64)
    layer.unroll(torch.randn(100, 16, 64))
    layer.zero_states()
    gc.collect()
    assert memory._pool().waiting > 0
    tt.backends.empty_cache()
    assert memory._pool().waiting == 0


@pytest.mark.parametrize(("said", "limit"), [("0", 0), ("300", 300 * MEGABYTE)])
def test_the_bound_can_be_chosen(monkeypatch: pytest.MonkeyPatch, said: str, limit: int) -> None:
    monkeypatch.setenv("TRACETORCH_KEEP_MB", said)
    assert memory.limit() == limit


@pytest.mark.parametrize("said", ["", "-1", "1.5", "much"])
def test_another_bound_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("TRACETORCH_KEEP_MB", said)
    with pytest.raises(ValueError, match="TRACETORCH_KEEP_MB must be a whole number of megabytes"):
        memory.limit()


def test_without_a_bound_set_it_is_a_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACETORCH_KEEP_MB", raising=False)
    assert 0 < memory.limit() <= 1 << 30
    monkeypatch.setattr(memory, "_physical", lambda: 1 << 30)
    assert memory.limit() == 1 << 26


def test_where_the_system_does_not_say_its_memory_it_is_256_megabytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRACETORCH_KEEP_MB", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)  # as on Windows
    assert memory.limit() == 256 * MEGABYTE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_is_not_held_up_by_a_thread_it_does_not_have() -> None:
    shape, ready, done = (1 << 20,), threading.Event(), threading.Event()
    memory.empty(shape, torch.uint8, torch.device("cpu"))

    def hold() -> None:
        with memory._pool()._lock:
            ready.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        memory.empty(shape, torch.uint8, torch.device("cpu"))
        os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0

"""A random program: a model's source, and the calls it gets. All of it follows from its seed."""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass, field
from typing import Any

import blocks
from blocks import Block

TOP = """\
import collections, contextvars, functools, itertools, os, random, threading, types, warnings
import numpy as np
import torch
import torch.utils.checkpoint
import tracetorch as tt
from torch import nn
from tracetorch import rnn, snn
"""

NEURONS = 4


@dataclass(frozen=True)
class Call:
    """One call, by name, with what it takes."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.given.items())})"


@dataclass(frozen=True)
class Program:
    """Blocks in their order, numbered, and calls in theirs."""

    seed: int
    dtype: str
    blocks: tuple[tuple[int, Block], ...]
    calls: tuple[Call, ...]
    ending: str = "return x"

    @property
    def flags(self) -> frozenset[str]:
        return frozenset().union(*(block.flags for _, block in self.blocks))

    def source(self) -> str:
        """The module that defines ``Net``."""

        def lines(part: str, indent: int) -> str:
            found = "\n".join(
                getattr(block, part).replace("@", str(number))
                for number, block in self.blocks
                if getattr(block, part)
            )
            return textwrap.indent(found, " " * indent)

        effects = ", ".join(
            block.effect.replace("@", str(number)) for number, block in self.blocks if block.effect
        )
        return "\n".join([
            TOP, f"N = {NEURONS}",
            lines("top", 0),
            "class Net(tt.Model):",
            "    def __init__(self):",
            "        super().__init__()",
            "        self.flag = True",
            lines("setup", 8),
            "    def forward(self, x):",
            lines("body", 8),
            f"        {self.ending}",
            "    def effects(self):",
            f"        return [{effects}]",
        ])  # fmt: skip

    def __str__(self) -> str:
        calls = "\n".join(f"# {number}: {call}" for number, call in enumerate(self.calls))
        return f"# seed {self.seed}, {self.dtype}\n{self.source()}\n{calls}"


def program(seed: int) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    count = rng.randint(1, 5)
    makers = (blocks.layer, blocks.plain, blocks.own, blocks.held_elsewhere)
    made = [blocks.layer(rng) if rng.random() < 0.8 else blocks.own(rng)]
    made += [rng.choices(makers, (4, 4, 3, 1))[0](rng) for _ in range(count - 1)]
    for _ in range(rng.choices((0, 1, 2), (4, 5, 1))[0]):
        made.insert(rng.randint(0, len(made)), blocks.effect(rng))
    ending = "return x"
    if rng.random() < 0.15:
        ending = rng.choice((
            "return x, x.sum(-1)", "return {'a': x, 'b': [x * 2]}", "return x.unsqueeze(-1)",
        ))  # fmt: skip
    dtype = rng.choice(("float64",) * 4 + ("float32",))
    numbered = tuple(enumerate(made))
    flags: frozenset[str] = frozenset().union(*(block.flags for block in made))
    return Program(seed, dtype, numbered, tuple(_calls(rng, flags)), ending)


# ------------------------------------------------------------------ calls


def _unroll(rng: random.Random, batch: int, training: bool, flags: frozenset[str]) -> Call:
    steps = rng.choice((1, 2, 3, 5, 8, 13))
    given: dict[str, Any] = {"T": steps, "B": batch, "seed": rng.randrange(10**6)}
    # batch statistics over folded timesteps include samples that have ended
    if rng.random() < 0.3 and blocks.MODES not in flags:
        given["lengths"] = [rng.randint(0, steps) for _ in range(batch)]
    if rng.random() < 0.3:
        given["chunk_size"] = rng.randint(1, steps + 1)
    if rng.random() < 0.25:
        given["detach_every"] = rng.randint(1, steps + 1)
    if rng.random() < 0.2:
        given["time_dim"] = rng.choice((1, -2))
    pure = not flags & {blocks.EFFECT, blocks.NOISE, blocks.BATCH, blocks.LATER, blocks.LOOKS}
    if rng.random() < 0.15 and (pure or rng.random() < 0.3):
        given["recompute"] = True
    if rng.random() < 0.2:
        given["fold"] = pure and rng.random() < 0.7
    if training and blocks.MODES in flags and not given.get("recompute"):
        given["fold"] = False
    if training and blocks.MODES in flags:
        given.pop("recompute", None)
        given["fold"] = False
    return Call("unroll", given)


# with how much weight each is drawn
WEIGHTS = {
    "unroll": 14, "step": 4, "gradients": 8, "zero_states": 4, "zero_some": 3, "select": 1,
    "detach": 2, "mode": 3, "compile": 2, "save": 2, "checkpoint": 1, "set_states": 1, "copy": 2,
    "pickle": 2, "no_grad": 2, "inference": 1, "thread": 1, "optimizer": 1, "dtypes": 1,
    "functional_call": 1, "func_grad": 1, "vmap": 1, "jvp": 1, "fake": 1, "make_fx": 1,
    "check": 1, "summary": 1, "record": 1, "state_dict": 1, "flag": 1, "misfit": 1, "autocast": 1,
    "jit": 1,
}  # fmt: skip
# what cannot be compared where a model is more than its layers, or draws at random
ALONE = {
    "summary",
    "functional_call",
    "func_grad",
    "vmap",
    "jvp",
    "fake",
    "make_fx",
    "check",
    "jit",
    "record",
}


def _calls(rng: random.Random, flags: frozenset[str]) -> list[Call]:
    found: list[Call] = []
    batch, training = rng.randint(1, 4), True
    if blocks.MODES in flags and rng.random() < 0.7:
        found.append(Call("mode", {"training": False}))
        training = False
    special = flags & {blocks.EFFECT, blocks.NOISE, blocks.LATER, blocks.LOOKS, blocks.OWN}
    for _ in range(rng.randint(4, 14)):
        (name,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        size = {"T": rng.choice((1, 2, 4, 6)), "B": batch, "seed": rng.randrange(10**6)}
        if name in ALONE and (special or (training and blocks.MODES in flags)):
            continue
        if name in ("vmap", "fake", "make_fx", "jit") and blocks.SEEDED in flags:
            continue
        if name in ("func_grad", "vmap", "jvp") and flags & {blocks.MIXED, blocks.BATCH}:
            continue
        if name in ("no_grad", "inference", "thread", "autocast", "unroll"):
            given = _unroll(rng, batch, training, flags).given
            found.append(Call(name, given))
        elif name == "mode":
            training = rng.random() < 0.5
            found.append(Call(name, {"training": training}))
        elif name == "zero_states":
            batch = rng.randint(1, 4)
            found.append(Call(name))
        elif name == "zero_some":
            found.append(Call(name, {"mask": [rng.random() < 0.5 for _ in range(batch)]}))
        elif name == "select":
            index = [rng.randrange(batch) for _ in range(rng.randint(1, 4))]
            batch = len(index)
            found.append(Call(name, {"index": index}))
        elif name == "misfit":
            found.append(Call("unroll", {**size, "B": batch + 1}))
        elif name == "save":
            found.append(Call(name, {"suffix": rng.choice((".pt", ".safetensors"))}))
        else:
            found.append(Call(name, size))
    if rng.random() < 0.7:
        found.append(Call("gradients", {"seed": rng.randrange(10**6)}))
    return found

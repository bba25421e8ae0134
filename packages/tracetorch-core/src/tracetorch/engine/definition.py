"""A step as it was when it was traced: second derivatives go through it.

What a kernel computes can be differentiated by the kernel's own gradients alone; these, once more,
only as torch does it, over the step. By then its module may compute something else, so it runs on
the stand-in, which hands out what was read then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.engine.aside import Aside
from tracetorch.engine.request import Subject
from tracetorch.engine.standin import Scene
from tracetorch.randomness import Drawing, after
from tracetorch.states import restarted


class Definition:
    """The step of a subject that has been traced.

    Args:
        subject: what computed it; its module is not kept.
        scene: what stood in for it.
        weights: names of its weights, in the order of inputs.
    """

    def __init__(self, subject: Subject, scene: Scene, weights: Sequence[str]) -> None:
        scene.forget()
        self._scene, self._weights, self._dim = scene, tuple(weights), subject.dim
        self._declared = subject.declaration
        self._states, self._own = tuple(self._declared.states), len(self._declared.parameters)
        self._lock = threading.Lock()

    def run(
        self,
        real: torch.dtype,
        inputs: Sequence[Tensor],
        aside: Aside,
        single: bool,
        recorded: Sequence[int],
    ) -> list[Tensor]:
        """Output, new states and recorded ones of a sequence, or of a single timestep.

        Args:
            real: what it computes in.
            inputs: x, the states, parameters and weights.
            aside: what has no gradient.
            single: x is one timestep, without a dimension of time.
            recorded: which of the states are wanted after every timestep.
        """
        x, count, dim = inputs[0], len(self._states), self._dim
        states, parameters = inputs[1 : 1 + count], inputs[1 + count :]
        own, weights = parameters[: self._own], parameters[self._own :]
        now, ys = [state.movedim(dim, -1) for state in states], []
        every: list[list[Tensor]] = [[] for _ in recorded]
        p = self._declared.parameter_fields(*own)
        with self._lock:
            self._scene.given = dict(zip(self._weights, weights, strict=True))
            for t, timestep in enumerate((x,) if single else x):
                if aside.resets is not None:
                    mask = aside.resets[t].bool()
                    now = [restarted(state, mask) for state in now]
                inflow = timestep.movedim(dim, -1).to(real)
                if aside.random is not None:
                    self._scene.stream = Drawing(after(aside.random, t), inflow.shape)
                new, y = self._scene.root.step(self._declared.state_fields(*now), inflow, p)
                now = [new[state] for state in self._states]
                ys.append(y.movedim(-1, dim).to(x.dtype))
                for kept, at in zip(every, recorded, strict=True):
                    kept.append(now[at].movedim(-1, dim))
        ends = [ys[0] if single else torch.stack(ys)]
        ends += [state.movedim(-1, dim) for state in now]
        return ends + [torch.stack(states) for states in every]

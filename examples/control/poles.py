"""CartPole as a batch of episodes that end and begin, with the velocities hidden. Knows no network.

The environment is gymnasium's vectorised CartPole. It restarts in the *next* step: a timestep shows
the last observation of an episode, the action that follows is ignored and earns nothing, and
what comes back is the first observation of the next episode. :class:`Poles` says which is which.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

POSITION, ANGLE = 0, 2  # of the observation: the other two are the velocities
LIMITS = torch.tensor([2.4, 0.2095])  # metres and radians at which an episode is lost
LONGEST = 500  # timesteps: a return of 500 is the best there is
RECENT = 100  # episodes whose mean return is the learning curve


class Outcome(NamedTuple):
    """What one action of each pole led to, all ``[B]``.

    Attributes:
        reward: 1 for every timestep that the pole stands.
        lost: the episode has ended because it fell; one that ran out of time has not lost.
        ended: the episode has ended, either way.
        counts: there was an action at all; False where the last observation was an episode's last.
    """

    reward: Tensor
    lost: Tensor
    ended: Tensor
    counts: Tensor


class Poles:
    """A batch of poles to balance.

    Args:
        count: how many, at least 1.
        seed: of where the episodes begin.

    Attributes:
        seen: position and angle ``[B, 2]``, in -1…1 until the episode is lost.
        fresh: ``[B]``: this observation is the first of an episode, so states restart before it.
        over: ``[B]``: this observation is the last of an episode, so the action does not count.
        recent: returns of the last 100 episodes that ended, oldest first.
    """

    def __init__(self, count: int, seed: int) -> None:
        made = gymnasium.make_vec(
            "CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point"
        )
        self.environment: Any = made.unwrapped
        observed, _ = self.environment.reset(seed=seed)
        self.seen = visible(observed)
        self.fresh = torch.ones(count, dtype=torch.bool)
        self.over = torch.zeros(count, dtype=torch.bool)
        self.returns = torch.zeros(count)
        self.recent: list[float] = []

    def push(self, actions: Tensor) -> Outcome:
        """One timestep: ``actions`` are 0 (left) or 1 (right), ``[B]``."""
        observed, *told, _ = self.environment.step(actions.numpy())
        reward, lost, late = (torch.from_numpy(values.copy()) for values in told)
        outcome = Outcome(reward, lost, lost | late, ~self.over)
        self.returns += reward
        self.recent = [*self.recent, *self.returns[outcome.ended].tolist()][-RECENT:]
        self.returns[outcome.ended] = 0.0
        self.seen, self.fresh, self.over = visible(observed), self.over, outcome.ended
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next timestep depends on, the random generator included."""
        env = self.environment
        return {
            "state": torch.from_numpy(env.state.copy()),
            "steps": torch.from_numpy(env.steps.copy()),
            "over": self.over,
            "fresh": self.fresh,
            "seen": self.seen,
            "returns": self.returns.clone(),
            "recent": self.recent,
            "random": env.np_random.bit_generator.state,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, exactly."""
        env = self.environment
        env.state, env.steps = saved["state"].numpy().copy(), saved["steps"].numpy().copy()
        env.prev_done = saved["over"].numpy().copy()
        env.np_random.bit_generator.state = saved["random"]
        self.over, self.fresh, self.seen = saved["over"], saved["fresh"], saved["seen"]
        self.returns, self.recent = saved["returns"].clone(), saved["recent"]


def visible(observed: NDArray[np.float32]) -> Tensor:
    """Position and angle out of ``[B, 4]``, in units of what they may be."""
    return torch.from_numpy(observed)[:, [POSITION, ANGLE]] / LIMITS

"""A pole is balanced by a net that sees where it is, not how fast it moves, and has to remember.

An actor-critic learns in gymnasium's vectorised CartPole. Episodes end one by one; each time, the
states of that pole alone restart (``zero_states(mask)``). ``--no-memory`` is the same net with all
states restarted at every timestep.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from actor_critic import loss_of, play, returns
from matplotlib.figure import Figure
from poles import LONGEST, Poles
from policies import LAYERS, Policy
from torch import Tensor, nn
from tqdm import tqdm
from tracetorch import plot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import command_line
from common.command_line import HELD_OUT_SEED

EPISODES = 100  # of the test, the same whatever the seed of a run
POINT_EVERY, SAVE_EVERY = 10, 50  # updates
LARGEST_GRADIENT = 0.5
MUST_AGREE = ("policy", "memory", "seed", "neurons", "poles", "timesteps", "learning_rate")


# ------------------------------------------------------------------ learning


class Run:
    """A policy, its optimizer and its poles; goes on from a checkpoint if it has to."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.timesteps = options.timesteps
        self.policy = Policy(options.policy, options.neurons, options.memory)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), options.learning_rate)
        self.poles = Poles(options.poles, options.seed)
        self.actions = torch.Generator().manual_seed(options.seed)
        self.checkpoint = command_line.Checkpoint(
            options,
            MUST_AGREE,
            self.policy,
            optimizer=self.optimizer,
            poles=self.poles,
            actions=self.actions,
        )
        beginning: dict[str, Any] = {"update": 0, "curve": []}
        position = beginning | self.checkpoint.begin()
        self.update: int = position["update"]
        self.curve: list[float] = position["curve"]

    def advance(self) -> float:
        """One rollout and one step of the optimizer; the mean return of recent episodes."""
        rollout = play(self.policy, self.poles, self.timesteps, self.actions)
        self.optimizer.zero_grad()
        loss_of(rollout).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.update += 1
        recent = self.poles.recent or self.poles.returns.tolist()
        mean = math.fsum(recent) / len(recent)
        if self.update % POINT_EVERY == 0:
            self.curve.append(mean)
        return mean

    def save(self) -> None:
        """To the checkpoint, if there is one."""
        self.checkpoint.save(update=self.update, curve=self.curve)


def learn(run: Run, updates: int) -> None:
    """Up to so many updates, counted from the run's beginning."""
    bar = tqdm(range(run.update, updates), initial=run.update, total=updates, desc="learning")
    for _ in bar:
        bar.set_postfix(mean_return=f"{run.advance():.0f}")
        if run.update % SAVE_EVERY == 0 or run.update == updates:
            run.save()


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(run: Run, spiking: bool, file: Path) -> None:
    """The learning curve; one episode after it, as seen, and what the layer put out meanwhile."""
    seen, out = episode(run.policy)
    figure = Figure(figsize=(9.0, 9.0), layout="constrained")
    above, middle, below = figure.subplots(3, 1)
    if run.curve:
        label = f"learning, a point every {POINT_EVERY} updates"
        plot.training({"mean return": run.curve}, xlabel=label, ylabel="timesteps", ax=above)
        above.axhline(LONGEST, color="0.6", linewidth=0.8, linestyle="--")
    plot.traces(seen, ax=middle).set(title="one episode: what is seen", ylabel="share of the limit")
    middle.legend(middle.lines[:2], ["position", "angle"], fontsize="small")
    draw = plot.raster if spiking else plot.heatmap
    draw(out, ax=below).set_title("what the remembering layer puts out")
    figure.savefig(file, dpi=120)


def episode(policy: Policy) -> tuple[Tensor, Tensor]:
    """What is seen ``[T, 2]``, and the remembering layer's output ``[T, N]``, of one pole."""
    poles, seen, standing = Poles(1, HELD_OUT_SEED), [], policy.get_states()
    policy.zero_states()
    with tt.record(policy, "remembering.out") as recorded:
        while not poles.over:
            seen.append(poles.seen[0])
            policy.restart(poles.fresh)
            poles.push(policy(poles.seen)[0].argmax(-1))
    policy.set_states(standing)
    return torch.stack(seen), recorded["remembering.out"][:, 0]


# ------------------------------------------------------------------ command line


def parser() -> command_line.CommandLine:
    """The options."""
    found = command_line.CommandLine(__file__, __doc__)
    positive, above_zero = command_line.positive, command_line.above_zero
    found.option("--policy", str, "gru", "what remembers", choices=LAYERS)
    found.add_argument(
        "--no-memory", dest="memory", action="store_false", help="restart at every timestep"
    )
    found.option("--updates", positive, 600, "of the weights, from the run's beginning")
    found.option("--poles", positive, 64, "balanced at a time")
    found.option("--timesteps", positive, 32, "of each pole per update")
    found.option("--neurons", positive, 64, "in the remembering layer")
    found.option("--learning-rate", above_zero, 3e-3, "of Adam")
    found.usual(on_any_device=False)
    found.checkpointed(f"every {SAVE_EVERY} updates")
    return found


def main() -> None:
    """Learn, draw and test, by the command line's options."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    with command_line.errors_in_a_line():
        run = Run(options)
        learn(run, options.updates)
        save_figure(run, options.policy == "spiking", options.figure)
    print(f"figure: {options.figure}")
    mean = returns(run.policy, EPISODES, HELD_OUT_SEED).mean().item()
    print(f"mean return: {mean:.1f} of {LONGEST}, over {EPISODES} new episodes")


if __name__ == "__main__":
    main()

"""A pole is balanced by a net that sees where it is, not how fast it moves, and has to remember.

An actor-critic learns in gymnasium's vectorised CartPole. Episodes end one by one; each time, the
states of that pole alone restart (``zero_states(mask)``). ``--no-memory`` is the same net with all
states restarted at every timestep.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from actor_critic import loss_of, play, returns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from poles import LONGEST, Poles
from policies import LAYERS, Policy
from torch import Tensor, nn
from tqdm import tqdm
from tracetorch import plot

EPISODES, HELD_OUT_SEED = 100, 2**31  # of the test, the same whatever the seed of a run
POINT_EVERY, SAVE_EVERY = 10, 50  # updates
LARGEST_GRADIENT = 0.5
MUST_AGREE = ("policy", "memory", "seed", "neurons", "poles", "timesteps", "learning_rate")
PARTS = {"settings", "weights", "optimizer", "states", "poles", "actions", "update", "curve"}


# ------------------------------------------------------------------ learning


class Run:
    """A policy, its optimizer and its poles, and how far it is: all that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.settings = {name: getattr(options, name) for name in MUST_AGREE}
        self.policy = Policy(options.policy, options.neurons, options.memory)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), options.learning_rate)
        self.poles = Poles(options.poles, options.seed)
        self.actions = torch.Generator().manual_seed(options.seed)
        self.curve: list[float] = []
        self.update = 0

    def advance(self) -> float:
        """One rollout and one step of the optimizer; the mean return of recent episodes."""
        rollout = play(self.policy, self.poles, self.settings["timesteps"], self.actions)
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

    def save(self, file: Path) -> None:
        """Everything that the next update depends on; the file is the old one or the new one."""
        self.policy.detach_states()
        parts = {
            "settings": self.settings,
            "weights": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "states": self.policy.get_states(),
            "poles": self.poles.state_dict(),
            "actions": self.actions.get_state(),
            "update": self.update,
            "curve": self.curve,
        }
        beside = file.with_name(f"{file.name}.part")
        torch.save(parts, beside)
        os.replace(beside, file)

    def load(self, file: Path) -> None:
        """Go on where the file was saved.

        Raises:
            ValueError: it cannot be read, or is of another run; it says which.
        """
        saved = read_checkpoint(file)
        for name, mine in self.settings.items():
            if (theirs := saved["settings"].get(name)) != mine:
                raise ValueError(f"{file} is of another run: its {name} is {theirs}, not {mine}")
        self.policy.load_state_dict(saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.policy.set_states(saved["states"])
        self.poles.load_state_dict(saved["poles"])
        self.actions.set_state(saved["actions"])
        self.update, self.curve = saved["update"], saved["curve"]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What :meth:`Run.save` wrote.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    try:
        saved = torch.load(file, weights_only=True)
    except Exception as error:  # torch's own are of many kinds, and their words of many lines
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be read as a checkpoint: {why}") from error
    if not isinstance(saved, dict) or saved.keys() != PARTS:
        raise ValueError(f"{file} is no checkpoint of this script")
    return saved


def learn(run: Run, updates: int, checkpoint: Path | None) -> None:
    """Up to so many updates, counted from the run's beginning."""
    bar = tqdm(range(run.update, updates), initial=run.update, total=updates, desc="learning")
    for _ in bar:
        bar.set_postfix(mean_return=f"{run.advance():.0f}")
        if checkpoint and (run.update % SAVE_EVERY == 0 or run.update == updates):
            run.save(checkpoint)


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(run: Run, file: Path) -> None:
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
    draw = plot.raster if run.settings["policy"] == "spiking" else plot.heatmap
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


def positive(text: str) -> int:
    """An integer from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def step_size(text: str) -> float:
    """A finite number above 0."""
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {rate}")
    return rate


def seed(text: str) -> int:
    """A number that is not the test's own."""
    number = int(text)
    if not 0 <= number < HELD_OUT_SEED:
        raise argparse.ArgumentTypeError(f"must be in 0...{HELD_OUT_SEED - 1}, got {number}")
    return number


def in_a_folder(text: str) -> Path:
    """A file that can be in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path


def figure_file(text: str) -> Path:
    """A file that matplotlib can write."""
    suffixes = sorted(FigureCanvasAgg.filetypes)
    if Path(text).suffix[1:] not in suffixes:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(suffixes)}")
    return in_a_folder(text)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        parser.add_argument(flag, type=kind, default=default, help=text)

    parser.add_argument("--policy", choices=[*LAYERS], default="gru", help="(%(default)s)")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="restart at every timestep"
    )
    add("--updates", positive, 600, "of the weights, from the run's beginning (%(default)s)")
    add("--poles", positive, 64, "balanced at a time (%(default)s)")
    add("--timesteps", positive, 32, "of each pole per update (%(default)s)")
    add("--neurons", positive, 64, "in the remembering layer (%(default)s)")
    add("--learning-rate", step_size, 3e-3, "of Adam (%(default)s)")
    add("--threads", positive, 1, "CPU threads; more only where cores are idle (%(default)s)")
    add("--seed", seed, 0, "of weights, actions and beginnings, not of the test (%(default)s)")
    add("--figure", figure_file, Path(__file__).with_suffix(".png"), "where (%(default)s)")
    add("--checkpoint", in_a_folder, None, f"saved every {SAVE_EVERY} updates; none without")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    return parser


def begin(options: argparse.Namespace) -> Run:
    """A new run, or the one in the checkpoint.

    Raises:
        ValueError: the checkpoint does not fit, or would be overwritten.
    """
    run = Run(options)
    if options.resume:
        if options.checkpoint is None:
            raise ValueError("--resume needs the --checkpoint to go on from")
        run.load(options.checkpoint)
    elif options.checkpoint and options.checkpoint.exists():
        raise ValueError(f"{options.checkpoint} exists: go on from it with --resume, or move it")
    return run


def main() -> None:
    """Learn, draw and test, by the command line's options."""
    options = command_line().parse_args()
    torch.set_num_threads(options.threads)
    try:
        run = begin(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    learn(run, options.updates, options.checkpoint)
    save_figure(run, options.figure)
    print(f"figure: {options.figure}")
    mean = returns(run.policy, EPISODES, HELD_OUT_SEED).mean().item()
    print(f"mean return: {mean:.1f} of {LONGEST}, over {EPISODES} new episodes")


if __name__ == "__main__":
    main()

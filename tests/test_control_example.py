"""The control example: what is hidden, when states restart, the estimator, exact resumption."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "control"
TINY = ("--neurons", 8, "--poles", 5, "--timesteps", 8)


@pytest.fixture
def cartpole(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("cartpole")


@pytest.fixture
def poles(cartpole: ModuleType) -> ModuleType:
    return importlib.import_module("poles")


@pytest.fixture
def actor_critic(cartpole: ModuleType) -> ModuleType:
    return importlib.import_module("actor_critic")


@pytest.fixture
def main(
    cartpole: ModuleType,
    in_process: Callable[[ModuleType], Callable[..., None]],
) -> Callable[..., None]:
    """``main(*options)``: what the script does on its command line, in this process."""
    return in_process(cartpole)


# ------------------------------------------------------------------ poles


def test_an_episode_is_what_a_single_environment_does(poles: ModuleType) -> None:
    """Each pole's first and second episode, replayed alone with the same actions."""
    batch, actions = poles.Poles(6, seed=3), torch.Generator().manual_seed(0)
    steps = []
    for _ in range(80):
        before = batch.environment.state.copy(), batch.seen, batch.fresh, batch.over
        action = torch.randint(2, (6,), generator=actions)
        steps.append((*before, action, batch.push(action)))
    alone = gymnasium.make("CartPole-v1").unwrapped
    for pole in range(6):
        begun = 0
        for state, seen, fresh, over, action, outcome in steps:
            if fresh[pole]:
                begun += 1
                alone.reset(seed=0)
                alone.state = tuple(state[:, pole])
                observed = np.array(alone.state)
                assert np.abs(observed).max() <= 0.05
            shown = observed[[0, 2]] / [2.4, 0.2095]
            np.testing.assert_allclose(seen[pole].numpy(), shown, rtol=1e-5, atol=1e-6)
            assert outcome.counts[pole] == (not over[pole])
            if over[pole]:
                assert outcome.reward[pole] == 0
                assert not outcome.ended[pole]
                continue
            observed, reward, lost, _, _ = alone.step(int(action[pole]))
            assert (outcome.reward[pole], outcome.lost[pole]) == (reward, lost)
        assert begun >= 2


def test_returns_are_lengths_and_running_out_of_time_is_no_loss(poles: ModuleType) -> None:
    batch = poles.Poles(3, seed=0)
    batch.environment.steps[:] = [498, 497, 0]
    outcomes = [batch.push(torch.tensor([step % 2] * 3)) for step in range(4)]
    assert [outcome.ended.tolist() for outcome in outcomes] == [
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]
    assert not any(outcome.lost.any() for outcome in outcomes)
    assert [outcome.counts.tolist()[0] for outcome in outcomes] == [True, True, False, True]
    assert batch.recent == [2.0, 3.0]
    assert batch.returns.tolist() == [1.0, 0.0, 4.0]


def test_poles_go_on_exactly_from_where_they_were_saved(poles: ModuleType) -> None:
    def played(batch: object, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        seen = []
        for _ in range(60):
            batch.push(torch.randint(2, (4,), generator=generator))
            seen += [batch.seen, batch.fresh, batch.over, batch.returns.clone()]
        return seen

    one, other = poles.Poles(4, seed=1), poles.Poles(4, seed=2)
    played(one, 0)
    saved = one.state_dict()
    expected = played(one, 5)
    other.load_state_dict(saved)
    assert all(map(torch.equal, expected, played(other, 5)))
    assert one.recent == other.recent


# ------------------------------------------------------------------ states


@pytest.mark.parametrize("remembering", ["gru", "lstm", "spiking"])
def test_every_episode_is_remembered_from_its_own_beginning(
    cartpole: ModuleType, poles: ModuleType, remembering: str
) -> None:
    """What a pole is answered among others is what its episode alone is answered."""
    torch.manual_seed(0)
    policy, batch = cartpole.Policy(remembering, 8), poles.Poles(5, seed=0)
    generator, shown = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for _ in range(120):
            policy.restart(batch.fresh)
            logits, _ = policy(batch.seen)
            shown.append((batch.seen, batch.fresh, logits))
            batch.push(torch.randint(2, (5,), generator=generator))
    seen, fresh, logits = map(torch.stack, zip(*shown, strict=True))
    for pole in range(5):
        starts = [*fresh[:, pole].nonzero()[:, 0].tolist(), 120]
        assert len(starts) > 3
        for start, end in pairwise(starts):
            policy.zero_states()
            alone, _ = policy.unroll(seen[start:end, pole : pole + 1])
            torch.testing.assert_close(alone[:, 0], logits[start:end, pole], atol=1e-5, rtol=0.0)


def test_without_memory_an_answer_is_of_what_is_seen_now(cartpole: ModuleType) -> None:
    torch.manual_seed(0)
    policy, one, other = cartpole.Policy("gru", 8, memory=False), *torch.rand(2, 3, 2)
    never = torch.zeros(3, dtype=torch.bool)
    answers = []
    for seen in (one, other, one):
        policy.restart(never)
        answers.append(policy(seen)[0])
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_looking_ahead_leaves_the_states_alone(
    cartpole: ModuleType, poles: ModuleType, actor_critic: ModuleType
) -> None:
    policy, batch = cartpole.Policy("lstm", 8), poles.Poles(5, seed=0)
    actor_critic.play(policy, batch, 40, torch.Generator().manual_seed(0))
    before = policy.get_states()
    batch.fresh[:2] = True
    value = actor_critic.expected(policy, batch)
    after = policy.get_states()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    policy.restart(batch.fresh)
    torch.testing.assert_close(policy(batch.seen)[1], value)


# ------------------------------------------------------------------ the estimator


def test_advantages_are_sums_of_surprises_within_an_episode(actor_critic: ModuleType) -> None:
    """The definition, as a double sum for each timestep; episodes of length 1 to 9."""
    random, steps, width = np.random.default_rng(0), 40, 3
    values, following = random.normal(size=(steps, width)), random.normal(size=width)
    reward, counts = np.ones((steps, width)), np.ones((steps, width), bool)
    lost, ended = np.zeros((steps, width), bool), np.zeros((steps, width), bool)
    for pole in range(width):
        at = random.integers(1, 10)
        while at < steps:
            ended[at - 1, pole] = True
            lost[at - 1, pole] = random.random() < 0.5
            counts[at, pole], reward[at, pole] = False, 0
            at += 1 + random.integers(1, 10)
    expected = np.zeros((steps, width))
    for start, pole in np.argwhere(counts):
        for distance, t in enumerate(range(start, steps)):
            after = following[pole] if t + 1 == steps else values[t + 1, pole]
            surprise = 0.1 * reward[t, pole] - values[t, pole]
            surprise += 0 if lost[t, pole] else 0.99 * after
            expected[start, pole] += (0.99 * 0.95) ** distance * surprise
            if ended[t, pole]:
                break
    outcome = actor_critic.Outcome(*map(torch.from_numpy, (reward, lost, ended, counts)))
    found = actor_critic.advantages(torch.from_numpy(values), torch.from_numpy(following), outcome)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert lost.any()
    assert (ended & ~lost).any()


def test_an_action_that_is_ignored_teaches_nothing(actor_critic: ModuleType) -> None:
    counts = torch.tensor([[True, True], [False, True], [True, True]])
    no = torch.zeros(3, 2, dtype=torch.bool)
    outcome = actor_critic.Outcome(counts.float(), no, no.clone(), counts)
    chances, values, entropies = (torch.randn(3, 2, requires_grad=True) for _ in range(3))
    rollout = actor_critic.Rollout(chances, entropies, values, outcome, torch.randn(2))
    actor_critic.loss_of(rollout).backward()
    for leaf in (chances, values, entropies):
        assert torch.equal(leaf.grad != 0, counts)


# ------------------------------------------------------------------ learning


def test_it_learns_and_says_how_well(tmp_path: Path) -> None:
    options = ("--updates", "110", "--neurons", "32", "--figure", tmp_path / "figure.png")
    command = [sys.executable, FOLDER / "cartpole.py", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "learning: 100%" in done.stderr
    said = re.search(r"^mean return: (\d+\.\d) of 500, over 100 new", done.stdout, re.MULTILINE)
    assert said
    assert float(said[1]) > 70  # what is seen at one moment is good for 50
    assert (tmp_path / "figure.png").stat().st_size > 20_000


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("policy", ["gru", "spiking"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    main: Callable[..., None], tmp_path: Path, policy: str, equal: Callable[[object, object], bool]
) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    common = (*TINY, "--policy", policy, "--figure", tmp_path / "figure.png")
    main(*common, "--updates", 23, "--checkpoint", whole)
    main(*common, "--updates", 12, "--checkpoint", parts)
    assert not equal(torch.load(whole), torch.load(parts))
    main(*common, "--updates", 23, "--checkpoint", parts, "--resume")
    assert equal(torch.load(whole), torch.load(parts))
    position = torch.load(whole)["values"]
    assert position["update"] == 23
    assert len(position["curve"]) == 2


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    main: Callable[..., None], tmp_path: Path
) -> None:
    file, figure = tmp_path / "run.pt", tmp_path / "figure.png"
    common = (*TINY, "--figure", figure, "--checkpoint", file)
    main(*common, "--updates", 2)
    before = file.read_bytes()
    figure.unlink()
    for options, words in [
        ((), "run.pt exists: go on from it with --resume, or move it"),
        (("--resume", "--policy", "lstm"), "is of another run: its policy is 'gru', not 'lstm'"),
        (("--resume", "--no-memory"), "is of another run: its memory is True, not False"),
        (("--resume", "--poles", 6), "is of another run: its poles is 5, not 6"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{words}$"):
            main(*common, "--updates", 3, *options)
        assert file.read_bytes() == before
        assert not figure.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no .*run.pt yet; leave out --resume"),
        (b"", "run.pt does not end with the SHA-256"),
        (b"not a checkpoint", "run.pt does not end with the SHA-256"),
        ({"weights": torch.ones(2)}, "run.pt does not end with the SHA-256"),
    ],
)
def test_something_else_is_no_checkpoint(
    main: Callable[..., None], tmp_path: Path, content: object, words: str
) -> None:
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(SystemExit, match=rf"^error: .*{words}.*$"):
        main(*TINY, "--checkpoint", file, "--resume")


# ------------------------------------------------------------------ comparing


def test_curves_of_a_policy_are_put_side_by_side(
    main: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_curves = importlib.import_module("learning_curves")
    files = []
    for number, options in enumerate(
        [("--seed", 1), ("--seed", 2, "--updates", 30), ("--no-memory",), ("--updates", 9)]
    ):
        files.append(tmp_path / f"{number}.pt")
        common = (*TINY, "--updates", 20, "--figure", tmp_path / "figure.png")
        main(*common, "--checkpoint", files[-1], *options)
    one, other, without = (torch.load(file)["values"]["curve"] for file in files[:3])
    assert learning_curves.curves(files[:3]) == {
        "gru": [one, other[:2]],
        "gru, no memory": [without],
    }
    assert (len(one), len(other)) == (2, 3)
    with pytest.raises(ValueError, match=r"3.pt has no curve yet: it takes 10 updates$"):
        learning_curves.curves(files)
    figure = tmp_path / "compared.png"
    names = [*map(str, files[:3]), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["learning_curves.py", *names])
    learning_curves.main()
    assert figure.stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["learning_curves.py", str(figure)])
    with pytest.raises(SystemExit, match=r"^error: .*compared.png does not end with the SHA-256"):
        learning_curves.main()


# ------------------------------------------------------------------ bad options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--policy elman", "--policy: invalid choice: 'elman'"),
        ("--updates 0", "--updates: must be at least 1, got 0"),
        ("--poles -1", "--poles: must be at least 1, got -1"),
        ("--learning-rate inf", "--learning-rate: must be a finite number above 0, got inf"),
        ("--seed -1", "--seed: must be in 0...2147483647, got -1"),
        ("--figure figure.doc", "--figure: figure.doc must end in one of "),
        ("--figure nowhere/figure.png", "--figure: the folder nowhere does not exist"),
        ("--checkpoint nowhere/run.pt", "--checkpoint: the folder nowhere does not exist"),
    ],
)
def test_a_bad_option_is_refused(
    main: Callable[..., None], options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(*options.split())
    assert words in capsys.readouterr().err


def test_resuming_needs_a_checkpoint(main: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --resume needs the --checkpoint"):
        main("--resume")

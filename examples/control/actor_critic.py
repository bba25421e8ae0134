"""Advantage actor-critic through a model that remembers. Knows poles and policies by their methods.

A rollout is played and differentiated in one go: its states come from the one before, cut from
the graph (truncated back-propagation through time), and restart where an episode begins.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from poles import LONGEST, Outcome, Poles
from policies import Policy
from torch import Tensor

DISCOUNT, SMOOTHING = 0.99, 0.95  # per timestep; the second is lambda of Schulman et al. (2016)
REWARD = 0.1  # of a timestep, in the critic's unit: its values stay near 10
CRITIC, ENTROPY = 0.5, 0.005  # their share of the loss


class Rollout(NamedTuple):
    """What was done, what was expected and what came, ``[T, B]`` each.

    Attributes:
        chances: log-probabilities of the actions taken.
        entropies: of the distributions they were drawn from, in nats.
        values: the returns that were expected.
        outcome: what came of it.
        following: the return that is expected after the last timestep, ``[B]``, without a graph.
    """

    chances: Tensor
    entropies: Tensor
    values: Tensor
    outcome: Outcome
    following: Tensor


def play(policy: Policy, poles: Poles, timesteps: int, generator: torch.Generator) -> Rollout:
    """So many timesteps of every pole, from the standing states, with actions drawn at random."""
    policy.detach_states()
    chosen, values, outcomes = [], [], []
    for _ in range(timesteps):
        policy.restart(poles.fresh)
        logits, value = policy(poles.seen)
        actions = logits.detach().softmax(-1).multinomial(1, generator=generator)
        outcomes.append(poles.push(actions[:, 0]))
        chosen.append((logits.log_softmax(-1), actions))
        values.append(value)
    chances = torch.stack([log_p.gather(-1, actions)[:, 0] for log_p, actions in chosen])
    entropies = torch.stack([-(log_p.exp() * log_p).sum(-1) for log_p, _ in chosen])
    outcome = Outcome(*map(torch.stack, zip(*outcomes, strict=True)))
    return Rollout(chances, entropies, torch.stack(values), outcome, expected(policy, poles))


@torch.no_grad()
def expected(policy: Policy, poles: Poles) -> Tensor:
    """The return from here on ``[B]``; the states are as they were."""
    states = policy.get_states()
    policy.restart(poles.fresh)
    value: Tensor = policy(poles.seen)[1]
    policy.set_states(states)
    return value


def advantages(values: Tensor, following: Tensor, outcome: Outcome) -> Tensor:
    """How much better it went than was expected ``[T, B]``: generalised advantage estimation.

    A fall ends all expectation. Running out of time does not: the last observation is in the
    rollout, and has a value like any other. Nothing reaches from one episode into the one before.

    Args:
        values: that were expected, ``[T, B]``, without a graph.
        following: after the last timestep, ``[B]``.
        outcome: of each action, ``[T, B]``.
    """
    later = torch.cat([values[1:], following[None]])
    surprise = REWARD * outcome.reward + DISCOUNT * later * ~outcome.lost - values
    found, ahead = torch.empty_like(values), torch.zeros_like(following)
    for t in reversed(range(len(values))):
        going_on = DISCOUNT * SMOOTHING * ahead * ~outcome.ended[t]
        ahead = (surprise[t] + going_on) * outcome.counts[t]
        found[t] = ahead
    return found


def loss_of(rollout: Rollout) -> Tensor:
    """Policy gradient with normalised advantages, squared error of the critic, entropy."""
    counts = rollout.outcome.counts
    values = rollout.values[counts]
    better = advantages(rollout.values.detach(), rollout.following, rollout.outcome)[counts]
    normal = (better - better.mean()) / (better.std() + 1e-8)
    actor = -(rollout.chances[counts] * normal).mean()
    critic = (values - (values.detach() + better)).square().mean()
    return actor + CRITIC * critic - ENTROPY * rollout.entropies[counts].mean()


@torch.no_grad()
def returns(policy: Policy, count: int, seed: int) -> Tensor:
    """Of one new episode of each of ``count`` poles, the likelier action taken always."""
    policy, poles = copy.deepcopy(policy), Poles(count, seed)
    policy.zero_states()
    total, standing = torch.zeros(count), torch.ones(count, dtype=torch.bool)
    for _ in range(LONGEST):
        policy.restart(poles.fresh)
        outcome = poles.push(policy(poles.seen)[0].argmax(-1))
        total += outcome.reward * standing
        standing &= ~outcome.ended
    return total

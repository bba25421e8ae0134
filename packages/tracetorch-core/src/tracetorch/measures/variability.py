"""How counts of spikes vary: from window to window, and together across neurons.

Pure functions of spikes ``[T, B, …]`` and of recordings; know no layer and no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.measures.arguments import Spikes, checked_window, measure


class _Windows:
    """Counts in successive windows; those that a sample does not fill count nothing.

    Attributes:
        counts: integers ``[K, B, …]``.
        number: of full windows of each sample, to be broadcast with ``[B, …]``.
    """

    def __init__(self, given: Spikes, window: int) -> None:
        full = len(given.fired) // window
        fired = given.fired[: full * window].view(full, window, *given.fired.shape[1:])
        counts = fired.sum(1, dtype=torch.int32)
        self.number = given.steps // window
        place = torch.arange(full, device=counts.device).view(-1, *(1,) * given.steps.ndim)
        self.counts = counts * (place < self.number)

    def spread(self, counts: Tensor, number: Tensor) -> Tensor:
        """The sum of squared distances from the mean, times ``number``: integers, exact."""
        counts = counts.long()
        return number * (counts**2).sum(0) - counts.sum(0) ** 2


@measure
def fano_factor(spikes: Tensor, window: int, *, lengths: Tensor | None = None) -> Tensor:
    r"""The variance of spike counts over their mean, in windows: :math:`F = \sigma^2 / \mu`.

    0 for a clock whose period divides the window, 1 for a Poisson process. The variance is the
    unbiased one (divided by the number of windows less one).

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        window: timesteps of a window, in 1…T. Windows follow one another from the first timestep;
            one that a sample does not fill to its end is left out.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]``; NaN with fewer than 2 windows or without a spike in them. Of a recording, a
        dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
        >>> fano_factor(spikes, 2)
        tensor([[0., 2.]])

    Source: Fano, Physical Review 72 (1947); of spike counts, Teich, IEEE Transactions on
    Biomedical Engineering 36 (1989).
    """
    given = Spikes("fano_factor", spikes, lengths)
    window = checked_window("fano_factor", window, len(given.fired))
    windows = _Windows(given, window)
    spread = windows.spread(windows.counts, windows.number)
    # σ² / μ of n windows = spread / (n (n - 1)) / (total / n)
    total = windows.counts.sum(0)
    factor = spread.double() / ((windows.number - 1) * total)
    return given.real(torch.where(windows.number < 2, torch.nan, factor))


@measure
def synchrony(spikes: Tensor, window: int, *, lengths: Tensor | None = None) -> Tensor:
    r"""How much neurons fire together: the variance that is left when they are averaged.

    .. math::
        \chi^2 = \frac{\mathrm{Var}_k\left(\frac1N \sum_i c_{ik}\right)}
                      {\frac1N \sum_i \mathrm{Var}_k(c_{ik})}

    of the counts c of N neurons in windows k: 1 if all fire alike, about 1/N if each fires on
    its own, and less if they take turns.

    Args:
        spikes: ``[T, B, …]`` with at least one dimension of neurons, or a recording.
        window: timesteps of a window, in 1…T: what counts as together. Windows follow one another
            from the first timestep; one that a sample does not fill to its end is left out.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B]`` in [0, 1]; NaN where no neuron's counts vary. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> together = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> in_turn = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> synchrony(together, 1), synchrony(in_turn, 1)
        (tensor([1.]), tensor([0.]))

    Source: Golomb and Rinzel, Physica D 72 (1994), with counts for their voltages.
    """
    given = Spikes("synchrony", spikes, lengths, neurons=True)
    window = checked_window("synchrony", window, len(given.fired))
    windows = _Windows(given, window)
    counts, number = windows.counts.flatten(2), windows.number.flatten(1)
    alone = windows.spread(counts, number).sum(1)
    together = windows.spread(counts.sum(2), number[:, 0])
    return given.real(together.double() / (alone * counts.shape[2]))

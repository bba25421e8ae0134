"""Initial rates of diagonal state spaces: the spectra of S4D and of HiPPO. Knows no layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Complex: TypeAlias = NDArray[np.complexfloating[Any, Any]]


def s4d_lin(count: int) -> Complex:
    """-1/2 + iπn: frequencies at equal distances, as of a Fourier series."""
    return -0.5 + 1j * math.pi * np.arange(count)


def s4d_inv(count: int) -> Complex:
    """-1/2 + i (N/π)(N/(2n + 1) - 1) with N = 2·count: close to HiPPO-LegS."""
    size = 2 * count
    imag = size / math.pi * (size / (2 * np.arange(count) + 1) - 1)
    return -0.5 + 1j * imag


def s4d_real(count: int) -> Complex:
    """-(n + 1): decays alone."""
    return -(1.0 + np.arange(count)) + 0j


def s4d_legs(count: int) -> Complex:
    """The eigenvalues of HiPPO-LegS' normal part, of size 2·count, with a positive frequency."""
    return hippo_normal(2 * count)[0]


INITIALISATIONS: dict[str, Callable[[int], Complex]] = {
    "lin": s4d_lin,
    "inv": s4d_inv,
    "real": s4d_real,
    "legs": s4d_legs,
}


def hippo_normal(size: int) -> tuple[Complex, Complex]:
    r"""Eigenvalues and eigenvectors of HiPPO-N, half of them: the other half are conjugates.

    HiPPO-N is -1/2 on the diagonal and ∓√(n + 1/2)·√(k + 1/2) below and above it.

    Args:
        size: of the matrix, even.

    Returns:
        Eigenvalues ``[size / 2]`` by rising frequency, all positive, and the eigenvectors as
        columns ``[size, size / 2]``, of length 1.

    Source: Gu et al., arXiv 2206.11893; Smith et al., arXiv 2208.04933, B.1.1.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    upper = np.triu(np.outer(root, root), 1)
    # -i times the skew part is Hermitian: its eigenvalues are the frequencies
    frequencies, vectors = np.linalg.eigh(-1j * (upper - upper.T))
    return -0.5 + 1j * frequencies[size // 2 :], vectors[:, size // 2 :]


def as_pair(values: Complex) -> tuple[Tensor, Tensor]:
    """Real and imaginary part in torch's default type, on its default device."""
    dtype = torch.get_default_dtype()
    return torch.tensor(values.real, dtype=dtype), torch.tensor(values.imag, dtype=dtype)

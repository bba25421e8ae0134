"""What generated Triton kernels share: elementary functions with eager's rounding and accuracy.

Triton's own divide and take roots approximately in float32, and its ``exp`` loses accuracy with
the size of its argument; others it has no name for. Relative error below 1e-6 in float32 and 1e-13
in float64; NaN and infinities come out as from the C library. Only generated source imports this.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,unused-ignore"
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def given(pointer: tl.tensor, at: tl.tensor, here: tl.tensor) -> tl.tensor:
    """Values at a place; zeros where there is no pointer or no lane."""
    if pointer is None:
        return tl.zeros(at.shape, tl.float32)
    else:
        return tl.load(pointer + at, mask=here, other=0.0)


@triton.jit
def div(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """The quotient, rounded to nearest."""
    if y.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sqrt(x: tl.tensor) -> tl.tensor:
    """The root, rounded to nearest."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def exp(x: tl.tensor) -> tl.tensor:
    """e^x = 2^k e^r, in float32; 2^k in two factors, so that the greatest results are reached."""
    if x.dtype == tl.float32:
        limited = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
        k = tl.floor(limited * 1.4426950408889634 + 0.5)
        r = (limited - k * 0.693359375) - k * -2.12194440e-4
        return (tl.exp2(r * 1.4426950408889634) * 2.0) * tl.exp2(k - 1.0)
    else:
        return tl.exp(x)


@triton.jit
def _exp_series(x: tl.tensor, terms: tl.constexpr) -> tl.tensor:
    """(e^x − 1) / x by Taylor's series."""
    total = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(terms - 1):
        total = 1.0 + total * x * (1.0 / (terms - k))
    return total


@triton.jit
def expm1(x: tl.tensor) -> tl.tensor:
    """e^x − 1, also where x is small."""
    small = x * _exp_series(x, 7 if x.dtype == tl.float32 else 13)
    return tl.where(tl.abs(x) < 0.34, small, exp(x) - 1.0)


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x), also where x is small: the rounding of 1 + x is divided out."""
    u = 1.0 + x
    exact = (u == 1.0) | (x == float("inf"))
    return tl.where(exact, x, tl.log(u) * div(x, u - 1.0))


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + e^−x)."""
    return div(1.0, 1.0 + exp(-x))


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Hyperbolic tangent."""
    t = expm1(-2.0 * tl.abs(x))
    magnitude = div(-t, 2.0 + t)
    return tl.where(x < 0, -magnitude, tl.where(x == 0, x, magnitude))


@triton.jit
def atan(x: tl.tensor) -> tl.tensor:
    """Arc tangent: reciprocal above 1, the angle halved twice, then its series."""
    size = tl.abs(x)
    z = tl.where(size > 1.0, div(1.0, size), size)
    z = div(z, 1.0 + sqrt(1.0 + z * z))
    z = div(z, 1.0 + sqrt(1.0 + z * z))
    total = tl.zeros(x.shape, x.dtype)
    for k in tl.static_range(12):
        total = 1.0 / (23 - 2 * k) - total * (z * z)
    angle = 4.0 * z * total
    angle = tl.where(size > 1.0, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, -angle, angle)


@triton.jit
def power(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x^y, through float64."""
    size, exponent = tl.abs(x).to(tl.float64), y.to(tl.float64)
    raised = tl.exp(exponent * tl.log(size))
    raised = tl.where((size == 1.0) | (exponent == 0.0), 1.0, raised)
    half = exponent * 0.5
    whole = tl.floor(exponent) == exponent
    raised = tl.where((x < 0) & whole & (tl.floor(half) != half), -raised, raised)
    undefined = (x < 0) & (size < float("inf")) & (tl.floor(exponent) != exponent)
    return tl.where(undefined, float("nan"), raised).to(x.dtype)


@triton.jit
def trunc(x: tl.tensor) -> tl.tensor:
    """Towards zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def rint(x: tl.tensor) -> tl.tensor:
    """To the nearest whole number, halves to the even one."""
    below = tl.floor(x)
    rest = x - below
    odd = tl.floor(below * 0.5) != below * 0.5
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), below + 1.0, below)


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """The hash of words that ``tracetorch.randomness`` is made of."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def uniform(lane: tl.tensor, seed: tl.tensor, time: tl.tensor, draw: tl.constexpr) -> tl.tensor:
    """A number in [0, 1) for each mixed lane."""
    step: tl.constexpr = draw * 0x9E3779B9 % 0x100000000
    key = mixed(time.to(tl.uint32) ^ (seed >> 32).to(tl.uint32)) + step
    return (mixed(lane ^ mixed(key.to(tl.uint32))) >> 8).to(tl.int32).to(tl.float32) * (2.0**-24)

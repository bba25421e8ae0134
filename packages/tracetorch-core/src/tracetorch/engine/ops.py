"""The one table of operations: how torch, C++ and Triton spell each. Knows nothing else.

A row says what the engine can take. ``{0}``, ``{1}``, … are the arguments, all of one floating
type unless the row says otherwise; ``real(…)`` is that type, ``math::`` the functions of the
rendered prelude. An operation of torch without a row is refused by the tracer with its name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """One elementwise operation.

    Attributes:
        name: in graphs and in generated source.
        takes: a letter per argument, ``f`` floating or ``b`` boolean.
        gives: ``f`` or ``b``.
        cpp: the C++ expression.
        triton: the Triton expression; ``tl.`` is Triton's language, ``math.`` the module
            ``triton_math``. Arguments are names of tensors, never bare numbers.
        aten: the overloads of torch it stands for, arguments in the same order.
        defaults: torch's defaults of the last arguments.
    """

    name: str
    takes: str
    gives: str
    cpp: str
    triton: str
    aten: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for language in ("cpp", "triton"):
            text = getattr(self, language)
            missing = [k for k in range(len(self.takes)) if f"{{{k}}}" not in text]
            if missing:
                raise ValueError(f"operation {self.name}: {language} does not use {missing}")


def _infix(name: str, sign: str, takes: str, gives: str, *aten: str) -> Op:
    text = f"{{0}} {sign} {{1}}"
    return Op(name, takes, gives, text, text, aten)


def _compared(name: str, sign: str) -> Op:
    return _infix(name, sign, "ff", "b", f"{name}.Tensor", f"{name}.Scalar")


def _function(name: str, triton: str) -> Op:
    return Op(name, "f", "f", f"math::{name}({{0}})", f"{triton}({{0}})", (name,))


_ROWS = (
    # arithmetic
    _infix("add", "+", "ff", "f", "add.Tensor", "add.Scalar"),
    _infix("sub", "-", "ff", "f", "sub.Tensor", "sub.Scalar"),
    _infix("mul", "*", "ff", "f", "mul.Tensor", "mul.Scalar"),
    Op("div", "ff", "f", "{0} / {1}", "math.div({0}, {1})", ("div.Tensor", "div.Scalar")),
    Op("rsub", "ff", "f", "{1} - {0}", "{1} - {0}", ("rsub.Tensor", "rsub.Scalar")),
    Op("neg", "f", "f", "-{0}", "-{0}", ("neg",)),
    Op("abs", "f", "f", "math::abs({0})", "tl.abs({0})", ("abs",)),
    Op("reciprocal", "f", "f", "real(1) / {0}", "math.div(1.0, {0})", ("reciprocal",)),
    Op(
        "sign", "f", "f",
        "real({0} > 0) - real({0} < 0)",
        "({0} > 0).to(real) - ({0} < 0).to(real)",
        ("sign", "sgn"),
    ),
    Op(
        "maximum", "ff", "f",
        "({0} > {1} || {0} != {0}) ? {0} : {1}",
        "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
        ("maximum", "clamp_min", "clamp_min.Tensor"),
    ),
    Op(
        "minimum", "ff", "f",
        "({0} < {1} || {0} != {0}) ? {0} : {1}",
        "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
        ("minimum", "clamp_max", "clamp_max.Tensor"),
    ),
    Op("relu", "f", "f", "{0} < 0 ? real(0) : {0}", "tl.where({0} < 0, 0.0, {0})", ("relu",)),
    # comparisons and logic
    _compared("gt", ">"),
    _compared("ge", ">="),
    _compared("lt", "<"),
    _compared("le", "<="),
    _compared("eq", "=="),
    _compared("ne", "!="),
    _infix("and", "&", "bb", "b", "logical_and", "bitwise_and.Tensor"),
    _infix("or", "|", "bb", "b", "logical_or", "bitwise_or.Tensor"),
    _infix("xor", "^", "bb", "b", "logical_xor", "bitwise_xor.Tensor"),
    Op("not", "b", "b", "!{0}", "{0} == 0", ("logical_not", "bitwise_not")),
    Op("isnan", "f", "b", "{0} != {0}", "{0} != {0}", ("isnan",)),
    Op("where", "bff", "f", "{0} ? {1} : {2}", "tl.where({0}, {1}, {2})", ("where.self",)),
    Op("to_float", "b", "f", "{0} ? real(1) : real(0)", "{0}.to(real)"),
    Op("to_bool", "f", "b", "{0} != 0", "{0} != 0"),
    Op(
        "nan_or_zero", "f", "f",
        "{0} == {0} ? real(0) : {0}",
        "tl.where({0} == {0}, 0.0, {0})",
    ),
    # functions
    _function("exp", "math.exp"),
    _function("exp2", "tl.exp2"),
    _function("expm1", "math.expm1"),
    _function("log", "tl.log"),
    _function("log1p", "math.log1p"),
    _function("log2", "tl.log2"),
    _function("sqrt", "math.sqrt"),
    _function("rsqrt", "tl.rsqrt"),
    _function("sin", "tl.sin"),
    _function("cos", "tl.cos"),
    _function("tanh", "math.tanh"),
    _function("sigmoid", "math.sigmoid"),
    _function("atan", "math.atan"),
    _function("erf", "tl.erf"),
    _function("floor", "tl.floor"),
    _function("ceil", "tl.ceil"),
    _function("trunc", "math.trunc"),
    _function("round", "math.rint"),
    Op("pow", "ff", "f", "math::pow({0}, {1})", "math.power({0}, {1})",
       ("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")),
    # what torch's own derivative formulas are made of
    Op(
        "sigmoid_backward", "ff", "f",
        "{0} * (real(1) - {1}) * {1}", "{0} * (1.0 - {1}) * {1}", ("sigmoid_backward",),
    ),
    Op(
        "tanh_backward", "ff", "f",
        "{0} * (real(1) - {1} * {1})", "{0} * (1.0 - {1} * {1})", ("tanh_backward",),
    ),
    Op(
        "threshold_backward", "fff", "f",
        "{1} <= {2} ? real(0) : {0}", "tl.where({1} <= {2}, 0.0, {0})", ("threshold_backward",),
    ),
    Op(
        "hardtanh_backward", "ffff", "f",
        "({1} <= {2} || {1} >= {3}) ? real(0) : {0}",
        "tl.where(({1} <= {2}) | ({1} >= {3}), 0.0, {0})",
        ("hardtanh_backward",),
    ),
    Op(
        "softplus", "fff", "f",
        "{0} * {1} > {2} ? {0} : math::log1p(math::exp({0} * {1})) / {1}",
        "tl.where({0} * {1} > {2}, {0}, math.div(math.log1p(math.exp({0} * {1})), {1}))",
        ("softplus",),
        (1.0, 20.0),
    ),
    Op(
        "softplus_backward", "ffff", "f",
        "{1} * {2} > {3} ? {0} : {0} * math::sigmoid({1} * {2})",
        "tl.where({1} * {2} > {3}, {0}, {0} * math.sigmoid({1} * {2}))",
        ("softplus_backward",),
    ),
)  # fmt: skip

TABLE = {row.name: row for row in _ROWS}
BY_ATEN = {overload: row for row in _ROWS for overload in row.aten}

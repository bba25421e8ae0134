"""What random models are made of: blocks of source, each from [B, N] to [B, N].

A block is text, so that a failing program can be printed, and made shorter by leaving some out. In
it ``@`` is the block's number and ``N`` the number of neurons. Knows nothing of the library but
its names.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tracetorch import rnn, snn

# what a block's presence means for the comparison
EFFECT = "effect"  # something outside of tt layers changes with each timestep
LATER = "later"  # it begins to change only later: FoldError is an answer
NOISE = "noise"  # draws from a global generator
BATCH = "batch"  # over all samples at once, or by their number
MODES = "modes"  # another result in training over all timesteps: batch statistics, dropout
LOOKS = "looks"  # values are looked at
OPAQUE = "opaque"  # cannot be pickled, or holds what a copy shares
CUT = "cut"  # passes no gradient on
SEEDED = "seeded"  # a layer draws its seed: a tracer makes it a constant
OWN = "own"  # a step of its own that is not pure
MIXED = "mixed"  # gradients or values that transforms of torch.func do not take


@dataclass(frozen=True)
class Block:
    """Lines of source and what they mean."""

    body: str
    setup: str = ""
    top: str = ""
    effect: str = ""
    flags: frozenset[str] = frozenset()


def block(body: str, *flags: str, setup: str = "", top: str = "", effect: str = "") -> Block:
    return Block(body, setup, top, effect, frozenset(flags))


# ------------------------------------------------------------------ layers of the library


def _value(rng: random.Random, low: float, high: float) -> str:
    one, other = (round(rng.uniform(low, high), 3) for _ in range(2))
    return rng.choice((f"{one}", f"torch.linspace({one}, {other}, N)", f"torch.tensor({one})"))


RANGES = {
    "alpha": (0.1, 0.9),
    "beta": (0.3, 0.95),
    "gamma": (0.2, 0.9),
    "threshold": (0.2, 1.2),
    "scale": (0.4, 1.5),
    "weight": (-0.8, 0.5),
}
SURROGATES = ("sigmoid(4.0)", "triangle(1.0)", "atan(2.0)")


def _pieces(rng: random.Random) -> list[str]:
    """Keywords of a layer that fires."""
    found: list[str] = []
    if rng.random() < 0.5:
        options = [f"{name}=True" for name in ("delayed", "detach") if rng.random() < 0.4]
        way = ", ".join(options)
        kind = rng.choice((f"subtract({way})", f"to(0.0, {way})", f"to(0.1, {way})", "never()"))
        found.append(f"reset=snn.resets.{kind}")
    if rng.random() < 0.3:
        found.append(f"refractory={rng.randint(1, 4)}")
    if rng.random() < 0.3:
        found.append(f"adaptation=snn.Adaptation({_value(rng, 0.5, 0.95)}, 0.2)")
    if rng.random() < 0.2:
        found.append("graded=True")
    if rng.random() < 0.15:
        found.append("feedback=nn.Linear(N, N)")
    if rng.random() < 0.3:
        found.append(f"spike_fn=snn.surrogates.{rng.choice(SURROGATES)}")
    return found


def spiking(rng: random.Random, size: str = "N", dim: int = -1) -> str:
    """A constructor call of one of the 32."""
    kind = rng.choice(snn.LAYERS)
    given = []
    for name in kind.parameter_names():
        if rng.random() < 0.7:
            given.append(f"{name}={_value(rng, *RANGES[name.split('_')[-1]])}")
        elif rng.random() < 0.3:
            given.append(f"{name}_rank=0")
        if rng.random() < 0.2:
            given.append(f"learn_{name}=False")
    if kind.firing is not None and dim == -1:
        given += _pieces(rng)
    text = f"snn.{kind.__name__}(N, {', '.join([*given, f'dim={dim}'])})"
    return re.sub(r"\bN\b", size, text)


def layer(rng: random.Random) -> Block:
    draw = rng.random()
    if draw < 0.55:
        return block("x = self.l@(x)", setup=f"self.l@ = {spiking(rng)}")
    if draw < 0.8:
        kind = rng.choice(rnn.LAYERS).__name__
        return block("x = self.l@(x)", MIXED, setup=f"self.l@ = rnn.{kind}(N, N)")
    if draw < 0.9:
        learn = rng.choice(("", ", learn_delay=True"))
        return block(
            "x = self.l@(x)",
            setup=f"self.l@ = snn.Delay(N, {_value(rng, 0.0, 3.0)}, longest=4{learn})",
        )
    kind = rng.choice(("Trace(N)", "AdaptiveLIF(N)", "StateSpace(N, out_size=N)"))
    return block("x = self.l@(x)", setup=f"self.l@ = tt.testing.{kind}")


def held_elsewhere(rng: random.Random) -> Block:
    """Layers where torch does not look: containers and plain objects, shared, nested."""
    one, other = spiking(rng), spiking(rng)
    return rng.choice((
        block("x = self.c@[1](self.c@[0](x))", setup=f"self.c@ = [{one}, {other}]"),
        block("x = self.c@['a'](x)", setup=f"self.c@ = {{'a': {one}, 'b': {other}}}"),
        block("x = self.c@.layer(x)", setup=f"self.c@ = types.SimpleNamespace(layer={one})"),
        block("x = self.c@(x)", setup=f"self.c@ = {one}; self.d@ = [self.c@]"),
        block(
            "x = self.c@(x)",
            setup="self.c@ = Inner@()",
            top="class Inner@(tt.Model):\n    def __init__(self):\n        super().__init__()\n"
            f"        self.layer = {one}\n"
            "    def forward(self, x):\n        return self.layer(x) + 0.5 * x\n",
        ),
        block("x = self.c@(x) + self.c@(0.5 * x)", setup=f"self.c@ = {one}"),
        block("x = self.c@(x) if self.training else self.d@(x)",
              setup=f"self.c@ = {one}; self.d@ = {other}"),
    ))  # fmt: skip


def plain(rng: random.Random) -> Block:
    """Modules and operations of torch that treat samples alone."""
    wide = spiking(rng, "6")
    return rng.choice((
        block("x = self.m@(x)", setup="self.m@ = nn.Linear(N, N)"),
        block("x = self.m@(x)", setup=f"self.m@ = nn.Sequential(nn.Linear(N, 6), {wide}, "
              "nn.Linear(6, N))"),
        block("x = self.m@(x)", setup="self.m@ = nn.LayerNorm(N)"),
        block("x = self.m@(x)", MODES, MIXED, setup="self.m@ = nn.BatchNorm1d(N)"),
        block("x = self.m@(x)", MODES, NOISE, setup="self.m@ = nn.Dropout(0.3)"),
        block("x = self.m@(x.unsqueeze(1)).mean(1)",
              setup="self.m@ = nn.Conv1d(1, 3, 3, padding=1)"),
        block("x = self.m@(x.reshape(-1, 1, 2, N // 2)).flatten(1)",
              setup="self.m@ = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), "
              f"{spiking(rng, '2', -3)}, nn.Conv2d(2, 1, 1))"),
        block("x = torch.relu(x) + 0.1"),
        block("h = x; x = self.m@(x); x = x + h", setup=f"self.m@ = {spiking(rng)}"),
        block("with torch.no_grad():\n    x = self.m@(x)", CUT, setup="self.m@ = nn.Linear(N, N)"),
        block("x = x.flip(-1)"),
        block("x = x.clone().mul_(0.7).add_(0.1)"),
        block("x = torch.cat([x[:, 1:], x[:, :1]], 1)"),
        block("x = (x.unsqueeze(-1) * torch.ones(2).to(x)).sum(-1) / 2"),
        block("x = nn.functional.softmax(x, -1) * 2"),
    ))  # fmt: skip


# ------------------------------------------------------------------ what forward may do besides


def effect(rng: random.Random) -> Block:
    """Something that is no function of one timestep's samples, or looks like it."""
    return rng.choice(EFFECTS)


EFFECTS = (
    # attributes, containers, objects
    block("self.n@ += 1; x = x * (1 + self.n@ % 3)", EFFECT, setup="self.n@ = 0",
          effect="self.n@"),
    block("self.n@ += 1\nif self.n@ > 7: x = x * 0.5", EFFECT, setup="self.n@ = 0",
          effect="self.n@"),
    block("self.h@.append(x.detach().mean())", EFFECT, setup="self.h@ = []",
          effect="[float(v) for v in self.h@]"),
    block("x = x + (self.h@[-1] if self.h@ and self.h@[-1].shape == x.shape else 0)\n"
          "self.h@.append(x.detach())", EFFECT, setup="self.h@ = collections.deque(maxlen=2)",
          effect="[float(v.sum()) for v in self.h@]"),
    block("self.d@['a'] = self.d@.get('a', 0) + 1; x = x * (self.d@['a'] % 2 + 1)", EFFECT,
          setup="self.d@ = {}", effect="dict(self.d@)"),
    block("self.o@.n += 1; x = x + 0.1 * self.o@.n", EFFECT,
          setup="self.o@ = types.SimpleNamespace(n=0)", effect="self.o@.n"),
    block("self.s@.add(len(self.s@)); x = x + 0.1 * len(self.s@)", EFFECT, setup="self.s@ = set()",
          effect="sorted(self.s@)"),
    block("self.l@[0][0] += 1; x = x * (1 + self.l@[0][0] % 2)", EFFECT, setup="self.l@ = [[0]]",
          effect="self.l@[0][0]"),
    block("x = x * (next(self.i@) % 3 + 1)", EFFECT, OPAQUE, setup="self.i@ = itertools.count()"),
    block("self.a@[0] += 1; x = x * float(self.a@[0] % 3 + 1)", EFFECT,
          setup="self.a@ = np.zeros(3)", effect="self.a@.tolist()"),
    block("self.p@ = x.detach() if self.p@ is None else 0.5 * self.p@ + x.detach()\n"
          "x = x + self.p@ * 0.1", EFFECT, setup="self.p@ = None",
          effect="None if self.p@ is None else float(self.p@.sum())"),
    block("setattr(self, f'v@_{self.n@}', self.n@); self.n@ = (self.n@ + 1) % 5", EFFECT,
          setup="self.n@ = 0", effect="self.n@"),
    block("self.x@ = x", EFFECT, setup="self.x@ = None"),
    # tensors and buffers
    block("self.b@.add_(1); x = x * (1 + self.b@ % 2)", EFFECT,
          setup="self.register_buffer('b@', torch.zeros(1))", effect="self.b@.tolist()"),
    block("self.b@ = 0.9 * self.b@ + x.detach().mean(0); x = x - self.b@", EFFECT, BATCH,
          setup="self.register_buffer('b@', torch.zeros(N))"),
    block("self.t@[0].add_(1); x = x + 0.1 * self.t@[0]", EFFECT,
          setup="self.t@ = [torch.zeros(1)]", effect="float(self.t@[0])"),
    block("self.t@.data = self.t@ + 1; x = x + 0.1 * self.t@", EFFECT, MIXED,
          setup="self.t@ = torch.zeros(1)", effect="float(self.t@)"),
    # globals, closures, defaults, classes
    block("global G@\nG@ += 1\nx = x * (1 + G@ % 2)", EFFECT, OPAQUE, top="G@ = 0\n", effect="G@"),
    block("GL@.append(1); x = x + 0.05 * len(GL@)", EFFECT, OPAQUE, top="GL@ = []\n",
          effect="len(GL@)"),
    block("x = x * self.f@()", EFFECT, OPAQUE,
          top="def made@():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n"
          "        return 1 + n % 3\n    return f\n", setup="self.f@ = made@()"),
    block("x = x + default@()", EFFECT, OPAQUE,
          top="def default@(box=[0]):\n    box[0] += 1\n    return 0.1 * box[0]\n"),
    block("type(self).c@ += 1; x = x + 0.1 * type(self).c@", EFFECT, OPAQUE,
          setup="type(self).c@ = 0", effect="type(self).c@"),
    block("x = x * cached@(self.n@)", setup="self.n@ = 1",
          top="def cached@_(k):\n    return k + 1\ncached@ = functools.lru_cache(cached@_)\n"),
    block("x = x * cached@(1) + 0.1 * cached@.cache_info().hits", EFFECT, OPAQUE,
          top="def cached@_(k):\n    return k\ncached@ = functools.lru_cache(cached@_)\n",
          setup="cached@.cache_clear()"),
    block("V@.set(V@.get() + 1); x = x + 0.1 * V@.get()", EFFECT, OPAQUE,
          top="V@ = contextvars.ContextVar('v', default=0)\n"),
    block("os.environ[E@] = str(int(os.environ.get(E@, '0')) + 1); x = x * int(os.environ[E@])",
          EFFECT, OPAQUE, top="E@ = __name__ + '@'\n"),
    # looks at values
    block("x = x if x.sum() > 0 else -x", LOOKS, BATCH),
    block("x = x * (1 + len(x.detach().round().unique()))", LOOKS, BATCH),
    block("print(x)", LOOKS),
    block("x = x + 0.1 * float(x.detach().numpy().max())", LOOKS, BATCH, CUT),
    block("x = x.clone(); x[x > 0.5] = 0.5", LOOKS),
    block("assert bool(x.isfinite().all())", LOOKS),
    block("x = x + sum(v for v in x.detach().mean(0).tolist())", LOOKS, BATCH),
    # the batch
    block("x = x - x.mean(0)", BATCH),
    block("x = x.flip(0)", BATCH),
    block("x = x + 0.1 * len(x)", BATCH),
    block("x = x + 0.1 * torch.arange(len(x)).view(-1, 1).to(x)", BATCH),
    block("x = x.cumsum(0)", BATCH),
    block("x = x[torch.argsort(x[:, 0], stable=True)]", BATCH),
    block("x = torch.stack([row * 0.5 for row in x])", BATCH),
    block("x = x / (1 + x.norm())", BATCH),
    block("x = torch.matmul(x, torch.matmul(x.T, x).tanh())", BATCH),
    # random numbers
    block("x = x + 0.1 * torch.rand_like(x)", NOISE),
    block("x = x + 0.1 * torch.rand(())", NOISE, BATCH),
    block("x = x * random.random()", NOISE, EFFECT, OPAQUE),
    block("x = x * float(np.random.rand())", NOISE, EFFECT, OPAQUE),
    block("x = x + self.r@.random()", NOISE, EFFECT, setup="self.r@ = random.Random(0)"),
    block("x = nn.functional.dropout(x, 0.2, self.training)", MODES, NOISE),
    # states
    block("x = self.k@(x); x = x + self.k@.mem", setup="self.k@ = snn.LI(N, 0.7)"),
    block("x = self.k@(x); self.k@.zero_states()", setup="self.k@ = snn.LI(N, 0.7)"),
    block("x = self.k@(x); self.k@.detach_states()", setup="self.k@ = snn.LI(N, 0.7)"),
    block("for _ in range(2): z = self.k@(x)\nx = z", setup="self.k@ = snn.LIB(N, 0.8, 0.4)"),
    block("x = self.k@(x) if self.n@ % 2 else x\nself.n@ += 1", EFFECT, setup=
          "self.k@ = snn.LI(N, 0.6); self.n@ = 0", effect="self.n@"),
    block("self.k@.beta = float(self.k@.beta.detach()[0]) * 0.97; x = self.k@(x)", EFFECT, LOOKS,
          CUT, MIXED, setup="self.k@ = snn.LI(N, 0.8)"),
    block("x = self.k@.unroll(x.unsqueeze(0))[0]", setup="self.k@ = snn.LI(N, 0.8)"),
    block("if not self.g@: self.g@.append(snn.LI(N, 0.5).to(x.dtype))\nx = self.g@[0](x)",
          EFFECT, setup="self.g@ = []"),
    # modules
    block("x = self.m@(x)", EFFECT, setup="self.m@ = nn.Linear(N, N); self.n@ = [0]\n"
          "self.m@.register_forward_hook(Hook@(self.n@))",
          top="class Hook@:\n    def __init__(self, n): self.n = n\n"
          "    def __call__(self, module, args, y): self.n[0] += 1\n", effect="self.n@[0]"),
    block("x = self.m@[self.n@ % 2](x); self.n@ += 1", EFFECT, setup=
          "self.m@ = nn.ModuleList([nn.Linear(N, N), nn.Linear(N, N)]); self.n@ = 0"),
    block("self.h@ = self.m@(x, None if self.h@ is None or self.h@.shape != x.shape "
          "else self.h@.detach()); x = self.h@", EFFECT,
          setup="self.m@ = nn.GRUCell(N, N); self.h@ = None"),
    block("try:\n    x = x + undefined@\nexcept NameError:\n    x = x + 0.1"),
    block("warnings.warn('said by forward'); x = x * 1.0"),
    block("x = threading_local@(x)", EFFECT, OPAQUE, MIXED, top="L@ = threading.local()\n"
          "def threading_local@(x):\n    L@.n = getattr(L@, 'n', 0) + 1\n"
          "    return x * (1 + L@.n % 2)\n"),
    # what begins only later, and shallow
    block("self.n@ = self.n@ if self.flag else self.n@ + 1; x = x + 0.1 * self.n@", LATER, EFFECT,
          setup="self.n@ = 0", effect="self.n@"),
)  # fmt: skip


# ------------------------------------------------------------------ layers of one's own

UNARY = (
    "torch.tanh({})", "torch.sigmoid({})", "torch.sin({})", "torch.cos(2 * {})", "torch.relu({})",
    "{}.abs()", "torch.exp(-{}.abs())", "nn.functional.softplus({})", "({}.abs() + 0.5).sqrt()",
    "torch.log1p({}.abs())", "torch.atan({})", "torch.erf({})", "-{}", "{}.clamp(-1.0, 0.7)",
    "{}.square()", "1 / (1.5 + {}.abs())", "torch.rsqrt(1 + {}.square())", "torch.expm1(-{}.abs())",
    "nn.functional.silu({})", "nn.functional.gelu({})", "nn.functional.elu({})", "{}.pow(3) * 0.1",
    "nn.functional.leaky_relu({}, 0.1)", "nn.functional.hardtanh({})", "{}.float().to({}.dtype)",
    "torch.log2({}.abs() + 1)", "torch.exp2(-{}.abs())", "nn.functional.hardsigmoid({})",
    "{}.round() * 0.5", "{}.floor() * 0.2", "torch.sign({}) * 0.5", "{}.detach()", "{}.trunc()",
    "torch.nan_to_num({})", "torch.sinh({}.clamp(-2, 2))", "torch.softmax({}, -1)",
    "({} - {}.mean(-1, keepdim=True))", "{}.flip(-1)", "{}.cumsum(-1) * 0.3",
    "torch.logsumexp({}, -1, keepdim=True) * torch.ones_like({})",
)  # fmt: skip
BINARY = (
    "({} + {})", "({} - {})", "({} * {})", "torch.maximum({}, {})", "torch.minimum({}, {})",
    "{} / (1 + {}.abs())", "torch.where({} > 0, {}, 0.3)", "({} > {}).to(x.dtype)",
    "torch.where(({} > 0.1) & ({} < 0.6), 0.5, -0.1)", "torch.lerp({}, {}, 0.3)",
    "torch.addcmul(x, {}, {}, value=0.5)", "torch.atan2({}, {}.abs() + 1)",
    "torch.hypot({}, {} + 2)", "({} >= {}).to(x.dtype)", "torch.fmod({}, {}.abs() + 1)",
    "torch.copysign({}, {})", "torch.heaviside({}.detach(), {}.detach())",
)  # fmt: skip

# what a step does that is not pure, or reads what may change unseen
UNUSUAL = (
    block("x = x * (1 + len(self.held) * 0.1)", setup="self.held = [1, 2]"),
    block("x = x * self.factor['a']", setup="self.factor = {'a': 0.5}"),
    block("x = x + FACTOR@[0]", top="FACTOR@ = [0.3]\n"),
    block("x = x * CONSTANT@", top="CONSTANT@ = 0.7\n"),
    block("x = x * self.scale", setup="self.scale = 0.8"),
    block("x = x * self.vector", setup="self.register_buffer('vector', torch.linspace(0.5, 1, N))"),
    block("x = x * self.plain_", setup="self.plain_ = torch.full((1,), 0.5)"),
    block("x = self.inner(x)", setup="self.inner = nn.Linear(N, N)"),
    block("x = self.inner(x)", setup="self.inner = nn.Tanh()"),
    block("x = x if x.sum() > 0 else -x", LOOKS, BATCH),
    block("x = x - x.mean(0)", BATCH),
    block("x = x * (0.5 if len(x) > 1 else 1.0)", BATCH),
    block("self.calls += 1", OWN, EFFECT, setup="self.calls = 0"),
    block("self.seen.append(1); x = x + 0.01 * len(self.seen)", OWN, EFFECT,
          setup="self.seen = []"),
    block("x = x + 0.1 * torch.rand_like(x)", NOISE),
    block("x = x + 0.1 * self.uniform(x)", SEEDED, setup="self.uniform = tt.Random()"),
    block("x = x * (1.0 if self.training else 0.9)"),
    block("x = torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)", MIXED),
)  # fmt: skip


def _expression(rng: random.Random, leaves: list[str], depth: int) -> str:
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(leaves)
    if rng.random() < 0.5:
        form = rng.choice(UNARY)
        inner = _expression(rng, leaves, depth - 1)
        return form.replace("{}", inner if inner.isidentifier() else f"({inner})")
    parts = [_expression(rng, leaves, depth - 1) for _ in range(2)]
    return rng.choice(BINARY).format(*(f"({part})" for part in parts))


def own(rng: random.Random) -> Block:
    """A layer with a random step: bounded states, elementwise or nearly so."""
    states = [f"s{k}" for k in range(rng.randint(1, 3))]
    named = [f"p{k}" for k in range(rng.randint(0, 2))]
    leaves = [*(f"states.{s}" for s in states), *(f"p.{p}" for p in named), "x", "x"]
    unusual = rng.choice(UNUSUAL) if rng.random() < 0.35 else None
    lines = [unusual.body] if unusual else []
    for state in states:
        lines.append(f"{state} = torch.tanh({_expression(rng, leaves, rng.randint(1, 3))}) + 0 * x")
        leaves.append(state)
    lines.append(f"y = torch.tanh({_expression(rng, leaves, rng.randint(1, 3))}) + 0 * x")
    new = ", ".join(f"'{s}': {s}" for s in states)
    constraint = rng.choice(("sigmoid", "softplus", "identity"))
    rank = rng.randint(0, 1)
    declared = [
        "super().__init__(N)",
        f"self.add_state({', '.join(map(repr, states))})",
        *(
            f"self.add_parameter('{p}', 0.4, rank={rank}, constraint=tt.constraints.{constraint})"
            for p in named
        ),
        *(unusual.setup.splitlines() if unusual else []),
    ]
    source = [
        *((unusual.top,) if unusual else ()),
        "class Own@(tt.Layer):",
        "    def __init__(self):",
        *(f"        {line}" for line in declared),
        "    def step(self, states, x, p):",
        *(f"        {line}" for line in lines),
        f"        return {{{new}}}, y",
        "",
    ]
    flags = unusual.flags if unusual else frozenset()
    effect = "self.w@.calls" if unusual and "self.calls" in unusual.body else ""
    return Block("x = self.w@(x)", "self.w@ = Own@()", "\n".join(source), effect, flags)

"""Why a layer runs step by step, or a model does: every reason there is, as a value.

One table for the layers (no fused kernel) and one for models (time not folded into the batch). The
words are for people; code asks which reason it is. Knows nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Unfused(Enum):
    """Why a layer's timesteps are not one kernel."""

    ASKED = "the backend 'eager' is chosen"
    OWN = "{} has its own {}"
    HOOKS = "{} has hooks, which run at every timestep"
    TARGET = "there are no {}kernels for tensors on {}"
    ABSENT = "no kernel can be made here: {}"
    BUILD = "its kernel cannot be built: {}"
    TYPES = "there are no kernels for states in {} and inputs in {}"
    LAYOUT = "there are no kernels for tensors in {}"
    ELSEWHERE = "not all of its states and parameters are on {}, as the input is"
    DECLARED = "{} is {}, declared {}"
    SIZES = "{} has the shape {}, not one value per neuron or layer"
    STATE_SIZES = "the state {} has the sizes {}, not one per neuron"
    OPERATION = "{} at {}: {}"
    RESULT = "its step returns what a kernel cannot put out: {}"
    NAMES = "its step returns the states {}, not {}"
    MEMORYLESS = "its new states do not depend on the old ones"
    STATES = "it reads self.{}; the timestep's own is in states"
    STANDING = "it reads the layer's states from before; the timestep's own are in states"
    MUTABLE = (
        "its step reads {}, a {}, and what is in it may change unseen; hold numbers, strings, "
        "tuples or a types.MappingProxyType of them instead, or make it a state or parameter"
    )
    UNSEEN = "its step reads {}, and a kernel would not see it change{}"
    WRITES = "it changes {}; a step must be pure"
    LOOKS = "the step looks at values ({})"
    OTHERWISE = "it computes something else {}"
    RAISES = "its step raised {} on a sample: {}"
    RECORDED = "its own sequence does not give out the states that are recorded"
    WATCHED = "torch traces or fakes what runs, and sees the step's operations instead"


class Unfolded(Enum):
    """Why a model's timesteps do not run at once."""

    ASKED = "fold=False was asked for"
    HOOKS = "{} has hooks, which run at every timestep"
    OWN = "{} has its own {}"
    TWICE = "a {} is called more than once in a timestep"
    SOMETIMES = "a {} is called in some timesteps and not in others"
    WITHIN = "forward unrolls a {} within a timestep"
    STATES = "forward reads or changes the states of a {} between timesteps"
    HELD = "forward calls a {} that the model does not hold"
    LOOKS = "forward looks at values ({})"
    CHANGES = "forward changes {}: state outside tt layers"
    INPUT = "forward writes into its input"
    OUTPUTS = "forward returns something else than tensors"
    BATCH = "a value of {} does not have the {} timesteps and samples at dimension 0"
    FLAT = "a timestep has no batch dimension to fold time into"
    DIFFERS = "{} is another over all timesteps at once than step by step"
    UNCOPIED = "{} cannot be copied, and so not be tried out"
    SHARDED = (
        "{} has its parameters in many processes, and no copy to be tried out; fold=True folds"
    )
    ALIKE = "all samples of this sequence are alike, which shows nothing"
    RAISES = "{}: {}"
    FAILS = "over all timesteps at once, forward raises {}: {}"
    RECORDED = "a tracer of torch writes down its timesteps"
    BEFORE = "that was decided before it was compiled; the log says why"


_UNSURE = (
    Unfolded.CHANGES, Unfolded.DIFFERS, Unfolded.UNCOPIED, Unfolded.HELD, Unfolded.INPUT,
)  # fmt: skip
_PASSING = (Unfolded.ALIKE, Unfolded.RAISES, Unfolded.FLAT)


@dataclass(frozen=True)
class Reason:
    """One of them, with the names that its sentence leaves open."""

    why: Unfused | Unfolded
    names: tuple[str, ...] = ()

    @property
    def pure(self) -> bool:
        """Whether a timestep is known to be what its input and the layers' states make it."""
        return isinstance(self.why, Unfolded) and self.why not in _UNSURE

    @property
    def passing(self) -> bool:
        """Whether it was the sequence, not the model: the next one may show more."""
        return self.why in _PASSING

    def __str__(self) -> str:
        return str(self.why.value).format(*self.names)


class Refused(Exception):
    """The engine cannot take a layer's step; :attr:`reason` says why."""

    def __init__(self, why: Unfused | Reason, *names: object) -> None:
        self.reason = why if isinstance(why, Reason) else Reason(why, tuple(map(str, names)))
        super().__init__(str(self.reason))


class Unfoldable(BaseException):
    """A forward pass cannot take all timesteps at once; :attr:`reason` says why.

    Not for what surrounds a layer in the user's ``forward`` to handle.
    """

    def __init__(self, why: Unfolded, *names: object) -> None:
        self.reason = Reason(why, tuple(map(str, names)))
        super().__init__(str(self.reason))

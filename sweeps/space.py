"""The search space: which parameters a sweep varies, and over which values.

An axis is named by the parameter that it binds, so a new axis is a line of gin, not of code:

    search_space.axes = {
        'DilatedConvStack.channels': (2, 4, 8, 16),
        'train.learning_rate': {'low': 1e-3, 'high': 1e-2, 'log': True},
    }

Pure: no TensorFlow, no Ray, no Optuna.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sweeps.errors import SpaceError, nearest
from sweeps.trial import AxisValue, Candidate
from thesis.config import DECODERS, ModelConfig, gin_name, stages_of
from thesis.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """A finite set of values."""

    values: tuple[AxisValue, ...]

    @property
    def ends(self) -> tuple[AxisValue, AxisValue]:
        """The first and the last value."""
        return self.values[0], self.values[-1]

    def sample(self, rng: random.Random) -> AxisValue:
        """Returns one of the values, each as likely as the others."""
        return rng.choice(self.values)

    @property
    def largest(self) -> float:
        """The largest value, of numbers."""
        return max(cast(Sequence[float], self.values))

    def grid(self, points: int) -> tuple[AxisValue, ...]:
        """Returns the values, however many they are."""
        return self.values

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones when both ends are whole."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[AxisValue, AxisValue]:
        """The lowest and the highest number."""
        return self.low, self.high

    @property
    def integer(self) -> bool:
        """Whether the range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def sample(self, rng: random.Random) -> AxisValue:
        """Returns a number from the range, uniform in its logarithm when `log` is set."""
        # A whole number stands for all that rounds to it, or the two ends would be drawn less.
        margin = 0.5 if self.integer else 0.0
        low, high = self.low - margin, self.high + margin
        if self.log:
            value = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            value = rng.uniform(low, high)
        return min(max(round(value) if self.integer else value, self.low), self.high)

    @property
    def largest(self) -> float:
        """The highest number."""
        return self.high

    def grid(self, points: int) -> tuple[AxisValue, ...]:
        """Returns so many numbers from end to end, evenly spaced, in the logarithm if `log`."""
        shares = [i / (points - 1) for i in range(points)]
        if self.log:
            inner = [self.low * (self.high / self.low) ** share for share in shares[1:-1]]
        else:
            inner = [self.low + (self.high - self.low) * share for share in shares[1:-1]]
        numbers = [self.low, *inner, self.high]
        return tuple(dict.fromkeys(map(round, numbers) if self.integer else numbers))

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int if self.integer else int | float)
        return (
            number and not isinstance(value, bool) and self.low <= cast(float, value) <= self.high
        )

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (", log" if self.log else "")


@dataclass(frozen=True)
class Axis:
    """One varied parameter.

    Attributes:
      binding: Stage and parameter as gin names them, 'DilatedConvStack.channels'.
      domain: The values that the axis may take.
    """

    binding: str
    domain: Choice | Range

    @property
    def name(self) -> str:
        """The parameter's name, which names the axis in candidates and tables."""
        return self.binding.rpartition(".")[2]


@dataclass(frozen=True)
class SearchSpace:
    """The axes of a sweep and the configuration that they vary.

    Attributes:
      axes: What is varied.
      base: The configuration that holds everything else.
    """

    axes: tuple[Axis, ...]
    base: ModelConfig

    def config(self, candidate: Candidate) -> ModelConfig:
        """Returns the base configuration with a candidate's values in place."""
        return _with_values(self.base, {a.binding: a for a in self.axes}, dict(candidate.values))

    def candidate(self, values: Mapping[str, AxisValue]) -> Candidate:
        """Returns the canonical candidate with these axis values.

        Axes that make no difference to the model are left out, so that settings which differ in
        those only are one candidate and are tried once. Two kinds of settings that build the same
        network are different candidates all the same: without dilation, layers and stacks of one
        product; with resampling, a `stacks_per_resample` of all the stacks and one of more.

        Raises:
          SpaceError: An axis is missing, unknown, or has a value outside its domain.
        """
        for name in values:
            self._axis(name)
        for axis in self.axes:
            if axis.name not in values:
                raise SpaceError(f"no value for axis '{axis.name}'")
            if values[axis.name] not in axis.domain:
                raise SpaceError(
                    f"axis '{axis.name}' has no value {values[axis.name]!r}",
                    hint=f"it takes {axis.domain}",
                )
        full = Candidate.of(values)
        inactive = self.config(full).inactive_parameters()
        return Candidate.of(
            {a.name: values[a.name] for a in self.axes if a.binding not in inactive}
        )

    def sample(self, rng: random.Random) -> Candidate:
        """Returns a random candidate, each axis drawn on its own."""
        return self.candidate({a.name: a.domain.sample(rng) for a in self.axes})

    def baseline(self) -> Candidate | None:
        """Returns the base configuration as a candidate; None where the axes do not hold it."""
        values = self._values_of(self.base)
        if any(values[a.name] not in a.domain for a in self.axes):
            return None
        return self.candidate(values)

    def variant(self, values: Mapping[str, AxisValue]) -> Candidate:
        """Returns the candidate that has these values, and is as the base configuration else.

        Raises:
          SpaceError: As `candidate`.
        """
        return self.candidate(self._values_of(self.base) | dict(values))

    def candidate_of(self, config: ModelConfig) -> Candidate:
        """Returns the candidate that is configured like this, in whatever space it was found.

        Raises:
          SpaceError: None is: a value is outside its axis, or what is no axis differs.
        """
        if type(config.decoder) is not type(self.base.decoder):
            raise SpaceError(f"the decoder is {gin_name(config.decoder)}")
        candidate = self.candidate(self._values_of(config))
        ours, theirs = _active_parameters(self.config(candidate)), _active_parameters(config)
        for binding, value in theirs.items():
            if ours.get(binding) != value:
                raise SpaceError(f"{binding} is {value!r}, here {ours.get(binding)!r}")
        return candidate

    def holds(self, candidate: Candidate) -> bool:
        """Returns whether a candidate, which others may have written, has values of axes here."""
        domains = {axis.name: axis.domain for axis in self.axes}
        return all(name in domains and value in domains[name] for name, value in candidate.values)

    def _values_of(self, config: ModelConfig) -> dict[str, AxisValue]:
        return {a.name: _value_of(config, a.binding) for a in self.axes}

    @property
    def n_settings(self) -> int | None:
        """How many settings the axes have, equal candidates counted apart; None without end."""
        domains = [axis.domain for axis in self.axes]
        if not all(isinstance(domain, Choice) for domain in domains):
            return None
        return math.prod(len(cast(Choice, domain).values) for domain in domains)

    def candidates(self) -> Iterator[Candidate] | None:
        """Returns every distinct candidate, as `grid`; None for a space without end."""
        return None if self.n_settings is None else self.grid(points=1)

    def grid(self, points: int) -> Iterator[Candidate]:
        """Returns the distinct candidates of a grid, the last axis varied first.

        All settings of the grid are gone through, which may take long.

        Args:
          points: Numbers of a range: from end to end, evenly spaced in its scale. Whole ones are
            rounded, and those that are equal then are one.
        """
        names = [a.name for a in self.axes]
        settings = itertools.product(*(a.domain.grid(points) for a in self.axes))
        seen = set[Candidate]()
        for setting in settings:
            candidate = self.candidate(dict(zip(names, setting, strict=True)))
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def bindings(self, candidate: Candidate) -> list[str]:
        """Returns the gin bindings that make a configuration this candidate's."""
        return [f"{self._axis(name).binding} = {value!r}" for name, value in candidate.values]

    def _axis(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        names = [a.name for a in self.axes]
        raise SpaceError(
            f"no axis named '{name}'",
            hint=nearest(name, names, otherwise=f"the axes are {', '.join(names)}"),
        )


def make_space(axes: Mapping[str, object], base: ModelConfig) -> SearchSpace:
    """Returns the search space that a gin file describes.

    Args:
      axes: Binding -> tuple of values, or {'low', 'high'} with an optional 'log'.
      base: The configuration that the axes vary.

    Raises:
      SpaceError: A binding that names no parameter, a malformed domain, two axes of one name, or
        a value that the parameter does not accept.
    """
    if not axes:
        raise SpaceError(
            "the search space has no axes", hint="include a gin/spaces/*.gin file in the run file"
        )
    space = SearchSpace(tuple(Axis(b, _domain(b, d)) for b, d in axes.items()), base)
    names = [axis.name for axis in space.axes]
    for name in names:
        if names.count(name) > 1:
            raise SpaceError(f"two axes are named '{name}'")
    for axis in space.axes:
        _check_axis(axis, base)
    return space


def _domain(binding: str, domain: object) -> Choice | Range:
    match domain:
        case {"low": int() | float() as low, "high": int() | float() as high, **rest}:
            if rest.keys() <= {"log"} and low < high and not (rest.get("log") and low <= 0):
                return Range(low, high, bool(rest.get("log", False)))
        case Sequence() if domain and not isinstance(domain, str):
            values = tuple(domain)
            scalar = all(isinstance(v, bool | int | float | str) for v in values)
            if scalar and len(set(values)) == len(values):
                return Choice(values)
    raise SpaceError(
        f"axis '{binding}' has a domain that cannot be read: {domain!r}",
        hint="give a tuple of distinct values, or {'low': a, 'high': b, 'log': True} with a < b",
    )


def _check_axis(axis: Axis, base: ModelConfig) -> None:
    """Raises SpaceError when the parameter does not exist or rejects a value of the axis."""
    stage, _, parameter = axis.binding.rpartition(".")
    known = [
        f"{name}.{f.name}" for name, config in stages_of(base).items() for f in _fields(config)
    ]
    if stage in DECODERS and stage not in stages_of(base):
        raise SpaceError(
            f"axis '{axis.binding}' reaches nothing: the decoder is {gin_name(base.decoder)}",
            hint=f"leave it out, or have model.decoder = @{stage}()",
        )
    if axis.binding not in known:
        raise SpaceError(
            f"axis '{axis.binding}' names no parameter",
            hint=nearest(axis.binding, known, otherwise=f"it may vary {', '.join(known)}"),
        )
    domain = axis.domain
    values = domain.values if isinstance(domain, Choice) else domain.ends
    for value in values:
        try:
            dataclasses.replace(stages_of(base)[stage], **{parameter: value})
        except ConfigError as error:
            raise SpaceError(
                f"axis '{axis.name}' holds {value!r}, outside its range", hint=error.hint
            ) from error


def _fields(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config)


def _active_parameters(config: ModelConfig) -> dict[str, object]:
    """Returns by binding all that makes a difference to a model."""
    return {
        f"{stage}.{f.name}": getattr(part, f.name)
        for stage, part in stages_of(config).items()
        for f in _fields(part)
        if f"{stage}.{f.name}" not in config.inactive_parameters()
    }


def _value_of(config: ModelConfig, binding: str) -> AxisValue:
    stage, _, parameter = binding.rpartition(".")
    return cast(AxisValue, getattr(stages_of(config)[stage], parameter))


def _with_values(
    base: ModelConfig, axes: Mapping[str, Axis], values: Mapping[str, AxisValue]
) -> ModelConfig:
    stages = stages_of(base)
    for binding, axis in axes.items():
        if axis.name in values:
            stage, _, parameter = binding.rpartition(".")
            stages[stage] = dataclasses.replace(stages[stage], **{parameter: values[axis.name]})
    return ModelConfig.of_stages(stages)

"""A run's configuration: gin files and overrides in, one resolved text and typed values out.

gin's bindings are global to the process and are not sent to workers. So everything here clears,
binds strictly and finalises in one breath, and what travels is the resolved text. Whoever reads it
takes it for data: gin is given nothing that `sweeps.gin_text` has not checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import gin

from sweeps.errors import nearest
from sweeps.gin_text import GinText, is_file, read_file, read_text, refusing
from sweeps.objectives import metric
from sweeps.space import SearchSpace, make_space
from sweeps.trial import AxisValue, Candidate
from thesis.config import (
    ModelConfig,
    SynthConfig,
    TrainConfig,
    from_gin,
    made_by_gin,
    stages_of,
)
from thesis.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Beyond these a candidate is infeasible: it is recorded, and no member of a front.

    Costs are known before training, so that one that is too dear is not trained. The share of
    missed pitch is known only after it. None is no limit.
    """

    receptive_field_seconds: float | None = None
    parameters: int | None = None
    rtf_ratio: float | None = None
    f0_missed_share: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The limits that there are, by metric."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}


Sampler = Literal["tpe", "multivariate_tpe", "nsga2", "nsga3", "gp", "random", "grid"]
Stopping = Literal["none", "bound", "defer", "asha"]

DEFAULT_RUNGS: Mapping[str, tuple[float, ...]] = {
    "none": (),
    "bound": (0.13, 0.26, 0.52),
    "defer": (0.06, 0.2, 0.52),
    "asha": (0.13, 0.26, 0.52),
}
"""Rungs of a stopping rule, if a run names none. What waits is not lost, and may wait early."""


@dataclass(frozen=True)
class SweepConfig:
    """How the space is searched.

    Attributes:
      objectives: Two or more metrics, traded against each other.
      sampler: What proposes candidates, see `sweeps.search`.
      seed: Seeds the sampler.
      limits: What makes a candidate infeasible.
      population_size: Trials of a generation of 'nsga2' and 'nsga3', 2 to 10,000.
      startup_trials: Random trials before 'tpe', 'multivariate_tpe' and 'gp' have a model, 1 to
        10,000; None takes two an axis, ten at the least.
      grid_points: Numbers that 'grid' tries of a range, both ends included, 2 to 1,000.
      stopping: What ends trials before they are trained to their end, see `sweeps.stopping`.
      confidence: Of 'bound' and 'defer': at least this share of trials ends above their bound, 0.5
        to 0.999; None takes 0.8 and 0.9.
      reduction_factor: Of 'asha': of so many trials at a rung one goes on, 2 to 100.
      rungs: Shares of a trial's training after which it is validated as at its end, rising.
      baselines: Axis values of candidates that are tried first, after the model itself. Axes that
        one leaves out are as the model has them.
    """

    objectives: tuple[str, ...]
    sampler: Sampler
    seed: int
    limits: Limits
    population_size: int = 20
    startup_trials: int | None = None
    grid_points: int = 5
    stopping: Stopping = "none"
    confidence: float | None = None
    reduction_factor: int = 3
    rungs: tuple[float, ...] = ()
    baselines: tuple[Mapping[str, AxisValue], ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """A resolved run.

    Attributes:
      text: Every binding, with includes and overrides resolved: what is stored and sent.
      model: The configuration that candidates vary.
      sweep: How the space is searched.
      space: What is varied.
    """

    text: str = field(repr=False)
    model: ModelConfig
    sweep: SweepConfig
    space: SearchSpace

    def text_for(self, candidate: Candidate) -> str:
        """Returns the gin text of one candidate: the run's, then the candidate's own bindings."""
        return "\n".join(
            [self.text, f"# Candidate {candidate.id}", *self.space.bindings(candidate), ""]
        )


def _sweep(
    objectives: Sequence[str] = ("val_loss", "rtf_ratio"),
    sampler: str = "tpe",
    seed: int = 0,
    max_receptive_field_seconds: float | None = None,
    max_parameters: int | None = None,
    max_rtf_ratio: float | None = None,
    max_f0_missed_share: float | None = None,
    population_size: int | None = None,
    startup_trials: int | None = None,
    grid_points: int | None = None,
    stopping: str = "none",
    confidence: float | None = None,
    reduction_factor: int | None = None,
    rungs: Sequence[float] | None = None,
    baselines: Sequence[Mapping[str, AxisValue]] = (),
) -> SweepConfig:
    given = locals()
    number, whole = (int | float | None, "a number or None"), (int | None, "a whole number")
    kinds: dict[str, tuple[Any, str]] = {
        "objectives": (tuple | list, "a tuple of metrics"),
        "sampler": (str, "a word"),
        "seed": (int, "a whole number"),
        "max_receptive_field_seconds": number,
        "max_parameters": number,
        "max_rtf_ratio": number,
        "max_f0_missed_share": number,
        "population_size": whole,
        "startup_trials": whole,
        "grid_points": whole,
        "stopping": (str, "a word"),
        "confidence": number,
        "reduction_factor": whole,
        "rungs": (tuple | list | None, "a tuple of shares of the training"),
        "baselines": (tuple | list, "a tuple of dictionaries of axis values"),
    }
    for name, (kind, words) in kinds.items():
        if not isinstance(given[name], kind) or isinstance(given[name], bool):
            raise ConfigError(
                f"sweep.{name} = {given[name]!r} has the wrong type", hint=f"{name} must be {words}"
            )
    _require_choice("sampler", sampler, get_args(Sampler))
    _require_choice("stopping", stopping, get_args(Stopping))
    if len(objectives) < 2:
        raise ConfigError("a sweep trades two objectives or more", hint="see sweep.objectives")
    for name in objectives:
        metric(name)  # raises MetricError for a name that no record has
    if len(set(objectives)) < len(objectives):
        raise ConfigError(
            f"sweep.objectives = {objectives!r} has one of them twice", hint="leave it out once"
        )
    for name in (f"max_{limit}" for limit in vars(Limits())):
        if given[name] is not None and not given[name] > 0:
            raise ConfigError(
                f"sweep.{name} = {given[name]!r} is no limit",
                hint="a limit is above 0; None is none",
            )
    if max_f0_missed_share is not None and max_f0_missed_share > 1:
        raise ConfigError(
            f"sweep.max_f0_missed_share = {max_f0_missed_share!r} limits nothing",
            hint="it is a share: 0.3 for 30%; None is no limit",
        )
    if stopping != "none":
        _require_costs(objectives)
    options = _options(given)
    if not all(isinstance(values, Mapping) for values in baselines):
        raise ConfigError(
            f"sweep.baselines = {baselines!r} has the wrong type",
            hint="for example ({'channels': 4}, {'channels': 16})",
        )
    return SweepConfig(
        tuple(objectives),
        cast(Sampler, sampler),
        seed,
        Limits(max_receptive_field_seconds, max_parameters, max_rtf_ratio, max_f0_missed_share),
        stopping=cast(Stopping, stopping),
        rungs=_rungs(DEFAULT_RUNGS[stopping] if rungs is None else rungs),
        baselines=tuple(baselines),
        **options,
    )


def _require_costs(objectives: Sequence[str]) -> None:
    """Raises ConfigError for objectives of which no rung can tell where a trial will stand."""
    unknown = [name for name in objectives if metric(name).learnt and name != "val_loss"]
    if unknown or "val_loss" not in objectives:
        raise ConfigError(
            "trials can be stopped where val_loss is traded against costs that are known before "
            f"training, not against {unknown[0]}"
            if unknown
            else "stopping needs val_loss",
            hint="sweep.objectives = ('val_loss', 'rtf_ratio'), or sweep.stopping = 'none'",
        )


def _require_choice(what: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise ConfigError(
            f"no {what} named {name!r}",
            hint=nearest(name, choices, otherwise=f"choose from {', '.join(choices)}"),
        )


_OPTIONS: Mapping[str, tuple[str, tuple[str, ...], float, float]] = {
    "population_size": ("sampler", ("nsga2", "nsga3"), 2, 10_000),
    "startup_trials": ("sampler", ("tpe", "multivariate_tpe", "gp"), 1, 10_000),
    "grid_points": ("sampler", ("grid",), 2, 1_000),
    "confidence": ("stopping", ("bound", "defer"), 0.5, 0.999),
    "reduction_factor": ("stopping", ("asha",), 2, 100),
}
"""What goes with some samplers or stopping rules only, and its range."""


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, each of which must have an effect."""
    options = {name: given[name] for name in _OPTIONS if given[name] is not None}
    for name, value in options.items():
        what, users, low, high = _OPTIONS[name]
        if given[what] not in users:
            raise ConfigError(
                f"sweep.{name} has no effect with {what} '{given[what]}'",
                hint=f"leave it out; it goes with {', '.join(users)}",
            )
        if not low <= value <= high:
            raise ConfigError(
                f"sweep.{name} = {value!r} is outside its range",
                hint=f"{name} must be between {low:g} and {high:g}",
            )
    return options


def _rungs(shares: Sequence[float]) -> tuple[float, ...]:
    inside = [share for share in shares if isinstance(share, float) and 0.0 < share < 1.0]
    if len(inside) < len(shares) or inside != sorted(set(inside)):
        raise ConfigError(
            f"sweep.rungs = {shares!r} are no rising shares of the training",
            hint="for example (0.1, 0.2, 0.4); the end is validated anyway",
        )
    return tuple(inside)


def _search_space(**groups: Mapping[str, object]) -> Mapping[str, object]:
    """Returns the axes of all groups, so that a run may include several space files."""
    axes: dict[str, object] = {}
    for group, domains in groups.items():
        if not isinstance(domains, Mapping):
            raise ConfigError(
                f"search_space.{group} = {domains!r} has the wrong type",
                hint="give a dictionary of domains by binding",
            )
        for binding, domain in domains.items():
            if binding in axes:
                raise ConfigError(
                    f"search_space.{group} holds '{binding}', as another group does",
                    hint="leave it out of one of them",
                )
            axes[binding] = domain
    return axes


_SWEEP_STAGES: dict[str, Any] = {
    "sweep": gin.external_configurable(_sweep, "sweep"),
    "search_space": gin.external_configurable(_search_space, "search_space"),
}


def gin_root() -> Path:
    """Returns the folder of the .gin files that come with the project."""
    installed = Path(__file__).parent / "gin_files"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "gin"


def find_run(name: str) -> Path:
    """Returns the file of a run: a path, or the name of one that comes with the project.

    Raises:
      ConfigError: There is no such file.
    """
    runs = gin_root() / "runs"
    for path in (Path(name), runs / name, runs / f"{name}.gin"):
        if is_file(path):
            return path
    shipped = [path.stem for path in runs.glob("*.gin")]
    raise ConfigError(
        f"no run file '{name}'",
        hint=nearest(Path(name).stem, shipped, otherwise=f"shipped are {', '.join(shipped)}"),
    )


def load_run(run_file: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the run that a gin file and `key=value` overrides describe.

    Args:
      run_file: The gin file; its includes are looked up in `gin_root()`, beside it, and here.
      overrides: Bindings, 'train.steps=500' or 'STEPS=500', that win over the file's.

    Raises:
      ConfigError: A file or binding that gin or the models do not accept, or an axis that does not
        reach the model.
      SpaceError: A search space that cannot be read.
      MetricError: An objective that no record has.
    """
    given = _read_file(run_file).overridden(overrides)
    given = given.completed(_stated(given))
    given.require_reached()
    text = _bind(given)
    _run_from_gin(text)  # first, so that what is wrong is told in the file's own words
    # What gin prints may be in another order than what it has read.
    run = parse_run(text)
    for end in (0, -1):
        # What a worker would meet: bindings that do not go with some value of an axis.
        candidate = run.space.candidate(
            {axis.name: axis.domain.ends[end] for axis in run.space.axes}
        )
        parse_candidate(run.text_for(candidate), candidate)
    return run


def load_model(model_file: Path) -> ModelConfig:
    """Returns the model that a gin file describes, one of `gin/models/` for instance.

    Raises:
      ConfigError: As `load_run`.
    """
    _bind(_read_file(model_file))
    with refusing():
        return from_gin()


_BEFORE = {"Synth.levels": "absolute", "train.schedule": "exponential"}
"""What a resolved text means that does not say: how the first releases did it."""


def _stated(given: GinText) -> dict[str, Any]:
    """Returns defaults that a resolved text states, though no file does: they have changed once."""
    # Whoever binds ddsp's decay wants it.
    decays = any(key.parameter in ("decay_rate", "decay_steps") for key in given.bindings)
    schedule = "exponential" if decays else TrainConfig.schedule
    return {"Synth.levels": SynthConfig.levels, "train.schedule": schedule}


def _read_file(file: Path) -> GinText:
    return read_file(file, [gin_root(), file.parent, Path()])


def _bind(text: GinText) -> str:
    """Has gin bind what a text says, and nothing else; returns how gin prints it.

    Raises:
      ConfigError: gin knows no such parameter, or would print it as something else.
    """
    with refusing():
        gin.clear_config()
        gin.parse_config(str(text))
        gin.finalize()
        printed: str = gin.config_str(max_line_length=100)
    # gin leaves out, and does not say so, what it cannot print.
    text.require_equal(read_text(printed))
    return printed


def parse_run(text: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the run that a resolved text describes (see `RunConfig.text`).

    The text may be anybody's. It is data: it can do no more than describe a run.

    Args:
      text: The resolved text.
      overrides: As in `load_run`. Those that change nothing leave the text as it is.

    Raises:
      As `load_run`; a ConfigError, too, for a text that this project does not write.
    """
    said = read_text(text).completed(_BEFORE).overridden(overrides)
    said.require_ours()
    printed = _bind(said)
    return _run_from_gin(printed if overrides else text)


def parse_candidate(text: str, candidate: Candidate) -> ModelConfig:
    """Returns the model that `RunConfig.text_for` described, checked against its candidate.

    Raises:
      ConfigError: As `load_run`, or an axis of the candidate does not reach the configuration.
    """
    run = parse_run(text)
    stages = stages_of(run.model)
    for axis in run.space.axes:
        stage, _, parameter = axis.binding.rpartition(".")
        wanted = candidate.get(axis.name)
        if wanted is not None and getattr(stages[stage], parameter) != wanted:
            raise ConfigError(
                f"axis '{axis.name}' does not reach the model: {wanted!r} was asked for, "
                f"{getattr(stages[stage], parameter)!r} is in force",
                hint="leave out the axis, or what overrules it",
            )
    return run.model


def _run_from_gin(text: str) -> RunConfig:
    with refusing():
        model = from_gin()
        sweep = made_by_gin(_SWEEP_STAGES["sweep"])
        axes = made_by_gin(_SWEEP_STAGES["search_space"])
    space = make_space(axes, model)
    for values in sweep.baselines:
        space.variant(values)  # raises SpaceError for what is no candidate
    return RunConfig(text, model, sweep, space)

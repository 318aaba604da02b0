"""A bundle as what a sweep has promoted: its record and its configuration, by the readers of those.

`thesis.bundle` knows what a model is, and not what a sweep is: how a trial comes by its id, and how
gin reads a text.
"""

from collections.abc import Callable
from pathlib import Path

from sweeps.gin_text import read_text
from sweeps.trial import Candidate
from thesis import checked_files
from thesis.agreement import compare_config
from thesis.bundle import CONFIG_FILE, TRIAL_FILE, ModelBundle, verify_bundle
from thesis.errors import BundleError, ConfigError

_AXIS = "axis_"
_CHANGED = "it was damaged or changed; promote the trial again"


def verify(path: Path, *, on_note: Callable[[str], None] = lambda note: None) -> ModelBundle:
    """Verifies a bundle, see `verify_bundle`, and what only this project's sweeps know of it.

    The trial's id is that of its candidate; the configuration is one that this project may have
    written, and of this model however its lines are laid out.

    Raises:
      BundleError, ExportError: As `verify_bundle`, or one of these does not hold.
    """
    bundle = verify_bundle(path, on_note=on_note)
    _check_id(bundle)
    _check_config(bundle)
    return bundle


def _check_id(bundle: ModelBundle) -> None:
    axes = {name.removeprefix(_AXIS): value for name, value in bundle.trial.items()
            if name.startswith(_AXIS)}  # fmt: skip
    try:
        found = Candidate.checked(axes).id
    except ValueError as error:
        raise _other(bundle, TRIAL_FILE, str(error)) from error
    if bundle.trial["id"] != found:
        raise _other(bundle, TRIAL_FILE, f"its axes are those of trial {found}")


def _check_config(bundle: ModelBundle) -> None:
    text = checked_files.read_text(bundle.path / CONFIG_FILE, BundleError)
    try:
        said = read_text(text)
        said.require_ours()
        compare_config(str(said), bundle.session.facts)
    except ConfigError as error:
        raise _other(bundle, CONFIG_FILE, error.message) from error
    except ValueError as error:
        raise _other(bundle, CONFIG_FILE, str(error)) from error


def _other(bundle: ModelBundle, name: str, why: str) -> BundleError:
    return BundleError(
        f"{name} in '{bundle.path}' is not of the model of the other files: {why}", hint=_CHANGED
    )

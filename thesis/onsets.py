"""Where notes begin, and how far the beginnings in a rendering are from those in its clip."""

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

ONSET_RISE_DB = 10.0
"""By how much the loudness rises within `ONSET_RISE_SECONDS` where a note begins."""

MATCHING_RISE_DB = 5.0
"""A rise that answers one of `ONSET_RISE_DB` on the other side: half of it. With one threshold for
both, rises that are just over it on one side and just under it on the other would be errors: 43 in
100 on renderings of slurred violin, where 5 in 100 are now."""

ONSET_RISE_SECONDS = 0.048
ONSET_RANGE_DB = 30.0
"""What is softer than the loudest frame by more counts as this soft: no note begins in noise."""

ATTACK_SECONDS = 0.1
"""After its steepest rise, the time in which a note reaches the level that its attack ends at."""

HALFWAY_DB = 6.0
"""A note begins when half of that amplitude is reached."""

LARGEST_ONSET_ERROR_MS = 100.0
"""Of an onset that the other side does not have, or has further away."""


def find_onsets(
    loudness_db: NDArray[np.floating], frame_rate: float, rise_db: float = ONSET_RISE_DB
) -> Seconds:
    """Returns when notes begin: where the amplitude passes half of what an attack comes to.

    A peak picker on the rise of the loudness, the simplest of those that Bello et al. 2005 compare,
    then a level relative to the attack's own, as for attack times (Peeters 2004). A louder clip has
    the same onsets. A slower attack has later ones, by half of what it takes longer.

    Args:
      loudness_db: Of one clip, shape [n_frames].
      frame_rate: Frames a second.
      rise_db: Smallest rise of the loudness that makes an onset.

    Returns:
      Times in seconds after the first frame, rising, shape [n_onsets]. A note that sounds from the
      first frame on does not begin.
    """
    level = np.maximum(loudness_db, loudness_db.max() - ONSET_RANGE_DB).astype(np.float64)
    half = max(1, round(ONSET_RISE_SECONDS / 2 * frame_rate))
    padded = np.pad(level, half, mode="edge")
    rise = padded[2 * half :] - padded[: -2 * half]
    steepest = scipy.ndimage.maximum_filter1d(rise, 4 * half + 1)
    found: list[float] = []
    last = -len(level)
    for at in np.flatnonzero((rise >= rise_db) & (rise == steepest)).tolist():
        if at - last > 2 * half:  # or else the same rise
            found.append(_halfway(level, at - half, at + round(ATTACK_SECONDS * frame_rate)))
        last = at
    return np.array(found) / frame_rate


def _halfway(level: Seconds, first: int, last: int) -> float:
    """Returns the frame, and fraction of one, in which an attack has half of its last amplitude."""
    attack = level[max(0, first) : last + 1]
    threshold = attack.max() - HALFWAY_DB
    over = int(np.argmax(attack >= threshold))
    part = 0.0
    if over:
        before, after = attack[over - 1 : over + 1]
        part = (threshold - before) / (after - before) - 1
    return max(0, first) + over + float(part)


def onset_error(
    target_db: NDArray[np.floating], loudness_db: NDArray[np.floating], frame_rate: float
) -> float | None:
    """Returns the mean distance in ms of an onset from the nearest one on the other side.

    Onsets of the clips and onsets of the renderings count alike: one that is missing and one that
    should not be there are `LARGEST_ONSET_ERROR_MS` off, as are those that are further away. An
    onset is answered by any rise of `MATCHING_RISE_DB` or more.

    Args:
      target_db: Loudness of the clips, shape [n, n_frames].
      loudness_db: Loudness of the renderings, likewise.
      frame_rate: Frames a second.

    Returns:
      0 to `LARGEST_ONSET_ERROR_MS`; None where no note begins in the clips.
    """
    errors: list[Seconds] = []
    n_in_targets = 0
    for target, rendered in zip(target_db, loudness_db, strict=True):
        for one, other in ((target, rendered), (rendered, target)):
            onsets = find_onsets(one, frame_rate)
            answers = find_onsets(other, frame_rate, MATCHING_RISE_DB)
            errors.append(np.abs(onsets[:, None] - answers).min(axis=1, initial=np.inf))
            n_in_targets += onsets.size if one is target else 0
    if not n_in_targets:
        return None
    return float(np.minimum(1000 * np.concatenate(errors), LARGEST_ONSET_ERROR_MS).mean())

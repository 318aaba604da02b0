"""What a candidate costs before it is trained, and whether what is known of it is allowed."""

from sweeps.config import Limits
from sweeps.trial import Measurement, Reason
from thesis.config import ModelConfig


def closed_form_metrics(
    config: ModelConfig, *, sample_rate: int, hop_size: int
) -> dict[str, int | float | None]:
    """Returns the metrics that follow from the configuration alone, by `Measurement` field.

    Sample rate (Hz) and hop size (samples) are the dataset's. A receptive field without a bound is
    None.
    """
    n_outputs, frames = config.synth.n_outputs, config.decoder.receptive_field_frames
    parameters = config.decoder.parameter_count(n_outputs)
    macs = config.decoder.macs_per_frame(n_outputs)
    seconds = config.synth.hop_size(hop_size) / sample_rate  # of a frame
    return {
        "parameters": parameters,
        "parameters_with_reverb": parameters + config.synth.reverb_length(sample_rate),
        "macs_per_frame": macs,
        "macs_per_second": macs / seconds,
        "receptive_field_frames": frames,
        "receptive_field_seconds": None if frames is None else frames * seconds,
    }


def broken_limit(measurement: Measurement, limits: Limits) -> tuple[Reason, str] | None:
    """Returns the first limit that a measurement breaks and by what; None when it breaks none.

    What is not measured breaks none: costs while they are not known, and the share of missed pitch
    where no frame of the clips is voiced, as of drums.
    """
    field, limit = measurement.receptive_field_seconds, limits.receptive_field_seconds
    # Whoever counts parameters knows the receptive field as well, where it has a bound.
    if field is None and limit is not None and measurement.parameters is not None:
        return Reason.RECEPTIVE_FIELD, (
            f"receptive_field_seconds has no bound; the limit {limit:.3g} s"
        )
    checks = (
        (Reason.RECEPTIVE_FIELD, "receptive_field_seconds", "{:.3g} s"),
        (Reason.PARAMETERS, "parameters", "{:,}"),
        (Reason.RTF, "rtf_ratio", "{:.3g} x reference"),
        (Reason.MISSED_PITCH, "f0_missed_share", "{:.3g}"),
    )
    for reason, metric, form in checks:
        value, limit = getattr(measurement, metric), getattr(limits, metric)
        if value is not None and limit is not None and value > limit:
            return reason, f"{metric} is {form.format(value)}, the limit {form.format(limit)}"
    return None

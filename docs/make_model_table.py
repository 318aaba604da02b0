"""Writes the table of models in docs/concepts/decoders.md: python docs/make_model_table.py."""

from pathlib import Path

from sweeps.config import gin_root, load_model
from thesis.config import ModelConfig

TARGET = Path(__file__).parent / "concepts" / "decoders.md"
START = "<!-- The table is written by docs/make_model_table.py; a test keeps it fresh. -->\n"
END = "<!-- End of the table. -->\n"
SAMPLE_RATE, HOP_SIZE = 16_000, 64
COLUMNS = (
    "model", "parameters", "with reverb", "MACs a frame", "receptive field", "in ms", "look-ahead",
    "causal", "streams",
)  # fmt: skip


def table() -> str:
    """Returns the table as Markdown: a row for each file of `gin/models/`, small ones first."""
    models = {file.stem: load_model(file) for file in (gin_root() / "models").glob("*.gin")}
    rows = [
        _row(name, models[name]) for name in sorted(models, key=lambda n: (_size(models[n]), n))
    ]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """Returns the page with its table written anew."""
    before, _, rest = TARGET.read_text().partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def _size(model: ModelConfig) -> int:
    return model.decoder.parameter_count(model.synth.n_outputs)


def _row(name: str, model: ModelConfig) -> tuple[str, ...]:
    decoder, parameters = model.decoder, _size(model)
    field, ahead = decoder.receptive_field_frames, decoder.lookahead_frames
    frame_ms = 1e3 * model.synth.hop_size(HOP_SIZE) / SAMPLE_RATE
    return (
        f"`{name}`",
        f"{parameters:,}",
        f"{parameters + model.synth.reverb_length(SAMPLE_RATE):,}",
        f"{decoder.macs_per_frame(model.synth.n_outputs):,}",
        "unbounded" if field is None else f"{field:,}",
        "-" if field is None else f"{field * frame_ms:,.0f}",
        "unbounded" if ahead is None else f"{ahead:,}",
        "yes" if ahead == 0 else "no",
        "yes" if decoder.streamable else "no",
    )


if __name__ == "__main__":
    TARGET.write_text(page())

"""How a plan runs on a stream: what each node remembers, and how late its output is.

Frames come in blocks. A node whose kernel sees later frames can only answer once they are there,
so its output is late; where branches of different delays meet, the early one waits. The numbers
here serve the ONNX stream and the generated C alike. NumPy-free: closed forms of the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from thesis.architecture import INPUTS, Conv, Layer, Node, TransposedConv
from thesis.config import SynthConfig
from thesis.errors import ExportError


@dataclass(frozen=True)
class Source:
    """How a node takes one of its sources: the past frames and then the block's, but the newest.

    Attributes:
      name: The source.
      past: Frames of it, at its own rate, that are remembered from block to block.
      ahead: Newest frames that are there and not yet needed.
    """

    name: str
    past: int
    ahead: int = 0


@dataclass(frozen=True)
class Step:
    """A node on a stream.

    Attributes:
      node: The node.
      sources: How it takes each of its sources.
      delay: Input frames by which its output is late, a multiple of its period.
    """

    node: Node
    sources: tuple[Source, ...]
    delay: int


@dataclass(frozen=True)
class Schedule:
    """A plan on a stream.

    Attributes:
      steps: One for each node, in the order of the plan.
      cycle: A block holds a multiple of so many frames: what the slowest node needs for one frame.
    """

    steps: tuple[Step, ...]
    cycle: int

    @property
    def delay(self) -> int:
        """Frames by which the output is late."""
        return self.steps[-1].delay


def schedule(plan: Sequence[Node]) -> Schedule:
    """Returns how a plan runs on a stream.

    Raises:
      ExportError: A norm takes moments over the whole clip.
    """
    delays, periods = {INPUTS: 0}, {INPUTS: 1}
    steps = []
    for node in plan:
        if isinstance(node, Layer) and node.norm == "time":
            raise ExportError(
                f"'{node.name}' cannot stream: its norm needs the whole clip",
                hint="DilatedConvStack.norm = 'frame' or 'batch' can",
            )
        late = max(delays[source] for source in node.sources)
        if isinstance(node, Conv):
            delay = late + node.lookahead * periods[node.sources[0]]
            delay = -(-delay // node.period) * node.period
            waited = (delay - late) // periods[node.sources[0]]
            past, ahead = node.padding[0] + waited, waited - node.lookahead
            sources: tuple[Source, ...] = (Source(node.sources[0], past, ahead),)
        elif isinstance(node, TransposedConv):
            delay = late + node.lookahead * node.period
            sources = (Source(node.sources[0], 1),)
        else:
            delay = late
            sources = tuple(
                Source(source, *[(late - delays[source]) // periods[source]] * 2)
                for source in node.sources
            )
        steps.append(Step(node, sources, delay))
        delays[node.name], periods[node.name] = delay, node.period
    return Schedule(tuple(steps), max(periods.values()))


def synthesis_delay(synth: SynthConfig, hop_size: int) -> int:
    """Returns the frames by which audio is late after the decoder's output.

    The sound of a frame is a crossfade to the next one, so it takes one; more where the delay of
    the noise filter, which is taken out, is longer than a frame.
    """
    return max(1, -(-noise_delay(synth) // hop_size))


def noise_delay(synth: SynthConfig) -> int:
    """Returns the samples by which filtered noise is moved to the front, as ddsp does."""
    return synth.n_noise_bands - 3


def latency_frames(plan: Sequence[Node], synth: SynthConfig, hop_size: int) -> int:
    """Returns the frames from a control to the sound of it."""
    return schedule(plan).delay + synthesis_delay(synth, hop_size)

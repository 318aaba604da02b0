"""A chain of ddsp's processors in gin, as its users have one: the bindings of its parts follow."""

CHAIN = """
import thesis.from_ddsp
Synth.processor_group = @processors.ProcessorGroup()
ProcessorGroup.dag = [
  (@synths.Harmonic(), ['amps', 'harmonic_distribution', 'f0_hz']),
  (@synths.FilteredNoise(), ['noise_magnitudes']),
  (@processors.Add(), ['filtered_noise/signal', 'harmonic/signal']),
  (@effects.Reverb(), ['add/signal']),
]
"""

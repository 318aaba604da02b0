"""The model library: recordings in, trained and exported tiny audio decoders out.

Never imports `sweeps`, Ray or Optuna. Modules that need TensorFlow say so in their first line;
everything else must stay importable without it.
"""

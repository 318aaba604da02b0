"""The sweep system: Ray Tune runs trials, Optuna proposes them, the ledger remembers them."""

__version__ = "0.2.0"

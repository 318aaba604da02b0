"""Figures and pages drawn from the ledger. Nothing but the command line imports it."""

import logging

# Where there is no home folder to cache fonts in, Matplotlib takes a new one and tells at length.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

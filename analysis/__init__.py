"""Figures and pages drawn from the ledger. Nothing but the command line imports it."""

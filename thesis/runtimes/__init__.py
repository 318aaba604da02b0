"""Runtimes that an exported model runs in, one file each."""

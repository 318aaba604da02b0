"""What the project claims about speed and accuracy, measured: `python -m benchmarks.NAME`."""

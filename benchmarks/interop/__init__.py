"""What other tools make of saeforest's files, and saeforest of theirs: `python -m benchmarks.interop --help`."""

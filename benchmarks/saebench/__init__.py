"""saeforest beside SAEBench 0.6.0, on one SAE, text and list of words: `python -m benchmarks.saebench --help`."""

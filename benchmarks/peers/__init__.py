"""saeforest beside the libraries that train the same sparse autoencoders: `python -m benchmarks.peers --help`."""

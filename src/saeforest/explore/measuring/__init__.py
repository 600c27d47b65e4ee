"""The measuring pass: from activations to an index."""

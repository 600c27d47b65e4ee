"""Neuronpedia: bulk files for its import (`files`), and their upload through its API (`upload`)."""

"""Replacing the activations of a language model at a site by an SAE's reconstruction."""

from .splice import Edit, ablate, put, splice

__all__ = ["Edit", "ablate", "put", "splice"]

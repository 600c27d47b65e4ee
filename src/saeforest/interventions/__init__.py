"""Replacing what a language model computes at a site by what an SAE makes of it."""

from .splice import Edit, ablate, put, splice

__all__ = ["Edit", "ablate", "put", "splice"]

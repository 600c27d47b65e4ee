"""Releases: a run on the Hugging Face Hub, where others find it with its numbers and load it by name.

contents  what a release holds, read from the run and so checked for damage
card      the model card, written from that
preview   a picture and a page of one family
push      the upload: one commit, or nothing
"""

from .push import Pushed, push

__all__ = ["Pushed", "push"]

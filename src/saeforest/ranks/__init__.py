"""The processes of one run, its ranks: what they tell each other, and how all of them end when one does.

torchrun starts the processes. Whoever trains or measures gets a `Ranks`: the rank and the number of ranks, and a few
ways to share work. In an ordinary run it is `ALONE`, of which every method is the identity.
"""

from .alone import ALONE, Ranks
from .join import here, joined

__all__ = ["ALONE", "Ranks", "here", "joined"]

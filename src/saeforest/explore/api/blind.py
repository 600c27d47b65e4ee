"""The blind audit: a person rates edges and null pairs without being told which is which."""

from __future__ import annotations

import random
import secrets
from collections import OrderedDict
from threading import Lock

from ...structure.forest import ROOT, Forest
from ..answers.requests import BlindPair, BlindResult, Hidden, Tally
from ..errors import NotFound, Unavailable
from ..index import Index
from ..labels.annotations import Annotations, Kind, Rated, Rating
from ..queries.contexts import Contexts

_CONTEXTS, _TOKENS = 8, 5
# Pairs that were shown and not rated yet are remembered up to this number.
_MOST_OPEN = 1000
_TRIES = 50


class Blind:
    """Draws pairs and takes ratings. A drawn child stands beside its parent, or beside its null parent, with equal
    probability, so that nothing about the child tells which it is.

    seed: random seed for drawing pairs; None for another order each time.
    """

    def __init__(
        self,
        index: Index,
        forest: Forest,
        contexts: Contexts,
        annotations: Annotations,
        seed: int | None = None,
    ) -> None:
        self._contexts, self._annotations = contexts, annotations
        self._random = random.Random(seed)
        self._lock = Lock()
        self._open: OrderedDict[str, tuple[int, int, Kind]] = OrderedDict()
        fired, above = index.n_fired.tolist(), forest.parent.tolist()
        pairs = zip(index.null_parent.tolist(), index.null_child.tolist(), strict=True)
        self._pairs = [
            (above[child], null, child)
            for null, child in pairs
            if above[child] not in (ROOT, null) and fired[child] and fired[above[child]] and fired[null]
        ]

    def next(self) -> BlindPair:
        """A pair to rate, which was not rated yet if possible. Raises Unavailable if the index has no null pairs."""
        if not self._pairs:
            raise Unavailable(
                "no pairs to rate: the index has no null pairs of features that fired; index more text, with "
                "`saeforest index RUN --tokens N`"
            )
        with self._lock:
            rated = {(r.parent, r.child) for r in self._annotations.ratings(blind=True)}
            general, child, kind = self._draw()
            for _ in range(_TRIES):
                if (general, child) not in rated:
                    break
                general, child, kind = self._draw()
            name = secrets.token_hex(8)
            self._open[name] = general, child, kind
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return BlindPair(name, self._hidden(general), self._hidden(child))

    def _draw(self) -> tuple[int, int, Kind]:
        parent, null, child = self._random.choice(self._pairs)
        return (parent, child, "edge") if self._random.random() < 0.5 else (null, child, "null")

    def rate(self, name: str, rating: Rating) -> BlindResult:
        """Keep the rating of a pair, and say what it was. Raises NotFound if it was not drawn, or is rated already."""
        with self._lock:
            if name not in self._open:
                raise NotFound(
                    "this pair is rated already, or from before the server was started; ask for the next"
                )
            parent, child, kind = self._open[name]
            self._annotations.rate(Rated(parent, child, rating, kind, blind=True))
            del self._open[name]
        return BlindResult(kind, parent, child)

    def tally(self) -> Tally:
        """The blind ratings so far."""
        found = self._annotations.tally()
        return Tally(found["edge"], found["null"])

    def _hidden(self, feature: int) -> Hidden:
        # Neither labels nor the tokens that tell a child from its parent: they would give the true parent away.
        contexts = self._contexts.top(feature, children=False, most=_CONTEXTS)
        tokens = dict.fromkeys(context.tokens[context.at].strip() for context in contexts)
        return Hidden(None, tuple(tokens)[:_TOKENS], tuple(contexts))

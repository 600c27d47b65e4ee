"""The bodies of requests to the API."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..labels.annotations import MOST_LABEL, MOST_NOTE, Rating


class _Body(BaseModel):
    """The body of a request. Unknown keys are errors: they would be typing errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoteBody(_Body):
    """Changes to what is noted about a feature. A key that is left out changes nothing; null or "" removes."""

    label: str | None = Field(default="", max_length=10 * MOST_LABEL)
    note: str | None = Field(default="", max_length=2 * MOST_NOTE)
    bookmark: bool | None = None


class RatingBody(_Body):
    """A rating by a person who knows what the edge is."""

    rating: Rating
    blind: bool = False


class BlindBody(_Body):
    """A rating of a pair that `blind/next` gave."""

    id: str = Field(max_length=64)
    rating: Rating


class PromptBody(_Body):
    """A text for the language model."""

    text: str


class EmptyBody(_Body):
    """Nothing."""


#: The bodies of requests by method and path.
BODIES: dict[str, type[BaseModel]] = {
    "PUT annotations/ID": NoteBody,
    "PUT rating/CHILD": RatingBody,
    "POST blind/next": EmptyBody,
    "POST blind/rate": BlindBody,
    "POST prompt": PromptBody,
}

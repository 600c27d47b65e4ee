"""The JSON API of the explorer without HTTP: `Api` makes the answers that `explore.answers` describes."""

from .api import Api, Query, feature_of, to_json
from .bodies import BODIES

__all__ = ["BODIES", "Api", "Query", "feature_of", "to_json"]

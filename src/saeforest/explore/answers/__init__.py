"""The answers of the JSON API, version 1: what `Api.get` returns, field by field (docs/explorer-api.md).

An undefined number is None. Text is data: its control characters are replaced by visible signs, but it may hold markup,
which a page must show and not obey. The JSON schema of these classes is docs/explorer-api.schema.json.
"""

from . import compare, features, requests, whole

#: The answers by path. ID and CHILD stand for the number of a feature.
ANSWERS: dict[str, type] = {
    "GET overview": whole.OverviewAnswer,
    "GET forest": whole.ForestAnswer,
    "GET labels": whole.LabelsAnswer,
    "GET nulls": whole.NullsAnswer,
    "GET feature/ID": features.FeatureAnswer,
    "GET edge/CHILD": features.EdgeAnswer,
    "GET family/ID": features.FamilyAnswer,
    "GET ungated/ID": features.UngatedAnswer,
    "GET tree-data/ID": features.TreeDataAnswer,
    "GET geometry/ID": features.GeometryAnswer,
    "GET search": requests.SearchAnswer,
    "GET training": whole.TrainingAnswer,
    "GET compare": compare.CompareAnswer,
    "GET compare (without other)": compare.RunsAnswer,
    "GET compare/feature": features.FeatureAnswer,
    "POST prompt": requests.PromptAnswer,
    "GET annotations": requests.AnnotationsAnswer,
    "PUT annotations/ID": requests.NoteAnswer,
    "PUT rating/CHILD": requests.RatingAnswer,
    "POST blind/next": requests.BlindPair,
    "POST blind/rate": requests.BlindResult,
    "GET blind/tally": requests.Tally,
}

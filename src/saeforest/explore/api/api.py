"""The JSON API of the explorer, version 1, without HTTP: from paths to data that are ready for JSON.

    api = Api.of_run("runs/demo")
    api.get("feature/17")            # the same object as GET /api/v1/feature/17
    api.get("search", {"q": "Monday"})

The server, the static export and scripts use it alike. docs/explorer-api.md describes the paths, `answers` the
answers. Raises NotFound for what does not exist, Unavailable for what the run lacks, and InputError for bad questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from ...activations.data import GivenData, data_of
from ...errors import InputError
from ...output import printable
from ...run_folder import RunFolder
from ...saes import SAE
from ...schema import checked, shown
from ..answers.features import FamilyAnswer
from ..answers.parts import API_VERSION, plain
from ..answers.requests import AnnotationsAnswer, Found, NoteAnswer, RatingAnswer, SearchAnswer
from ..answers.whole import Has, LabelsAnswer, OverviewAnswer
from ..errors import NotFound, Unavailable, Unsupported
from ..index.index import index_command
from ..labels.annotations import Annotations, Rated
from ..labels.labels import Labels
from ..opening import explorer_of
from ..queries.cards import Matched
from ..queries.contexts import TokenTexts
from ..queries.explorer import Explorer
from ..queries.search import PLACES, TimeIsUp, expression, words
from ..subject import Subject
from .blind import Blind
from .bodies import BlindBody, EmptyBody, NoteBody, PromptBody, RatingBody
from .compare import Comparing, Other
from .features import FeatureAnswers
from .measured import measured_values
from .overview import beats, families, forest_answer, nulls_answer
from .prompting import Prompting
from .training import training_answer
from .ungated import DetectorContexts

Query = Mapping[str, str]
_MOST_RESULTS, _MOST_QUERY, _MOST_DIGITS = 1000, 1000, 12


class Api:
    """Answers questions about an SAE and its forest; may be used from several threads.

    annotations: what a person noted; None to keep it in memory.
    subject: the SAE with its run and its language model, for what needs these; None without.
    sae:     the SAE alone, in place of the subject's.
    name:    what the SAE is called; None for its name in the subject.
    others:  SAEs to compare with, by name.
    static:  whether the answers are for an export, which cannot be written to.
    """

    def __init__(
        self,
        explorer: Explorer,
        annotations: Annotations | None = None,
        *,
        subject: Subject | None = None,
        sae: SAE | None = None,
        name: str | None = None,
        others: Mapping[str, Other] | None = None,
        static: bool = False,
    ) -> None:
        self.explorer, self.annotations = explorer, annotations or Annotations(None)
        self.static, self._subject, self._others = static, subject, dict(others or {})
        self.run = None if subject is None else subject.run
        self.name = name or ("" if subject is None else subject.name)
        self._sae = sae if sae is not None or subject is None else subject.sae
        self._lock = Lock()
        self.texts = TokenTexts(explorer.tokenizer)
        self.labels = Labels(explorer.index, self.texts, self.annotations)
        self.features = FeatureAnswers(explorer, self.texts, self.labels, self.annotations)
        self._blind = Blind(explorer.index, explorer.forest, self.features.contexts, self.annotations)

    @classmethod
    def of_run(
        cls, run: RunFolder | Path | str, sae: str | None = None, device: str | None = None, **options: Any
    ) -> Api:
        """The API of an SAE of a run, which must have an index unless `make_index`.

        sae: its name; None for the only one. device: of SAE and language model; None for that of the training.
        options: see `of_subject`.

        Raises InputError if the folder is not a run with a trained SAE, the index is missing, damaged or of another
        SAE, the annotations are, or there is no such feature.
        """
        return cls.of_subject(Subject.of_run(run, sae, device), **options)

    @classmethod
    def of_subject(
        cls,
        subject: Subject,
        *,
        static: bool = False,
        others: Mapping[str, Other] | None = None,
        make_index: bool = False,
        feature: str | None = None,
    ) -> Api:
        """The API of an SAE, of a run or alone.

        make_index: whether to make the index first if there is none.
        feature: number of a feature that is going to be asked for, so that an unknown one is found out at once.

        Raises InputError as `of_run` does.
        """
        if not subject.place.index.exists() and not make_index:
            raise InputError(
                f"{subject.place.folder}: no index yet; make it with `{index_command(subject.place.index)}`"
            )
        return cls(
            explorer_of(subject, feature=feature),
            Annotations(subject.place.annotations),
            subject=subject,
            others=others,
            static=static,
        )

    # -- questions

    def get(self, path: str, query: Query | None = None) -> Any:
        """The answer to a path, such as "overview" or "feature/17". query: what follows the question mark."""
        return plain(self.ask("GET", path, query or {}, None))

    def put(self, path: str, body: Any) -> Any:
        """Change annotations: "annotations/17" or "rating/17"."""
        return plain(self.ask("PUT", path, {}, body))

    def post(self, path: str, body: Any) -> Any:
        """Ask for something that is not kept: "prompt", "blind/next", "blind/rate"."""
        return plain(self.ask("POST", path, {}, body))

    def ask(self, method: str, path: str, query: Query, body: Any) -> Any:
        """The answer to a request, as an instance of its class in `answers`."""
        name, _, rest = path.partition("/")
        methods = self._routes.get(path) or (self._routes.get(f"{name}/ID") if rest else None)
        if methods is None:
            raise NotFound(
                f"{shown(printable(path))}: no such path; expected one of {', '.join(self._routes)}"
            )
        if method not in methods:
            raise Unsupported(f"{path}: expected {' or '.join(methods)}")
        if path in self._routes:
            return methods[method](query, body)
        return methods[method](feature_of(rest), body)

    @cached_property
    def _routes(self) -> dict[str, dict[str, Callable[[Any, Any], Any]]]:
        """By path and method, what answers: a function of the query, or of the feature in the path, and of the body."""
        features = self.features
        return {
            "overview": {"GET": lambda query, body: self._overview()},
            "forest": {"GET": lambda query, body: self._forest},
            "labels": {"GET": lambda query, body: self._labels()},
            "nulls": {"GET": lambda query, body: self._nulls},
            "feature/ID": {"GET": lambda feature, body: features.feature(feature)},
            "edge/ID": {"GET": lambda feature, body: features.edge(feature)},
            "family/ID": {"GET": lambda feature, body: self._family(feature)},
            "ungated/ID": {"GET": lambda feature, body: self._ungated(feature)},
            "tree-data/ID": {"GET": lambda feature, body: features.tree_data(feature)},
            "geometry/ID": {"GET": lambda feature, body: features.geometry(feature)},
            "search": {"GET": lambda query, body: self._search(query)},
            "training": {"GET": lambda query, body: self._training},
            "compare": {"GET": lambda query, body: self._compare(query)},
            "compare/feature": {"GET": lambda query, body: self._compare_feature(query)},
            "prompt": {"POST": lambda query, body: self._prompt(body)},
            "annotations": {"GET": lambda query, body: self._annotations()},
            "annotations/ID": {"PUT": self._annotate},
            "rating/ID": {"PUT": self._rate},
            "blind/next": {"POST": lambda query, body: self._next(body)},
            "blind/rate": {"POST": lambda query, body: self._rate_blindly(body)},
            "blind/tally": {"GET": lambda query, body: self._blind.tally()},
        }

    def prepare(self) -> None:
        """Do what makes the first questions slow: decode text and labels, count families."""
        self.ask("GET", "overview", {}, None)
        self.labels.all()
        self.explorer.searching.prepare()

    # -- answers

    def _overview(self) -> OverviewAnswer:
        card = self.explorer.overview()
        return OverviewAnswer(
            api=API_VERSION,
            title=printable(self.title),
            model=printable(card.model),
            site=printable(card.site),
            forest=card.forest,
            system="SAE" if self._sae is None else self._sae.title,
            n_features=card.n_features,
            n_alive=card.n_alive,
            n_tokens=card.n_tokens,
            layer_sizes=card.layer_sizes,
            n_edges=card.n_edges,
            n_judged=card.n_judged,
            min_count=card.min_count,
            n_roots=len(self.explorer.forest.roots),
            values=() if self.run is None else measured_values(self.run, self.name),
            beats=self._beats,
            families=families(self.explorer, self.labels),
            has=self._has(),
            writes=not self.static,
            static=self.static,
        )

    @property
    def title(self) -> str:
        """The name of the SAE, as the overview shows it."""
        if self.run is None:
            return self.name or "SAE"
        name = self.run.path.resolve().name
        return f"{name}, {self.name}" if self.run.several else name

    def _has(self) -> Has:
        missing = {}
        index = self.explorer.index
        if index.logits is None:
            missing["logits"] = (
                "the index was made without the language model: run `saeforest index RUN` with it"
            )
        if (why := self._no_prompt()) is not None:
            missing["prompt"] = why
        if not len(index.geometry.parent):
            missing["geometry"] = "no family has two children that fired: index more text"
        if not len(index.null_parent):
            missing["nulls"] = "no null pairs in the index: no two features of a layer fire about as often"
        try:
            _ = self._training
        except InputError as error:
            missing["training"] = str(error)
        if self.run is None:
            missing["measures"] = "this SAE belongs to no run, so there are no measures of it"
        if not self.annotations.judged():
            missing["judge"] = "no labels by a judge yet"
        names = ("logits", "prompt", "training", "geometry", "nulls", "judge")
        return Has(**{name: name not in missing for name in names}, missing=missing)

    def _labels(self) -> LabelsAnswer:
        found = self.labels.all()
        return LabelsAnswer(
            {str(feature): label for feature, (label, _) in found.items()},
            {str(feature): source for feature, (_, source) in found.items()},
        )

    @cached_property
    def _forest(self) -> Any:
        return forest_answer(self.explorer)

    @cached_property
    def _nulls(self) -> Any:
        return nulls_answer(self.explorer)

    @cached_property
    def _beats(self) -> Any:
        return beats(self.explorer)

    @cached_property
    def _training(self) -> Any:
        if self.run is None:
            raise Unavailable("this SAE belongs to no run, so there is no training log")
        return training_answer(self.run, self.name, self.explorer.forest, self.labels)

    def _search(self, query: Query) -> SearchAnswer:
        text = query.get("q", "")
        if len(text) > _MOST_QUERY:
            raise InputError(f"q of {len(text):,} characters: expected at most {_MOST_QUERY:,}")
        n = _number("n", query.get("n", "50"), 1, _MOST_RESULTS)
        regex = query.get("regex", "0")
        if regex not in ("0", "1"):
            raise InputError(f"regex = {shown(regex)}: expected 0 or 1")
        places: list[Matched] = []
        for word in query.get("in", ",".join(PLACES)).split(","):
            if word not in PLACES:
                raise InputError(f"in = {shown(word)}: expected some of {','.join(PLACES)}")
            places.append(word)
        if not text.strip():
            raise InputError("q: expected some text to look for")
        labels = {feature: label for feature, (label, _) in self.labels.all().items()}
        given = {feature for feature, (_, source) in self.labels.all().items() if source != "auto"}
        matches, whole = (expression(text), None) if regex == "1" else words(text)
        found: dict[int, Found] = {}
        note = ""
        try:
            for matched, feature, place in self.explorer.searching.hits(
                matches, labels, whole=whole, places=places, given=given
            ):
                if len(found) > n:
                    break
                if feature in found:
                    continue
                context = None if place is None else self.features.contexts.one(feature, place)
                # The window extends beyond the context, possibly into another document.
                if matched == "text" and context and not matches("".join(context.tokens).casefold()):
                    continue
                found[feature] = Found(feature, labels.get(feature), matched, context)
        except TimeIsUp:
            note = "The regular expression takes too long; these were found before it was stopped."
        results = tuple(found.values())
        return SearchAnswer(text, results[:n], len(results) > n or bool(note), note)

    def _compare(self, query: Query) -> Any:
        return self._comparing.answer(query["other"]) if query.get("other") else self._comparing.runs()

    def _compare_feature(self, query: Query) -> Any:
        return self._comparing.api(query.get("other", "")).features.feature(feature_of(query.get("id", "")))

    @cached_property
    def _comparing(self) -> Comparing:
        if self._sae is None:
            raise Unavailable("compare: the SAE's weights are not loaded")
        return Comparing(self._sae, self.explorer.forest, self.explorer.index, self._others)

    def _family(self, feature: int) -> FamilyAnswer:
        answer = self.features.family(feature)
        known = self._detectors.known(feature) if self._no_prompt() is None else None
        if known is None:
            return answer
        return replace(answer, ungated=known.ungated, overlap=known.overlap, n_tokens=known.n_tokens)

    def _ungated(self, feature: int) -> Any:
        self.features.check(feature)
        if (why := self._no_prompt()) is not None:
            raise Unavailable(f"ungated: {why}")
        return self._detectors.answer(feature, self.features.live_children(feature)[0])

    @cached_property
    def _detectors(self) -> DetectorContexts:
        assert self._sae is not None
        return DetectorContexts(
            self._sae, self.explorer.index, self.features.contexts, lambda: self._prompting.reader
        )

    def _no_prompt(self) -> str | None:
        """Why no prompt can be run; None if one can."""
        if self.static:
            return "an export runs no model: `saeforest explore RUN` does"
        if self._subject is None or not self._subject.config.model:
            return "the SAE's language model is not known"
        if isinstance(data_of(self._subject.config.data), GivenData):
            return "this run was trained on a tensor in Python, so its language model is unknown"
        return None

    def _prompt(self, body: Any) -> Any:
        if (why := self._no_prompt()) is not None:
            raise Unavailable(f"prompt: {why}")
        return self._prompting.answer(checked(PromptBody, body, "prompt").text)

    @cached_property
    def _prompting(self) -> Prompting:
        subject = self._subject
        assert subject is not None
        return Prompting(subject.sae, self.explorer.forest, self.texts, self.labels, lambda: subject.reader)

    # -- annotations

    def _annotations(self) -> AnnotationsAnswer:
        parent, d_sae = self.explorer.forest.parent.tolist(), self.explorer.forest.d_sae
        return AnnotationsAnswer(
            {
                str(feature): NoteAnswer(note.label, note.note, note.bookmark)
                for feature, note in self.annotations.notes().items()
                if feature < d_sae
            },
            {
                str(r.child): RatingAnswer(r.rating, r.blind)
                for r in self.annotations.ratings(blind=False)
                if r.child < d_sae and parent[r.child] == r.parent
            },
        )

    def _annotate(self, feature: int, body: Any) -> NoteAnswer:
        self._writable()
        self.features.check(feature)
        new = checked(NoteBody, body, "annotations")
        given = new.model_fields_set
        note = self.annotations.set_note(
            feature,
            label=(new.label or "") if "label" in given else None,
            note=(new.note or "") if "note" in given else None,
            bookmark=new.bookmark,
        )
        return NoteAnswer(note.label, note.note, note.bookmark)

    def _rate(self, child: int, body: Any) -> RatingAnswer:
        self._writable()
        new = checked(RatingBody, body, "rating")
        if new.blind:
            raise InputError(
                "rating: one that is given blindly goes to blind/rate, with the id that blind/next gave"
            )
        edge = self.features.edge(child)
        self.annotations.rate(Rated(edge.parent, child, new.rating))
        return RatingAnswer(new.rating, False)

    def _next(self, body: Any) -> Any:
        self._writable()
        checked(EmptyBody, {} if body is None else body, "blind/next")
        return self._blind.next()

    def _rate_blindly(self, body: Any) -> Any:
        self._writable()
        new = checked(BlindBody, body, "blind/rate")
        return self._blind.rate(new.id, new.rating)

    def _writable(self) -> None:
        if self.static:
            raise Unavailable("an export cannot be changed: `saeforest explore RUN` can")


def feature_of(text: str) -> int:
    """The feature that a path names. Raises NotFound if it is no number."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise NotFound(f"feature {shown(printable(text))}: expected a number")
    return int(text)


def _number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS and least <= int(text) <= most):
        raise InputError(f"{name} = {shown(printable(text))}: expected {least} to {most:,}")
    return int(text)


def to_json(answer: Any) -> bytes:
    """An answer as JSON in ASCII that stays inert wherever it is put: `<`, `>` and `&` are escaped too."""
    text = json.dumps(answer, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode("ascii")

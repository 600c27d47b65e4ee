"""A measure is given what it declares that it needs, and nothing else; the key of its record follows from that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saeforest.activations import ActivationReader
from saeforest.evaluation import MeasureOptions, Source, evaluate, make_task
from saeforest.evaluation import registry as registry_module
from saeforest.evaluation.evaluate import evaluate_all
from saeforest.evaluation.key import record_key
from saeforest.evaluation.options import PositionOptions
from saeforest.evaluation.task import ReadText, Task
from saeforest.judges import CachedJudge, JudgeConfig
from saeforest.measures import EvalBatch, Measure, Record, Streaming, Study, Subject
from saeforest.measures.first_letters import FirstLetterConfig, FirstLetters
from saeforest.measures.needs import NEEDS, Need
from saeforest.measures.pooled import LabeledCodes, LabeledTextConfig
from saeforest.measures.probes import ProbeConfig, Probes
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE
from saeforest.session import open_reader, read_tokens
from saeforest.structure.forest import Forest, flat_forest
from saeforest.structure.pairs import PairStatistics
from saeforest.text import Tokens

#: What each need adds to a subject.
GIVES: dict[Need, dict[str, Any]] = {
    "text": {"tokens": Tokens, "tokenizer": object},
    "losses": {},
    "firings": {"rows": torch.Tensor, "pairs": PairStatistics},
    "activations": {"x": torch.Tensor},
    "probes": {"probes": Probes},
    "labeled_texts": {"labeled": LabeledCodes},
    "first_letters": {"first_letters": FirstLetters},
    "language_model": {"reader": ActivationReader},
    "embedding": {"embed": Callable},
    "judge": {"judge": type(None)},
    "training_log": {"log": Path},
    "forest": {"forest": Forest},
}


@dataclass(frozen=True)
class ToyConfig(FirstLetterConfig):
    texts: LabeledTextConfig = field(default_factory=LabeledTextConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def never(*_: object) -> Any:
    raise AssertionError("this measure is not to be taken")


def a_record(settings: Mapping[str, Any]) -> Record:
    return Record("toy", {}, {}, "none", 0, dict(settings))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Streaming | Study], None]:
    """Registers a measure for a test."""
    return lambda spec: monkeypatch.setitem(registry_module.MEASURES, spec.name, spec)


@pytest.fixture(scope="module")
def run(finished_run: Path) -> tuple[SAE, ActivationReader, Tokens]:
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    return sae, reader, read_tokens(config, reader, "held_out", 320)


@pytest.fixture
def labels(tmp_path: Path) -> LabeledTextConfig:
    path = tmp_path / "labels.csv"
    rows = [f"{letter * (3 + i % 7)}{i},{letter}" for i in range(30) for letter in "ab"]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return LabeledTextConfig(source=str(path), train=16, test=8, context=16)


def task_of(run: tuple[SAE, ActivationReader, Tokens], log: Path | None = None) -> Task:
    sae, reader, tokens = run
    return make_task(sae, ("toy",), reader, tokens, Source("text", "held_out", 0, "sae"), log=log)


@pytest.mark.parametrize("need", [need for need in NEEDS if need != "losses"])
def test_a_study_is_given_what_it_declares(
    need: Need,
    run: tuple[SAE, ActivationReader, Tokens],
    labels: LabeledTextConfig,
    tmp_path: Path,
    register: Callable[[Streaming | Study], None],
) -> None:
    seen: list[str] = []

    def look(subject: Subject, config: ToyConfig) -> Record:
        for other, values in GIVES.items():
            for name, kind in values.items():
                if other == need:
                    assert isinstance(getattr(subject, name), kind)
                    seen.append(name)
                else:
                    with pytest.raises(LookupError, match=f"asks for '{other}', but declares {need}"):
                        getattr(subject, name)
        return a_record(subject.settings)

    register(Study(name="toy", needs=frozenset({need}), config=ToyConfig, run=look))
    config = ToyConfig(words=30, icl=2, epochs=1, texts=labels)
    options = MeasureOptions(measures={"toy": config}, probes=ProbeConfig(epochs=1))
    if need == "first_letters":  # the tokenizer of bytes has 52 words
        assert replace(config, words=None).least_words <= 52
    ((_, record),) = evaluate_all([task_of(run, tmp_path)], options)
    assert seen == list(GIVES[need])
    assert record.settings["site"] == run[1].site.name


def test_an_sae_and_its_nulls_share_a_judge_who_is_asked_once(
    run: tuple[SAE, ActivationReader, Tokens],
    register: Callable[[Streaming | Study], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    events: list[str] = []

    class Says:
        name, workers = "says", 1

        def ask(self, system: str, user: str, *, max_tokens: int) -> str:
            asked.append(user)
            return "yes"

    @contextmanager
    def opened(*_: object) -> Iterator[CachedJudge]:
        events.append("open")
        yield CachedJudge(Says(), None)
        events.append("close")

    def study(subject: Subject, config: ToyConfig) -> Record:
        assert subject.judge is not None
        assert subject.judge.ask("", "Are dogs animals?", max_tokens=1) == "yes"
        events.append("measure")
        return Record("toy", {"x": 1.0}, {"x": None}, "none", 0, dict(subject.settings))

    monkeypatch.setattr("saeforest.evaluation.supplies.open_judge", opened)
    register(Study(name="toy", needs=frozenset({"judge"}), config=ToyConfig, run=study, nulls=("x",)))
    sae, reader, tokens = run
    source = Source("text", "held_out", 0, "sae")
    record = evaluate(sae, reader, tokens, ["toy"], source, MeasureOptions())["toy"]
    assert (record.value["x_shuffled"], record.value["x_untrained"]) == (1, 1)
    assert asked == ["Are dogs animals?"]
    assert events == ["open", *["measure"] * 3, "close"]


@pytest.mark.parametrize("losses", [False, True])
def test_a_measure_fed_by_batches_has_losses_if_it_declares_them(
    losses: bool,
    run: tuple[SAE, ActivationReader, Tokens],
    register: Callable[[Streaming | Study], None],
) -> None:
    batches: list[EvalBatch] = []

    class Toy(Measure):
        def update(self, batch: EvalBatch) -> None:
            assert not torch.is_grad_enabled()
            batches.append(batch)

        def record(self, settings: Mapping[str, Any]) -> Record:
            return a_record(settings)

    def make(subject: Subject, config: None) -> Toy:
        assert torch.equal(subject.forest.parent, other.parent)
        return Toy()

    sae, reader, tokens = run
    other = flat_forest(sae.config.layer_sizes)
    needs: frozenset[Need] = frozenset({"text", "forest", "losses"} if losses else {"text", "forest"})
    register(Streaming(name="toy", needs=needs, make=make))
    source = Source("text", "held_out", 0, "sae")
    evaluate(sae, reader, tokens, ["toy"], source, MeasureOptions(ce_tokens=10**6), forest=other)
    assert sum(len(batch.windows) for batch in batches) == len(tokens.ids)
    assert all((batch.losses is not None) is losses for batch in batches)


def test_the_language_model_reads_only_for_who_needs_it(
    run: tuple[SAE, ActivationReader, Tokens],
    register: Callable[[Streaming | Study], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(run[1].lm), "activations", None)
    for need in ("text", "forest", "training_log"):
        spec = Study(name="toy", needs=frozenset({need}), run=lambda subject, _: a_record(subject.settings))
        register(spec)
        assert len(list(evaluate_all([task_of(run)], MeasureOptions()))) == 1


def test_what_measures_share_is_made_once(
    run: tuple[SAE, ActivationReader, Tokens], register: Callable[[Streaming | Study], None]
) -> None:
    """And probes that depend on their company are each measure's own."""
    found: list[Probes] = []

    def look(subject: Subject, config: None) -> Record:
        assert subject.probes is subject.probes
        found.append(subject.probes)
        return replace(a_record(subject.settings), measure=f"toy{len(found)}")

    for name in ("toy", "other"):
        register(Study(name=name, needs=frozenset({"probes"}), run=look))
    task = replace(task_of(run), names=("toy", "other"))
    list(evaluate_all([task], MeasureOptions()))
    assert found[0] is found[1]
    list(evaluate_all([task], MeasureOptions(probes=ProbeConfig(reduction="mean_all"))))
    assert found[2] is not found[3]
    assert found[2] is not found[0]  # nothing outlives an evaluation


def test_a_key_follows_from_the_needs(run: tuple[SAE, ActivationReader, Tokens], tmp_path: Path) -> None:
    """Each change changes the keys of those measures that read what was changed, and of no other."""
    sae, reader, tokens = run
    (tmp_path / "log.jsonl").write_text("{}\n")
    task, options = task_of(run, tmp_path), MeasureOptions()
    other_tokens = Tokens(tokens.ids[1:], tokens.document_starts, tokens.names)
    read = {"text", "losses", "firings", "activations", "probes"}
    changes: list[tuple[set[str], Task, MeasureOptions]] = [
        (set(), task, replace(options, tokens=5, infer_tokens=7)),
        (read, replace(task, text=ReadText(task.reader, other_tokens)), options),
        (
            read | {"labeled_texts", "language_model"},
            replace(task, text=ReadText(PositionOptions(exclude_first=False).applied(reader), task.tokens)),
            options,
        ),
        ({"losses"}, task, replace(options, ce_tokens=5)),
        ({"probes"}, task, replace(options, probes=ProbeConfig(epochs=3))),
        ({"judge"}, task, replace(options, judge=JudgeConfig(model="another"))),
        ({"training_log"}, replace(task, log=None), options),
        ({"forest"}, replace(task, forest=flat_forest(sae.config.layer_sizes)), options),
    ]
    for need in NEEDS:
        spec: Streaming | Study
        if need == "losses":
            spec = Streaming(name="toy", needs=frozenset({"text", "losses"}), config=ToyConfig, make=never)
        else:
            spec = Study(name="toy", needs=frozenset({need}), config=ToyConfig, run=never)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(registry_module.MEASURES, "toy", spec)
            key = record_key(spec, task, options)
            assert record_key(spec, task, options) == key
            for those, changed_task, changed in changes:
                differs = record_key(spec, changed_task, changed) != key
                assert differs is bool(spec.needs & those), (need, those)
            own = replace(options, measures={"toy": ToyConfig(seed=9)})
            assert record_key(spec, task, own) != key


def test_declarations_that_contradict_themselves() -> None:
    def run(subject: Subject, config: Any) -> Record:
        return a_record({})

    with pytest.raises(TypeError, match="needs 'judge', so its settings must have 'judge'"):
        Study(name="toy", needs=frozenset({"judge"}), config=LabeledTextConfig, run=run)
    with pytest.raises(TypeError, match="needs 'labeled_texts', so its settings must have 'texts'"):
        Study(name="toy", needs=frozenset({"labeled_texts"}), run=run)
    with pytest.raises(TypeError, match="only a Streaming measure can need 'losses'"):
        Study(name="toy", needs=frozenset({"losses"}), run=run)
    with pytest.raises(TypeError, match="a Streaming measure must need 'text'"):
        Streaming(name="toy", needs=frozenset({"forest"}), make=lambda *_: None)  # pyright: ignore


def test_the_registry_brings_no_package_that_only_one_measure_uses() -> None:
    """`saeforest eval --help` reads the settings of all measures."""
    asked = "import sys, saeforest.evaluation.registry; print({'sklearn', 'scipy.stats', 'umap'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

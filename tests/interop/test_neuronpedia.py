"""Neuronpedia's bulk files, against the index and the codes that they come from; and their upload, against a site on
loopback with the limits of the real one."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explore_cases import World, byte_tokenizer
from neuronpedia_cases import KEY, Site
from saeforest.errors import InputError
from saeforest.explore import Explorer
from saeforest.explore.labels.annotations import Annotations, Judged
from saeforest.interop.neuronpedia import batches, files
from saeforest.interop.neuronpedia.config import NeuronpediaConfig, UploadConfig
from saeforest.interop.neuronpedia.files import write_neuronpedia
from saeforest.interop.neuronpedia.names import Names, names_of
from saeforest.interop.neuronpedia.upload import check_upload, upload
from saeforest.saes import TreeSAE

NAMES = Names("tiny-model", "tree-res-30", 1, "trees", "Trees", "me", "https://example.org")
#: The columns of Neuronpedia's tables, from its db_models; those without a default in them are needed.
COLUMNS = {
    "features": (
        {"modelId", "layer", "index"},
        {
            "creatorId",
            "createdAt",
            "maxActApprox",
            "hasVector",
            "vector",
            "vectorLabel",
            "vectorDefaultSteerStrength",
            "hookName",
            "topkCosSimIndices",
            "topkCosSimValues",
            "neg_str",
            "neg_values",
            "pos_str",
            "pos_values",
            "frac_nonzero",
            "sourceSetName",
            "freq_hist_data_bar_heights",
            "freq_hist_data_bar_values",
        },
    ),
    "activations": (
        {
            "id",
            "tokens",
            "index",
            "layer",
            "modelId",
            "maxValue",
            "maxValueTokenIndex",
            "minValue",
            "values",
            "creatorId",
        },
        {"dataSource", "dataIndex", "createdAt", "binMin", "binMax", "binContains", "qualifyingTokenIndex"},
    ),
    "explanations": (
        {"id", "modelId", "layer", "index", "description", "authorId"},
        {"typeName", "explanationModelName", "notes", "createdAt"},
    ),
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(TreeSAE, documents=150)


Export = Callable[..., Path]


@pytest.fixture(scope="module")
def write(world: World) -> Callable[..., object]:
    """Writes an export, in files of 8 features."""
    annotations = Annotations(None)
    annotations.set_note(3, label="the third")
    annotations.set_judged(Judged(4, "the fourth", "a judge"))
    explorer = Explorer(world.index, world.sae.forest, byte_tokenizer())

    def write(folder: Path, features: tuple[int, ...] = ()) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "BATCH", 8)
            write_neuronpedia(explorer, annotations, world.sae, NAMES, folder, features)

    return write


@pytest.fixture(scope="module")
def whole(write: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of all features that fire. Shared: nothing in it may be changed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    write(folder)
    return folder


@pytest.fixture
def export(write: Callable[..., object], whole: Path, tmp_path: Path) -> Export:
    """An export of all features that fire, or of some, that may be changed."""

    def make(features: tuple[int, ...] = ()) -> Path:
        if features:
            write(tmp_path / "out", features)
            return tmp_path / "out"
        return Path(shutil.copytree(whole, tmp_path / "out"))

    return make


def lines(folder: Path, part: str) -> list[dict[str, Any]]:
    """The lines of all files of a part, each of which has the same keys in all of its lines."""
    found = []
    for path in sorted((folder / NAMES.model / NAMES.source / part).iterdir()):
        some = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        needed, more = COLUMNS[part]
        assert {frozenset(line) for line in some} == {frozenset(needed | more)}
        assert {(line["modelId"], line["layer"]) for line in some} == {("tiny-model", "1-tree-res-30")}
        found += some
    return found


def test_features_are_those_of_the_index(world: World, whole: Path) -> None:
    out = whole
    found = {int(line["index"]): line for line in lines(out, "features")}
    alive = world.fires.any(0).nonzero().flatten().tolist()
    assert sorted(found) == alive
    assert len(alive) > 20
    assert 1 not in found
    place = out / "tiny-model" / "1-tree-res-30"
    names = sorted(path.name for path in (place / "features").iterdir())
    assert names == [f"batch-{i}.jsonl.gz" for i in range(-(-len(alive) // 8))]
    for feature, line in found.items():
        assert line["frac_nonzero"] == pytest.approx(float(world.fires[:, feature].double().mean()))
        assert line["maxActApprox"] == pytest.approx(float(world.f[:, feature].max()))
        assert np.array_equal(np.float32(line["vector"]), world.sae.W_dec[feature].detach().numpy())
        assert sum(line["freq_hist_data_bar_heights"]) == int(world.fires[:, feature].sum())
        parent = int(world.sae.parent[feature])
        assert (f"child of #{parent}" in (line["vectorLabel"] or "")) == (parent >= 0)
    assert found[3]["vectorLabel"] is not None
    assert found[3]["vectorLabel"].startswith("the third")


def test_contexts_have_the_codes_at_their_tokens(world: World, whole: Path) -> None:
    at = {int(row): i for i, row in enumerate(world.rows)}
    seen: dict[int, list[dict[str, Any]]] = {}
    found = lines(whole, "activations")
    assert len({line["id"] for line in found}) == len(found)
    for line in found:
        feature = int(line["index"])
        seen.setdefault(feature, []).append(line)
        value = float(world.f[at[int(line["dataIndex"])], feature])
        assert line["values"][line["qualifyingTokenIndex"]] == pytest.approx(value, abs=1e-4)
        assert line["maxValue"] == max(line["values"]) == line["values"][line["maxValueTokenIndex"]]
        assert line["minValue"] == min(line["values"]) >= 0
        assert len(line["tokens"]) == len(line["values"]) <= 64
        assert all(line["tokens"])
        if line["binMin"] is None:
            assert line["binMax"] is line["binContains"] is None
            continue
        assert line["binMin"] - 1e-4 <= value <= line["binMax"] + 1e-4
        values = world.f[:, feature][world.fires[:, feature]]
        share = float(((values >= line["binMin"]) & (values <= line["binMax"])).double().mean())
        bar = float(values.max()) / 32
        near = (values - line["binMin"]).abs().minimum((values - line["binMax"]).abs()) < bar
        assert abs(line["binContains"] - share) <= float(near.double().mean()) + 1e-3
    for feature, some in seen.items():
        assert some[0]["maxValue"] == pytest.approx(float(world.f[:, feature].max()), abs=1e-4)
        assert len({line["dataIndex"] for line in some}) == len(some)


def test_explanations_say_the_label_and_the_parent_with_its_null(world: World, whole: Path) -> None:
    said: dict[int, list[dict[str, Any]]] = {}
    out = whole
    for line in lines(out, "explanations"):
        said.setdefault(int(line["index"]), []).append(line)
        assert 1 <= len(line["description"]) <= 512
    assert (said[3][0]["description"], said[3][0]["notes"]) == ("the third", "by a person")
    assert (said[4][0]["description"], said[4][0]["notes"]) == ("the fourth", "by a judge: a judge")
    assert said[5][0]["description"].startswith("tokens: ")
    forest, numbers = world.sae.forest, 0
    for feature in world.fires.any(0).nonzero().flatten().tolist():
        text = " ".join(line["description"] for line in said[feature])
        parent = int(forest.parent[feature])
        assert (f"child of #{parent} " in f"{text} ") == (parent >= 0)
        assert ("parent of #" in text) == bool(forest.children(feature))
        if "S_res" in text:
            numbers += 1
            assert f"S_res {float(world.index.columns['s_res'][feature]):.2f}, above that of" in text
    assert numbers > 3
    kept = json.loads((out / "tiny-model" / "1-tree-res-30" / "hierarchy.json").read_text())
    assert kept["parent"] == world.sae.parent.tolist()
    assert kept["columns"].keys() == world.index.columns.keys()
    for name, column in kept["columns"].items():
        values = np.array(column["values"], dtype=float)
        assert np.allclose(values, world.index.columns[name].double(), atol=1e-5, equal_nan=True)
        assert len(column["places"]) == len(values)


def test_ids_are_the_same_in_every_export(whole: Path, export: Export) -> None:
    first, second = whole, export(features=(3, 4, 5))
    for part in ("activations", "explanations"):
        ids = {line["id"]: line["index"] for line in lines(first, part)}
        again = {line["id"]: line["index"] for line in lines(second, part)}
        assert again == {key: index for key, index in ids.items() if index in ("3", "4", "5")}
        assert all(len(key) == 25 and key[0] == "c" and key.isalnum() for key in ids)


def test_names(world: World) -> None:
    sae = world.sae
    found = names_of(sae, NeuronpediaConfig())
    assert (found.model, found.source) == ("tiny", "0-saeforest-tree-res-30")
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "Tiny"}, "neuronpedia.model = 'Tiny'"),
        ({"model": "a" * 33}, "at most 32"),
        ({"model": "a--b"}, "neuronpedia.model"),
        ({"set": "my_set"}, "neuronpedia.set = 'my_set'"),
        ({"set": "neurons"}, "neuronpedia.set"),
        ({"layer": -1}, "neuronpedia.layer = -1"),
        ({"url": "example.org"}, "neuronpedia.url"),
    )
    for given, words in wrong:
        with pytest.raises(InputError, match=words):
            names_of(sae, NeuronpediaConfig(**given))


# The upload


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        site.models["tiny-model"] = 3
        yield site


def send(folder: Path, site: Site, key: str = KEY, **config: Any) -> Any:
    return upload(folder, key, UploadConfig(site.url, **config), wait=lambda seconds: None)


def uploaded(site: Site) -> dict[int, Any]:
    return site.features["tiny-model", "1-tree-res-30"]


def test_an_upload_is_what_was_exported(site: Site, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_FEATURES", 10)
    out = export()
    plan = check_upload(out, UploadConfig(site.url))
    assert site.requests == []
    done = send(out, site)
    features = {int(line["index"]): line for line in lines(out, "features")}
    assert (done.sent, done.before, plan.features) == (len(features), 0, len(features))
    assert len(site.uploads) == plan.batches == -(-len(features) // 10)
    assert site.sets["tiny-model", "tree-res-30"] == ["0-tree-res-30", "1-tree-res-30", "2-tree-res-30"]
    activations, explanations = lines(out, "activations"), lines(out, "explanations")
    for index, sent in uploaded(site).items():
        mine = [line for line in activations if line["index"] == str(index)]
        assert sent["density"] == features[index]["frac_nonzero"]
        assert [a["tokens"] for a in sent["activations"]] == [line["tokens"] for line in mine]
        assert [a["values"] for a in sent["activations"]] == [line["values"] for line in mine]
        assert [a["quantileMin"] for a in sent["activations"]] == [line["binMin"] for line in mine]
        told = [line["description"] for line in explanations if line["index"] == str(index)]
        assert [e["text"] for e in sent["explanations"]] == told
    # Once more: there is nothing left to send.
    n = len(site.uploads)
    assert send(out, site)._replace(url="") == ("", 0, len(features))
    assert len(site.uploads) == n


@pytest.mark.parametrize("trouble", [["500", "lost", "500"], ["", "lost", "", "500"]])
def test_no_feature_is_stored_twice(
    trouble: list[str], site: Site, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site refuses what it has already, as the test would otherwise not notice."""
    monkeypatch.setattr(batches, "MOST_FEATURES", 10)
    out = export()
    site.trouble = list(trouble)
    done = send(out, site)
    assert done.sent == len(uploaded(site)) == len(lines(out, "features"))


@pytest.mark.parametrize("lost", [True, False])
def test_a_stopped_upload_goes_on(
    lost: bool, site: Site, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_FEATURES", 10)
    out = export()
    site.trouble = ["", "lost" if lost else "500"]

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(out, KEY, UploadConfig(site.url), wait=stop)
    assert len(uploaded(site)) == (20 if lost else 10)
    n = len(site.uploads)
    done = send(out, site)
    assert (done.before, done.sent) == (10, len(lines(out, "features")) - 10)
    assert len(uploaded(site)) == len(lines(out, "features"))
    assert len(site.uploads) - n == 2 - lost
    with pytest.raises(InputError, match="was uploaded to"):
        upload(out, KEY, UploadConfig("https://elsewhere.example/api"))


def test_a_model_is_created_only_when_told(site: Site, export: Export) -> None:
    out = export(features=(3,))
    site.models.clear()
    with pytest.raises(InputError, match=r"has no model 'tiny-model'.*new_model"):
        send(out, site)
    with pytest.raises(InputError, match="no source '1-tree-res-30'"):
        send(out, site, new_model=1)
    site.sets.clear()
    site.models.clear()
    assert send(out, site, new_model=2).sent == 1
    assert site.models == {"tiny-model": 2}


def test_what_the_site_refuses(site: Site, export: Export) -> None:
    out = export(features=(3,))
    with pytest.raises(InputError, match="not accepted") as info:
        send(out, site, key="wrong-key")
    assert "wrong-key" not in str(info.value)
    site.trouble = ["moved"]
    with pytest.raises(InputError, match=r"redirects to 'https://elsewhere\.example/api'"):
        send(out, site)
    with pytest.raises(InputError, match="no API key"):
        send(out, site, key="")
    for api, words in (
        ("neuronpedia.org", "expected an address"),
        ("http://neuronpedia.org/api", "expected https"),
    ):
        with pytest.raises(InputError, match=words):
            upload(out, KEY, UploadConfig(api))
    assert site.features == {}


def edited(folder: Path, part: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / NAMES.model / NAMES.source / part / "batch-0.jsonl.gz"
    some = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(some[0])
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, some)).encode()))


LIMITS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "tokens": ("activations", lambda a: a.update(tokens=["x"] * 1025, values=[0.0] * 1025), "1025 tokens"),
    "lengths": ("activations", lambda a: a["tokens"].append("x"), "not 1 to 1,024 of each"),
    "empty token": ("activations", lambda a: a["tokens"].__setitem__(0, ""), "an empty token"),
    "no number": ("activations", lambda a: a["values"].__setitem__(0, None), "a value that is no number"),
    "long text": ("explanations", lambda e: e.update(description="x" * 513), "1 to 512 characters"),
    "logits": ("features", lambda f: f.update(pos_str=["x"] * 21, pos_values=[0.0] * 21), "21 topLogits"),
    "density": ("features", lambda f: f.update(frac_nonzero=1.5), "density 1.5"),
    "index": ("features", lambda f: f.update(index="10000001"), "a number that is not within"),
    "no key": ("features", lambda f: f.pop("frac_nonzero"), "not the lines of an export"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_checked_before_anything_is_sent(name: str, site: Site, export: Export) -> None:
    part, change, words = LIMITS[name]
    out = export(features=(3, 4))
    edited(out, part, change)
    if name == "index":
        edited(out, "activations", lambda a: a.update(index="10000001"))
    with pytest.raises(InputError, match=words):
        send(out, site)
    assert site.requests == []


def test_features_without_a_context_are_left_out_and_counted(site: Site, export: Export) -> None:
    out = export(features=(1, 3))
    plan = check_upload(out, UploadConfig(site.url))
    assert (plan.features, plan.without) == (1, 1)
    assert send(out, site).sent == 1
    assert list(uploaded(site)) == [3]


def test_a_damaged_file(site: Site, export: Export) -> None:
    out = export(features=(3,))
    path = out / NAMES.model / NAMES.source / "activations" / "batch-0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged"):
        send(out, site)
    assert site.requests == []

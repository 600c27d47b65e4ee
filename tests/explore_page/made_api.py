"""A forest made up for the tests of the page: what the JSON API answers about it."""

from __future__ import annotations

import math
import random
import re
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from explore_page.made_compare import BARE, OTHER, MadeOther
from explore_page.made_forest import MadeArrays, number, packed


class MadeForest(MadeArrays):
    """Answers the paths of the API, version 1."""

    def overview(self) -> dict[str, Any]:
        beats = []
        for about in self.about:
            places = self.places[about["name"]]
            beats.append(
                {
                    "column": about["name"],
                    "title": about["title"],
                    "chance": 0.05,
                    "share": float(np.nanmean(places > 0.95)),
                    "auc": float(np.nanmean(places)),
                    "n": int(np.isfinite(places).sum()),
                    "forced_by": about["forced_by"],
                }
            )
        return {
            "api": 1,
            "title": "made forest",
            "model": "SmolLM2-135M",
            "site": "blocks.15.hook_resid_post",
            "forest": "learned",
            "system": "A Tree SAE",
            "n_features": self.n,
            "n_alive": int((self.dead == 0).sum()),
            "n_tokens": self.n_tokens,
            "layer_sizes": list(self.sizes),
            "n_edges": int((self.parent >= 0).sum()),
            "n_judged": int((self.fired[self.parent >= 0] >= 20).sum()),
            "min_count": 20,
            "n_roots": int((self.parent < 0).sum()),
            "values": [
                {
                    "name": "fve",
                    "title": "Variance explained (FVE)",
                    "value": 0.825,
                    "interval": [0.82, 0.83],
                    "unit": "share",
                    "null": None,
                },
                {
                    "name": "l0",
                    "title": "Active features (L0)",
                    "value": 31.7,
                    "interval": None,
                    "unit": "",
                    "null": None,
                },
                {
                    "name": "ce_loss_score",
                    "title": "Loss kept (CE)",
                    "value": 0.97,
                    "interval": [0.965, 0.974],
                    "unit": "share",
                    "null": None,
                },
                {
                    "name": "hierarchy",
                    "title": "Hierarchy metric (tree)",
                    "value": 0.96,
                    "interval": [0.91, 1.0],
                    "unit": "",
                    "null": {
                        "shuffled": {"value": 0.91, "interval": [0.79, 0.98]},
                        "untrained": {"value": 0.95, "interval": [0.88, 1.0]},
                    },
                },
                {
                    "name": "ungated",
                    "title": "Coverage without the gate",
                    "value": 0.35,
                    "interval": [0.33, 0.37],
                    "unit": "",
                    "null": {"shuffled": 0.05},
                },
            ],
            "beats": beats,
            "families": [
                {
                    "parent": f,
                    "label": self.labels[f],
                    "tokens": self.words[f],
                    "n_children": len(self.children.get(f, [])),
                    "why": "children fire on tokens of their own",
                }
                for f in range(5)
            ],
            "has": {"logits": True, "prompt": True, "training": True, "geometry": True, "judge": False},
            "static": False,
            "writes": True,
        }

    def forest(self) -> dict[str, Any]:
        return {
            "parent": packed(self.parent, "int32"),
            "layer": packed(self.layer, "int32"),
            "depth": len(self.sizes),
            "features": {
                "density": packed(self.density, "float32"),
                "n_fired": packed(self.fired, "int32"),
                "max": packed(self.max, "float32"),
                "dead": packed(self.dead, "uint8"),
            },
            "columns": {name: packed(values, "float32") for name, values in self.columns.items()},
            "places": {name: packed(values, "float32") for name, values in self.places.items()},
            "about": self.about,
        }

    def feature(self, f: int) -> dict[str, Any]:
        alive = not self.dead[f]
        path = [f]
        while self.parent[path[0]] >= 0:
            path.insert(0, int(self.parent[path[0]]))
        top = [self.context(f, place) for place in range(12)] if alive else []
        rng = random.Random(f)
        near = [{"id": rng.randrange(self.n), "cos": 0.7 - 0.06 * place} for place in range(8)]
        edges = [2 ** (i / 4 - 3) for i in range(33)]
        return {
            "id": f,
            "label": self.labels.get(f),
            "source": "auto",
            "layer": int(self.layer[f]),
            "depth": len(path) - 1,
            "path": [{"id": g, "label": self.labels.get(g)} for g in path],
            "parent": int(self.parent[f]),
            "siblings": [],
            "children": [{"id": c, "label": self.labels.get(c)} for c in self.children.get(f, [])],
            "n_silent": sum(int(self.dead[c]) for c in self.children.get(f, [])),
            "alive": alive,
            "n_fired": int(self.fired[f]),
            "density": float(self.density[f]),
            "max": number(self.max[f]),
            "mean": number(self.max[f] / 3),
            "histogram": {
                "edges": edges,
                "counts": [int(4000 * math.exp(-((i - 12) ** 2) / 30)) if alive else 0 for i in range(32)],
            },
            "top": top,
            "quantiles": [
                {
                    "bin": b,
                    "lo": b / 5 * (top[0]["value"] if top else 1),
                    "hi": (b + 1) / 5 * (top[0]["value"] if top else 1),
                    "contexts": [self.context(f, 20 + 4 * b + i) for i in range(4)],
                }
                for b in range(5 if alive else 0)
            ],
            "logits": {
                "up": [{"token": f" {w}", "value": 1.2 - 0.2 * i} for i, w in enumerate(self.words[f])],
                "down": [
                    {"token": w, "value": -0.9 + 0.1 * i}
                    for i, w in enumerate(("the", "\n", "\u202e", "</script>"))
                ],
            },
            "near": [{**n, "label": self.labels.get(n["id"])} for n in near],
            "over": [
                {
                    "id": n["id"],
                    "label": self.labels.get(n["id"]),
                    "p": 0.9 - 0.1 * i,
                    "base": 0.03,
                    "in_tree": i == 0,
                }
                for i, n in enumerate(near[:5])
            ],
            "under": [
                {
                    "id": n["id"],
                    "label": self.labels.get(n["id"]),
                    "p": 0.8 - 0.1 * i,
                    "base": 0.03,
                    "in_tree": False,
                }
                for i, n in enumerate(near[3:7])
            ],
            "edge": self.edge(f) if self.parent[f] >= 0 else None,
        }

    def family(self, f: int) -> dict[str, Any]:
        kids = [c for c in self.children.get(f, []) if not self.dead[c]]
        return {
            "parent": self.summary(f),
            "children": [
                {
                    **self.summary(c),
                    "p_child": float(self.density[c] / max(self.density[f], 1e-9)),
                    "distinguishes": [f" {w}" for w in self.words[c]],
                }
                for c in kids
            ],
            "contexts": [self.context(f, place, children=True) for place in range(14)],
            "residue": [self.context(f, 30 + place) for place in range(6)],
            **({"overlap": None, "ungated": []} if f in self.unread else self._read(f, kids)),
        }

    def _read(self, f: int, kids: list[int]) -> dict[str, Any]:
        rng = np.random.default_rng(f)
        matrix, null, place = (rng.beta(1, b, (len(kids), len(kids))) for b in (8, 14, 1))
        place[0] = 1.0  # more than by chance
        both = {"matrix": matrix, "expected": null, "place": place}
        return {
            "overlap": {"ids": kids} | {k: packed((v + v.T) / 2, "float32") for k, v in both.items()},
            "ungated": [
                {"child": c, "contexts": [self.context(c, 40 + place) for place in range(3)]}
                for c in kids[:6]
            ],
        }

    def ungated(self, f: int) -> dict[str, Any]:
        self.unread.discard(f)
        return {
            "n_tokens": 8192,
            **self._read(f, [c for c in self.children.get(f, []) if not self.dead[c]]),
        }

    def tree_data(self, f: int) -> dict[str, Any]:
        rng = random.Random(f)
        row = lambda g: {"id": g, "label": self.labels.get(g), "p": rng.random()}  # noqa: E731
        kids = self.children.get(f, [])
        others = [rng.randrange(self.n) for _ in range(6)]
        parents = [{**row(g), "base": float(self.density[g])} for g in others[3:]]
        half = len(kids) // 2
        return {
            "agreed": list(map(row, kids[:half])),
            "tree_only": list(map(row, kids[half:])),
            "data_only": list(map(row, others[:3])),
            "other_parents": parents,
        }

    def geometry(self, f: int) -> dict[str, Any]:
        rng = np.random.default_rng(f)
        kids = [c for c in self.children.get(f, []) if not self.dead[c]][:7]
        angles = np.linspace(0.4, 6.0, len(kids))
        points = []
        for place in range(64):
            at = place % (len(kids) + 1)
            mean = np.zeros(2) if at == len(kids) else 3 * np.array([np.cos(angles[at]), np.sin(angles[at])])
            x, y = mean + rng.normal(0, 0.8, 2)
            context = self.context(f, place)
            before, after = (
                "".join(context["tokens"][: context["at"]]),
                "".join(context["tokens"][context["at"] + 1 :]),
            )
            points.append(
                {
                    "x": x,
                    "y": y,
                    "child": kids[at] if at < len(kids) else -1,
                    "row": place,
                    "token": context["tokens"][context["at"]],
                    "before": before,
                    "after": after,
                }
            )
        directions = [
            {"child": c, "x": float(np.cos(a)), "y": float(np.sin(a))}
            for c, a in zip(kids, angles, strict=True)
        ]
        return {"points": points, "directions": directions, "explained": [0.31, 0.18], "null": None}

    def search(self, q: str, regex: bool, where: str) -> dict[str, Any]:
        try:
            test = re.compile(q if regex else re.escape(q), re.IGNORECASE).search
        except re.error as error:
            raise ValueError(f"search: {q!r} is not a regular expression ({error})") from error
        found = []
        for f in range(self.n):
            hit = "label" if "label" in where and test(self.labels.get(f, "")) else None
            if not hit and "token" in where and not self.dead[f] and any(map(test, self.words[f])):
                hit = "token"
            if hit:
                found.append(
                    {
                        "id": f,
                        "label": self.labels.get(f),
                        "matched": hit,
                        "context": self.context(f, 0) if hit != "label" else None,
                    }
                )
        return {"query": q, "results": found[:500], "truncated": len(found) > 500}

    def training(self) -> dict[str, Any]:
        steps = list(range(0, 4001, 100))
        curve = lambda a, b, k: [a + (b - a) * (1 - math.exp(-s / k)) for s in steps]  # noqa: E731
        dead = [[0.3 * math.exp(-s / (900 * (layer + 1))) for layer in range(len(self.sizes))] for s in steps]
        return {
            "steps": steps,
            "series": {
                "loss": curve(1.0, 0.2, 500),
                "fve": curve(0.1, 0.83, 600),
                "l0": curve(40, 31.7, 900),
            },
            "layers": {"dead_share": dead},
            "moves": [],
            "allocation": self._allocation(list(range(0, 4001, 500))),
        }

    def _allocation(self, steps: list[int]) -> dict[str, Any]:
        moved = [0, *(220 - s // 20 for s in steps[1:])]
        layers = [
            {
                "layer": layer,
                "moved": [n * layer for n in moved],
                "from_root": [n * layer // 3 for n in moved],
                "to_root": [n * layer // 6 for n in moved],
                "dead": [None, *moved[1:]],
                "with_parent": [0.5 + 0.2 * layer * (1 - math.exp(-s / 900)) for s in steps],
                "families": [30 * layer + s // 100 for s in steps],
                "largest": [8 + s // 300 for s in steps],
                "excess": [None, *(0.3 + 0.1 * layer for _ in steps[1:])],
                "excess_null": [None, *(0.01 * layer for _ in steps[1:])],
            }
            for layer in (1, 2)
        ]
        parents = [
            {
                "id": f,
                "label": self.labels.get(f),
                "children": [f + place * (5 - f) for place in range(len(steps))],
                "gained": 60 - f,
                "lost": 20,
            }
            for f in range(5)
        ]
        kinds = ["start", *("reallocation" for _ in steps[2:]), "reallocation + root_reset"]
        return {"steps": steps, "kinds": kinds, "layers": layers, "parents": parents}

    def prompt(self, text: str) -> dict[str, Any]:
        tokens = [t for t in re.split(r"(?=[ \n])", text) if t]
        entries = []
        for place, _ in enumerate(tokens):
            rng = random.Random(place)
            paths = []
            for root in range(place % 3 + 1):
                path = [root]
                while self.children.get(path[-1]):
                    path.append(rng.choice(self.children[path[-1]]))
                paths.append(
                    [
                        {"id": f, "label": self.labels.get(f), "value": 3.0 / (d + 1)}
                        for d, f in enumerate(path)
                    ]
                )
            clean = [
                {"token": f" {w}", "p": 0.4 / (i + 1)} for i, w in enumerate(("the", "Monday", "and", "it"))
            ]
            entries.append(
                {"paths": paths, "errors": [0.6, 0.35, 0.2], "clean": clean, "spliced": clean[::-1]}
            )
        return {"tokens": tokens, "per_token": entries}

    def compare(self, other: str) -> dict[str, Any]:
        if not other:
            return {"runs": [OTHER, BARE]}
        if other not in (OTHER, BARE):
            raise LookupError(f"{other}: no such run; give the folder of a run")
        return self.second.answer(other)

    @cached_property
    def second(self) -> MadeOther:
        return MadeOther(self)

    # -- the API

    def get(self, path: str) -> dict[str, Any]:
        """What GET answers. LookupError: 404; ValueError: 400."""
        parts = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        kind, _, rest = parts.path.partition("/")
        whole = {
            "overview": self.overview,
            "forest": self.forest,
            "training": self.training,
            "labels": lambda: {
                "labels": {str(f): text for f, text in self.labels.items()}
                | {str(f): a["label"] for f, a in self.written["annotations"].items() if a.get("label")},
                "sources": {},
            },
            "annotations": lambda: self.written,
            "nulls": lambda: {
                "columns": {name: packed(v, "float32") for name, v in self.null.items()},
                "n": 1500,
            },
            "compare": lambda: self.compare(query.get("other", "")),
            "compare/feature": lambda: self.second.feature(int(query["id"])),
            "search": lambda: self.search(
                query["q"], query.get("regex") == "1", query.get("in", "label,token,text")
            ),
            "blind/tally": lambda: self.tally,
        }
        if parts.path in whole:
            return whole[parts.path]()
        one = {
            "feature": self.feature,
            "family": self.family,
            "ungated": self.ungated,
            "edge": self.edge,
            "tree-data": self.tree_data,
            "geometry": self.geometry,
        }
        if kind not in one or not rest.isdigit() or int(rest) >= self.n:
            raise LookupError(f"no such path: {path}")
        return one[kind](int(rest))

    def change(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What POST and PUT answer."""
        kind, _, rest = path.partition("/")
        if kind == "annotations":
            return self.written["annotations"].setdefault(rest, {}) | self._note(rest, body)
        if kind == "rating":
            self.written["ratings"][rest] = body
            return body
        if path == "prompt":
            return self.prompt(body["text"])
        if path == "blind/next":
            number = len(self.pairs)
            kids = [f for f in range(self.n) if self.parent[f] >= 0 and not self.dead[f]]
            child = kids[number * 7 % len(kids)]
            was = "edge" if number % 2 == 0 else "null"
            parent = (
                int(self.parent[child])
                if was == "edge"
                else int(self.parent[kids[(number * 7 + 50) % len(kids)]])
            )
            self.pairs[str(number)] = (was, parent, child)

            def show(f):
                return {
                    "label": None,
                    "tokens": self.words[f],
                    "contexts": [self.context(f, i) for i in range(8)],
                }

            return {"id": str(number), "parent": show(parent), "child": show(child)}
        if path == "blind/rate":
            was, parent, child = self.pairs[body["id"]]
            self.tally[was][body["rating"]] += 1
            return {"was": was, "parent": parent, "child": child}
        raise LookupError(f"no such path: {path}")

    def _note(self, feature: str, body: dict[str, Any]) -> dict[str, Any]:
        self.written["annotations"][feature].update(body)
        return self.written["annotations"][feature]

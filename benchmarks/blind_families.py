"""Families of two SAEs, and null families, mixed for reading blind; and the tally of what a reader said.

    python -m benchmarks.blind_families OLD NEW --out FOLDER        OLD, NEW: RUN or RUN:SAE, with an index
    python -m benchmarks.blind_families --tally FOLDER ANSWERS.json ...

Writes FOLDER/families.md, numbered families without a word on where each is from, and FOLDER/key.json. Parents are
drawn at random from those with `--children` or more children that fired often enough, and so are the children that are
shown: nothing is chosen because it reads well. A third of the families are null: the parents of one of the two forests,
shuffled within layers among features of like density (docs/spec/records.md#nulls).

ANSWERS.json is {"1": {"children": ["yes", "no", "unsure"], "family": "yes"}, ...}: for each family, whether each child
is a special case of its parent, and whether the family as a whole makes sense.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saeforest.explore import Explorer, Index
from saeforest.explore.queries.cards import FeatureCard
from saeforest.kept_forest import forest_of
from saeforest.lm import load_tokenizer
from saeforest.run_folder import RunFolder
from saeforest.structure.forest import ROOT, Forest
from saeforest.structure.shuffled import shuffled_parents

_CONTEXTS, _WIDTH = 6, 70


class Family(NamedTuple):
    """A parent and some of its children, with the explorer that shows them."""

    source: str
    explorer: Explorer
    parent: int
    children: tuple[int, ...]


def explorer_of(address: str) -> Explorer:
    """The explorer of RUN or RUN:SAE. Raises InputError if there is no index."""
    path, _, name = address.partition(":")
    run = RunFolder(Path(path))
    config, sae = run.load(name or None, "cpu")
    name = name or run.names()[0]
    forest, origin = forest_of(sae, run.forest(name))
    index = Index.load(run.index(name), sae, forest)
    return Explorer(index, forest, load_tokenizer(config.model), origin=origin)


def draw(
    explorer: Explorer,
    forest: Forest,
    source: str,
    n: int,
    n_children: int,
    min_fired: int,
    rng: np.random.Generator,
) -> list[Family]:
    """`n` random families of a forest, each with `n_children` random children that fired `min_fired` times or more."""
    fired = explorer.index.n_fired
    families: dict[int, list[int]] = {}
    for child in torch.nonzero((forest.parent != ROOT) & (fired >= min_fired)).flatten().tolist():
        families.setdefault(int(forest.parent[child]), []).append(child)
    able = [parent for parent, children in families.items() if len(children) >= n_children]
    drawn = rng.choice(sorted(able), size=n, replace=False).tolist()
    return [
        Family(
            source, explorer, p, tuple(sorted(rng.choice(families[p], n_children, replace=False).tolist()))
        )
        for p in drawn
    ]


def text_of(card: FeatureCard) -> list[str]:
    """The strongest contexts of a feature, the token in brackets."""
    lines = []
    for context in card.contexts[:_CONTEXTS]:
        passage = context.passage
        lines.append(f"    …{passage.before[-_WIDTH:]}[[{passage.token}]]{passage.after[: _WIDTH // 2]}…")
    return [line.replace("\n", "⏎") for line in lines]


def page(families: list[Family]) -> str:
    """All families as text, numbered."""
    lines: list[str] = []
    for number, family in enumerate(families, 1):
        lines += [f"# Family {number}", "", "  Parent"]
        lines += text_of(family.explorer.feature(family.parent))
        for ordinal, child in enumerate(family.children, 1):
            lines += ["", f"  Child {ordinal}", *text_of(family.explorer.feature(child))]
        lines.append("")
    return "\n".join(lines)


def write(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(args.seed)
    kinds: list[Family] = []
    for source, address in (("old", args.old), ("new", args.new)):
        explorer = explorer_of(address)
        forest = explorer.forest
        parents = shuffled_parents(forest, explorer.index.n_fired, args.seed)
        shuffled = Forest(parents, forest.layer_sizes)
        draws = (args.children, args.min_fired, rng)
        kinds += draw(explorer, forest, source, args.each, *draws)
        kinds += draw(explorer, shuffled, f"null ({source})", args.each // 2, *draws)
    order = rng.permutation(len(kinds))
    mixed = [kinds[i] for i in order]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "families.md").write_text(page(mixed))
    key = {
        str(n): {"source": f.source, "parent": f.parent, "children": f.children}
        for n, f in enumerate(mixed, 1)
    }
    (args.out / "key.json").write_text(json.dumps(key, indent=1))


def tally(folder: Path, answers: list[Path]) -> str:
    """What readers said, by where a family is from: a table in Markdown."""
    key: dict[str, Any] = json.loads((folder / "key.json").read_text())
    children: dict[str, Counter[str]] = {}
    families: dict[str, Counter[str]] = {}
    for path in answers:
        for number, answer in json.loads(path.read_text()).items():
            source = key[number]["source"].split(" ")[0]
            children.setdefault(source, Counter()).update(answer["children"])
            families.setdefault(source, Counter()).update([answer["family"]])
    lines = ["| | children: yes | unsure | no | families: yes | unsure | no |", "|---|" + "---:|" * 6]
    for source in sorted(families):
        counts = [found[source][word] for found in (children, families) for word in ("yes", "unsure", "no")]
        lines.append(f"| {source} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Families for reading blind.")
    parser.add_argument("old", nargs="?")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--each", type=int, default=10, help="families of each SAE, and null families in all")
    parser.add_argument("--children", type=int, default=3)
    parser.add_argument("--min-fired", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tally", type=Path, nargs="+", metavar=("FOLDER", "ANSWERS"))
    args = parser.parse_args()
    if args.tally:
        print(tally(args.tally[0], args.tally[1:]))
    else:
        write(args)


if __name__ == "__main__":
    main()

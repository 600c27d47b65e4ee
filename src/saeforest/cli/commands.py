"""The commands in one table: what each is for, and which of its options `--help` shows.

Nothing heavy is imported here, so that `saeforest --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

ALL = "--help-all"
#: Words that ask for help in place of what a command does.
HELP = ("-h", "--help", ALL)


@dataclass(frozen=True)
class Command:
    """What `--help` says about a command."""

    function: str
    """MODULE:NAME of the function in this package that runs it."""
    arguments: str
    """What is given without the name of an option."""
    summary: str
    """One line for the list of commands."""
    details: str
    """What it reads and writes, in a sentence or two."""
    examples: tuple[str, ...]
    basic: frozenset[str]
    """Options that `--help` shows, named as in a configuration file; `--help-all` shows all of them."""

    def load(self) -> Callable[[Sequence[str]], int | None]:
        module, _, name = self.function.partition(":")
        function: Any = getattr(import_module(f".{module}", __package__), name)
        return function


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "demo:demo",
        "",
        "Train, measure and show a small Tree SAE on the embedded model",
        "Trains a 4-layer tree on SmolLM2-135M in some minutes on a CPU; an interrupted demo continues.",
        ("saeforest demo", "saeforest demo --out runs/short --tokens 50000"),
        _names("out tokens epochs eval_tokens json"),
    ),
    "train": Command(
        "train:train",
        "[PRESET ...]",
        "Train one SAE, or several on the same activations",
        "Starts from a preset or a file; options change its settings.",
        (
            "saeforest train demo-topk --out runs/topk",
            "saeforest train --model gpt2 --site blocks.5.hook_resid_pre --data text.txt",
        ),
        _names(
            "presets list_presets file architecture out resume log dry_run "
            "config config.model config.site config.data config.tokens "
            "config.sae config.sae.layer_sizes config.sae.k_per_layer "
            "config.optim config.optim.lr"
        ),
    ),
    "eval": Command(
        "eval:evaluate",
        "RUN",
        "Measure the trained SAEs of a run on held-out text",
        "Writes RUN/eval/MEASURE.json. Results that exist already are reused. "
        "docs/measures.md says what each measure is.",
        (
            "saeforest eval runs/demo",
            "saeforest eval runs/demo --measures paper --tokens 500000",
        ),
        _names("run measures sae device again json common common.preset common.tokens common.ce_tokens"),
    ),
    "compare": Command(
        "compare:compare",
        "RUN [RUN ...]",
        "Write a report that compares measured SAEs",
        "Writes report.html, report.md, report.json and figures/ into a new folder.",
        ("saeforest compare runs/tree runs/topk --out runs/report",),
        _names("runs out json"),
    ),
    "index": Command(
        "index:index",
        "RUN|SAE",
        "Measure each feature and edge once, for `show` and `explore`",
        "Writes RUN/index/; for an SAE without a run, writes --out. An interrupted index continues where it stopped.",
        (
            "saeforest index runs/demo --tokens 2000000",
            "saeforest index path/to/sae --out explored --model gpt2",
        ),
        _names("source tokens sae out reads reads.model reads.site reads.data device json"),
    ),
    "show": Command(
        "show:show",
        "RUN [FEATURE]",
        "Show families of features, or the tree around one feature",
        "Prints the text on which features fire. Makes the index first if there is none.",
        ("saeforest show runs/demo", "saeforest show runs/demo 384"),
        _names("run feature families sae device json"),
    ),
    "explore": Command(
        "explore:explore",
        "RUN|SAE",
        "Explore a forest in the browser",
        "Serves a page on this machine alone. Writes labels, notes and ratings to RUN/annotations.sqlite. For an SAE "
        "without a run, makes its index in --out first, and infers a forest if the SAE is flat.",
        (
            "saeforest explore runs/demo --port 9000 --no-browser",
            "saeforest explore path/to/sae --out explored --model gpt2 --data text.txt",
        ),
        _names("source sae port any_port no_browser index out reads reads.model reads.site reads.data json"),
    ),
    "mcp": Command(
        "mcp:mcp",
        "RUN",
        "Let a language model read a forest, by the Model Context Protocol",
        "Serves search, features, families, edges and prompts to an MCP client on the standard streams. The run needs "
        "an index.",
        ("saeforest mcp runs/demo --json", "saeforest mcp runs/demo"),
        _names("run sae device json"),
    ),
    "figure": Command(
        "figure:figure",
        "RUN FEATURE",
        "Draw a parent with its children, for a paper or a talk",
        "Writes an SVG, PNG or PDF: the tree of concepts under a feature, each edge beside what chance gives, or its "
        "activations in a plane, colored by child.",
        (
            "saeforest figure runs/demo 384 -o family.pdf",
            "saeforest figure runs/demo 384 --kind geometry -o geometry.png",
        ),
        _names("run feature kind out children depth force sae device json"),
    ),
    "steer": Command(
        "steer:steer",
        "RUN",
        "Continue a prompt with features changed, beside the unchanged text",
        "Prints both texts and how the probabilities of the next token change. Only --export writes a file.",
        (
            'saeforest steer runs/demo --feature 384 --subtree --scale 4 --prompt "The"',
            'saeforest steer runs/demo --feature 384 --set 8 --prompt "I think that"',
        ),
        _names(
            "run feature subtree siblings layer scale set add clamp ablate prompt tokens at no_error sae device json"
        ),
    ),
    "attribute": Command(
        "attribute:attribute",
        "RUN",
        "Find the features and edges that a prediction comes from",
        "Attributes the next token after a prompt, or the loss of held-out texts, and checks the largest by ablation. "
        "Writes nothing.",
        (
            'saeforest attribute runs/demo --prompt "Paris is in" --target " France"',
            "saeforest attribute runs/demo --texts 16",
        ),
        _names("run prompt target against texts method top sae device json"),
    ),
    "export": Command(
        "export:export",
        "FORMAT RUN",
        "Write the explorer's page, or files of another tool",
        "With html, the page as files that need no server; docs/interop.md has what other tools make of the others.",
        (
            "saeforest export html runs/demo --root 384 -o family.html",
            "saeforest export html runs/demo -o pages",
            "saeforest export delphi runs/demo -o latents --tokens 2000000",
            "saeforest export neuronpedia runs/demo -o neuronpedia",
            "saeforest export sparsify runs/topk -o sparsify",
        ),
        _names("format run out root tokens force sae device json"),
    ),
    "push": Command(
        "push:push",
        "RUN ORG/NAME",
        "Share a run on the Hugging Face Hub",
        "Uploads SAEs, forest, records, log and index with a model card, in one commit; an upload that broke goes on.",
        (
            "saeforest push runs/demo my-org/demo --dry-run",
            "saeforest push runs/demo my-org/demo --license mit",
        ),
        _names("run repo public license dry_run force json"),
    ),
    "infer": Command(
        "infer:infer",
        "RUN|SAE",
        "Infer a forest for a flat SAE from its activations",
        "Writes RUN/forest/, which `eval` then measures; for an SAE without a run, writes --out.",
        ("saeforest infer runs/topk", "saeforest infer path/to/sae --out forest --model gpt2"),
        _names(
            "source tokens sae out reads reads.model reads.site reads.data device json settings settings.method "
            "settings.min_score"
        ),
    ),
    "harvest": Command(
        "harvest:harvest",
        "",
        "Save activations once, to train on them many times",
        "Train on the folder with `saeforest train --data FOLDER`. Several processes can harvest together, as workers.",
        (
            "saeforest harvest --data text.txt --tokens 2000000 --out activations",
            "saeforest harvest --data text.txt --out activations --worker 0 --of 4",
            "saeforest harvest --status activations",
        ),
        _names(
            "out json element worker of status config config.model config.site config.data config.tokens "
            "config.text config.text.context"
        ),
    ),
    "verify": Command(
        "verify:verify",
        "PATH",
        "Check the files of a folder for damage",
        "Compares files with their checksums and formats, and says how to repair damage. Changes nothing.",
        ("saeforest verify runs/demo",),
        _names("path json"),
    ),
    "synthetic": Command(
        "synthetic:synthetic",
        "GENERATOR",
        "Score systems on synthetic data whose tree is known",
        "Trains each system on the data of a generator, and writes recovery.json.",
        ("saeforest synthetic tree", "saeforest synthetic matryoshka --systems tree,topk --seeds 3"),
        _names("generator systems seeds seed out json training training.steps training.size training.l0"),
    ),
}

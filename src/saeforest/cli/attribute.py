"""`saeforest attribute`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import InputError
from ..output import results, say, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Json, OneSAE, Run

if TYPE_CHECKING:
    from torch import Tensor

    from ..activations import ActivationReader
    from ..config import TrainConfig
    from ..interventions.contributions import Contribution, Contributions, Faithfulness


@dataclass(frozen=True)
class AttributeArguments:
    run: Run
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """Text whose next token is explained."""
    target: str | None = None
    """The next token to explain, which often begins with a space. Default: the likeliest one."""
    against: str | None = None
    """Another next token, to explain the difference of the two logits. Default: the target's log probability."""
    texts: int | None = None
    """In place of --prompt, explain the loss of this many held-out texts."""
    length: int = 64
    """Number of tokens of each of the held-out texts."""
    method: Literal["gradient", "integrated"] = "gradient"
    """Attribute by the gradient at the code as it is, which is nearer to ablation, or by gradients integrated from all
    features silent, which add up."""
    steps: int = 16
    """Number of gradients to integrate; the other method takes one."""
    top: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """Number of features and of edges to show. They are ablated, and as many others chosen at random."""
    seed: int = 0
    """Random seed for the others, and for the choice of texts."""
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def attribute(argv: Sequence[str]) -> None:
    args = parse(AttributeArguments, argv, "attribute")
    positive(args, "steps", "top")
    if bool(args.prompt) == (args.texts is not None):
        raise InputError("expected --prompt or --texts" + (", not both" if args.prompt else ""))
    if args.texts is not None:
        positive(args, "texts")
        if args.target is not None or args.against is not None:
            raise InputError("--target and --against: of a prompt; leave them out beside --texts")
    if args.length < 2:
        raise InputError(f"--length {args.length}: expected 2 or more")
    from ..interventions import Where
    from ..interventions.contributions import of_prompt, of_texts, question
    from ..run_folder import RunFolder
    from ..session import open_reader

    run = RunFolder(args.run)
    name = named(run, args.sae)
    config, sae = run.load(name, args.device)
    # The logits of a model in bfloat16 are rounded to more than most features add to them.
    config = replace(config, lm=replace(config.lm, dtype="float32"))
    reader = open_reader(config)
    lm, where = reader.lm, Where("all", reader.exclude_first, reader.exclude_special, reader.max_norm)
    options: dict[str, Any] = {
        "method": args.method, "steps": args.steps, "top": args.top, "seed": args.seed, "site": config.site
    }  # fmt: skip
    about: dict[str, Any] = {"run": str(run), "sae": name, "site": config.site, "method": args.method}
    if args.prompt:
        asked = question(lm, sae, args.prompt, args.target, args.against, site=config.site)
        found = of_prompt(lm, sae, asked, where, **options)
        target, against = (
            None if token is None else str(lm.tokenizer.decode([token])) for token in asked[1:]
        )
        about |= {"prompt": args.prompt, "target": target, "against": against}
        what = (
            f"log probability of {target!r}"
            if against is None
            else f"logit of {target!r} less that of {against!r}"
        )
    else:
        texts = _texts(args, config, reader)
        found = of_texts(lm, sae, texts, where, **options)
        about |= {"texts": len(texts), "length": texts[0].shape[1]}
        what = f"loss of {len(texts)} texts, in nats per token"
    if args.json:
        say_json(about | found.to_json())
    else:
        _show(found, what)


def _texts(args: AttributeArguments, config: TrainConfig, reader: ActivationReader) -> list[Tensor]:
    """The beginnings of some windows of held-out text."""
    import numpy as np

    from ..session import read_tokens

    assert args.texts is not None
    tokens = read_tokens(config, reader, "held_out", 8 * args.texts * config.text.context)
    if args.length > tokens.context:
        raise InputError(
            f"--length {args.length}: expected at most {tokens.context}, the context of the training (text.context)"
        )
    drawn = np.sort(np.random.default_rng(args.seed).permutation(len(tokens.ids))[: args.texts])
    return [tokens.ids[window, : args.length].long()[None] for window in drawn.tolist()]


def _show(found: Contributions, what: str) -> None:
    from rich import box
    from rich.table import Table

    say(f"{what}: {found.metric:.3f}; with all features silent: {found.without:.3f}")
    say(f"attributions of all features add up to {found.total:.3f}")
    for title, contributions, faithful in (
        ("feature", found.features, found.of_features),
        ("edge, with all below", found.edges, found.of_edges),
    ):
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        shown.add_column(title)
        shown.add_column("attribution", justify="right")
        shown.add_column("ablation", justify="right")
        shown.add_column("on")
        for one in contributions:
            shown.add_row(_path(one, title), f"{one.attribution:+.4f}", f"{one.ablation:+.4f}", _places(one))
        results().print(shown)
        say(_faithful(faithful))


def _path(one: Contribution, title: str) -> str:
    above, own = one.path[:-1], str(one.feature)
    return " > ".join([*map(str, above), own]) if title == "feature" else f"{above[-1]} > {own}"


def _places(one: Contribution) -> str:
    return "  ".join(f"{place.token!r} {place.attribution:+.3f}" for place in one.places)


def _faithful(found: Faithfulness) -> str:
    """How attribution compares with ablation, in a line."""
    if found.largest is None:
        return "none of them is active"
    others = "-" if found.others is None else f"{found.others:.4f}"
    line = f"ablating one of these changes the metric by {found.largest:.4f} on average, one of the others by {others}"
    if found.correlation is None or found.same_sign is None:
        return line
    return f"{line}; correlation {found.correlation:.2f}, same sign {found.same_sign:.0%} ({found.n} ablated)"

"""`saeforest train --list-presets`."""

from __future__ import annotations

from typing import Any

from ..output import say, say_json
from ..presets import PRESETS


def say_presets(*, json: bool) -> None:
    """Prints the presets: those that read the same activations under one heading."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for about in map(_about, PRESETS):
        heading = f"{about['model']} at {about['site']}, {about['tokens']:,} tokens of {about['data']}"
        groups.setdefault(heading, []).append(about)
    if json:
        say_json([about for group in groups.values() for about in group])
        return
    for heading, group in groups.items():
        say(f"{heading}:")
        width = max(len(about["name"]) for about in group)
        for about in group:
            sizes, k = ("+".join(map(str, about[key])) for key in ("layer_sizes", "k_per_layer"))
            say(f"  {about['name']:{width}}  {about['architecture']}, {sizes} features, k {k}")
        say()
    say("Name several presets of one group to train them on the same activations.")


def _about(name: str) -> dict[str, Any]:
    config = PRESETS[name]
    keys = ("model", "site", "data", "tokens")
    sizes = ("architecture", "layer_sizes", "k_per_layer")
    return {
        "name": name,
        **{key: getattr(config.sae, key) for key in sizes},
        **{key: getattr(config, key) for key in keys},
    }

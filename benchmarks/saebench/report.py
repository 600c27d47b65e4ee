"""What was found, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Numbers that ought to agree do so within this much.
BOUND = 1e-3
_LETTERS = ("mean_absorption_fraction", "full_absorption_rate", "num_split_features")
_POSITION_0 = "trap 4: the first position of a window is measured"
#: Why the default differs, by SAEBench's name of the number.
WHY = {
    **dict.fromkeys(("cossim", "l2_ratio", "explained_variance_legacy", "l0"), _POSITION_0),
    **dict.fromkeys(
        ("ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_score"), _POSITION_0
    ),
    **dict.fromkeys(("kl_div_with_sae", "kl_div_with_ablation", "kl_div_score"), _POSITION_0),
    "explained_variance": "trap 3: its variance is nearly the second moment; and trap 4",
    **dict.fromkeys(_LETTERS, "trap 2: activations in units of the normalized token"),
}


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of rows, as a share of the norm, of `a` with the first rows of `b`."""
    return float(((a - b[: len(a)]).norm(dim=1) / b[: len(a)].norm(dim=1)).max())


def table(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    codes, reconstructions = found["adapter"]
    lines = [
        versions,
        "",
        f"SAEBench's object of the SAE: its codes differ from ours by {codes:.1e}, its reconstructions by "
        f"{reconstructions:.1e}, as shares of the largest entry.",
        "",
        "| SAEBench's name | SAEBench 0.6.0 | saeforest, saebench_0.6 | difference | saeforest, default | "
        "why the default differs |",
        "|---|---|---|---|---|---|",
    ]
    if "theirs" in found:
        theirs, preset, default = found["theirs"], found["preset"], found["default"]
        lines += [_row(n, theirs[n], preset[n], default[n]) for n in preset if n in theirs]
    if "absorption" in found:
        lines += _absorption(found["absorption"])
    return "\n".join(lines) + "\n"


def _row(name: str, theirs: float, preset: float | None, default: float | None) -> str:
    difference = "-" if preset is None else f"{abs(theirs - preset):.1e}"
    differs = default is None or abs(theirs - default) > BOUND
    cells = (
        name,
        _number(theirs),
        _number(preset),
        difference,
        _number(default),
        WHY.get(name, "") if differs else "",
    )
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _absorption(found: Mapping[str, Any]) -> list[str]:
    """`preset` is compared with SAEBench as it is, `default` with SAEBench on codes in the units of the activations."""
    sides = {name: found[name] for name in ("theirs", "preset", "theirs_effective", "default", "own_probes")}
    mean = {
        side: {name: sum(row[name] for row in rows.values()) / len(rows) for name in _LETTERS}
        for side, rows in sides.items()
    }
    lines = [
        _row(name, mean["theirs"][name], mean["preset"][name], mean["default"][name]) for name in _LETTERS
    ]
    counting = sum(f1 > 0.6 for f1 in found["f1_probe"].values())
    lines += [
        "",
        f"Absorption: means over {len(found['theirs'])} letters; {found['words']} words, {found['scored']} of them "
        f"scored; {counting} letters have a ground-truth probe of F1 above 0.6. Split, ground-truth probe, activations "
        "and main features are SAEBench's; the logistic regressions, and so the number of main features, our own.",
        "",
        "| largest difference of a letter | codes as they are | codes in units of x | SAEBench, in units of x | "
        "our own probes | mean, our own probes |",
        "|---|---|---|---|---|---|",
    ]
    for name in _LETTERS:
        splits = name == "num_split_features"
        cells = (
            name,
            f"{_largest(found, 'theirs', 'preset', name):.1e}",
            # SAEBench's main features are those of the codes as they are, whatever its last stage is given.
            "-" if splits else f"{_largest(found, 'theirs_effective', 'default', name):.1e}",
            "-" if splits else f"{mean['theirs_effective'][name]:.4f}",
            f"{_largest(found, 'theirs', 'own_probes', name):.4f}",
            f"{mean['own_probes'][name]:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    f1 = max(row["largest_difference_of_f1"] for row in found["preset"].values())
    lines += [
        "",
        f"The F1 of the logistic regressions on 1 to 10 features differ by {f1:.1e} at most. Our own reading of "
        f"SAEBench's prompts: activations differ by {found['prompts_with_bos']:.1e} with a BOS before the prompt, "
        f"{found['prompts_without_bos']:.1e} without (shares of the norm).",
    ]
    return lines


def _largest(found: Mapping[str, Any], one: str, other: str, name: str) -> float:
    """Of the letters that both have."""
    letters = found[one].keys() & found[other].keys()
    return max(abs(found[one][own][name] - found[other][own][name]) for own in letters)

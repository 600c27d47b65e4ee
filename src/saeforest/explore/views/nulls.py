"""What was measured of a run's hierarchy beside its nulls, in one line (docs/spec/records.md#nulls)."""

from __future__ import annotations

from ...errors import InputError, command
from ...evaluation.null_values import OVER_SHUFFLED, OVER_UNTRAINED, SHUFFLED, UNTRAINED
from ...measures.record import Record
from ...run_folder import RunFolder

# Measure, value and its name in words; the first that was measured is shown.
_SHOWN = (
    ("coverage", "ungated", "Coverage without the gate"),
    ("hierarchy", "tree", "Hierarchy metric by the forest"),
)


def nulls_note(measuring: str = "saeforest eval RUN --measures truth") -> str:
    """What to say where no null was measured. measuring: the command that measures them."""
    return f"Whether the hierarchy was learned: `{measuring}` measures it beside its nulls."


def nulls_line(run: RunFolder, name: str) -> str:
    """The same as `measured_nulls` or, if none was measured, the command that measures them."""
    again = command("eval", run, "--measures", "truth", *(("--sae", name) if run.several else ()))
    return measured_nulls(run, name) or nulls_note(again)


def measured_nulls(run: RunFolder, name: str) -> str | None:
    """A value about the hierarchy of an SAE of a run, with the parents shuffled, and of the untrained SAE.

    None if none was measured. A record that cannot be read counts as not measured.
    """
    for measure, value, title in _SHOWN:
        path = run.record(name, measure)
        if not path.is_file():
            continue
        try:
            record = Record.read(path)
        except InputError:
            continue
        own, shuffled, untrained = (record.value.get(value + end) for end in ("", SHUFFLED, UNTRAINED))
        if own is None or (shuffled is None and untrained is None):
            continue
        nulls = ", ".join(
            f"{'not measured' if x is None else f'{x:.2f}'} {of}"
            for x, of in ((shuffled, "with the parents shuffled"), (untrained, "untrained"))
        )
        over = [record.interval.get(value + end) for end in (OVER_SHUFFLED, OVER_UNTRAINED)]
        known = [interval for interval in over if interval is not None]
        clear = bool(known) and all(low > 0 for low, _ in known)
        verdict = "It exceeds them by more than chance." if clear else "It does not clearly exceed them."
        return f"{title}: {own:.2f}; {nulls}. {verdict}"
    return None

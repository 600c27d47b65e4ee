"""All values of a report as data, for report.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__
from .claim_text import corrected_verdict
from .correction import holm
from .load import Entry
from .verdict import Result


def to_json(entries: Sequence[Entry], results: Sequence[Result], files: Sequence[str]) -> dict[str, Any]:
    """All values (SAE -> measure -> value) and the results on the claims, as written to report.json."""
    return {
        "version": __version__,
        "saes": {
            entry.label: {
                "run": str(entry.run),
                "name": entry.name,
                "system": entry.system.title,
                "seed": entry.config.seed,
                "measures": {
                    record.measure: {
                        name: {
                            "value": value,
                            "interval": record.interval[name] and list(record.interval[name] or ()),
                            "tokens": record.tokens,
                            "unit": record.unit_of(name),
                            **({"null": record.null[name]} if value is None else {}),
                        }
                        for name, value in record.value.items()
                    }
                    for record in entry.records.values()
                },
            }
            for entry in entries
        },
        "claims": [
            {
                "claim": result.claim.text,
                "source": result.claim.source,
                "verdict": result.verdict.value,
                "p": result.p,
                "p_corrected": corrected,
                "verdict_corrected": after.value if (after := corrected_verdict(result, corrected)) else None,
                "null": result.claim.null.why if result.claim.null else "",
                "why": result.why,
                "paper": result.paper,
                "findings": [
                    {
                        "left": finding.left.label,
                        "right": finding.right.label if finding.right else None,
                        "values": [finding.left_value.value, finding.right_value.value],
                        "difference": list(finding.difference),
                        "verdict": finding.verdict.value,
                        "note": finding.note,
                    }
                    for finding in result.findings
                ],
            }
            for result, corrected in zip(results, holm([result.p for result in results]), strict=True)
        ],
        "figures": list(files),
    }

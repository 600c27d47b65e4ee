"""What `benchmarks/gpu.sh` does, without what it starts: each part's report, and that a part costs only itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import __main__ as peers  # noqa: E402
from benchmarks.peers.machine import Machine  # noqa: E402

from benchmarks import gpu  # noqa: E402

REPORT = """<testsuites><testsuite>
<testcase name="right"/><testcase name="wrong"><failure>1 is not 2</failure></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are started; each writes what it would write at the end."""
    seen: list[list[str]] = []

    def python(arguments: list[str], device: str, left: gpu.Left) -> str:
        seen.append(arguments)
        if "pytest" in arguments:
            place = next(a.partition("=")[2] for a in arguments if a.startswith("--junitxml="))
            Path(place).write_text(REPORT, encoding="utf-8")
            assert (ROOT / arguments[-1]).exists()
        else:
            options = peers.parser().parse_args(arguments[2:])
            peers.check(options)
            options.out.write_text('[{"library": "saeforest"}]', encoding="utf-8")
        return ""

    monkeypatch.setattr(gpu, "_python", python)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    machine = Machine("cpu", "a processor", 1, {"float32": 2e9, "bfloat16": 4e9}, 1e9)
    monkeypatch.setattr(gpu.machine, "measured", lambda device: machine)
    monkeypatch.setattr(gpu, "make_world", lambda folder, seconds: None)
    monkeypatch.setattr(gpu, "make_runs", lambda runs, world, folder, **_: None)
    return seen


def golden(changes: dict[str, Any]) -> Any:
    def values(run: Path, sae: str, world: Path) -> dict[str, Any]:
        found = json.loads((gpu.HERE / f"{sae}.json").read_text(encoding="utf-8"))
        return {"numbers": {**found["numbers"], **changes}, "hashes": {}}

    return values


def test_one_file_holds_what_all_parts_found(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "values_of", golden({}))
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 1  # one of the kernels is wrong
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["machine"]["device"] == "cpu"
    assert found["kernels"]["summary"] == "1 of 2 cases right, interpreted"
    assert found["kernels"]["wrong"] == {"wrong": "1 is not 2"}
    assert len(found["systems"]["saes"]) == 12
    assert found["systems"]["failed"] == 0
    assert found["peers"]["rows"] == [{"library": "saeforest"}]
    assert len(started) == 2
    assert gpu.main(["--out", str(out), "--parts", "systems", "peers", "--quick"]) == 0
    assert list(json.loads(out.read_text(encoding="utf-8"))["systems"]["saes"]) == ["tree"]


def test_a_system_that_trains_otherwise_is_said(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "values_of", golden({"fve": 0.2, "dead": [0, 0, 0]}))
    assert gpu.main(["--out", str(tmp_path / "a.json"), "--parts", "systems", "--quick"]) == 1
    (line,) = json.loads((tmp_path / "a.json").read_text())["systems"]["saes"]["tree"]["differs"]
    assert line.startswith("fve: 0.2, was 0.7")


def test_a_single_late_loss_may_part_but_not_all(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of an HSAE that draws features at random lost a fifth more with other instructions."""
    losses = json.loads((gpu.HERE / "tree.json").read_text(encoding="utf-8"))["numbers"]["loss"]
    first, *later = losses
    for parted, code in ((later[-1:], 0), (later, 1), ([first], 1)):
        found = {step: loss * (1.2 if step in parted else 1) for step, loss in losses.items()}
        monkeypatch.setattr(gpu, "values_of", golden({"loss": found}))
        assert gpu.main(["--out", str(tmp_path / "a.json"), "--parts", "systems", "--quick"]) == code


def test_a_part_that_fails_costs_only_itself(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(gpu, "make_runs", slow)
    assert gpu.main(["--out", str(tmp_path / "a.json")]) == 1
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["systems"]["error"] == "took longer than was left"
    assert found["peers"]["failed"] == 0


def test_the_script_is_one() -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "-m benchmarks.gpu " in script.read_text(encoding="utf-8")

"""Help: one screen for each command, every option once with `--help-all`, and only what the command accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

from saeforest import cli
from saeforest.cli.commands import Command
from saeforest.cli.completion import options_of_all
from saeforest.cli.help import options, show_help

from .said import Call

# A line that begins with an option: two spaces, its names, each with its value.
OPTION = re.compile(r"^  ((?:-\S+(?: [^\s,]+)*, )*--[^\s,*]+)(?: |$)", re.MULTILINE)


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def listed(text: str) -> list[str]:
    """The options of a help; of each, the last of its names."""
    return [match[1].split(" ")[-1] for match in OPTION.finditer(text)]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_a_screen(command: str, call: Call) -> None:
    said = call(command, "--help")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith(f"usage: saeforest {command} ")
    assert f"\n  saeforest {command}" in said.out, "an example"
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert call(command, "-h").out == said.out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_all_shows_every_option_once(command: str, call: Call) -> None:
    basic, everything = call(command, "--help").out, call(command, "--help-all").out
    assert set(listed(basic)) <= set(listed(everything))
    assert len(listed(everything)) == len(set(listed(everything)))
    more = f"More options: saeforest {command} --help-all"
    assert (more in basic) == (len(listed(basic)) < len(listed(everything)))
    assert more not in everything
    for noise in ("Raises ", "{None}", "(default: None)", "(default: '')", "(default: )", "(default: False)"):
        assert noise not in everything


def test_the_options_of_a_measure_are_not_listed_three_times(call: Call) -> None:
    text = call("eval", "--help-all").out
    assert text.count("--judge.endpoint ") == 1
    assert ".judge.endpoint " not in text
    assert "--autointerp.judge.*: the options of --judge.*, for this alone." in text
    # They are accepted all the same: the run is what is wrong here.
    said = call("eval", "nowhere", "--autointerp.judge.model", "x", "--tpp.texts.seed", "3")
    assert "nowhere: " in said.err


def test_help_of_several_saes_lists_each_kind_once(call: Call) -> None:
    text = call("train", "demo", "demo-topk", "--help-all").out
    assert {"--saes.demo.sae.layer-sizes", "--saes.demo-topk.sae.layer-sizes"} <= set(listed(text))
    assert not {"--sae.layer-sizes", "--optim.lr", "--seed"} & set(listed(text))


def test_what_is_completed_is_what_help_lists(call: Call) -> None:
    for command, found in options_of_all().items():
        flags = {option.flags[-1] for option in found if option.flags}
        text = call(command, "--help-all").out
        assert flags == {*listed(text), "--help-all"}, command


@dataclass(frozen=True)
class Group:
    """What a group is for.

    Raises InputError for anything.
    """

    rate: float = 0.5
    """Rate. It decays (slowly). Default: a half."""
    kind: str | None = None
    """Kind of thing."""
    on: bool = True
    """Whether it is on."""


@dataclass(frozen=True)
class Other:
    """What the other group is for."""

    group: Group = field(default_factory=Group)
    n: int = 3
    """Number."""


@dataclass(frozen=True)
class Arguments:
    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHERE")]
    """Place (any)."""
    group: Group = field(default_factory=Group)
    other: Other = field(default_factory=Other)
    names: tuple[int, ...] = ()
    """Some numbers."""


def shown(capsys: pytest.CaptureFixture[str], basic: str, *argv: str) -> list[str]:
    about = Command("", "WHERE", "Do it", "In detail.", ("saeforest do x",), frozenset(basic.split()))
    with pytest.raises(SystemExit) as stop:
        show_help(Arguments, argv, "do", about)
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


BEGINNING = ["usage: saeforest do WHERE [OPTIONS]", "", "Do it. In detail.", "", "  saeforest do x", ""]


def test_basic_help_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "where group group.rate names", "--help") == [
        *BEGINNING,
        "Arguments:",
        "  WHERE           Place. (required)",
        "",
        "Options:",
        "  -h, --help      Show this message and exit",
        "  --names N ...   Some numbers.",
        "  --group.rate X  Rate. (default: a half)",
        "",
        "More options: saeforest do --help-all",
    ]


def test_all_help_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join("\n".join(shown(capsys, "where", "--help-all")).split())
    lines = [
        *BEGINNING,
        "Arguments:",
        "WHERE Place (any). (required)",
        "",
        "Options:",
        "-h, --help Show this message and exit",
        "--names N ... Some numbers. (default: none)",
        "",
        "group options:",
        "What a group is for.",
        "--group.rate X Rate. It decays (slowly). (default: a half)",
        "--group.kind KIND Kind of thing. (default: none)",
        "--group.on, --group.no-on",
        "Whether it is on. (default: on)",
        "",
        "other options:",
        "What the other group is for.",
        "--other.group.*: the options of --group.*, for this alone.",
        "--other.n N Number. (default: 3)",
    ]
    assert words == " ".join(" ".join(lines).split())


def test_options_as_shells_complete_them() -> None:
    found = {option.flags: option for option in options(Arguments)}
    assert not found["--group.on", "--group.no-on"].takes_value
    assert found[("--group.rate",)].about == "Rate"
    assert found[()].value == "WHERE"

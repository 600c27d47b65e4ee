"""`saeforest --print-completion SHELL`: a script that completes commands, their options, and values with few choices.

The script is plain shell: nothing is imported when a key is pressed. It offers files where it has
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import InputError
from ..output import say_script
from .arguments import taken
from .commands import ALL, COMMANDS
from .help import Option, options

COMPLETION = "--print-completion"


def say_completion(argv: Sequence[str]) -> None:
    """Prints the script for the shell that `argv` names. Raises InputError for an unknown one."""
    shell, rest = taken(argv, COMPLETION)
    if rest:
        raise InputError(f"'{rest[0][:200]}': {COMPLETION} takes only a shell: {', '.join(_SCRIPTS)}")
    if shell not in _SCRIPTS:
        raise InputError(f"{COMPLETION} {str(shell)[:200]}: expected one of {', '.join(_SCRIPTS)}")
    say_script(_SCRIPTS[shell](options_of_all()))


_TOP = ("--help", "--version", COMPLETION)


def options_of_all() -> dict[str, list[Option]]:
    """The options of every command, with the values that only names in tables can have."""
    from ..config import TrainConfig
    from ..evaluation.options import MEASURE_PRESETS
    from ..evaluation.registry import MEASURES, SETS
    from ..presets import PRESETS
    from ..saes import SYSTEMS
    from ..worlds import GENERATORS
    from ..worlds.presets import SYSTEM_NAMES
    from .attribute import AttributeArguments
    from .compare import CompareArguments
    from .demo import DemoArguments
    from .eval_arguments import eval_arguments
    from .explore import ExploreArguments
    from .export import ExportArguments
    from .figure import FigureArguments
    from .harvest import NOT_READ, HarvestArguments
    from .index import IndexArguments
    from .infer import InferArguments
    from .mcp import McpArguments
    from .push import PushArguments
    from .show import ShowArguments
    from .steer import SteerArguments
    from .synthetic import SyntheticArguments
    from .train import TrainArguments
    from .verify import VerifyArguments

    names = {
        "train": {"PRESET": tuple(PRESETS), "--architecture": tuple(SYSTEMS)},
        "eval": {"--measures": (*SETS, *MEASURES)},
        "synthetic": {"GENERATOR": tuple(GENERATORS), "--systems": tuple(SYSTEM_NAMES)},
    }
    found = {
        "demo": options(DemoArguments),
        "train": options(TrainArguments, TrainArguments(PRESETS["demo"])),
        "eval": options(eval_arguments(MEASURE_PRESETS["recommended"])),
        "compare": options(CompareArguments),
        "index": options(IndexArguments),
        "show": options(ShowArguments),
        "steer": options(SteerArguments),
        "attribute": options(AttributeArguments),
        "explore": options(ExploreArguments),
        "mcp": options(McpArguments),
        "figure": options(FigureArguments),
        "export": options(ExportArguments),
        "push": options(PushArguments),
        "infer": options(InferArguments),
        "harvest": options(HarvestArguments, HarvestArguments(TrainConfig()), NOT_READ),
        "verify": options(VerifyArguments),
        "synthetic": options(SyntheticArguments),
    }
    helps = [Option(("--help",), "Show the main options", False), Option((ALL,), "Show all options", False)]
    return {
        command: [replace(o, choices=_named(o, names.get(command, {}))) for o in found[command]] + helps
        for command in COMMANDS
    }


def _named(option: Option, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    key = option.flags[-1] if option.flags else option.value
    return names.get(key, option.choices)


def _flags(found: list[Option]) -> list[str]:
    return [flag for option in found for flag in option.flags]


def _given(found: list[Option]) -> str:
    """Choices of what is given without the name of an option."""
    return " ".join(choice for option in found if not option.flags for choice in option.choices)


def _bash(commands: dict[str, list[Option]]) -> str:
    values, named = [], []
    for command, found in commands.items():
        named.append(f'    {command}) flags="{" ".join(_flags(found))}" given="{_given(found)}" ;;')
        for option in found:
            if option.flags and option.takes_value:
                cases = "|".join(f'"{command} {flag}"' for flag in option.flags)
                values.append(f'    {cases}) given="{" ".join(option.choices)}" flags="" ;;')
    top = " ".join((*commands, *_TOP))
    return f"""# bash completion for saeforest
_saeforest() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" flags="" given=""
  # --option=value comes as three words.
  if [[ $cur == "=" ]]; then cur=""
  elif [[ $prev == "=" ]]; then prev="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{top}" -- "$cur"))
    return
  fi
  if [[ $prev == {COMPLETION} ]]; then
    COMPREPLY=($(compgen -W "{" ".join(_SCRIPTS)}" -- "$cur"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{_lines(named)}
  esac
  case "${{COMP_WORDS[1]}} $prev" in
{_lines(values)}
  esac
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
  elif [[ -n $given ]]; then
    COMPREPLY=($(compgen -W "$given" -- "$cur"))
  fi
}}
complete -o bashdefault -o default -F _saeforest saeforest"""


def _zsh(commands: dict[str, list[Option]]) -> str:
    values, named = [], []
    for command, found in commands.items():
        described = " ".join(
            _quoted(f"{flag}:{_told(option.about)}") for option in found for flag in option.flags
        )
        named.append(f"    {command}) options=({described}); given=({_given(found)}) ;;")
        for option in found:
            if option.flags and option.takes_value:
                cases = "|".join(f'"{command} {flag}"' for flag in option.flags)
                values.append(f"    {cases}) given=({' '.join(option.choices)}); options=() ;;")
    top = " ".join(
        [_quoted(f"{name}:{_told(COMMANDS[name].summary)}") for name in commands]
        + [_quoted(f"{option}:") for option in _TOP]
    )
    return f"""#compdef saeforest
_saeforest() {{
  local -a options given
  if (( CURRENT == 2 )); then
    options=({top})
    _describe command options
    return
  fi
  if [[ $words[CURRENT-1] == {COMPLETION} ]]; then
    compadd {" ".join(_SCRIPTS)}
    return
  fi
  case "$words[2]" in
{_lines(named)}
  esac
  case "$words[2] $words[CURRENT-1]" in
{_lines(values)}
  esac
  if [[ $PREFIX == -* ]]; then
    _describe option options
  elif (( $#given )); then
    compadd -a given || _files
  else
    _files
  fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _saeforest "$@"
else
  compdef _saeforest saeforest
fi"""


def _fish(commands: dict[str, list[Option]]) -> str:
    lines = ["# fish completion for saeforest", "set -l commands " + " ".join(commands)]
    first = "not __fish_seen_subcommand_from $commands"
    lines += [
        f'complete -c saeforest -n "{first}" -f -a {name} -d {_quoted(COMMANDS[name].summary)}'
        for name in commands
    ]
    lines.append(f'complete -c saeforest -n "{first}" -l version')
    lines.append(
        f'complete -c saeforest -n "{first}" -l {COMPLETION[2:]} -x -a {_quoted(" ".join(_SCRIPTS))}'
    )
    for command, found in commands.items():
        within = f'complete -c saeforest -n "__fish_seen_subcommand_from {command}"'
        if given := _given(found):
            lines.append(f"{within} -a {_quoted(given)}")
        for option in found:
            for flag in option.flags:
                kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                value = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r"
                lines.append(
                    f"{within} {kind}{value if option.takes_value else ''} -d {_quoted(option.about)}"
                )
    return "\n".join(lines)


def _tcsh(commands: dict[str, list[Option]]) -> str:
    """tcsh cannot tell which command an option is of: those of all are offered."""
    flags = sorted({flag.removeprefix("--") for found in commands.values() for flag in _flags(found)})
    values = {
        flag: option.choices
        for found in commands.values()
        for option in found
        for flag in option.flags
        if option.choices
    }
    rules = [f"'p/1/({' '.join((*commands, *_TOP))})/'"]
    rules += [f"'n/{flag}/({' '.join(choices)})/'" for flag, choices in values.items()]
    rules += [f"'n/{COMPLETION}/({' '.join(_SCRIPTS)})/'", f"'c/--/({' '.join(flags)})/'", "'p/*/f/'"]
    return "complete saeforest " + " ".join(rules)


def _lines(rows: list[str]) -> str:
    return "\n".join(rows)


def _quoted(text: str) -> str:
    """In single quotes, as bash, zsh and fish read them."""
    return "'" + text.replace("\\", "").replace("'", "’") + "'"


def _told(text: str) -> str:
    """What stands behind the colon of zsh's descriptions."""
    return text.replace(":", "\\:")


_SCRIPTS: dict[str, Callable[[dict[str, list[Option]]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
    "tcsh": _tcsh,
}

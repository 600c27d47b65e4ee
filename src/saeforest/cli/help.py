"""The help of a command, drawn by tyro: `--help` shows its basic options, `--help-all` each option once.

tyro makes a command's options from dataclasses, by rules that one may add to. The rule here leaves out what is not to
be shown, and words the rest shorter; it is active only where help is asked for, and never changes what is accepted.
"""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from ..output import say_script
from .commands import ALL, HELP, Command
from .common import say_lines

# Wider names would break tyro's two columns.
WIDEST_BASIC = 24
_HEADINGS = {"positional arguments": "Arguments", "options": "Options"}
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_DEFAULT = re.compile(r"\s*Default: ([^.]+(?:\.[^. ][^.]*)*)\.$")
# What a docstring says of a system's own defaults: those shown are of the preset.
_OWN_DEFAULTS = re.compile(r" [^.]*\bdefaults? (?:are|is)\b[^.]*\.| [^.]* by default\.")
_SAYS_DEFAULT = re.compile(r"\b(default|none|empty|unset|without|left out)\b", re.IGNORECASE)


def asked(argv: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return any(word in HELP for word in argv)


def show_help(
    args: type[Any],
    argv: Sequence[str],
    command: str,
    about: Command,
    default: Any = None,
    never: frozenset[str] = frozenset(),
) -> NoReturn:
    """Prints the help of a command and raises SystemExit. `--help-all` anywhere in `argv` shows all options."""
    everything = ALL in argv
    help = Help(None if everything else about.basic, never)
    width = shutil.get_terminal_size().columns
    usage = f"usage: saeforest {command} {about.arguments} [OPTIONS]".replace("  ", " ")
    about_it = textwrap.fill(f"{about.summary}. {about.details}", width)
    say_lines("\n".join([textwrap.fill(usage, width), "", about_it, "", *(f"  {e}" for e in about.examples)]))
    say_script(_options(args, default, help).removesuffix("\n"))
    if help.hidden and not everything:
        say_lines(f"\nMore options: saeforest {command} {ALL}")
    raise SystemExit(0)


def _options(args: type[Any], default: Any, help: Help) -> str:
    """The options as tyro lists them, without the lines it draws around them."""
    drawn = _Drawn()
    extra = {} if default is None else {"default": default}
    with suppress(SystemExit), redirect_stdout(drawn):
        tyro.cli(
            args,
            args=["--help"],
            prog="",
            description="",
            config=(tyro.conf.AvoidSubcommands,),
            registry=help.registry,
            **extra,
        )
    _, _, boxes = drawn.getvalue().partition("\n\n")
    return "\n".join(_plain(boxes.splitlines(), in_groups=help.basic is None)) + "\n"


def _plain(lines: Sequence[str], *, in_groups: bool) -> Iterator[str]:
    """The lines of boxes that are drawn in ASCII: a heading has one space before it, and what is in a box two."""
    for line in lines:
        bare = _STYLE.sub("", line).rstrip()
        if not bare.strip(" -"):
            continue  # a rule, or a row that a text just too long has left empty
        if bare.startswith("  "):
            yield line.rstrip().replace("show this help message", "Show this message")
        elif heading := _HEADINGS.get(bare.strip(), bare.strip() if in_groups else ""):
            yield f"\n{heading}:"


class _Drawn(io.StringIO):
    """Keeps what tyro prints: colored as on the standard output, but, having no encoding, without box drawing."""

    def __init__(self) -> None:
        super().__init__()
        self._out = sys.stdout

    def isatty(self) -> bool:
        return self._out.isatty()


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as shells complete it.

    flags: as they are typed; none for what is given without the name of an option.
    value: what help calls it.
    about: the first sentence of its help.
    choices: its possible values, if they are few and known.
    """

    flags: tuple[str, ...]
    about: str
    takes_value: bool
    value: str = ""
    choices: tuple[str, ...] = ()


def options(args: type[Any], default: Any = None, never: frozenset[str] = frozenset()) -> list[Option]:
    """All options of a command."""
    help = Help(None, never)
    _options(args, default, help)
    return list(help.options.values())


class Help:
    """Which options are shown, and how they are worded.

    basic: names of the options to show, those of groups included; None: all of them.
    never: names of options that would not be read, and are never shown.
    """

    def __init__(self, basic: frozenset[str] | None, never: frozenset[str] = frozenset()) -> None:
        self.basic, self.never = basic, never
        self.registry = ConstructorRegistry()
        self.registry.struct_rule(self._rule)
        self.hidden: set[str] = set()
        self.options: dict[str, Option] = {}
        self._inside = False
        # Groups that are not shown. tyro asks for what is in them all the same.
        self._left_out: set[type] = set()
        # Where in the arguments each dataclass is: its name among them, and its options' prefix.
        self._place: dict[type, tuple[str, str]] = {}
        self._repeated: dict[type, list[str]] = {}

    def _rule(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._inside or not dataclasses.is_dataclass(info.type):
            return None
        self._inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = tuple(self._field(info.type, field) for field in spec.fields)
        return dataclasses.replace(spec, fields=fields)

    def _field(self, owner: type, field: StructFieldSpec) -> StructFieldSpec:
        name, prefix = self._place.get(owner, ("", ""))
        name = f"{name}.{field.name}" if name else field.name
        group = _group_of(field)
        if field.name == "architecture" and get_origin(_stripped(field.type)) is Literal:
            # The system's own name, which --architecture sets.
            return dataclasses.replace(field, type=Annotated[field.type, tyro.conf.Suppress])
        if owner in self._left_out and owner not in self._place:
            self._left_out |= {group} if group else set()
            return field
        if name in self.never or (self.basic is not None and name not in self.basic):
            if _is_required(field) and group is None:
                return field
            self.hidden.add(name)
            self._left_out |= {group} if group else set()
            return dataclasses.replace(field, type=Annotated[field.type, tyro.conf.Suppress])
        if group is not None:
            return self._group(group, owner, name, prefix, field)
        if isinstance(field.default, dict):
            return dataclasses.replace(field, default=self._one_of_each(name, prefix, field))
        self.options[name] = _option(prefix, field)
        return _worded(field, short=self.basic is not None)

    def _one_of_each(self, name: str, prefix: str, field: StructFieldSpec) -> dict[str, Any]:
        """The first of several named groups of one kind: the others have the same options."""
        options = _joined(prefix, field.name, "NAME")
        found: dict[str, Any] = {}
        for key, group in field.default.items():
            self._place[type(group)] = (f"{name}.NAME", options)
            if all(_kinds(group) != _kinds(other) for other in found.values()):
                found[key] = group
        return found

    def _group(
        self, kind: type, owner: type, name: str, prefix: str, field: StructFieldSpec
    ) -> StructFieldSpec:
        """A group of options: noted where it is, and hidden if the same was shown before."""
        metadata = _metadata(field.type)
        options = _joined(prefix, _own_name(field))
        place = self._place.setdefault(kind, (name, options))
        if place[0] != name:
            metadata += (tyro.conf.Suppress,)
            line = f"--{options}.*: the options of --{place[1]}.*, for this alone."
            if line not in (lines := self._repeated.setdefault(owner, [])):
                lines.append(line)

        def description() -> str:
            if self.basic is not None:
                return ""
            about = _one_line((kind.__doc__ or "").split("\n\n")[0])
            about = _OWN_DEFAULTS.sub("", about)
            return "\n".join([about, *self._repeated.get(kind, [])])

        return dataclasses.replace(field, type=_annotated(kind, metadata), helptext=description)


def _group_of(field: StructFieldSpec) -> type | None:
    """The dataclass of a field that is a group of options."""
    kind = _stripped(field.type) if _is_required(field) else type(field.default)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _kinds(group: Any) -> list[type]:
    return [type(getattr(group, field.name)) for field in dataclasses.fields(group)]


def _is_required(field: StructFieldSpec) -> bool:
    return any(field.default is missing for missing in (tyro.MISSING, tyro.MISSING_NONPROP))


def _stripped(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _metadata(kind: Any) -> tuple[Any, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _annotated(kind: Any, extra: Sequence[Any]) -> Any:
    return Annotated[(kind, *extra)] if extra else kind


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _own_name(field: StructFieldSpec) -> str:
    given = (a.name for a in _metadata(field.type) if getattr(a, "name", None) is not None)
    return next(given, field.name)


def _joined(*parts: str) -> str:
    """The name of an option or a group, as it is typed."""
    return ".".join(part.replace("_", "-") for part in parts if part)


def _about(field: StructFieldSpec) -> str:
    """The help of an option, on one line."""
    text: Any = field.helptext
    for given in _metadata(field.type):
        text = getattr(given, "help", None) or text
    text = _one_line(str((text() if callable(text) else text) or ""))
    # "None" in a docstring is the value in Python and in files; a user of an option can't always type it.
    return re.sub(r"\bNone: ", "If left out: ", text) if field.default is None else text


def _option(prefix: str, field: StructFieldSpec) -> Option:
    metadata = _metadata(field.type)
    is_flag = isinstance(field.default, bool)
    flags: tuple[str, ...] = ()
    if tyro.conf.Positional not in metadata:
        name = _joined(prefix, _own_name(field))
        aliases = next((tuple(a.aliases) for a in metadata if getattr(a, "aliases", None)), ())
        flags = (*aliases, f"--{name}")
        if is_flag and tyro.conf.FlagCreatePairsOff not in metadata:
            parent, _, own = name.rpartition(".")
            flags += (f"--{_joined(parent, f'no-{own}')}",)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(field.type, set()))
    choices = spec.choices if isinstance(spec, PrimitiveConstructorSpec) and not is_flag else None
    about = re.split(r"(?<=\.) (?=[A-Z])", _about(field))[0].removesuffix(".")
    value = next((a.metavar for a in metadata if getattr(a, "metavar", None)), "")
    return Option(flags, about, not is_flag, value.removesuffix(" ..."), tuple(choices or ()))


def _worded(field: StructFieldSpec, *, short: bool) -> StructFieldSpec:
    """An option as it is shown: its help on one line, its value and its default in few words.

    short: of the help, only the first sentence, without what is in parentheses, and the default.
    """
    kind, metadata, text = _stripped(field.type), _metadata(field.type), _about(field)
    if short:
        first, *others = re.split(r"(?<=\.) (?=[A-Z])", text)
        first = re.sub(r" \([^()]*\)", "", first)
        text = " ".join([first, *(s for s in others if s.startswith(("Default: ", "One of ", "Any of ")))])
    value = next((a.metavar for a in metadata if getattr(a, "metavar", None)), None)
    if value is None and not isinstance(field.default, bool):
        value, choices = _value(field, text, short=short)
        text += choices
    if value and tyro.conf.Positional in metadata and not _is_required(field):
        value = f"[{value}]"
    default = ""
    if found := _DEFAULT.search(text):
        text, default = text[: found.start()], f"(default: {found[1]})"
    elif isinstance(field.default, bool):
        if tyro.conf.FlagCreatePairsOff not in metadata:
            default = f"(default: {'on' if field.default else 'off'})"
    elif field.default in ("", None, ()):
        default = "" if short or _SAYS_DEFAULT.search(text) else "(default: none)"
    hint: Any = default or (lambda written: f"(default: {written})" if written else "(required)")
    if not default and (isinstance(field.default, bool) or field.default in ("", None, ())):
        hint = ""
    metadata = tuple(dataclasses.replace(a, help=None) if hasattr(a, "help") else a for a in metadata)
    shown = tyro.conf.arg(metavar=value, help_behavior_hint=hint)
    return dataclasses.replace(field, type=_annotated(kind, (*metadata, shown)), helptext=text)


def _value(field: StructFieldSpec, text: str, *, short: bool) -> tuple[str | None, str]:
    """What stands behind an option's name (N, X, {a,b}, or its name in capitals), and its choices, if too many."""
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(field.type, set()))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None, ""
    written = re.sub(r"\{None\}\||None,|,None", "", spec.metavar)
    written = re.sub(r"\{?\[(\S+) \[.*?\]\]\}?", r"\1 ...", written)
    name = field.name.upper().replace("_", "-")
    if spec.choices and len(f"--{name} {written}" if short else written) > WIDEST_BASIC:
        names = [choice for choice in spec.choices if choice != "None"]
        told = all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in names)
        several = " ..." if written.endswith("...") else ""
        return name + several, "" if told else f" One of {', '.join(names)}."
    for word, shorter in (("INT", "N"), ("FLOAT", "X"), ("STR", name)):
        written = re.sub(rf"\b{word}\b", shorter, written)
    return written, ""

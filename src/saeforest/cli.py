"""The command line: `saeforest COMMAND ...`. Every command is a few calls into the library."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from shutil import which
from typing import Annotated, Any, TypeVar

import tyro

from . import __version__, out_of_memory
from .config import TrainConfig, load_config
from .errors import UserError
from .output import note, results, say, status, steady
from .presets import PRESET_NAMES, PRESETS, together, with_seeds
from .stopping import Interrupted, interruptible
from .toys import SYSTEM_NAMES, SyntheticConfig

# Imported where used: language models and their libraries take seconds that `--help` and a typing error should not.

T = TypeVar("T")
_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
INDEX_TOKENS, DEMO_EVAL_TOKENS = 600_000, 50_000
_MOST_DIGITS = 20


def _parse(args: type[T], argv: Sequence[str], command: str, description: str, default: Any = None) -> T:
    extra = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(
                args,
                args=list(argv),
                prog=f"saeforest {command}",
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
                **extra,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box: a title, the message, help. Ours is the one line that names the option.
        lines = [line for raw in told.getvalue().splitlines() if (line := raw.strip("╭╮╰╯─│ "))]
        said = lines[1:3] if len(lines) > 1 and lines[1].endswith(":") else lines[1:2]
        raise UserError(f"{' '.join(said or lines)} (see `saeforest {command} --help`)") from None


# -- train


@dataclass(frozen=True)
class _Train:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder, new or empty. Default: runs/PRESET."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its latest checkpoint."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only tell sizes, memory, steps and an estimate of the time."""
    seeds: tuple[int, ...] = ()
    """The seeds themselves, such as 0 1 2: every SAE is trained once with each, on the same activations."""


def train(argv: Sequence[str]) -> None:
    """Train one SAE, or several on the same activations. `saeforest train [PRESET ...] [--config FILE] [--out RUN]`."""
    name, base, rest = _presets(argv)
    about = f"{train.__doc__} {PRESET_NAMES}"
    args = _parse(_Train, rest, "train", about, default=_Train(base))
    out = args.out or Path("runs") / name
    if args.resume and (args.dry_run or args.seeds or args.config != PRESETS["demo"]):
        raise UserError(
            f"--resume goes on with the settings of {out / 'config.yaml'}; give only --out beside it"
        )
    config = _checked(args.config, base)
    if args.seeds and args.config.seed != base.seed:
        raise UserError(f"--seed {args.config.seed} and --seeds: give one of them")
    config = with_seeds(config, args.seeds, name)
    if args.dry_run:
        from .memory import too_much
        from .training.plan import describe, estimate

        found = estimate(config)
        status.print(describe(found))
        if warning := too_much(found.memory.peak, found.memory.lower):
            note(f"warning: {warning}")
        return
    from .session import load_run, sae_names
    from .training import run_training
    from .training.unfinished import is_complete, tidy

    if is_complete(out, None if args.resume else config):
        note(f"{out}: this run is complete; nothing is left to do")
    else:
        with _resumable(out, "train --resume"):
            run_training(config, out, resume=args.resume)
    tidy(out)
    saes = {name: load_run(out, name=name)[1] for name in sae_names(out)}
    for name, sae in saes.items():
        _say_trained(out, name, sae.d_sae)
    name, sae = next(iter(saes.items()))
    _say_next(out, name, families=not sae.flat)


@contextmanager
def _resumable(out: Path, command: str) -> Iterator[None]:
    """Within, an interruption says how to go on if anything is there to go on with."""
    try:
        yield
    except Interrupted as stop:
        there = out.exists() and any(out.iterdir())
        how = f"{_program()} {command} --out {_quoted(out)}" if command.startswith("train") else command
        go_on = f"; go on with: {how}" if there else ""
        raise Interrupted(f"{stop}{go_on}", stop.signum) from None


def _say_trained(run: Path, name: str, d_sae: int) -> None:
    from .training.log import log_folder, read_log

    steps = [line for line in read_log(log_folder(run, name)) if "event" not in line]
    if not steps:
        return
    last = steps[-1]
    l0, dead, fve = sum(last["l0"]), sum(last["dead"]), last["fve"]
    said = f"FVE {'-' if fve is None else f'{fve:.3f}'}, L0 {l0:.1f}, {dead:,} of {d_sae:,} features dead"
    say(f"In training: {name + ': ' if name else ''}{said}")


def _presets(argv: Sequence[str]) -> tuple[str, TrainConfig, list[str]]:
    """The name and configuration a command starts from, and the arguments that are left."""
    rest = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    names = []
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    for name in names:
        if name not in PRESETS:
            hint = _near(name, PRESETS)
            raise UserError(f"preset '{name}': no such preset{hint}; `saeforest train --help` lists them")
    if "--config" in rest:
        i = rest.index("--config")
        if len(rest) < i + 2:
            raise UserError("--config: expected a file such as RUN/config.yaml behind it")
        if names:
            raise UserError(f"preset '{names[0]}' and --config {rest[i + 1]}: give one of them")
        path = Path(rest[i + 1])
        del rest[i : i + 2]
        # RUN/config.yaml is known by its run, any other file by its own name.
        known_as = path.resolve().parent.name if path.name == "config.yaml" else path.stem
        return known_as, load_config(path), rest
    names = names or ["demo"]
    return "+".join(names), together(names), rest


def _checked(config: TrainConfig, base: TrainConfig) -> TrainConfig:
    """Raises UserError where an option for one SAE was given beside several."""
    if config.saes and any(getattr(config, key) != getattr(base, key) for key in ("sae", "optim", "seed")):
        raise UserError(
            "--sae, --optim and --seed set up one SAE, but there are several; set up each with --saes.NAME..."
        )
    return config


# -- eval


def evaluate(argv: Sequence[str]) -> None:
    """Measure trained SAEs on text they have not seen. Writes RUN/eval/MEASURE.json; goes on where it was stopped."""
    from .measures import measure_names, measure_run, table
    from .measures.arguments import eval_arguments
    from .measures.options import preset_options
    from .session import check_site, load_run, open_reader, sae_names
    from .training.unfinished import tidy

    options, rest = preset_options(argv)
    args = _parse(eval_arguments(options), rest, "eval", _doc(evaluate))
    tidy(args.run)
    names = measure_names(args.measures)
    saes = {
        name: load_run(args.run, args.device, name)
        for name in ([args.sae] if args.sae else sae_names(args.run))
    }
    reader = open_reader(next(iter(saes.values()))[0])
    for _, sae in saes.values():
        check_site(sae, reader)
    try:
        found = measure_run(saes, reader, names, args.options, args.run, again=args.again)
    except Interrupted as stop:
        kept = (
            f"the measures taken so far are kept in {args.run / 'eval'}; give the same command for the others"
        )
        raise Interrupted(f"stopped; {kept}", stop.signum) from None
    for name, records in found.items():
        results().print(table(records, title=name or None))


# -- compare


@dataclass(frozen=True)
class _Compare:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs that `saeforest eval` has measured."""
    out: Path
    """The folder for the report, new or empty."""


def compare(argv: Sequence[str]) -> None:
    """Set measured SAEs side by side. Writes report.html, report.md, report.json and figures into --out."""
    args = _parse(_Compare, argv, "compare", _doc(compare))
    if not args.runs:
        raise UserError("compare: expected the folder of at least one run (see `saeforest compare --help`)")
    from .report import compare as compare_runs
    from .training.unfinished import claim_empty

    claim_empty(args.out)
    compare_runs(args.runs, args.out)
    say(f"the report: {args.out / 'report.html'} (also report.md, report.json, figures/)")


# -- index and show


@dataclass(frozen=True)
class _Index:
    run: _Run
    """A run's folder."""
    tokens: int | None = None
    """Tokens of the training text to look at. Default: those of the run, 600,000 at most."""
    sae: str = ""
    """Which SAE, of a run that trained several."""
    device: str | None = None
    """Of language model and SAE; by default the one the run was trained on."""


def index(argv: Sequence[str]) -> None:
    """Collect what `show` needs: where each feature fires most, its density, its direction. Writes RUN/index/."""
    args = _parse(_Index, argv, "index", _doc(index))
    if args.tokens is not None:
        _positive(args, "tokens")
    from .explore import index_run
    from .session import check_site, load_run, open_reader
    from .training.unfinished import tidy

    tidy(args.run)
    config, sae = load_run(args.run, args.device, args.sae)
    reader = open_reader(config)
    check_site(sae, reader)
    index_run(args.run, config, sae, reader, args.tokens or min(INDEX_TOKENS, config.tokens), args.sae)


@dataclass(frozen=True)
class _Show:
    run: _Run
    """A run's folder."""
    feature: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURE")] = None
    """A feature id; without it the most telling families."""
    families: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """How many families."""
    sae: str = ""
    """Which SAE, of a run that trained several."""
    device: str | None = None
    """Of the language model, where there is no index yet; by default the one the run was trained on."""


def show(argv: Sequence[str]) -> None:
    """Show the tree under a feature with the text that activates it; without a feature, the most telling families."""
    args = _parse(_Show, argv, "show", _doc(show))
    _positive(args, "families")
    from .explore import Index, index_run, show_families, show_feature
    from .lm import load_tokenizer
    from .session import check_site, load_run, open_reader, within

    config, sae = load_run(args.run, args.device, args.sae)
    folder = within(args.run / "index", args.sae)
    feature = None if args.feature is None else _feature(args.feature, sae.d_sae, args.run)
    if folder.exists():
        found = Index.load(folder, sae)
    else:
        reader = open_reader(config)
        check_site(sae, reader)
        note(f"{args.run} has no index yet; making it, once")
        found = index_run(args.run, config, sae, reader, min(INDEX_TOKENS, config.tokens), args.sae)
    console, tokenizer = results(), load_tokenizer(config.model)
    if feature is None:
        show_families(console, found, sae.forest, tokenizer, n=args.families)
    else:
        show_feature(console, found, sae.forest, tokenizer, feature)


def _feature(text: str, d_sae: int, run: Path) -> int:
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < d_sae:
        return int(text)
    raise UserError(f"feature {text[:_MOST_DIGITS]}: expected 0 to {d_sae - 1}, the features of {run}")


# -- verify


@dataclass(frozen=True)
class _Verify:
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A run, a trained SAE, a checkpoint, harvested activations, an index, a forest, records or results."""


def verify(argv: Sequence[str]) -> int:
    """Check every file of a folder against its checksum and its form; say what is damaged, and what can be mended."""
    args = _parse(_Verify, argv, "verify", _doc(verify))
    from .verify import summary
    from .verify import verify as verified

    findings = verified(args.path)
    for finding in findings:
        if not finding.sound:
            say(str(finding))
    say(summary(findings))
    return int(any(not finding.sound and not finding.leftover for finding in findings))


# -- harvest


@dataclass(frozen=True)
class _Harvest:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """The folder for the activations, new or empty."""


def harvest(argv: Sequence[str]) -> None:
    """Read activations into a folder once, to train on them with `saeforest train --data FOLDER` as often as wanted."""
    args = _parse(_Harvest, argv, "harvest", _doc(harvest), default=_Harvest(TrainConfig()))
    if args.out is None:
        raise UserError("harvest: expected --out FOLDER for the activations")
    from .training.harvest import run_harvest

    with _resumable(args.out, "the same command"):
        store, done = run_harvest(args.config, args.out)
    place = f"--data {_quoted(args.out)} --model {store.manifest['model']} --site {store.manifest['site']}"
    say(f"{done.n_rows:,} activations in {args.out}; train on them with {place}")
    say(str(done))


# -- demo


@dataclass(frozen=True)
class _Demo:
    out: Path = Path("runs/demo")
    """The run's folder, new or empty."""
    tokens: int = PRESETS["demo"].tokens
    """Different tokens to train on."""
    eval_tokens: int = DEMO_EVAL_TOKENS
    """Held-out tokens to measure on."""


def demo(argv: Sequence[str]) -> None:
    """Train a 4-layer Tree SAE on SmolLM2-135M, measure it, and show a piece of its concept forest."""
    args = _parse(_Demo, argv, "demo", _doc(demo))
    _positive(args, "tokens", "eval_tokens")
    from .demo import run_demo

    with _resumable(args.out, "the same command"):
        run_demo(replace(PRESETS["demo"], tokens=args.tokens), args.out, args.eval_tokens)
    _say_next(args.out)


def _quoted(path: Path) -> str:
    return quote(str(path))


def _program() -> str:
    """What to type to run this program: `make demo` uses one that may not be on the PATH."""
    return "saeforest" if which("saeforest") else sys.argv[0]


def _say_next(run: Path, name: str = "", *, families: bool = True) -> None:
    program, which_sae = _program(), f" --sae {name}" if name else ""
    folder = f"{run}/sae/{name}" if name else f"{run}/sae"
    commands = (
        {f"{program} show {run}{which_sae}": "the most telling families; -n 30 for more"} if families else {}
    )
    commands |= {
        f"{program} show {run} FEATURE{which_sae}": "what a feature fires on, and the tree under it",
        f"{program} eval {run}": "measure it on held-out text",
        f"{program} train --help": "your own model, site, text and sizes",
        f'In Python: saeforest.load("{folder}")': "the SAE: encode, decode, forest",
    }
    width = max(map(len, commands))
    _lines("\nNext:\n" + "\n".join(f"  {command:{width}}   {what}" for command, what in commands.items()))


# -- synthetic


@dataclass(frozen=True)
class _Synthetic:
    generator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GENERATOR")]
    """A world whose tree is known."""
    systems: str = "tree,topk,batchtopk,matryoshka"
    """Names, separated by commas."""
    seeds: int = 5
    """How many of them."""
    seed: int = 0
    """The first of them; each makes a world and the weights of all systems."""
    out: Path | None = None
    """The folder for recovery.json, new or empty. Default: runs/synthetic-GENERATOR."""
    training: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = field(default_factory=SyntheticConfig)


def synthetic(argv: Sequence[str]) -> None:
    """Train systems on a world whose tree is known, and score how much of it they recover. Writes recovery.json."""
    from .synthetic import GENERATORS
    from .synthetic.run import RECOVERY, recovery_table, run_synthetic

    names = ", ".join(GENERATORS)
    args = _parse(
        _Synthetic,
        argv,
        "synthetic",
        f"{_doc(synthetic)} GENERATOR: {names}. Systems: {', '.join(SYSTEM_NAMES)}.",
    )
    _positive(args, "seeds")
    if args.generator not in GENERATORS:
        raise UserError(
            f"generator '{args.generator}': expected one of {names}{_near(args.generator, GENERATORS)}"
        )
    systems = [name for name in args.systems.split(",") if name]
    if len(set(systems)) < len(systems) or not systems:
        raise UserError(f"--systems {args.systems}: expected different names, separated by commas")
    if unknown := [name for name in systems if name not in SYSTEM_NAMES]:
        raise UserError(f"system '{unknown[0]}': expected some of {', '.join(SYSTEM_NAMES)}")
    out = args.out or Path("runs") / f"synthetic-{args.generator}"
    seeds = range(args.seed, args.seed + args.seeds)
    with _resumable(out, "the same command"):
        found = run_synthetic(args.generator, systems, seeds, args.training, out)
    results().print(recovery_table(found, args.generator))
    say(f"every score, for every seed: {out / RECOVERY}")


# -- the frame

COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "index": index,
    "show": show,
    "harvest": harvest,
    "verify": verify,
    "synthetic": synthetic,
}


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _doc(function: Callable[..., Any]) -> str:
    return function.__doc__ or ""


def _positive(args: Any, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more")


def _usage() -> str:
    lines = [f"saeforest {__version__}: hierarchical sparse autoencoders on language models", ""]
    lines += [f"  saeforest {name:8} {_doc(f).splitlines()[0]}" for name, f in COMMANDS.items()]
    return "\n".join([*lines, "", "  saeforest COMMAND --help lists a command's options"])


def run(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit status.

    0: done; 1: done, but some of the output could not be written, or `verify` found damage; 2: a user's error; 128 + N
    after signal N, which is 130 after Ctrl-C.
    """
    with steady() as lost:
        code = _run(argv)
        sys.stdout.flush()
    return code or int(bool(lost))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        _lines(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        say(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            hint = _near(argv[0], COMMANDS)
            raise UserError(f"command '{argv[0]}': expected one of {', '.join(COMMANDS)}{hint}")
        with interruptible():
            return COMMANDS[argv[0]](argv[1:]) or 0
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        note()
        note(str(stop) or "stopped")
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    except OSError as error:
        if error.errno is None:
            raise
        return _fail(f"{error.filename or 'writing'}: {os.strerror(error.errno)}")
    except (MemoryError, RuntimeError, ValueError) as error:
        if (line := out_of_memory.explained(error)) is None:
            raise
        return _fail(line)


def _fail(message: str) -> int:
    note(f"saeforest: error: {' '.join(message.split())}")
    return 2


def _lines(text: str) -> None:
    for line in text.splitlines():
        say(line)


def main() -> None:
    sys.exit(run(sys.argv[1:]))

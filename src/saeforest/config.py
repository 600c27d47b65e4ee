"""The configuration of a run: one nested object, written to RUN/config.yaml and read back from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from .errors import InputError
from .files import atomic_file, checksum_of_data, read_bytes, read_yaml
from .optim import OptimConfig, Precision
from .saes import SYSTEMS, SystemConfig, TreeConfig, check_inference, check_weights
from .saes.base import TranscoderConfig
from .schema import MOST, flaw, own_error, shown

# YAML reads a bare yes and no as true and false.
Bos = Annotated[
    Literal["auto", "yes", "no"],
    BeforeValidator(lambda given: ("yes" if given else "no") if isinstance(given, bool) else given),
]
_CHECKSUM = "# checksum: "
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_TEXT = 4_096
_COUNT = f"1 to {MOST:,}"
# The bound on numbers of things that are in memory at the same time.
MOST_AT_ONCE = 2**31 - 1
_AT_ONCE = f"1 to {MOST_AT_ONCE:,}"
# Names become names of folders and files, which add their own endings.
_LONGEST_NAME = 100


@dataclass(frozen=True)
class LMConfig:
    """How the language model is run."""

    dtype: Precision = "auto"
    """Data type of the language model. auto: bfloat16 if the hardware multiplies it natively, otherwise float32."""
    batch_size: int = 16
    """Number of windows in one forward pass."""


@dataclass(frozen=True)
class TextConfig:
    """How documents become windows of tokens."""

    context: int = 128
    """Number of tokens in a window."""
    held_out: float = 0.05
    """Fraction of the documents that training never sees. Measures are taken on them."""
    bos: Bos = "auto"
    """Whether every window begins with the BOS token, in training and in every measure. auto: yes if the tokenizer
    puts BOS before a text."""
    column: str = ""
    """Name of the field that holds the text of each record. Default: text, or else content, document or body; with
    text.chat, messages or conversations."""
    split: str = "train"
    """Split to read from a Hub data set, or from a folder saved by the datasets package."""
    chat: bool = False
    """Read records as chats (messages, or conversations as in ShareGPT) through the model's chat template."""


@dataclass(frozen=True)
class ActivationConfig:
    """Which activations are used, and where they are stored."""

    store: Literal["auto", "memory", "disk", "live"] = "auto"
    """Where activations are stored. memory or disk (RUN/activations): computed once and kept. live: computed during
    training, again in every epoch. auto: memory if they fit; otherwise disk for several epochs, live for one."""
    exclude_first: bool = True
    """Leave out the first position of every window (an attention sink with a very large norm)."""
    exclude_special: bool = True
    """Leave out special tokens."""
    max_norm: float | None = None
    """Leave out activations with a larger L2 norm: attention sinks beyond the first position. 0: no limit.
    None: ten times the median norm."""


@dataclass(frozen=True)
class MemberConfig:
    """One SAE of a run that trains several."""

    sae: SystemConfig = field(default_factory=TreeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    """Random seed for this SAE."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    model: str = "smollm2-135m"
    """Language model: a Hub name, a local folder, a .gguf file, or smollm2-135m, which comes with the package."""
    site: str = "blocks.15.hook_resid_post"
    """Where in the language model activations are read: a hook name or a module path."""
    target: str | None = None
    """Second site, for a transcoder: the SAE predicts its activations from those of the first site, for example
    blocks.15.hook_mlp_out from blocks.15.ln2.hook_normalized. Default: none, the SAE reconstructs its input."""
    data: str = "packaged"
    """Training data: packaged (text that comes with the package), a file or folder of text (docs/data.md lists the
    formats), a Hub data set (org/name, org/name:subset, org/name@revision:subset), or a folder of harvested
    activations."""
    tokens: int = 1_000_000
    """Tokens to read. Every epoch reads the same ones. Of harvested activations, those of the first so many tokens are
    read. Default: 1,000,000 or all harvested."""
    epochs: int = 1
    """Number of passes over the activations."""
    seed: int = 0
    """Random seed for the SAE: initial weights, initial forest, and random choices in training."""
    data_seed: int = 0
    """Random seed for the order of the text and of the activations."""
    device: str = "auto"
    """Device of the language model and the SAE: cpu, cuda, cuda:N, or auto (cuda if there is one)."""
    log_every: int = 50
    """Number of training steps between lines of log.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints. 0: save a checkpoint only on Ctrl-C."""
    lm: LMConfig = field(default_factory=LMConfig)
    text: TextConfig = field(default_factory=TextConfig)
    activations: ActivationConfig = field(default_factory=ActivationConfig)
    sae: SystemConfig = field(default_factory=TreeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    saes: dict[str, MemberConfig] = field(default_factory=dict)
    """Several SAEs by name, trained on the same activations. They replace sae, optim and seed."""

    def __post_init__(self) -> None:
        for name, member in self.saes.items():
            self._check_member(name, member)
        _check_finite(self)
        optim, limit = self.optim, self.activations.max_norm
        ranges = [
            ("tokens", self.tokens, 1 <= self.tokens <= MOST, _COUNT),
            ("epochs", self.epochs, 1 <= self.epochs <= MOST, _COUNT),
            ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
            ("data_seed", self.data_seed, 0 <= self.data_seed < 2**63, "0 to 2**63 - 1"),
            ("log_every", self.log_every, 1 <= self.log_every <= MOST, _COUNT),
            ("checkpoint_minutes", self.checkpoint_minutes, self.checkpoint_minutes >= 0, "0 or more"),
            ("lm.batch_size", self.lm.batch_size, 1 <= self.lm.batch_size <= MOST_AT_ONCE, _AT_ONCE),
            (
                "text.context",
                self.text.context,
                2 <= self.text.context <= MOST_AT_ONCE,
                "2 or more tokens in a window",
            ),
            ("text.held_out", self.text.held_out, 0 < self.text.held_out < 1, "a fraction between 0 and 1"),
            ("activations.max_norm", limit, limit is None or limit >= 0, "0 (no limit) or more"),
            ("optim.lr", optim.lr, optim.lr > 0, "more than 0"),
            ("optim.batch_size", optim.batch_size, 1 <= optim.batch_size <= MOST_AT_ONCE, _AT_ONCE),
            ("optim.beta1", optim.beta1, 0 <= optim.beta1 < 1, "0 or more, and less than 1"),
            ("optim.beta2", optim.beta2, 0 <= optim.beta2 < 1, "0 or more, and less than 1"),
            ("optim.eps", optim.eps, optim.eps >= 0, "0 or more"),
            ("optim.warmup", optim.warmup, 0 <= optim.warmup <= 1, "a fraction from 0 to 1"),
            ("optim.decay_from", optim.decay_from, 0 <= optim.decay_from <= 1, "a fraction from 0 to 1"),
        ]
        for name, value, holds, expected in ranges:
            if not holds:
                raise InputError(f"{name} = {shown(value)}: expected {expected}")
        check_inference(self.sae)
        check_weights(self.sae.architecture, self.optim)
        if self.target == self.site:
            raise InputError(f"target = {shown(self.target)}: the same as the site; leave target out")
        if self.target is not None and not (self.saes or isinstance(self.sae, TranscoderConfig)):
            raise InputError(
                f"target = {shown(self.target)}: an SAE of architecture {self.sae.architecture} reconstructs its input "
                "only; choose another sae.architecture, or leave target out"
            )

    def _check_member(self, name: str, member: MemberConfig) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"saes: name {shown(name)}: expected letters, digits, dots, dashes and underscores"
            )
        if len(name) > _LONGEST_NAME:
            raise InputError(
                f"saes: name {shown(name)}: {len(name):,} characters; expected at most {_LONGEST_NAME}"
            )
        first = next(iter(self.saes.values())).optim.batch_size
        if member.optim.batch_size != first:
            raise InputError(
                f"saes.{name}.optim.batch_size = {member.optim.batch_size}: all SAEs of a run read the same batches; "
                f"expected {first}"
            )
        try:
            replace(self, sae=member.sae, optim=member.optim, seed=member.seed, saes={})
        except InputError as error:
            raise InputError(f"saes.{name}: {error}") from None

    @property
    def batch_size(self) -> int:
        """The number of activations in a training step, the same for every SAE of the run."""
        return next(iter(self.members().values())).optim.batch_size

    def members(self) -> dict[str, TrainConfig]:
        """The configuration of each SAE as if it were trained alone, by name.

        A run with one SAE names it by its architecture.
        """
        if not self.saes:
            return {self.sae.architecture: self}
        return {
            name: replace(self, sae=m.sae, optim=m.optim, seed=m.seed, saes={})
            for name, m in self.saes.items()
        }

    def with_members(self, members: dict[str, TrainConfig]) -> TrainConfig:
        """A configuration of several SAEs whose `members()` are these; settings they share come from the first."""
        shared = next(iter(members.values()))
        return replace(
            shared, saes={name: MemberConfig(m.sae, m.optim, m.seed) for name, m in members.items()}
        )

    def with_each(self, change: Callable[[TrainConfig], TrainConfig]) -> TrainConfig:
        """This configuration with `change` applied to the configuration of each SAE."""
        if not self.saes:
            return change(self)
        return self.with_members({name: change(member) for name, member in self.members().items()})


def _check_finite(config: Any, prefix: str = "") -> None:
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            _check_finite(value, f"{prefix}{f.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{prefix}{f.name} = {value}: expected a finite number")
        elif isinstance(value, str) and len(value) > _LONGEST_TEXT:
            raise InputError(
                f"{prefix}{f.name}: {len(value):,} characters; expected at most {_LONGEST_TEXT:,}"
            )


# Unknown keys are errors: otherwise a misspelled key would silently leave its default in place.
TrainConfig.__pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportAttributeAccessIssue]


@cache  # building the adapter takes longer than using it a hundred times
def _adapter() -> Any:
    return TypeAdapter(TrainConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, nested as in RUN/config.yaml."""
    found = _adapter().dump_python(config, mode="json")
    if config.target is None:  # so that runs without a target look as they did before targets existed
        del found["target"]
    return found


def of_dict(settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration of which `to_dict` gave these values."""
    return _adapter().validate_python(settings)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as YAML, with its checksum in the first line."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    with atomic_file(path) as temporary:
        # The checksum comes first, so that it also catches a file that was cut short.
        temporary.write_text(f"{_CHECKSUM}{checksum_of_data(text)}\n{text}", encoding="utf-8")


def is_signed(path: Path) -> bool:
    """Whether a configuration file begins with a checksum."""
    return read_bytes(path).startswith(_CHECKSUM.encode())


def load_config(path: Path, *, of_run: bool = False) -> TrainConfig:
    """Read a configuration from YAML. Keys that are left out keep their defaults.

    of_run: the file is RUN/config.yaml. Its checksum is verified, and a missing key means what versions without that
    key did.

    Raises InputError if the file is missing, damaged, or has an unknown key or a wrong value.
    """
    data = read_yaml(path)
    if of_run:
        _check_unchanged(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of settings, as in RUN/config.yaml")
    if of_run and isinstance(text := data.get("text", {}), dict):
        data["text"] = {"bos": "no"} | text
    try:
        config = _adapter().validate_python(data)
        _check_booleans(data, config)
        return config
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValidationError as error:
        if (own := own_error(error)) is not None:  # a range that one of the configurations checks
            raise InputError(f"{path}: {own}") from None
        first = error.errors()[0]
        key = _key(first["loc"])
        if first["type"] == "union_tag_invalid":
            raise InputError(
                f"{path}: key '{key}.architecture': expected one of {', '.join(SYSTEMS)}, "
                f"got {shown(first['input'].get('architecture'))}"
            ) from None
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise InputError(
                f"{path}: unknown key '{key[:200]}'; `saeforest train --help` lists all keys"
            ) from None
        raise InputError(f"{path}: {flaw({**first, 'loc': (key,)})}") from None


def system_config(architecture: str, settings: Mapping[str, Any]) -> SystemConfig:
    """The configuration of a system from its settings by name, as the `sae` section of a file holds them.

    Raises InputError for a setting that there is not, or that is of a wrong kind or out of its range.
    """
    section = {"architecture": architecture, **settings}
    try:
        return _adapter().validate_python({"sae": section}).sae
    except ValidationError as error:
        if (own := own_error(error)) is not None:
            raise own from None
        first = error.errors()[0]
        key = _key(first["loc"])
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise InputError(f"{key[:200]}: no setting of architecture {architecture}") from None
        raise InputError(flaw({**first, "loc": (key,)})) from None


def _check_booleans(data: Any, config: Any, key: str = "") -> None:
    """Raise InputError for `yes` or `true` where a number is expected: pydantic would read them as 1."""
    match data:
        case bool() if not isinstance(config, bool) and key != "text.bos":
            raise InputError(f"key '{key}': expected a number, got {'true' if data else 'false'}")
        case dict():
            for name, value in data.items():
                within = config.get(name) if isinstance(config, dict) else getattr(config, str(name), None)
                _check_booleans(value, within, f"{key}.{name}" if key else str(name))
        case list() if isinstance(config, tuple | list):
            for i, (value, within) in enumerate(zip(data, config, strict=False)):
                _check_booleans(value, within, f"{key}.{i}")
        case _:
            pass


def _check_unchanged(path: Path) -> None:
    """Raise InputError if RUN/config.yaml is not what the run wrote. Other configuration files may be edited."""
    first, _, text = read_bytes(path).decode("utf-8").partition("\n")
    if first.startswith(_CHECKSUM) and first.removeprefix(_CHECKSUM) != checksum_of_data(text):
        raise InputError(
            f"{path}: does not match the checksum in its first line, so it is damaged or was edited; restore it, or, "
            "if it was edited on purpose, delete that line"
        )


def _key(place: tuple[int | str, ...]) -> str:
    """The dotted key of an error, without the system's name that pydantic inserts after `sae`."""
    return ".".join(
        str(part) for i, part in enumerate(place) if not (i and place[i - 1] == "sae" and part in SYSTEMS)
    )


def resolve_device(device: str) -> torch.device:
    """The device that a setting names; auto is cuda if there is one, otherwise cpu.

    Raises InputError if the name is not a device of this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = torch.device("meta")
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(f"device {shown(device)}: expected auto, cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= there:
        has = f"{there} CUDA devices, starting at cuda:0" if there else "no CUDA device"
        raise InputError(f"device {shown(device)}: this machine has {has}; use one of them or cpu")
    return resolved

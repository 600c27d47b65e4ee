"""The forests that are measured: an SAE's own or, for an SAE without one, a forest inferred from its training text.

An inferred forest is kept in RUN/forest/, so that all measurements of a run use the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationReader
from ..activations.data import GivenData, StoredData, TextData, data_of
from ..config import TrainConfig
from ..errors import InputError
from ..infer import ForestInference, InferConfig, InferredForest
from ..interop import load
from ..kept_forest import forest_question, kept_forest, origin, write_forest
from ..memory import Forecast
from ..progress import progress
from ..run_folder import RunFolder
from ..saes import SAE
from ..session import check_site, open_reader, read_tokens, reading_config
from ..structure.forest import Forest
from .options import MeasureOptions


def forests_of(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    options: MeasureOptions,
    run: RunFolder,
    *,
    place: Callable[[str], Path] | None = None,
) -> dict[str, tuple[Forest, str]]:
    """The forest of each SAE, and a short description of where it comes from.

    place: gives the folder of an SAE's forest by the SAE's name; by default that of the run.

    Forests to be inferred share one reading of the training text. `reader` must exclude the positions that training
    excluded, whatever the measurement excludes.

    Raises InputError if another process is inferring one of the forests, or if `infer` made one with other settings.
    """
    default = MeasureOptions()
    by_default = (options.infer, options.infer_tokens) == (default.infer, default.infer_tokens)
    found: dict[str, tuple[Forest, str]] = {}
    missing: dict[str, ForestInference] = {}
    place = place or run.forest
    questions = {}
    for name, (config, sae) in saes.items():
        if sae.has_forest:
            found[name] = sae.forest, "its own"
            continue
        tokens = min(options.infer_tokens, config.tokens)
        questions[name] = forest_question(sae, config.data, tokens, options.infer)
        if kept := kept_forest(place(name), sae, questions[name], by_default=by_default):
            found[name] = kept
        else:
            missing[name] = ForestInference(sae, options.infer)
    if missing:
        config = saes[next(iter(missing))][0]
        with run.claimed(*map(place, missing)):
            for name, inferred in _inferred(missing, config, reader, options.infer_tokens).items():
                write_forest(place(name), inferred, questions[name])
                by = inferred.config
                found[name] = inferred.forest, origin(by.method, by.order, inferred.n_tokens)
    return found


def infer(
    source: RunFolder | Path | str,
    config: InferConfig | None = None,
    *,
    tokens: int = MeasureOptions.infer_tokens,
    sae: str | None = None,
    device: str | None = None,
    out: Path | None = None,
    model: str = "",
    site: str = "",
    data: str = "",
) -> InferredForest:
    """Infer a forest for a flat SAE from text, and save it.

    source: a run, whose forest is written to RUN/forest and used by all later measurements; or an SAE that
        `saeforest.load` can read, by its folder or its name on the Hub.
    config: how parents are inferred; None for the defaults.
    tokens: number of tokens of the training text to use.
    sae:    which SAE of a run that trained several.
    device: device for language model and SAE; None for the run's or, for an SAE alone, the best available.

    For an SAE alone only:
    out:    folder for the forest, new or empty.
    model, site, data: language model, site and text that the SAE reads. By default as in its metadata, and the packaged
        text.

    Raises InputError if these do not go together, or if the SAE learned a forest of its own.
    """
    config = config or InferConfig()
    if tokens < 1:
        raise InputError(f"tokens = {tokens}: expected 1 or more")
    run = source if isinstance(source, RunFolder) else RunFolder(Path(source))
    if run.config_file.is_file():
        if out is not None or model or site or data:
            raise InputError(
                f"{run}: a run has its own model, site and data, and its forest goes to RUN/forest; leave out model, "
                "site, data and out"
            )
        train, found = run.load(sae, device)
        place = run.forest(sae or run.names()[0])
        with run.claimed(place):
            return infer_into(place, found, train, open_reader(train), config, tokens)
    if sae is not None:
        raise InputError(f"{run}: not a run, so it has no SAE named '{sae}'; give the SAE's own folder")
    if out is None:
        raise InputError(
            f"{run}: this is an SAE's folder, not a run; give another folder for its forest (out)"
        )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not empty; choose another folder")
    found = load(run.path if isinstance(source, RunFolder) else source)
    train = reading_config(found, str(source), tokens, model, site, data, device)
    return infer_into(out, found, train, open_reader(train), config, tokens)


def infer_into(
    place: Path, sae: SAE, train: TrainConfig, reader: ActivationReader, config: InferConfig, tokens: int
) -> InferredForest:
    """Infer a forest from about the first `tokens` tokens of the text of `train`, and save it to the folder `place`.

    Raises InputError if the SAE learned a forest of its own, or does not fit the reader's model and site.
    """
    if sae.has_forest:
        raise InputError(
            f"the SAE ({sae.config.architecture}) learned a forest of its own; expected an SAE without one"
        )
    check_site(sae, reader)
    missing = {"": ForestInference(sae.to(reader.lm.device), config)}
    inferred = _inferred(missing, train, reader, tokens)[""]
    about = forest_question(sae, train.data, min(tokens, train.tokens), config)
    write_forest(place, inferred, about, chosen=True)
    return inferred


def _inferred(
    missing: Mapping[str, ForestInference], config: TrainConfig, reader: ActivationReader, tokens: int
) -> dict[str, InferredForest]:
    """Infer the forests of several SAEs from one reading of the training text of `config`."""
    n_tokens = min(tokens, config.tokens)
    forecast = Forecast("forests", "infer_tokens or lm.batch_size")
    with progress("read for forests", n_tokens, "tokens") as advance:
        for x in _training_activations(config, reader, tokens):
            for inference in missing.values():
                inference.add(x)
            advance(len(x))
            share = min(len(x) / n_tokens, 1.0)
            forecast.tell(
                sum(inference.still_to_come(share) for inference in missing.values()),
                max(inference.afterwards(share) for inference in missing.values()),
            )
    return {name: inference.forest() for name, inference in missing.items()}


def _training_activations(
    config: TrainConfig, reader: ActivationReader, n_tokens: int
) -> Iterator[Float[Tensor, "n d_in"]]:
    """About the first `n_tokens` activations of the training text, from harvested blocks or by running the model."""
    left = min(n_tokens, config.tokens)
    match data_of(config.data):
        case StoredData() as stored:
            store = stored.open(config.data_seed, config.tokens)
            batches = (store.block(0, i).x for i in range(store.n_blocks))
        case TextData() | GivenData():  # stored activations have no reader
            text = read_tokens(config, reader, "train", max(left, config.text.context))
            batches = (batch.x for batch, _ in reader.batches(text))
    for x in batches:
        yield x[:left]
        left -= len(x)
        if left <= 0:
            return

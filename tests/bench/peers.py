"""Install the gateways that Headrace is compared with: `python tests/bench/peers.py [NAME…]`.

Each gets a folder of its own in `.headrace/bench-peers`, so that nothing of it reaches our own environment. One that
cannot be installed here is named in one line and left out of the comparison. Those from PyPI run on the same Python as
Headrace: with another one they are installed anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".headrace" / "bench-peers"
INSTALL_SECONDS = 600
"""How long one of them may take."""


class Peer(NamedTuple):
    """A gateway from a package registry. `package` is exact, so that two runs compare the same thing."""

    name: str
    registry: str
    """`pip` or `npm`."""
    package: str
    program: str
    """What is run, relative to the peer's own folder."""
    overrides: Mapping[str, str] = MappingProxyType({})
    """Versions of its dependencies (npm) that it needs, where the newest it allows break it."""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def path(self) -> Path:
        return self.folder / self.program

    @property
    def version(self) -> str:
        return self.package.rpartition("=" if self.registry == "pip" else "@")[2]

    @property
    def mark(self) -> Path:
        """Is there if this version is installed; of Python's packages, for the Python that runs Headrace."""
        python = f"-{Path(sys.base_prefix).as_posix().strip('/').replace('/', '-')}" if self.registry == "pip" else ""
        return self.folder / f".installed-{self.version}{python}"

    def installed(self) -> bool:
        return self.path.exists() and self.mark.exists()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm-router", "pip", "vllm-router==0.1.17", "bin/vllm-router"),
        Peer("smg", "pip", "smg==1.13.0", "bin/smg"),
        Peer("litellm", "pip", "litellm[proxy]==1.106.2", "bin/litellm"),
        Peer(
            "portkey",
            "npm",
            "@portkey-ai/gateway@1.15.2",
            "node_modules/@portkey-ai/gateway/build/start-server.js",
            {"@hono/node-server": "1.3.3"},  # with later ones every stream is answered 500
        ),
    )
}


def install(peer: Peer) -> None:
    """Install it anew. Raises OSError or subprocess.SubprocessError."""
    prepare(peer)
    for command in commands(peer):
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL, capture_output=True)
    if not peer.path.exists():
        raise OSError(f"the package has no {peer.program}")
    peer.mark.touch()


def commands(peer: Peer) -> Sequence[Sequence[str]]:
    """What installs it, once `prepare` has been called."""
    if peer.registry == "npm":
        return [["npm", "install", "--no-audit", "--no-fund", "--prefix", str(peer.folder)]]
    pip = [str(peer.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    return [[sys.executable, "-m", "venv", str(peer.folder)], [*pip, peer.package]]


def prepare(peer: Peer) -> None:
    """An empty folder; for npm with a package that depends on the peer."""
    shutil.rmtree(peer.folder, ignore_errors=True)
    peer.folder.mkdir(parents=True)
    if peer.registry == "npm":
        name = peer.package.rpartition("@")[0]
        package = {"private": True, "dependencies": {name: peer.version}, "overrides": dict(peer.overrides)}
        (peer.folder / "package.json").write_text(json.dumps(package))


def reason(error: Exception) -> str:
    """The most telling line of a failure."""
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if "error" in line.lower()]
    return lines[0].partition(" (from versions")[0].strip() if lines else str(error)


def main(names: Sequence[str]) -> int:
    """Install those named, or all; the exit status says how many are missing."""
    missing = 0
    for peer in (PEERS[name] for name in names or PEERS):
        started = time.monotonic()
        try:
            if not peer.installed():
                install(peer)
            print(f"{peer.name}: {peer.package} is installed ({time.monotonic() - started:.0f} s)", flush=True)
        except (OSError, subprocess.SubprocessError) as error:
            missing += 1
            print(f"{peer.name}: {peer.package} cannot be installed here: {reason(error)}", flush=True)
    return missing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Install the gateways that Headrace is compared with.")
    parser.add_argument("names", nargs="*", choices=[[], *PEERS], metavar="NAME", help=f"some of: {', '.join(PEERS)}")
    sys.exit(1 if main(parser.parse_args().names) == len(PEERS) else 0)

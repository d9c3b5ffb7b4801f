"""A device behind a real network path: a network namespace with a veth pair, its rate and its loss set by the kernel.

Needs root, ``ip``, ``tc`` with tbf, and ``nft`` or ``iptables``. Where something is missing ``Namespace()`` raises
``Unavailable`` with the command that failed and what it said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

BURST = "6kb"  # of the token bucket: four packets
QUEUE = "400ms"  # what waits longer than this before the bucket is dropped, as a modem's buffer does


class Unavailable(Exception):
    """Why there is no namespace here."""


def run(*command: str) -> None:
    """Run a command; Unavailable with its words when it fails or is not there."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[:200]}")


class Namespace:
    """A context manager. The device's end is ``device``, ours ``host`` (addresses); made anew for each process."""

    def __init__(self) -> None:
        number = os.getpid() % 16000
        self.name, self._near, self._far = f"as-{number}", f"asn{number}", f"asf{number}"
        third, fourth = divmod(4 * number, 256)
        self.host, self.device = (f"10.213.{third % 256}.{fourth + i}" for i in (1, 2))
        self._loss = shutil.which("nft") is not None

    def __enter__(self) -> Namespace:
        if os.geteuid() != 0:
            raise Unavailable("not root: network namespaces need it")
        try:
            self._make()
            self.rate(1e6)
            self.loss(0.01)
            self.loss(0.0)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def command(self, *command: str) -> list[str]:
        """Return the command that runs ``command`` inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def rate(self, bps: float) -> None:
        """Limit what the device sends; the limit holds at once."""
        bucket = ("tbf", "rate", f"{bps:.0f}bit", "burst", BURST, "latency", QUEUE)
        run(*self.command("tc", "qdisc", "replace", "dev", self._far, "root", *bucket))

    def loss(self, share: float) -> None:
        """Drop this share of the packets that the device sends, at random, before they reach the bucket."""
        if self._loss:
            run(*self.command("nft", "flush", "chain", "ip", "fault", "out"))
            if share:
                rule = f"add rule ip fault out oifname {self._far} numgen random mod 1000 < {round(1e3 * share)} drop"
                run(*self.command("nft", rule))
            return
        run(*self.command("iptables", "-F", "OUTPUT"))
        if share:
            chance = ("-m", "statistic", "--mode", "random", "--probability", f"{share}")
            run(*self.command("iptables", "-A", "OUTPUT", "-o", self._far, *chance, "-j", "DROP"))

    def down(self, black: bool) -> None:
        """Take the path away without a word to either end, or give it back."""
        run("ip", "link", "set", self._near, "down" if black else "up")

    def _make(self) -> None:
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
        run("ip", "addr", "add", f"{self.host}/30", "dev", self._near)
        run("ip", "link", "set", self._near, "up")
        run(*self.command("ip", "addr", "add", f"{self.device}/30", "dev", self._far))
        run(*self.command("ip", "link", "set", self._far, "up"))
        run(*self.command("ip", "link", "set", "lo", "up"))
        if self._loss:
            run(*self.command("nft", "add table ip fault"))
            run(*self.command("nft", "add chain ip fault out { type filter hook output priority 0; }"))

    def _remove(self) -> None:
        for command in (("ip", "netns", "del", self.name), ("ip", "link", "del", self._near)):
            subprocess.run(command, capture_output=True, check=False)

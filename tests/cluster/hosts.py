"""Machines of a cluster on this one: hosts made of namespaces, on a network that exists nowhere else.

A host has its own processes, network, name, /tmp, /dev/shm, /run, /mnt and home, and an sshd; the rest of its disk is
this machine's. Namespaces have no names here: they live as long as their processes, which the kernel ends when the
process that started them ends, however it does. So nothing is left over, and beds do not collide.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

SECONDS = 300  # no command takes so long unless it hangs
SHARED = Path("/mnt/raylingvo")  # the folder that all hosts of a bed share, as they see it

_NETWORK = "192.0.2.{}"  # of the addresses for documentation: nobody's
_HOME = Path("/root")
_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "rsync")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What is a host's own, by its folder's name, and what is seen through it: Python may be in a home, and we in /tmp.
# That comes last: the folder may be in it.
_OWN = {"mnt": Path("/mnt"), "run": Path("/run"), "home": _HOME, "tmp": Path("/tmp")}
_SEEN = [Path(__file__).parents[2], Path(sys.prefix), Path(sys.base_prefix)]
# The kernel kills the command with us, and unshare its process 1 with itself, and so all that is in its namespaces.
_WITH_US = ("setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child")

# Process 1 of a host. A shell, for it waits for the orphans that daemons become.
_INIT = """
set -eu
echo born
read -r _
mount -t tmpfs -o size={shm_bytes} shm /dev/shm
{mounts}
true >/run/sshd.log
/usr/sbin/sshd -D -e -f /run/sshd_config 2>>/run/sshd.log &
until grep -q 'Server listening' /run/sshd.log; do kill -0 $!; sleep 0.02; done
echo ready
wait
"""

_SSHD = """
HostKey /run/host_key
PidFile none
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication no
MaxStartups 100
"""


def missing() -> str | None:
    """Why there can be no bed here; None if there can."""
    if os.geteuid() != 0:
        return "needs root"
    if absent := [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]:
        return f"{', '.join(absent)} not installed"
    command = ["unshare", "-pfmun", "--mount-proc", "ip", "link", "add", "lan", "type", "bridge"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    return f"no namespaces or bridges: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """A machine. When it is off it keeps its home and its /tmp."""

    def __init__(self, bed: Bed, name: str, address: str):
        self.name = name
        self.address = address
        self._bed = bed
        self._folder = bed.folder / name
        for own in _OWN:
            (self._folder / own).mkdir(parents=True)
        self.home = self._folder / "home"
        self.tmp = self._folder / "tmp"
        self._init: subprocess.Popen[str] | None = None
        self._pid = 0  # of its process 1, here
        run = self._folder / "run"
        (run / "sshd").mkdir()  # which it wants for itself
        (run / "sshd_config").write_text(_SSHD)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(run / "host_key"))
        (self.home / ".ssh").mkdir(mode=0o700)
        shutil.copy(bed.key.with_suffix(".pub"), self.home / ".ssh/authorized_keys")

    def start(self) -> None:
        """Switches it on: returns when its sshd listens."""
        assert self._init is None
        script = _INIT.format(shm_bytes=self._bed.shm_bytes, mounts="\n".join(self._mounts()))
        self._init = _popen(*_WITH_US, "-pfmuni", "--mount-proc", "bash", "-c", script)
        _expect(self._init, "born")
        (child,) = psutil.Process(self._init.pid).children()
        self._pid = child.pid
        _run("hostname", self.name, within=(self._pid, "-u"))
        self._bed.plug(self.name, self._pid)
        for command in (
            "link set lo up",
            # The same as before it was off: others remember.
            f"link set eth0 address 02:00:00:00:00:{int(self.address.rpartition('.')[2]):02x} up",
            f"address add {self.address}/24 dev eth0",
            f"route add default via {_NETWORK.format(254)}",  # without one, Ray would think of loopback
        ):
            _run("ip", *command.split(), within=(self._pid, "-n"))
        assert self._init.stdin is not None
        self._init.stdin.write("connected\n")
        self._init.stdin.flush()
        _expect(self._init, "ready")

    def _mounts(self) -> Iterator[str]:
        for own, place in _OWN.items():
            folder = self._folder / own
            for path in _SEEN:
                if path.is_relative_to(place):
                    through = folder / path.relative_to(place)
                    yield shlex.join(["mkdir", "-p", str(through)])
                    yield shlex.join(["mount", "--rbind", str(path), str(through)])
        shared = self._folder / "mnt" / SHARED.relative_to("/mnt")
        yield shlex.join(["mkdir", "-p", str(shared)])
        yield shlex.join(["mount", "--bind", str(self._bed.shared), str(shared)])
        for name in ("hosts", "resolv.conf"):
            yield shlex.join(["mount", "--bind", str(self._bed.folder / name), f"/etc/{name}"])
        for own, place in _OWN.items():
            yield shlex.join(["mount", "--rbind", str(self._folder / own), str(place)])

    def command(self, text: str) -> list[str]:
        """What does here what `text` does there, typed in a login shell."""
        assert self._pid, f"{self.name} is off"
        environment = ["env", "-i", f"HOME={_HOME}", "USER=root", "LOGNAME=root", "TERM=dumb", f"PATH={_PATH}"]
        enter = ["nsenter", "-t", str(self._pid), "-m", "-u", "-n", "-p", "-i", "--"]
        return [*enter, *environment, "bash", "--login", "-c", f"cd; {text}"]

    def run(self, text: str, *, check: bool = True, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Types a command there; an error tells what it said."""
        done = subprocess.run(
            self.command(text), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
        assert not check or done.returncode == 0, f"{text}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    @contextlib.contextmanager
    def typed(self, text: str) -> Iterator[subprocess.Popen[str]]:
        """A command there, and all that it says. It is killed if it has not ended by then."""
        with subprocess.Popen(
            self.command(text), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def processes(self) -> list[str]:
        """The command lines of what runs there, but for its process 1 and sshd."""
        found = []
        for process in psutil.Process(self._pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()))
        return [line for line in found if line and not line.startswith("sshd")]

    def wait_until_idle(self) -> None:
        """Until nothing runs there but its process 1 and sshd."""
        end = time.monotonic() + SECONDS
        while left := self.processes():
            assert time.monotonic() < end, left
            time.sleep(0.1)

    def cut(self) -> None:
        """Pulls its network cable."""
        self._bed.set_port(self.name, "down")

    def mend(self) -> None:
        """Plugs it in again."""
        self._bed.set_port(self.name, "up")

    def kill(self) -> None:
        """Takes its power away: nobody on the network hears a word of it."""
        self.cut()
        self.end()

    def end(self) -> None:
        """Its processes die, and all that they had."""
        if self._init is not None:
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)  # unshare ends with it, when nothing of it is left
            else:
                self._init.kill()
            self._init.communicate()
            self._init, self._pid = None, 0
            self._bed.unplug(self.name)  # which the kernel would do a moment later


class Bed:
    """A network with hosts of these names, all switched on; a context manager.

    Names are also those in /etc/hosts. Anybody who has `key` may log in anywhere as root. Hosts end with the thread
    that has started them.
    """

    def __init__(self, *names: str, shm_bytes: int = 1 << 30):
        """shm_bytes: of each host's /dev/shm."""
        self.shm_bytes = shm_bytes
        self._names = names

    def __enter__(self) -> Bed:
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            # Ray's sockets do not mind: a host's /tmp is short there.
            self.folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="raylingvo-bed-")))
            self.shared = self.folder / "shared"
            self.shared.mkdir()
            self.key = self.folder / "key"
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
            addresses = {name: _NETWORK.format(number) for number, name in enumerate(self._names, start=1)}
            known = "".join(f"{address} {name}\n" for name, address in addresses.items())
            (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
            (self.folder / "resolv.conf").touch()
            self._switch = _popen(*_WITH_US, "-n", "sh", "-c", "echo plugged in; exec sleep infinity")
            opened.callback(_end, self._switch)
            _expect(self._switch, "plugged in")
            self._on_switch("link add lan type bridge forward_delay 0")
            self._on_switch("link set lan up")
            self.hosts = {name: Host(self, name, address) for name, address in addresses.items()}
            for host in self.hosts.values():
                opened.callback(host.end)
                host.start()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def plug(self, port: str, pid: int) -> None:
        """A cable from the network namespace of a process, its eth0, to a port of the switch."""
        self._on_switch(f"link add {port} type veth peer name eth0 netns {pid}")
        self._on_switch(f"link set {port} master lan up")

    def unplug(self, port: str) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it is not there any more
            self._on_switch(f"link delete {port}")

    def set_port(self, port: str, state: str) -> None:
        self._on_switch(f"link set {port} {state}")

    def throttle(self, port: str, gbits: float) -> None:
        """Lets no more through to a port's host, per second."""
        rate = f"root tbf rate {gbits * 1000:.0f}mbit burst 1mb latency 50ms"
        _run("tc", "qdisc", "replace", "dev", port, *rate.split(), within=(self._switch.pid, "-n"))

    def _on_switch(self, command: str) -> None:
        _run("ip", *command.split(), within=(self._switch.pid, "-n"))


def _run(*command: str, within: Sequence[object] = ()) -> None:
    """Runs a command. within: a process, and the option for that of its namespaces in which to run it."""
    if within:
        pid, namespace = within
        command = ("nsenter", "-t", str(pid), str(namespace), "--", *command)
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _popen(*command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # Not of our process group: Ctrl-C is for us, who end it in order.
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _expect(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != f"{line}\n":
        process.kill()
        raise RuntimeError(f"{said!r} instead of {line!r}: {process.communicate()[1]}")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()

"""The hosts that other tests here run a cluster on: that they are apart, can be lost, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster.hosts import SECONDS, SHARED, Bed, Host, missing

pytestmark = pytest.mark.cluster

SSH = "ssh -o StrictHostKeyChecking=accept-new -o BatchMode=yes -o ConnectTimeout=2"


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    if reason := missing():
        pytest.skip(f"no hosts can be made here: {reason}")
    with Bed("near", "far") as made:
        shutil.copy(made.key, made.hosts["near"].home / ".ssh/id_ed25519")
        yield made


@pytest.fixture
def near(bed: Bed) -> Host:
    return bed.hosts["near"]


@pytest.fixture
def far(bed: Bed) -> Host:
    return bed.hosts["far"]


def links() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def test_it_is_said_why_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program in ("sshd", "rsync") else program)
    assert missing() == "sshd, rsync not installed"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing() == "needs root"


def test_a_host_is_reached_by_name_and_by_address(near: Host, far: Host) -> None:
    for name in (far.name, far.address):
        assert near.run(f"{SSH} {name} hostname").stdout == "far\n"


def test_a_host_has_what_it_writes_for_itself_but_in_the_shared_folder(bed: Bed, near: Host, far: Host) -> None:
    near.run(f"touch /tmp/mine /dev/shm/mine /mnt/mine ~/mine /run/mine {SHARED}/ours")
    places = "/tmp/mine /dev/shm/mine /mnt/mine /root/mine /run/mine"
    assert near.run(f"ls -d {places}").stdout.split() == sorted(places.split())
    assert far.run(f"ls -d {places} {SHARED}/ours", check=False).stdout.split() == [f"{SHARED}/ours"]
    assert (bed.shared / "ours").exists()
    assert not any(Path(place).exists() for place in places.split())
    assert near.run("pgrep -c .").stdout == far.run("pgrep -c .").stdout  # their own processes alone


def test_a_host_sees_this_python_and_this_repository(near: Host) -> None:
    program = "import raylingvo, sys; print(sys.prefix, raylingvo.__file__)"
    here = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=SECONDS)
    assert near.run(f"cd {Path.cwd()}; {sys.executable} -c '{program}'").stdout == here.stdout


def test_a_host_that_is_cut_off_is_there_again_when_it_is_mended(near: Host, far: Host) -> None:
    left = far.run("nohup sleep 1000 >/dev/null 2>&1 & echo $!").stdout.strip()
    far.cut()
    assert near.run(f"{SSH} far true", check=False).returncode == 255
    far.mend()
    assert near.run(f"{SSH} far ps -o comm= -p {left}").stdout == "sleep\n"
    far.run(f"kill {left}")
    far.wait_until_idle()


def test_a_host_that_is_killed_keeps_its_disk(near: Host, far: Host) -> None:
    far.run("echo kept >~/kept; touch /dev/shm/lost; nohup sleep 1000 >/dev/null 2>&1 &")
    far.kill()
    assert near.run(f"{SSH} far true", check=False).returncode == 255
    far.start()
    assert far.processes() == []
    assert near.run(f"{SSH} far 'cat kept; ls /dev/shm'").stdout == "kept\n"


def test_beds_do_not_collide(near: Host) -> None:
    before = links()
    with Bed("near", "far") as other:
        assert links() == before
        (other.hosts["far"].home / "there").touch()
        assert "there" not in near.run(f"{SSH} far ls").stdout.split()  # that of the same address here
    assert not other.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_who_has_made_it(bed: Bed, number: signal.Signals, tmp_path: Path) -> None:
    # It tells by itself that it is there: the shell goes on before what it has put into the background has its name.
    there = "mkfifo /tmp/up; nohup sh -c 'echo > /tmp/up; sleep 1234; :' waiter >/dev/null 2>&1 & read up < /tmp/up"
    program = (
        "import sys; from cluster.hosts import Bed\n"
        "with Bed('alone') as bed:\n"
        f"    bed.hosts['alone'].run({there!r}); print('up', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "up\n", maker.communicate()[1]
        made = psutil.Process(maker.pid).children(recursive=True)
        assert any(process.cmdline()[-1:] == ["waiter"] for process in made)
        maker.send_signal(number)
        maker.communicate(timeout=SECONDS)
    _, alive = psutil.wait_procs(made, timeout=SECONDS)
    assert alive == []

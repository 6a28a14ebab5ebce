"""The first process of a machine: it makes the machine ready, and then a role without rights runs in it.

    /proc /sys /dev /tmp     mounted; the kernel's modules loaded, in the order of /lib/modules/order
    /n/hive                  what the host serves on the console port hvc0, mounted by the kernel's own v9fs
    /                        then read-only

Then a worker is started, which gives everything up before it imports anything: user and group 1000, no
capability, none to be had again, no new privileges. It is the role (see `inside`) and talks with the host
through /n/hive and the port `warren.export`. This process keeps the rights to end the machine, to end its
children, and to give rights up for another worker; it reaps whoever is left, and does nothing else.

How the worker ends says what follows: AGAIN, and another one is started, which reads the role afresh; with
anything else the machine is switched off. A machine that cannot be made ready says why on its console, and
is switched off too: what half works is told from what works by nobody.

Only the standard library is used here, because a worker that had the imports of a role already would have
made them with the rights of the first process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import stat
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Final, NoReturn

HIVE: Final = "/n/hive"
PORT: Final = "warren.export"
USER: Final = 1000
PATIENCE: Final = 10.0
AGAIN: Final = 75  # the worker wants to be started anew
MSIZE: Final = 512 << 10  # the kernel's own bound for a channel is lower, and it takes the lower one

# mount(2), prctl(2), reboot(2), capset(2) on x86-64
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 24, 38, 47, 4
KEPT: Final = {"kill": 5, "setgid": 6, "setuid": 7, "setpcap": 8, "sys_boot": 22}
_CAPS: Final = 64
_POWER_OFF: Final = 0x4321FEDC
_RESTART: Final = 0x01234567
_FINIT_MODULE: Final = 313

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Be the first process of a machine."""
    _must_be_first()
    code = 70
    try:
        code = run()
    except BaseException as e:
        say(f"the machine cannot go on: {e}")
    finally:
        say(f"ended code={code}")
        os.sync()
        # Without ACPI nothing can switch it off, and it would halt for good; QEMU ends when it restarts.
        libc.reboot(_POWER_OFF if Path("/sys/firmware/acpi").exists() else _RESTART)
        while True:
            signal.pause()


def run() -> int:
    """Make the machine ready and keep a worker in it; what the last one ended with."""
    first()
    text = Path("/proc/cmdline").read_text()
    words = cmdline(text)
    load(text)
    words["dialect"] = attach()
    port = export_port()
    name = words.get("warren.name", "guest").encode()[:64]
    _must(libc.sethostname(name, len(name)), "sethostname")
    mount("", "/", "", _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    keep(tuple(KEPT.values()))
    while (code := wait(start(words, port))) == AGAIN:
        say("the role is read again")
    return code


def say(text: str) -> None:
    """A line on the console, which is the machine's log."""
    print(f"warren: {text}", flush=True)


def cmdline(text: str) -> dict[str, str]:
    """The kernel's command line; of what is said twice the last counts, as for the kernel."""
    found = {}
    for word in text.split():
        name, _, value = word.partition("=")
        found[name.replace("-", "_")] = value
    return found


def _must_be_first() -> None:
    """In any other process all of this would be done to the machine that somebody works on."""
    if os.getpid() != 1:
        raise SystemExit("warren.roles.init is the first process of a machine, and nothing else")


def first() -> None:
    """Mount what every process expects."""
    _must_be_first()
    quiet = _NOSUID | _NOEXEC
    mount("proc", "/proc", "proc", quiet | _NODEV)
    mount("sysfs", "/sys", "sysfs", quiet | _NODEV)
    mount("devtmpfs", "/dev", "devtmpfs", quiet, "mode=755")
    mount("tmpfs", "/tmp", "tmpfs", quiet | _NODEV, "size=64m,mode=1777")
    mount("tmpfs", "/run", "tmpfs", quiet | _NODEV, "size=4m,mode=755")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2). OSError says what was to be mounted where."""
    args = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if libc.mount(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or 'again'} {options}: {os.strerror(number)}", target)


def load(text: str) -> None:
    """Load the modules, each with its parameters of the kernel's command line, every one of them."""
    for line in Path("/lib/modules/order").read_text().split():
        start = f"{Path(line).stem}."
        own = (word[len(start) :] for word in text.split() if word.startswith(start))
        with open(line, "rb") as module:
            if libc.syscall(_FINIT_MODULE, module.fileno(), " ".join(own).encode(), 0):
                number = ctypes.get_errno()
                if number not in (errno.EEXIST, errno.ENODEV):
                    raise OSError(number, f"the kernel does not load it: {os.strerror(number)}", line)


def there(path: str) -> str:
    """PATH, once it is there: a device comes when its driver is ready."""
    until = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > until:
            raise FileNotFoundError(errno.ENODEV, "the machine has no such device; see how it was made", path)
        time.sleep(0.01)
    return path


def attach() -> str:
    """Mount what the host serves; the dialect that is spoken.

    The port is raw before the first byte of 9P, or its echo answers it.

    The kernel looks at owners and modes before it asks the host, whose affair they are. Where the host shows
    its files as root's alone, the plain dialect is spoken, which lets us say whose they are.
    """
    fd = os.open(there("/dev/hvc0"), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(fd, termios.TCSANOW)
    common = f"trans=fd,rfdno={fd},wfdno={fd},cache=none,access=any,msize={MSIZE}"
    quiet = _NOSUID | _NODEV | _NOEXEC
    dialect = "9p2000.L"
    mount("hive", HIVE, "9p", quiet, f"{common},version={dialect},nodevmap")
    if not os.stat(f"{HIVE}/role").st_mode & stat.S_IROTH:
        _must(libc.umount2(HIVE.encode(), 0), f"umount {HIVE}")
        dialect = "9p2000"
        mount("hive", HIVE, "9p", quiet, f"{common},version={dialect},dfltuid={USER},dfltgid={USER}")
    os.close(fd)  # the mount has its own
    return dialect


def export_port() -> int:
    """The port on which the role is served, opened: the name is the host's, the number is anybody's."""
    for port in sorted(Path("/sys/class/virtio-ports").iterdir()):
        name = port / "name"
        if name.exists() and name.read_text().strip() == PORT:
            return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    return -1


def keep(wanted: tuple[int, ...]) -> None:
    """Give up every capability but the WANTED, for this process and all it starts."""
    bounded(wanted)
    mask = sum(1 << n for n in wanted)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    halves = [mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0, mask >> 32, mask >> 32, 0]
    _must(libc.capset(header, (ctypes.c_uint32 * 6)(*halves)), "capset")


def bounded(wanted: tuple[int, ...] = ()) -> None:
    """Take every capability but the WANTED out of the bounding set. What the kernel does not know ends it."""
    for n in range(_CAPS):
        if n not in wanted and libc.prctl(_CAPBSET_DROP, n, 0, 0, 0):
            if ctypes.get_errno() != errno.EINVAL:
                _must(-1, "prctl PR_CAPBSET_DROP")
            break


def _must(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def start(words: dict[str, str], port: int) -> int:
    """A worker; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        give_up()
        from warren.roles.inside import work

        code = work(words, port)
    except BaseException as e:
        import traceback

        traceback.print_exception(e)
    finally:
        sys.stdout.flush()
        os._exit(code & 0xFF)


def give_up() -> None:
    """Be an ordinary user, for good."""
    bounded()
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp"})
    _must(libc.prctl(_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0), "prctl PR_CAP_AMBIENT")
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _must(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")
    held = rights()
    if held["uid"] != USER or any(held[name] for name in ("permitted", "effective", "bounding", "ambient")):
        raise OSError(errno.EPERM, f"the worker still holds rights: {held}")


def rights() -> dict[str, int]:
    """What this process may do beyond its user: the kernel's own words for it, as numbers."""
    text = Path("/proc/self/status").read_text()
    named = {"permitted": "CapPrm", "effective": "CapEff", "bounding": "CapBnd", "ambient": "CapAmb",
             "inheritable": "CapInh"}  # fmt: skip
    found = {name: int(re.findall(rf"^{word}:\s*([0-9a-f]+)", text, re.MULTILINE)[0], 16)
             for name, word in named.items()}  # fmt: skip
    found["uid"] = max(map(int, re.findall(r"^Uid:\s*(.+)", text, re.MULTILINE)[0].split()))
    found["no_new_privs"] = int(re.findall(r"^NoNewPrivs:\s*(\d)", text, re.MULTILINE)[0])
    found["groups"] = len(re.findall(r"^Groups:(.*)", text, re.MULTILINE)[0].split())
    return found


def wait(worker: int) -> int:
    """Reap whoever ends until it is the worker; what it ended with."""
    while True:
        pid, status = os.wait()
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)
            for other in others():
                os.kill(other, signal.SIGKILL)
            return code if code >= 0 else 128 - code


def others() -> list[int]:
    """Processes that are not ours nor the kernel's: whoever a worker has left behind."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and path.name != "1":
            try:
                if os.readlink(path / "exe"):
                    found.append(int(path.name))
            except OSError:  # a thread of the kernel, or gone by now
                continue
    return found


def is_read_only(path: str) -> bool:
    """Whether nothing can be written at PATH, whoever asks."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY) and stat.S_ISDIR(os.stat(path).st_mode)

"""Running what a page shows: the console blocks of a document, against real processes.

A block fenced as ```console``` is a piece of two terminals:

    $ command              the first terminal, a bash; the output that is shown must come
    2$ command             the second one; left running once what is shown below it has come
    # command              needs root or a kernel that this host may lack: not run here
    ^C                     ends what runs in the second terminal
    ...                    any lines; at the end of one, the rest of it; within one, an audit's hash

A block that begins with no prompt is what the second terminal shows meanwhile. A command must succeed
unless an error of `warren` is shown. What no two runs share is compared by its form: times, trace and
qid numbers, serials and ids. `/home/you` stands for the reader's home, 5640 and 5641 for ports that are free.
"""

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.sources import ROOT

PATIENCE = 60.0
HOME, PORTS = "/home/you", ("5640", "5641")
_FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FORMS = (
    (r"trace=[0-9a-f]{16}", "trace=TRACE"),
    (r'"trace":"[0-9a-f]{16}"', '"trace":"TRACE"'),
    (r'"h":"[0-9a-f]{64}"', '"h":"..."'),
    (r'^"kind":"begin",.*', '"kind":"begin",...'),
    (r"\bts=[0-9.]+", "ts=TIME"),
    (r'"ts":[0-9.]+', '"ts":TIME'),
    (r"\bhive-[0-9a-f]{8}\.warren\b", "HIVE"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?Z)?", "WHEN"),
    (r"\bexp=\d+", "exp=TIME"),
    (r"\b[0-9a-f]{32,64}\b", "ID"),
    (r"\b(qid|version)=[1-9]\d*", r"\1=NUMBER"),
)


def blocks(page: Path) -> Iterator[list[str]]:
    for found in _FENCE.finditer(page.read_text()):
        yield found[1].splitlines()


def form(line: str) -> str:
    for pattern, shape in _FORMS:
        line = re.sub(pattern, shape, line)
    return line.rstrip()


def fits(shown: list[str], came: list[str]) -> bool:
    """Whether the lines that came are those shown, `...` being any of them."""
    if not shown:
        return not came
    if shown[0] == "...":
        return any(fits(shown[1:], came[n:]) for n in range(len(came) + 1))
    return bool(came) and alike(form(shown[0]), form(came[0])) and fits(shown[1:], came[1:])


def alike(shown: str, came: str) -> bool:
    """Whether a line is the one that is shown, or begins as that does before its ` ...`."""
    return came.startswith(shown[:-3]) if shown.endswith(" ...") else shown == came


class Lines:
    """The output of a process, line by line, with a limit to how long one waits."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self._rest = b""

    def next(self, patience: float = PATIENCE) -> str | None:
        """The next line, or None at the end or when nothing more comes in time."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                return None
            data = os.read(self._fd, 65536)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def all(self) -> list[str]:
        return list(iter(self.next, None))


class Terminals:
    """The reader's two terminals, and a home of their own."""

    def __init__(self, home: Path, path: str = "") -> None:
        with ExitStack() as taken:
            free = [taken.enter_context(socket.socket()) for _ in PORTS]
            for each in free:
                each.bind(("127.0.0.1", 0))
            self.ports = {shown: str(each.getsockname()[1]) for shown, each in zip(PORTS, free, strict=True)}
        self.home = home
        # Under `make test` make would tell every make of a page that it is a child, and that one says so.
        ours = ("WARREN_", "XDG_", "VIRTUAL_ENV", "MAKE", "MFLAGS")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self.env = {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8"}
        if path:
            self.env["PATH"] = f"{path}:{self.env['PATH']}"
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"], env=self.env, cwd=ROOT, bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines = Lines(self.shell)
        self.second: subprocess.Popen[bytes] | None = None
        self.second_lines: Lines | None = None

    def __enter__(self) -> "Terminals":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self.second, self.shell):
            if process is not None:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(PATIENCE)
                for end in (process.stdin, process.stdout):
                    if end is not None:
                        end.close()

    def here(self, text: str) -> str:
        return re.sub("|".join(PORTS), lambda shown: self.ports[shown[0]], text).replace(HOME, str(self.home))

    def there(self, line: str) -> str:
        line = line.replace(str(self.home), HOME)
        for shown, port in self.ports.items():
            line = line.replace(f"127.0.0.1!{port}", f"127.0.0.1!{shown}")
        return line

    def first(self, command: str) -> tuple[int, list[str]]:
        """Run a command in the first terminal: its status and what it printed."""
        assert self.shell.stdin is not None
        marked = f"{{ {self.here(command)}\n}} </dev/null; printf '\\n\\001%s\\n' $?\n"
        self.shell.stdin.write(marked.encode())
        came: list[str] = []
        while (line := self.lines.next()) is not None:
            if line.startswith("\1"):
                if came and not came[-1]:
                    came.pop()  # the newline before the mark
                return int(line[1:]), [self.there(each) for each in came]
            came.append(line)
        raise AssertionError(f"no end of {command!r}; so far: {came}")

    def start(self, command: str, shown: list[str]) -> None:
        """Run a command in the second terminal until it has printed what is shown and waits for more."""
        path = self.first("echo $PATH")[1][0]
        self.second = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-c", f"exec {self.here(command)}"],
            env={**self.env, "PATH": path}, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.second_lines = Lines(self.second)
        self.meanwhile(shown)
        self._settled()

    def meanwhile(self, shown: list[str]) -> None:
        """The second terminal shows these lines now; `^C` ends what runs there."""
        assert self.second is not None, "nothing runs in the second terminal"
        assert self.second_lines is not None
        for line in shown:
            if line == "^C":
                os.killpg(self.second.pid, signal.SIGINT)
                assert not self.second_lines.all()
                self.second.wait(PATIENCE)
                assert self.second.stdout is not None
                self.second.stdout.close()
                return
            came = self.second_lines.next()
            assert came is not None, f"the second terminal does not show {line!r}"
            assert form(self.there(came)) == form(line), f"the second terminal shows {came!r}, not {line!r}"

    def _settled(self) -> None:
        """Return once the second terminal's process has a socket, and it and the page's servers sleep.

        A reader that is not yet at its stream would miss the record that the page writes next. If it
        slept from before until after they were seen asleep, nothing is under way between them.
        """
        assert self.second is not None
        reader = self.second.pid
        others = [pid for pid in self._servers() if pid != reader]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            before = _asleep(reader)
            if before and _has_socket(reader) and all(map(_quiet, others)) and _asleep(reader) == before:
                return
            assert self.second.stdout is not None
            select.select([self.second.stdout], [], [], 0.02)
        raise AssertionError("the second terminal's command never came to wait")

    def _servers(self) -> Iterator[int]:
        """What the page has started with `warren serve`: its home is nobody else's."""
        ours = f"HOME={self.home}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                if b"serve" in words and ours in (path / "environ").read_bytes().split(b"\0"):
                    yield int(path.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


def _asleep(pid: int) -> str:
    """How often the process went to sleep, if it sleeps now; else nothing."""
    status = Path(f"/proc/{pid}/status").read_text()
    if not re.search(r"^State:\s+S", status, re.MULTILINE):
        return ""
    return "".join(re.findall(r"^voluntary_ctxt_switches:.*$", status, re.MULTILINE))


def _quiet(pid: int) -> bool:
    try:
        return bool(_asleep(pid))
    except FileNotFoundError:  # it ended, as quiet as can be
        return True


def _has_socket(pid: int) -> bool:
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return any(link.startswith("socket:") for link in links)


def play(page: Path, terminals: Terminals) -> int:
    """Run every block of a page in order; returns how many commands ran."""
    ran = 0
    for block in blocks(page):
        steps: list[tuple[str, str, list[str]]] = []  # prompt, command, what is shown below
        for line in block:
            prompt = re.match(r"(2?\$|#) ", line)
            if prompt and not (steps and steps[-1][1].endswith("\\")):
                steps.append((prompt[1], line[prompt.end() :], []))
            elif steps and steps[-1][1].endswith("\\"):
                before, command, _ = steps.pop()
                steps.append((before, f"{command}\n{line}", []))
            else:
                if not steps:
                    steps.append(("", "", []))
                steps[-1][2].append(line)
        for prompt_, command, shown in steps:
            if prompt_ == "":
                terminals.meanwhile(shown)
            elif prompt_ == "2$":
                terminals.start(command, shown)
            elif prompt_ == "$":
                status, came = terminals.first(command)
                assert fits(shown, came), f"$ {command}\n{_listed(shown)}\nis shown, not\n{_listed(came)}"
                refused = any(line.startswith("warren: ") for line in shown)
                assert (status != 0) == refused, f"$ {command}\nended with {status}\n{_listed(came)}"
            else:
                continue
            ran += 1
    return ran


def _listed(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)

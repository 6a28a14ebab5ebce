"""Real work over a mount of the disk server: git, sqlite, a compiler, tar, cp."""

import os
import random
import shutil
import stat as S
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.fuse.mounts import Child, Mount, run

START = Callable[..., Child]
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred files of many sizes and modes, with links, on a plain directory."""
    top = tmp_path_factory.mktemp("tree") / "tree"
    grow(top, 300, random.Random(5))
    return top


def grow(top: Path, files: int, dice: random.Random) -> None:
    """FILES files below TOP, one in five a hard link to an earlier one, and some symbolic links."""
    made: list[Path] = []
    for n in range(files):
        folder = top / f"d{n % 17}" / f"e{n % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {n}"
        if n % 5 == 4:
            os.link(made[n // 2 % len(made)], path)
        else:
            path.write_bytes(dice.randbytes(dice.choice([0, 1, 100, 5000, 5000, 70_000])))
            path.chmod(dice.choice([0o644, 0o600, 0o755]))
            os.utime(path, ns=(n * 10**15, n * 10**14 + n))
            made.append(path)
        if n % 20 == 0:
            os.symlink(f"../file {n}", folder / f"link {n}")


Seen = tuple[int, int, int, str]


def picture(top: Path) -> tuple[dict[str, Seen], list[list[str]]]:
    """What a copy must keep: kind and mode, size, time and contents of each name; who shares an inode."""
    seen: dict[str, Seen] = {}
    same: dict[int, list[str]] = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            st, at = path.lstat(), str(path.relative_to(top))
            if S.S_ISLNK(st.st_mode):
                seen[at] = (st.st_mode, st.st_size, 0, os.readlink(path))
            else:
                seen[at] = (st.st_mode, st.st_size, st.st_mtime_ns, sha256(path.read_bytes()).hexdigest())
                same.setdefault(st.st_ino, []).append(at)
                assert len(same[st.st_ino]) <= st.st_nlink
    return seen, sorted(sorted(names) for names in same.values() if len(names) > 1)


def test_git_clones_works_and_finds_no_fault(room: Path, tmp_path: Path, tree: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(tree, origin, symlinks=True)
    run(*GIT, "init", "-q", "-b", "main", cwd=origin)
    run(*GIT, "add", "-A", cwd=origin)
    run(*GIT, "commit", "-qm", "one", cwd=origin)
    clone = room / "clone"
    run(*GIT, "clone", "-q", "--no-hardlinks", origin, clone)
    assert run(*GIT, "status", "--porcelain", cwd=clone).out == ""
    (clone / "d0/e0/file 0").write_text("changed\n")
    (clone / "new").write_text("new\n")
    run(*GIT, "mv", "d1/e1/file 1", "moved", cwd=clone)
    run(*GIT, "checkout", "-qb", "side", cwd=clone)
    run(*GIT, "add", "-A", cwd=clone)
    run(*GIT, "commit", "-qm", "two", cwd=clone)
    run(*GIT, "checkout", "-q", "main", cwd=clone)
    assert not (clone / "new").exists()
    run(*GIT, "merge", "-q", "side", cwd=clone)
    run(*GIT, "gc", "-q", "--prune=now", cwd=clone)
    assert run(*GIT, "fsck", "--full", "--strict", cwd=clone).out == ""
    assert run(*GIT, "status", "--porcelain", cwd=clone).out == ""
    run(*GIT, "push", "-q", "origin", "side", cwd=clone)
    assert run(*GIT, "rev-parse", "side", cwd=origin).out == run(*GIT, "rev-parse", "HEAD", cwd=clone).out


SQLITE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[3])
db.execute("CREATE TABLE IF NOT EXISTS t (who TEXT, n INTEGER)")
print("ready", flush=True)
sys.stdin.readline()
for n in range(40):
    db.execute("BEGIN IMMEDIATE")
    (most,) = db.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()
    db.execute("INSERT INTO t VALUES (?, ?)", (sys.argv[2], most + 1))
    db.execute("ROLLBACK" if n % 10 == 9 else "COMMIT")
print(db.execute("PRAGMA journal_mode").fetchone()[0], flush=True)
sys.stdin.readline()
"""


def asked(database: Path, sql: str) -> str:
    code = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone())"
    return run(sys.executable, "-IS", "-c", code, database, sql).out.strip()


@pytest.mark.parametrize("journal", ["delete", "truncate"])
def test_two_processes_share_a_database(room: Path, child: START, journal: str) -> None:
    both = [child(SQLITE, room / "db", who, journal) for who in "ab"]
    for process in both:
        assert process.hear() == "ready"
    for process in both:
        process.tell("go")
    for process in both:
        assert process.hear() == journal
    assert asked(room / "db", "PRAGMA integrity_check") == "ok"
    assert asked(room / "db", "SELECT count(*), count(DISTINCT n), max(n) FROM t") == "72 72 72"
    assert not [path for path in room.glob("db-*") if path.stat().st_size]


def test_a_killed_writer_leaves_a_whole_database(room: Path, child: START) -> None:
    code = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("CREATE TABLE t (x)")
db.execute("INSERT INTO t VALUES ('kept')")
db.execute("BEGIN IMMEDIATE")
for n in range(200):
    db.execute("INSERT INTO t VALUES (randomblob(1000))")
print("half done", flush=True)
sys.stdin.readline()
"""
    writer = child(code, room / "db")
    assert writer.hear() == "half done"
    assert (room / "db-journal").exists()
    writer.process.kill()
    writer.process.wait()
    assert asked(room / "db", "SELECT group_concat(x) FROM t") == "kept"
    assert asked(room / "db", "PRAGMA integrity_check") == "ok"


def test_a_program_is_built_and_runs(room: Path) -> None:
    names = [f"part{n}" for n in range(30)]
    for n, name in enumerate(names):
        (room / f"{name}.h").write_text(f"#pragma once\nint {name}(void);\n")
        (room / f"{name}.c").write_text(f'#include "{name}.h"\nint {name}(void) {{ return {n}; }}\n')
    calls = " + ".join(f"{name}()" for name in names)
    headers = "".join(f'#include "{name}.h"\n' for name in names)
    (room / "main.c").write_text(
        f'#include <stdio.h>\n{headers}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    objects = " ".join(f"{name}.o" for name in ["main", *names])
    (room / "Makefile").write_text(
        f"program: {objects}\n\tgcc -o $@ $^\n%.o: %.c $(wildcard *.h)\n\tgcc -O0 -c -o $@ $<\n"
    )
    run("make", "-j2", "-s", cwd=room)
    assert run(room / "program").out == f"{sum(range(30))}\n"
    assert "up to date" in run("make", "-j2", cwd=room).out
    os.utime(room / "part7.c", ns=(2**61, 2**61))
    assert run("make", "-n", cwd=room).out.count("gcc") == 2


def test_tar_goes_round(room: Path, tree: Path, tmp_path: Path) -> None:
    run("tar", "-C", tree, "--format=pax", "-cf", tmp_path / "in.tar", ".")
    run("tar", "-C", room, "-xpf", tmp_path / "in.tar")
    run("tar", "-C", room, "--compare", "-f", tmp_path / "in.tar")
    run("tar", "-C", room, "--format=pax", "-cf", tmp_path / "out.tar", ".")
    (tmp_path / "back").mkdir()
    run("tar", "-C", tmp_path / "back", "-xpf", tmp_path / "out.tar")
    wanted = picture(tree)
    assert picture(room) == wanted
    assert picture(tmp_path / "back") == wanted


def test_cp_keeps_thousands_of_files_and_their_links(quick_disk: Mount, tmp_path: Path) -> None:
    assert quick_disk.folder
    room = quick_disk.at
    grow(tmp_path / "many", 2000, random.Random(9))
    wanted = picture(tmp_path / "many")
    run("cp", "-a", tmp_path / "many", room / "copy")
    assert picture(quick_disk.folder / "copy") == wanted
    run("diff", "-r", "--no-dereference", tmp_path / "many", room / "copy")
    run("cp", "-a", room / "copy/d3", room / "again")
    assert picture(room / "again") == picture(tmp_path / "many/d3")
    run("rm", "-rf", room / "copy", room / "again")
    assert os.listdir(room) == []


STORM = """
import os, random, sys
os.chdir(sys.argv[1])
dice = random.Random(int(sys.argv[2]))
names = [f"{d}/f{n}" for d in ("a", "b") for n in range(6)]
found = 0
for _ in range(200):
    one, other = dice.sample(names, 2)
    try:
        if dice.random() < 0.7:
            os.rename(one, other)
        elif dice.random() < 0.5:
            fd = os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, one.encode())
            os.close(fd)
        else:
            with open(one, "rb") as file:
                body = file.read()
            assert body in {b""} | {n.encode() for n in names}, body
            found += 1
    except (FileNotFoundError, FileExistsError):
        pass
print(found, flush=True)
"""


def test_a_storm_of_renames_loses_no_file(room: Path, disk: Mount, child: START) -> None:
    for folder in "ab":
        (room / folder).mkdir()
        for n in range(6):
            (room / folder / f"f{n}").write_text(f"{folder}/f{n}")
    workers = [child(STORM, room, str(n)) for n in range(4)]
    assert sum(int(worker.hear()) for worker in workers) > 20
    assert disk.folder
    for folder in "ab":
        there = sorted(os.listdir(disk.folder / room.name / folder))
        assert there == sorted(os.listdir(room / folder))
        for name in there:
            body = (room / folder / name).read_bytes()
            assert body == (disk.folder / room.name / folder / name).read_bytes()

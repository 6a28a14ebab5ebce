"""Role files: what counts, what is refused, and that every mistake is named with its line in one go."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.roles.changes import NOTHING, compare, waiting
from warren.roles.library import Shelf
from warren.roles.manifest import BadRole, Manifest, NoRole, Serve, load_role, parse_role, roles
from warren.roles.serves import SERVERS, count, names
from warren.serve.export import Limits

NS = "mount $self /\n"
GOOD = """\
role Worker        # a comment
namespace own.ns
serve proc /proc
serve ram /sim size=16M dirs=a,b
allow local read,write /sim/**
allow role/QueenPrimary/* ctl /proc/lifecycle/ctl#drain,resume
limit running=8 patience=2.5
limit unread=1M
store sqlite
listen tls
export $queen
strict
"""


def parsed(text: str, name: str = "Worker.role", **files: str) -> Manifest:
    """TEXT as a role, with FILES (`_` for the dot) to be included; own.ns shows what it serves."""
    there = {"own.ns": NS, **{k.replace("_", "."): v for k, v in files.items()}}

    def include(file: str) -> str:
        if file not in there:
            raise FileNotFoundError(2, f"there is no {file}")
        return there[file]

    return parse_role(text, name, include=include, include_roles=include)


def wrong(text: str, name: str = "Worker.role", **files: str) -> tuple[str, ...]:
    with pytest.raises(BadRole) as caught:
        parsed(text, name, **files)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# What a file says


def test_a_role_is_what_its_lines_say() -> None:
    m = parsed(GOOD)
    assert (m.role, m.namespace, m.text, m.restricted) == ("Worker", "own.ns", GOOD, "")
    assert m.space.lines() == NS
    assert m.serves == (Serve("proc", "/proc", {}), Serve("ram", "/sim", {"size": "16M", "dirs": "a,b"}))
    assert [str(row) for row in m.policy.rows] == [
        "allow local read,write /sim/**",
        "allow role/QueenPrimary/* ctl /proc/lifecycle/ctl#drain,resume",
    ]
    assert m.limits == Limits(running=8, patience=2.5, unread=1 << 20)
    assert (m.store, m.listens, m.exports_to, m.strict) == ("sqlite", True, ("$queen",), True)


def test_what_is_not_said_is_the_least() -> None:
    m = parsed("role Worker\nnamespace own.ns\n")
    assert (m.serves, m.policy.rows, m.limits) == ((), (), Limits())
    assert (m.store, m.listens, m.exports_to, m.strict) == ("memory", False, (), False)


def test_options_are_kept_as_written_and_read_as_what_they_mean() -> None:
    options = parsed(GOOD).serves[1].options
    assert count(options["size"]) == 16 << 20
    assert names(options["dirs"]) == ("a", "b")


def test_a_group_stands_for_each_of_its_members() -> None:
    m = parsed(edited("allow local", "group both local user/ann\nallow both"))
    assert [str(row) for row in m.policy.rows[:2]] == [
        "allow local read,write /sim/**",
        "allow user/ann read,write /sim/**",
    ]


def test_an_included_file_counts_where_it_is_included() -> None:
    text = edited("allow local", "group both local user/ann\ninclude rows.role\nallow local")
    m = parsed(text, rows_role="serve log /log\nallow both read /log/**\n")
    first = ["allow local read /log/**", "allow user/ann read /log/**"]
    assert [str(row) for row in m.policy.rows[:2]] == first
    assert [serve.server for serve in m.serves] == ["proc", "ram", "log"]
    assert [part.name for part in m.parts] == ["Worker.role", "rows.role", "own.ns"]


def test_every_file_that_counts_is_in_the_sum() -> None:
    text = edited("allow local", "include rows.role\nallow local")
    ns = "include base.ns\n"
    first = parsed(text, rows_role="# nothing\n", own_ns=ns, base_ns=NS)
    assert [part.name for part in first.parts] == ["Worker.role", "rows.role", "own.ns", "base.ns"]
    same = parsed(text, rows_role="# nothing\n", own_ns=ns, base_ns=NS)
    others = [
        parsed(text + "#", rows_role="# nothing\n", own_ns=ns, base_ns=NS),
        parsed(text, rows_role="# something\n", own_ns=ns, base_ns=NS),
        parsed(text, rows_role="# nothing\n", own_ns=ns + "#", base_ns=NS),
        parsed(text, rows_role="# nothing\n", own_ns=ns, base_ns=NS + "#"),
    ]
    assert same.sha256 == first.sha256
    assert len({first.sha256, *(other.sha256 for other in others)}) == 5


# What is refused

SHAPE = "write an absolute path such as /sim or /mesh/ca"
NUMBER = "is no number from 1 on, such as 64 or 16M"
WHO_IS = "is not any, local, role/ROLE/NAME, user/NAME or a spiffe:// name"
SMALL = "cannot name a group; a group is small letters, and no WHO by itself"
STORES = "it is store memory, store sqlite or store nats://HOST:PORT"
THREE = "\N{ARABIC-INDIC DIGIT THREE}"
BAD_LINES: Mapping[str, str] = {
    "rol Worker": "a role has no 'rol'; there are role, include, group, namespace, serve, allow, limit, "
                  "store, listen, export, strict",
    "role": "it is role NAME",
    "role Worker": "role was said at Worker.role:1; leave one out",
    "role 9lives": "'9lives' is no role; a role is a letter, then letters, digits or -, 64 characters at "
                   "most",
    "namespace other.ns": "namespace was said at Worker.role:2; leave one out",
    "namespace other": "it is namespace FILE.ns",
    "serve": "it is serve SERVER /PATH [key=value...]",
    "serve rma /x": f"there is no server 'rma'; there are {', '.join(SERVERS)}",
    "serve ram x": f"'x' is no place for a tree; {SHAPE}",
    "serve ram /": f"'/' is no place for a tree; {SHAPE}",
    "serve ram /x/../y": f"'/x/../y' is no place for a tree; {SHAPE}",
    "serve ram /x*": f"'/x*' is no place for a tree; {SHAPE}",
    "serve ram /sim": "/sim is at /sim, which Worker.role:4 serves; move one of them",
    "serve ram /sim/deep": "/sim/deep is in the way of /sim, which Worker.role:4 serves; move one of them",
    "serve ram /x colour=red": "ram has no option 'colour'; there are size, files, dirs",
    "serve log /x size=1": "log has no option 'size'; it takes none",
    "serve ram /x size": f"'' {NUMBER}",
    "serve ram /x size=0": f"'0' {NUMBER}",
    "serve ram /x size=1 size=2": "size is given twice; leave one out",
    "serve ram /x dirs=a,,b": "'' is no name of a directory; write names with commas between",
    "serve disk /x": "disk needs dir=; say it behind the path",
    "serve disk /x dir=relative": "'relative' is no absolute path of this machine",
    "serve disk /x dir=/srv read-only=maybe": "'maybe' is neither yes nor no",
    "allow local read": "it is allow WHO RIGHTS PATTERN",
    "allow local reed /sim": "'allow local reed /sim': no right 'reed'; the rights are read, write, create, "
                             "remove, ctl, delegate",
    "allow locals read /sim": f"'allow locals read /sim': 'locals' {WHO_IS}",
    "allow local read sim": "'allow local read sim': a pattern is an absolute path such as /** or /vm/*/ctl",
    "allow local read /smi/**": "read /smi/**: the role has nothing there; correct the path, or serve or "
                                "mount something at it",
    "group any local": f"'any' {SMALL}",
    "group role/x local": f"'role/x' {SMALL}",
    "group both": "it is group NAME WHO...",
    "group both nobody": f"'group both nobody': 'nobody' {WHO_IS}",
    "limit": "it is limit KEY=VALUE...",
    "limit speed=9": "there is no limit 'speed'; there are connections, fids, running, waiting, parked, "
                     "unread, buffers, patience",
    "limit running=9": "the limit running is set already; leave one out",
    "limit parked=-1": f"'-1' {NUMBER}",
    f"limit parked={THREE}": f"'{THREE}' {NUMBER}",
    "store": STORES,
    "store paper": STORES,
    "store memory": "store was said at Worker.role:9; leave one out",
    "listen tcp": "it is listen tls",
    "export queen": "it is export $queen",
    "export $self": "it is export $queen",
    "export $queen": "it exports to $queen already; leave one out",
    "strict yes": "it is strict",
    "allow 'local read": "a quote is not closed",
    "include": "it is include FILE.role",
    "include rows": "'rows' cannot be included; it is include FILE.role",
    "include absent.role": "there is no absent.role",
    "include Worker.role": "the files include each other: Worker.role -> Worker.role",
    "strict\0": "'\\x00' is in the line; write it with printable characters alone",
    "# " + "x" * 4096: "the line is longer than 4096 characters",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40].encode("unicode_escape").decode())
def test_a_bad_line_is_refused_and_told_why(line: str) -> None:
    assert wrong(f"{GOOD}{line}\n") == (f"Worker.role:13: {BAD_LINES[line]}",)


def test_all_bad_lines_are_named_in_one_go() -> None:
    order = [line for line in BAD_LINES if not line.startswith("allow local read /smi")]
    errors = wrong(GOOD + "".join(f"{line}\n" for line in order))
    assert [e.split(": ")[0] for e in errors] == [f"Worker.role:{13 + n}" for n in range(len(order))]


def test_bad_lines_of_the_namespace_are_named_with_those_of_the_role() -> None:
    text = edited("strict\n", "strikt\n")
    errors = wrong(text, own_ns="mount $self /\nmuont $queen /q\ninclude more.ns\n", more_ns="bind x\n")
    assert [e.split(": ")[0] for e in errors] == ["Worker.role:12", "own.ns:2", "more.ns:1"]


def test_bad_lines_of_an_included_file_are_named_where_they_are() -> None:
    errors = wrong(edited("strict\n", "include rows.role\nstrikt\n"), rows_role="# rows\nserve log log\n")
    assert [e.split(": ")[0] for e in errors] == ["rows.role:2", "Worker.role:13"]


def test_files_that_include_each_other_are_refused_with_the_way_they_do() -> None:
    errors = wrong(GOOD + "include a.role\n", a_role="include b.role\n", b_role="include a.role\n")
    assert errors == ("b.role:1: the files include each other: Worker.role -> a.role -> b.role -> a.role",)


def test_a_file_is_included_once() -> None:
    errors = wrong(GOOD + "include a.role\ninclude a.role\n", a_role="# nothing\n")
    assert errors == ("Worker.role:14: a.role is included already; leave one out",)


def test_includes_lines_and_rows_are_bounded() -> None:
    chain = {f"p{n}_role": f"include p{n + 1}.role\n" for n in range(30)}
    assert any("more than 16 files" in e for e in wrong(GOOD + "include p0.role\n", **chain))
    assert any("more than 2048 lines" in e for e in wrong(GOOD + "#\n" * 2048))
    many = f"group many {'local ' * 600}\n" + "allow many read /sim\n" * 7
    assert wrong(GOOD + many) == ("Worker.role:20: more than 4096 rows; say more with one pattern",)


def test_a_role_needs_a_name_and_a_namespace() -> None:
    assert wrong("strict\n") == (
        "Worker.role:1: no line says what the role sees; write namespace FILE.ns",
        "Worker.role:1: no line says whose file this is; write role NAME",
    )


def test_a_namespace_that_is_not_there_is_named_where_it_is_asked_for() -> None:
    assert wrong(edited("own.ns", "absent.ns")) == ("Worker.role:2: there is no absent.ns",)


def test_a_variable_that_no_role_has_is_refused() -> None:
    (error,) = wrong(GOOD, own_ns="mount $self /\nmount $quene /q\n")
    assert error.startswith("own.ns:2: ")


# What no line shows by itself


@pytest.mark.parametrize(
    ("namespace", "hidden"),
    [
        ("mount $queen /\n", ["/proc", "/sim"]),
        ("mount $self /\nmount $queen /sim\n", ["/sim"]),
        ("mount $self / /sim\n", ["/proc"]),
    ],
)
def test_a_server_that_the_namespace_does_not_show_is_refused(namespace: str, hidden: list[str]) -> None:
    text = "role Worker\nnamespace own.ns\nserve proc /proc\nserve ram /sim\n"
    errors = wrong(text, own_ns=namespace)
    assert [e.split(" show ")[1].split(";")[0] for e in errors] == hidden


def test_the_namespace_may_show_a_server_elsewhere() -> None:
    text = "role Worker\nnamespace own.ns\nserve proc /proc\n"
    assert parsed(text, own_ns="mount $queen /\nmount $self /me\n").serves


def test_rows_are_about_what_the_role_has_or_mounts() -> None:
    text = "role Worker\nnamespace own.ns\nserve ram /sim\n"
    ns = "mount $self /\nmount $queen /n/queen\nbind -r /n/queen/mesh /mesh\nunmount /n/queen\n"
    for path in ("/", "/sim", "/sim/a/b", "/*/a", "/**", "/mesh/ca/**", "/mesh", "/**/ctl"):
        assert parsed(f"{text}allow local read {path}\n", own_ns=ns).policy.rows
    for path in ("/cap", "/sims", "/n/queen/mesh", "/log/*"):
        assert len(wrong(f"{text}allow local read {path}\n", own_ns=ns)) == 1


def test_where_others_dial_in_rows_may_speak_of_them() -> None:
    row = "allow user/* read /n/*/proc/lifecycle/**\n"
    assert parsed(GOOD + row).policy.rows
    assert len(wrong(edited("listen tls\n", "") + row)) == 1


def test_rows_follow_what_the_namespace_makes_of_a_tree() -> None:
    text = "role Worker\nnamespace own.ns\nserve ram /sim\nallow local read {}/x\n"
    ns = "mount $self /\nbind /sim /mnt/sim\n"
    assert parsed(text.format("/mnt/sim"), own_ns=ns).policy.rows
    assert len(wrong(text.format("/mnt/simile"), own_ns=ns)) == 1


# Whatever is written

ODD = ["$", "'", "#", "/", "=", "**", "include", "group", "\0"]
WORDS = [*(word for line in GOOD.splitlines() for word in line.split()), *ODD]
LINES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=6).map(" ".join)


@given(st.lists(st.one_of(st.sampled_from(GOOD.splitlines()), LINES), max_size=20).map("\n".join))
def test_any_text_is_a_role_or_every_complaint_names_a_line(text: str) -> None:
    try:
        errors = [f"Worker.role:1: {parsed(text).role}"]
    except BadRole as e:
        errors = list(e.errors)
    assert errors
    assert all(re.match(r"(Worker\.role|own\.ns):\d+: \S", error) for error in errors)


WHO = st.sampled_from(["any", "local", "role/QueenPrimary/*", "user/*", "spiffe://hive.test/user/ann"])
RIGHTS = st.lists(st.sampled_from(["read", "write", "create", "remove", "delegate"]), min_size=1, unique=True)
PATHS = st.lists(st.sampled_from(["*", "**", "a", "b c".replace(" ", "-")]), max_size=3)
ROWS = st.tuples(WHO, RIGHTS.map(",".join), PATHS.map(lambda p: "/".join(["/sim", *p])))


@given(st.lists(ROWS.map(lambda row: f"allow {' '.join(row)}"), max_size=12))
def test_the_rows_of_a_file_are_its_policy_in_order_and_read_back_the_same(rows: list[str]) -> None:
    before = "allow local read,write /sim/**\n"
    policy = parsed(edited(before, "".join(f"{row}\n" for row in rows))).policy
    assert len(policy.rows) == len(rows) + 1
    again = parsed(edited(before, "".join(f"{row}\n" for row in policy.rows[:-1])))
    assert again.policy.rows == policy.rows


# Where files are


def test_a_file_of_the_state_comes_before_that_of_the_package(tmp_path: Path) -> None:
    packaged = load_role("DroneWorker")
    assert (packaged.source, {part.source for part in packaged.parts}) == ("package", {"package"})
    (tmp_path / "worker.role").write_text(Shelf().read("worker.role") + "limit connections=3\n")
    changed = load_role("DroneWorker", [tmp_path])
    assert (changed.source, changed.limits.connections) == ("package", 3)
    assert [p.source for p in changed.parts if p.name == "worker.role"] == [str(tmp_path / "worker.role")]
    assert changed.sha256 != packaged.sha256
    (tmp_path / "DroneWorker.role").write_text("role DroneWorker\nnamespace base.ns\n")
    assert load_role("DroneWorker", [tmp_path]).source == str(tmp_path / "DroneWorker.role")
    (tmp_path / "base.ns").write_text("mount $self /\n# mine\n")
    (ours,) = [p for p in load_role("DroneWorker", [tmp_path]).parts if p.name == "base.ns"]
    assert ours.source == str(tmp_path / "base.ns")


def test_a_role_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "Mine.role").write_text("role Mine\nnamespace base.ns\n")
    with pytest.raises(NoRole) as caught:
        load_role("Mien", [tmp_path])
    assert isinstance(caught.value, FileNotFoundError)
    assert "there is no role 'Mien'; the roles are BareMetalQueen, DroneWorker, " in str(caught.value)
    assert "Mine" in caught.value.there_are
    assert load_role("Mine", [tmp_path]).role == "Mine"


@pytest.mark.parametrize("name", ["", ".", "..", "../DroneWorker", "/etc/passwd", "a/b", "a\0b", "x" * 300])
def test_a_name_leads_out_of_no_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "roles").mkdir()
    (tmp_path / "DroneWorker.role").write_text("role DroneWorker\nnamespace base.ns\n")
    with pytest.raises(NoRole):
        load_role(name, [tmp_path / "roles"])


def test_a_role_may_have_other_files_and_a_file_is_taken_for_its_own_role_alone(tmp_path: Path) -> None:
    (tmp_path / "DroneWorker-trial.role").write_text("role DroneWorker\nnamespace base.ns\nlimit fids=7\n")
    assert load_role("DroneWorker", [tmp_path], "DroneWorker-trial.role").limits.fids == 7
    assert load_role("DroneWorker", [tmp_path]).limits == Limits()
    with pytest.raises(BadRole) as caught:
        load_role("SensorRelay", [tmp_path], "DroneWorker-trial.role")
    assert caught.value.errors == (
        "DroneWorker-trial.role:1: this is a file of DroneWorker, not of SensorRelay; write role SensorRelay",
    )
    with pytest.raises(NoRole):
        load_role("DroneWorker", [tmp_path], "../DroneWorker-trial.role")
    assert len(roles([tmp_path])) == 9


def test_files_that_are_only_included_are_no_roles() -> None:
    assert len(roles()) == 9
    with pytest.raises(BadRole, match=r"base.role:1: no line says whose"):
        load_role("base")


@pytest.mark.parametrize(
    ("data", "said"), [(b"role Mine\xff\n", "byte 9 is not UTF-8"), (b"#" * (1 << 19), "is larger than")]
)
def test_a_file_that_cannot_be_read_is_a_bad_role(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "Mine.role").write_bytes(data)
    (tmp_path / "Other.role").write_text("role Other\nnamespace mine.ns\ninclude Mine.role\n")
    (tmp_path / "mine.ns").write_bytes(data)
    with pytest.raises(BadRole, match=f"^Mine.role:1: .*{said}"):
        load_role("Mine", [tmp_path])
    with pytest.raises(BadRole) as caught:
        load_role("Other", [tmp_path])
    assert [(e.split(": ")[0], said in e) for e in caught.value.errors] == [
        ("Other.role:3", True),
        ("Other.role:2", True),
    ]
    assert "Mine" not in roles([tmp_path])


def test_the_sum_of_a_role_is_that_of_its_files_sums(tmp_path: Path) -> None:
    m = load_role("DroneWorker")
    for part in m.parts:
        (tmp_path / part.name).write_text(part.text)
    env = {"LC_ALL": "C", "PATH": os.defpath}
    script = f"sha256sum {' '.join(part.name for part in m.parts)} | sha256sum"
    printed = subprocess.check_output(["sh", "-c", script], cwd=tmp_path, env=env, text=True)
    assert printed.split()[0] == m.sha256


# What changes


def test_the_same_file_changes_nothing() -> None:
    assert compare(parsed(GOOD), parsed(GOOD + "# a comment\n")) == NOTHING
    assert waiting(parsed(GOOD), parsed(GOOD)) == []


def test_changes_are_said_in_words_and_those_that_must_wait_last() -> None:
    text = edited("read,write /sim/**", "read /sim/**").replace("running=8", "running=9")
    text = text.replace("serve ram /sim size=16M dirs=a,b", "serve ram /sim").replace("sqlite", "memory")
    text = text.replace("listen tls\n", "").replace("export $queen\n", "").replace("strict\n", "")
    old, new = parsed(GOOD), parsed(text, own_ns=NS + "mount -r $queen /mesh mesh\n")
    assert compare(old, new).splitlines() == [
        "policy - allow local read,write /sim/**",
        "policy + allow local read /sim/**",
        "namespace + mount -r $queen /mesh /mesh",
        "limit running: 8 before, 9 now",
        "serve - ram /sim size=16M dirs=a,b; needs a restart",
        "serve + ram /sim; needs a restart",
        "export - $queen; needs a restart",
        "store: sqlite before, memory now; needs a restart",
        "listen tls: no now; needs a restart",
        "strict: no now; needs a restart",
    ]
    assert len(waiting(old, new)) == 6


# What is written about it

PAGE = (Path(__file__).parents[2] / "docs/roles.md").read_text()


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def table(head: str) -> list[list[str]]:
    """The rows below a table's head: each cell's words that stand as code."""
    _, _, rest = PAGE.partition(f"| {head} |")
    rows = rest.partition("\n\n")[0].split("\n")[2:]
    return [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in rows]


def test_the_page_shows_a_role_that_can_be(tmp_path: Path) -> None:
    (tmp_path / "DroneWorker.role").write_text(block("role file=roles/DroneWorker.role"))
    old = load_role("DroneWorker", [tmp_path])
    text = old.text.replace("connections=64", "connections=32").replace("size=64M", "size=128M")
    (tmp_path / "DroneWorker.role").write_text(text + "allow user/bob read /sim/**\n")
    assert compare(old, load_role("DroneWorker", [tmp_path])) + "\n" == block("text compare")


def test_the_page_shows_what_is_said_of_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "Drone.role").write_text(block("text file=roles/Drone.role"))
    with pytest.raises(BadRole) as caught:
        load_role("Drone", [tmp_path])
    assert f"{caught.value}\n" == block("text errors")


def test_the_page_has_every_line_server_and_role() -> None:
    said = wrong(f"{GOOD}rol\n")[0].partition("there are ")[2].split(", ")
    lines = [code.split()[0] for row in table("line") for code in row]
    assert sorted(set(lines)) == sorted(said)
    assert [row[0] for row in table("server")] == list(SERVERS)
    assert sorted(row[0] for row in table("role")) == roles()
    for server, options in SERVERS.items():
        (line,) = re.findall(rf"^\| `{server}` \|.*$", PAGE, re.MULTILINE)
        assert all(f"`{option}=" in line for option in options)


def test_the_page_names_the_files_that_are_summed_in_their_order() -> None:
    names_of_parts = [part.name for part in load_role("DroneWorker").parts]
    assert f"sha256sum {' '.join(names_of_parts)} | sha256sum" in PAGE

"""Recipes: each that comes with Warren is whole, and nothing that is wrong becomes a command line."""

import pytest
from warren.boot.machines import recipe
from warren.boot.machines.recipe import BadRecipe

GOOD = """
about = "a machine"
machine = "microvm,acpi=off"
cpu = "max"
mem = "64M"
cpus = 1
boots = "kernel"
channel = "serial"
bus = "none"
export = false
exits = true
accel = ["tcg"]
limit = "10s"
"""


@pytest.mark.parametrize("name", recipe.names())
def test_what_comes_with_warren_is_whole(name: str) -> None:
    found = recipe.load(name)
    assert found.name == name
    assert found.limit > 0
    assert "tcg" in found.accel, "there is no other that works everywhere"
    assert recipe.describe(found)["machine"] == found.machine


def test_each_kind_of_image_has_one_recipe() -> None:
    kinds = [kind for name in recipe.names() for kind in recipe.load(name).default]
    assert sorted(kinds) == sorted(set(kinds))
    assert {"standin", "linux", "sel4", "secure"} <= set(kinds)
    assert recipe.chosen("standin").name == "standin-microvm"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('colour = "red"', "x: there is no key 'colour'"),
        ('machine = "pc -monitor stdio"', "x: machine: it is a machine with its options"),
        ('machine = "pc,memory-backend=/dev/mem"', "x: machine: it is a machine with its options"),
        ('cpu = "max\\n-S"', "x: cpu: it is a processor"),
        ('bios = "../../etc/passwd"', "x: bios: it is the name of a file"),
        ('mem = "1K"', "x: mem: '1K' is no size from 8M to 64G"),
        ('mem = "65G"', "x: mem: '65G' is no size"),
        ("mem = 64", "x: mem: it is a size"),
        ("cpus = 0", "x: cpus: it is a number from 1 to 64, not 0"),
        ("cpus = true", "x: cpus: it is a number"),
        ('boots = "net"', "x: boots: it is one of kernel, disk"),
        ('channel = "tcp"', "x: channel: it is one of serial, virtio"),
        ('export = "no"', "x: export: it is true or false"),
        ('accel = ["tcg", "tcg"]', "x: accel: it names something twice"),
        ("accel = []", "x: accel: it is a list"),
        ('accel = ["xen"]', "x: accel: it is one of kvm, tcg"),
        ('limit = "0s"', "x: limit: it is a time"),
        ('limit = "2h"', "x: limit: it is a time"),
        ('limit = "inf"', "x: limit: it is a time"),
        ('channel = "virtio"', "x: bus: a virtio channel and an export need a bus"),
        ("export = true", "x: bus: a virtio channel and an export need a bus"),
        ('cmdline = "a\\nb"', "x: cmdline: it is a line"),
        ("about = [", "x: "),
    ],
)
def test_a_bad_line_is_named(line: str, says: str) -> None:
    key = line.split()[0]
    kept = [said for said in GOOD.splitlines() if said.split(" ")[0] != key]
    with pytest.raises(BadRecipe) as bad:
        recipe.parse("x", "\n".join([*kept, line]))
    [said] = bad.value.errors
    assert said.startswith(says)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(BadRecipe) as bad:
        recipe.parse("x", 'mem = "1K"\nboots = "net"\n')
    missing = {line.split()[1] for line in bad.value.errors if line.endswith("is missing")}
    assert missing == {
        "about", "machine", "cpu", "cpus", "channel", "bus", "export", "exits", "accel", "limit",
    }  # fmt: skip
    assert len(bad.value.errors) == len(missing) + 2


def test_a_good_one_is_good() -> None:
    assert recipe.parse("x", GOOD).mem == 64 << 20


def test_an_unknown_recipe_says_which_there_are() -> None:
    with pytest.raises(BadRecipe, match="there are linux-microvm, linux-pc"):
        recipe.load("none")
    with pytest.raises(BadRecipe, match="no recipe is for 'toaster'"):
        recipe.chosen("toaster")

"""image: build images, and see what they are made of

    warren image ls                     every image there is a recipe for, and whether it is built
    warren image build NAME...          build what is not built; the sum and the folder of each
    warren image verify NAME...         hold every file against the signed manifest
    warren image sbom NAME              what it is made of, as CycloneDX 1.5
    warren image lock NAME              pin the packages that the archives have now

An image is kept by the sum of everything that went into it, so what is built is built once, and another
version of anything makes another image. Its manifest is signed with the key in the state's images/image.key,
made when it is first wanted. The same inputs give the same files, to the byte.

build fetches pinned packages through this machine's own apt and pip, which know where from. An archive that
has dropped a version makes it fail; lock pins what there is now, in the state's images/locks, and prints what
changed. --state says which state; with WARREN_IMAGES=DIR set, images are in DIR instead.

--json prints one object for each image. Exit code 0 means that all of it worked, 3 that there is no such
image or it is not built, 7 that a program or a package is not to be had, 9 that an image is not what was
signed.
"""

from __future__ import annotations

import errno
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.boot.images.image import Image, Images


def declare(parser: Parser) -> None:
    parser.add_argument("--state", metavar="DIR", help="where images are kept")
    add_json(parser)


def run(args: Namespace) -> int:
    verb, *named = args.words or [""]
    if verb not in VERBS:
        what = f"no verb {output.printable(verb)}" if verb else "a verb is missing"
        raise Usage(f"warren image: {what}; there are {', '.join(VERBS)}; see warren help image")
    act, least, most = VERBS[verb]
    if not least <= len(named) <= most:
        wants = "no NAME" if most == 0 else "a NAME" if most == 1 else "one NAME or more"
        raise Usage(f"warren image {verb}: it takes {wants}; warren image ls lists them")
    images = _images(args)
    for name in named:
        if name not in images.names():
            text = f"there is no such image; there are {', '.join(images.names())}"
            raise Stopped(errno.ENOENT, text, name, "warren image ls", exits.NOT_FOUND)
    return act(args, images, named)


def _images(args: Namespace) -> Images:
    from warren.boot.images.image import Images
    from warren.roles.state import State

    return Images.at(State(args.state).directory)


def _ls(args: Namespace, images: Images, named: list[str]) -> int:
    for name in images.names():
        recipe = images.recipe(name)
        try:
            image, lacking = images.find(name), ""
        except OSError as e:
            image, lacking = None, _why(e)
        old = None if image else images.latest(name)
        state = "built" if image else "cannot be built" if lacking else "out of date" if old else "not built"
        if args.json:
            there = image or old
            said = {"name": name, "kind": recipe.kind, "state": state, "about": recipe.about}
            output.document({**said, "lacking": lacking, **(_facts(there) if there else {})})
            continue
        output.line(f"{name:<10} {state:<16} {recipe.about}")
        if lacking:
            output.line(f"{'':<10} {lacking}")
    return exits.OK


def _build(args: Namespace, images: Images, named: list[str]) -> int:
    import trio

    for name in named:
        image = trio.run(images.build, name, output.say)
        if args.json:
            output.document(_facts(image))
        else:
            output.line(f"{image.input_hash} {image.folder}")
    return exits.OK


def _verify(args: Namespace, images: Images, named: list[str]) -> int:
    code = exits.OK
    for name in named:
        verdict = images.verify(_built(images, name))
        if args.json:
            output.document({"name": name, "ok": verdict.ok, "faults": list(verdict.faults)})
        else:
            for line in verdict.faults or ("every file is what was signed",):
                output.line(f"{name}: {line}")
        code = code if verdict.ok else exits.BAD_INPUT
    return code


def _sbom(args: Namespace, images: Images, named: list[str]) -> int:
    output.put(_built(images, named[0]).files["sbom"].read_bytes())
    return exits.OK


def _lock(args: Namespace, images: Images, named: list[str]) -> int:
    import trio

    before = images.pinned(named[0])
    path, found = trio.run(images.lock, named[0], output.say)
    after = {(pin.kind, pin.name): pin.version for pin in found.pins}
    old = {(pin.kind, pin.name): pin.version for pin in before.pins} if before else {}
    for key in sorted(old.keys() | after.keys()):
        if old.get(key) != after.get(key):
            output.line(f"{' '.join(key)}: {old.get(key, 'none')} before, {after.get(key, 'none')} now")
    output.line(f"{len(found.pins)} packages are pinned in {path}")
    return exits.OK


VERBS: dict[str, tuple[Callable[[Namespace, Images, list[str]], int], int, int]] = {
    "ls": (_ls, 0, 0),
    "build": (_build, 1, 64),
    "verify": (_verify, 1, 64),
    "sbom": (_sbom, 1, 1),
    "lock": (_lock, 1, 1),
}


def _built(images: Images, name: str) -> Image:
    image = images.latest(name)
    if image is None:
        raise Stopped(errno.ENOENT, "it is not built", name, f"warren image build {name}", exits.NOT_FOUND)
    return image


def _facts(image: Image) -> dict[str, object]:
    return {
        "name": image.name, "kind": image.kind, "sum": image.input_hash, "folder": str(image.folder),
        "bytes": image.size, "seconds": image.seconds,
        "files": {output.word: {"file": output.file, "sha256": output.sha256, "bytes": output.size}
                  for output in image.manifest.outputs},
    }  # fmt: skip


def _why(e: OSError) -> str:
    return getattr(e, "detail", "") or e.strerror or str(e)

"""The boot harness: an image is booted, judged, timed in stages, and gated.

    harness          one boot, and its verdict: booted, refused or error
    prepare          an image made ready to boot, or refused before it starts
    outcome gate     what came of it, and the bounds it is held to; pinned.toml
    bench            what /boot and `warren boot` do, over images and recipes
"""

"""Images: built from pinned inputs, the same each time, signed, and verified before they boot.

    image shelf      the images of one place: find, build, verify
    plan inputs      a recipe, and the pinned things that it names
    packages         what a Debian package or a wheel gives an image
    standin linux v9fs build     the kinds of images
    manifest sbom    what an image is, signed, and what is in it
"""

"""`python -m warren.shell`: the command as a part of something else, with which it ends.

Who supervises a command starts it so. One that was started by hand is not bound to anybody.
"""

import sys

from warren.roles.processes import die_with_parent
from warren.shell.main import main

if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())

"""completion: completion for a shell

    warren completion bash

Prints what makes bash complete commands, options, paths and the verbs of ctl files. To have it:

    source <(warren completion bash)

Paths and verbs are asked of the tree that the line means; if it does not answer there are none.
"""

from argparse import Namespace

from warren.shell import exits, output
from warren.shell.arguments import Parser
from warren.shell.exits import Usage

# `=` leaves bash's word breaks because key=value is one word to a ctl file.
BASH = r"""_warren() {
    local IFS=$'\n'
    COMPREPLY=($(warren complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    case ${COMPREPLY[0]-} in
    */ | *=) compopt -o nospace 2>/dev/null ;;
    esac
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o default -F _warren warren
"""


def declare(parser: Parser) -> None:
    """No options."""


def run(args: Namespace) -> int:
    if args.words != ["bash"]:
        raise Usage("warren completion: for which shell? There is bash: warren completion bash")
    output.put(BASH.encode())
    return exits.OK

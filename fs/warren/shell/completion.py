"""completion: completion for a shell

    warren completion bash|zsh

Prints what makes that shell complete commands, options, paths, the verbs of ctl files, and the names and
roles of a hive. To have it:

    source <(warren completion bash)
    source <(warren completion zsh)

Paths and verbs are asked of the tree that the line means; if it does not answer there are none. Where there
is nothing of Warren's to complete, files of this machine are.
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

# What is found is quoted for the shell already (-Q), and what ends in / or = goes on without a space.
ZSH = r"""_warren() {
    local -a before found on
    (( CURRENT > 2 )) && before=("${(@Q)words[2,CURRENT-1]}")
    found=("${(@f)$(warren complete -- "${before[@]}" "${(Q)PREFIX}" 2>/dev/null)}")
    found=(${found:#})
    (( $#found )) || { _files; return }
    on=(${(M)found:#*[/=]})
    found=(${found:#*[/=]})
    (( $#on )) && compadd -Q -S '' -a on
    (( $#found )) && compadd -Q -a found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -D }
compdef _warren warren
"""

SHELLS = {"bash": BASH, "zsh": ZSH}


def declare(parser: Parser) -> None:
    """No options."""


def run(args: Namespace) -> int:
    if len(args.words) != 1 or args.words[0] not in SHELLS:
        each = ", and ".join(f"{shell}: warren completion {shell}" for shell in SHELLS)
        raise Usage(f"warren completion: for which shell? There is {each}")
    output.put(SHELLS[args.words[0]].encode())
    return exits.OK

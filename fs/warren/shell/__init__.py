"""The `warren` command: sugar over files, one command a module.

    main        the dispatcher, and the table of commands
    ls cat tail stat write ctl      look at a tree and change it
    serve                           give a tree
    complete completion help docs   what the shell, and a reader, want to know of all these
    arguments   the parser of every command, and its help
    address     --at, and what it is when it is not given
    session     a connection for one command, and how a command ends
    exits       exit codes and ways out
    output      standard output and standard error

A command's module docstring is its manual: `warren COMMAND --help` prints it. It has `declare(parser)`
and `run(args) -> exit code`. What is slow to import (trio, the client, the servers) is imported where
it is used, so that help and completion of commands come at once.
"""

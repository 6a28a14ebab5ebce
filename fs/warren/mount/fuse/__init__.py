"""fuse: a tree as a directory of this machine.

    messages    what the kernel says, declared once
    device      /dev/fuse: mounted, read, written, unmounted
    nodes       the kernel's node numbers, and the names and fids behind them
    line        a user's connection, and the requests on it
    session     one mount: who waits, who is answered, who is given up
    notices     what the kernel is told unasked
    operations  what each request does: naming attributes opened directories locking
    errstr      the text behind an errno, by process
    serve       all of it together, for `warren mount`
"""

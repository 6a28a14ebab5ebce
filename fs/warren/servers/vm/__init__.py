"""/vm: machines.

    /clone            Clone   open it, read the id: the same descriptor is the machine's ctl
    /backends         Text    a line for each way to run them: NAME=1, or NAME=0 and why not
    /ctl              Ctl     verbs: kill, probe
    /events           Stream  made, ended, gone, swept
    /metrics /stats   Text    all machines together
    /<id>/            there while somebody holds it, or after keep
        ctl           Ctl     what it is to be: image kernel recipe arg name mem cpus disk share role limit
                              backend stay; what it is to do: start stop kill pause resume reset snapshot
                              restore tell export keep finish
        status        Text    id= name= state= boots= backend= … and once it has ended: ended= verdict=
        console       Stream  from the oldest byte kept to its end; what is written is typed
        events        Stream  from the first to its end: made starting building running report ready … ended
        wait          Stream  one line, once it has ended
        image         Text    what it boots
        ns            Text    what its guest finds on its channel
        qmp           Sink    one command of the emulator, and its answer; for local callers
        in/           files for the guest, which has them in /in
        out/          files that it leaves in /out, and archives of `export`
        metrics stats Text    what it uses

A machine that somebody cloned and nobody holds any more ends and is gone, with all its files. One that was
kept stays until `finish`. All of them end with their role.

**A guest** is known by the channel that its machine gave it, as `vm/<id>`. There it finds a tree of its own
and what was shared with it, and may do there what the share names and whoever shared it may do, now. It is
ready when it writes `state=ready` to /proc/boot. If it serves a tree itself, that is then at /n/<name>.

**An image that does nothing but start** (`standin`) is told to end when it is ready, so its console ends
too; not if something is shared with it, nor after `stay` or `keep`.
"""

from warren.servers.vm.tree import Vm

__all__ = ["Vm"]

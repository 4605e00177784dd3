"""Where workers run when there are several: `local` starts processes of this machine, `ray` actors on a cluster.

`orders` say what a worker is to do, `body` does it wherever it runs, `news` is what it tells, `oversight` watches all
of them for the person at the command. One worker of this machine needs none of this: `worker.here` runs it in the
command's own process.
"""

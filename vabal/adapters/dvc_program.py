"""A program that runs DVC's commands one after another, for importing DVC takes longer than most of them.

Started by `dvc_process`, by its path. On its standard input, a socket, it is told a command a line (its words, as
JSON), and answers with the exit code in a line; what the command says goes to the program's own streams. Each goes
through `dvc.cli.main`, as `python -m dvc` does; DVC's own tests call that as often in one process.

Once the other side closes the socket, or dies, the program ends at once, whatever it is doing.
"""

import gc
import json
import os
import socket
import sys
from queue import SimpleQueue
from threading import Thread


def main() -> None:
    asked: SimpleQueue[list[str]] = SimpleQueue()
    asker = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what DVC starts must not read what we are told
    Thread(target=_listen, args=(asker, asked), daemon=True).start()
    gc.set_threshold(50_000)  # to look through thousands of modules for garbage is a tenth of importing them
    from dvc import cli  # noqa: PLC0415 -- takes long, and who started us may be gone before that
    from dvc.cli import parser  # noqa: F401, PLC0415 -- every command needs it

    while True:
        code = cli.main(asked.get()) or 0
        sys.stdout.flush()
        sys.stderr.flush()
        asker.sendall(f"{code}\n".encode())


def _listen(asker: socket.socket, asked: "SimpleQueue[list[str]]") -> None:
    with asker.makefile("rb") as lines:
        for line in lines:
            asked.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()

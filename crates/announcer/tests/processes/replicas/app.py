"""An app that says by its own clock when it ran: HOST PORT FOLDER DELAY.

It appends lines to FOLDER/HOST.PID, each a letter and CLOCK_MONOTONIC in ns, which all processes of a host share: `s` at its
start, `u` every 5 ms while it serves, `t` at SIGTERM. It ends with 3 while FOLDER/crash-HOST exists.
"""
import os
import signal
import socket
import sys
import time

host, port, folder, delay = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
log = os.open(f"{folder}/{host}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def say(letter):
    os.write(log, f"{letter} {time.monotonic_ns()}\n".encode())


def stop(*_):
    say("t")
    os._exit(0)


say("s")
signal.signal(signal.SIGTERM, stop)
crash = f"{folder}/crash-{host}"
end = time.monotonic() + delay
while time.monotonic() < end:
    say("s")
    time.sleep(0.005)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen(64)
listener.setblocking(False)
while True:
    if os.path.exists(crash):
        os._exit(3)
    say("u")
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        pass
    time.sleep(0.005)

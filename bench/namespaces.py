# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of this process, for the lab and for tests. Needs root."""
import ctypes
import json
import os
import subprocess
import threading

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """There are no such namespaces here, and why."""


def in_thread(call):
    """Runs it in a thread of its own: a thread may leave its namespace alone."""
    result = []

    def run():
        try:
            result.append((call(), None))
        except BaseException as error:
            result.append((None, error))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def check(status):
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_namespace():
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A network namespace. It lives as long as a file descriptor of this process or a process in it,
    so nothing is left, however this process ends."""

    def __init__(self):
        def make():
            check(libc.unshare(CLONE_NEWNET))
            return own_namespace()
        self.fd = in_thread(make)

    def inside(self, call):
        """What `call` opens, starts or reads is this namespace's. On this thread: a process may want
        to end with the thread that started it."""
        outside = own_namespace()
        try:
            check(libc.setns(self.fd, CLONE_NEWNET))
            try:
                return call()
            finally:
                check(libc.setns(outside, CLONE_NEWNET))
        finally:
            os.close(outside)

    def call(self, *words):
        done = self.inside(lambda: subprocess.run(words, capture_output=True, text=True))
        if done.returncode != 0:
            raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")

    def ip(self, *words):
        self.call("ip", *words)

    def counters(self, device):
        """What the kernel has counted at a device: {"rx": {"bytes", "packets", ...}, "tx": ...}."""
        shown = self.inside(lambda: subprocess.run(["ip", "-s", "-j", "link", "show", "dev", device], capture_output=True,
                                                   text=True, check=True))
        return json.loads(shown.stdout)[0]["stats64"]

    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self):
        os.close(self.fd)

#!/usr/bin/env python3
"""Runs a command as root on another Linux kernel: a QEMU machine that shares the host's `/`.

The share is read-only, below a tmpfs. The kernel is a Debian package of the host's own apt sources; nothing
is installed. Standard library only, x86-64 only. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import io
import lzma
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final, NoReturn

PACKAGES: Final = ("qemu-system-x86", "busybox-static")
"""What to install with apt-get before this is used; dpkg and apt themselves are taken for granted."""

DEFAULT_KERNEL: Final = "6.1"
DEFAULT_TIMEOUT: Final = 600.0

EXIT_TIMEOUT: Final = 124
"""Exit code of the command line when the time limit has passed, as of timeout(1)."""
EXIT_MACHINE: Final = 125
"""Exit code of the command line when the machine, not the command, failed."""

_HERE: Final = Path(__file__).resolve().parent
_MODULES: Final = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_MSIZE: Final = 512000
"""Largest 9p message in bytes: what a virtio queue of 128 pages holds, less its headers."""
_KEPT_MODULES: Final = ("arch", "block", "crypto", "fs", "lib", "mm", "net", "virt")
_KEPT_DRIVERS: Final = ("block", "char", "net", "virtio")
_CONSOLE_TAIL: Final = 64 * 1024
_GRACE: Final = 10.0
"""Seconds that a machine may take to power off once its command has ended."""
_PASSED_ENVIRONMENT: Final = ("HOME", "LANG", "LC_ALL", "PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME")
_STANDARD_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MachineError(Exception):
    """The machine could not be made, started or ended as it should; the message says what to do."""


class MachineTimeoutError(MachineError):
    """The command did not end within the time limit; the machine was ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package in the cache."""

    release: str
    """As `uname -r` prints it."""
    image: Path
    """What qemu loads: the bare executable, or the package's compressed one."""
    modules: Path
    """The folder that holds `modules.dep`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A command for the machine, and where it runs."""

    command: Sequence[str]
    directory: Path = dataclasses.field(default_factory=Path.cwd)
    """A folder of the host; the guest sees it at the same path."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Added to PATH, HOME and the locale, which the guest takes from the caller."""
    share: Path | None = None
    """A folder of the host that the guest may write to, at /mnt/share."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds from the start of the machine."""


# --- the kernel package ---


def find_kernel(version: str = DEFAULT_KERNEL, *, update: bool = False) -> Kernel:
    """Return the newest kernel of a version, from the cache if one is there, else from apt.

    `version` is the beginning of a release: `6.1`, `6.12`, `6.1.0-50`. With `update` apt is asked although
    the cache has one. Raises MachineError when there is none, or the package cannot be had.
    """
    cache = _cache_folder()
    if not update and (kernel := _cached_kernel(cache, version)) is not None:
        return kernel
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not update and (kernel := _cached_kernel(cache, version)) is not None:
            return kernel
        release = _newest_release(version)
        if not (cache / release).is_dir():
            _install_kernel(cache, release)
        return _kernel(cache, release)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "spanweld" / "vm"


def _kernel(cache: Path, release: str) -> Kernel:
    return Kernel(release, cache / release / "kernel", cache / release / "modules")


def _cached_kernel(cache: Path, version: str) -> Kernel | None:
    if not cache.is_dir():
        return None
    releases = [
        folder.name for folder in cache.iterdir() if folder.is_dir() and _is_of_version(folder.name, version)
    ]
    return _kernel(cache, max(releases, key=_order)) if releases else None


def _is_of_version(release: str, version: str) -> bool:
    return release == version or release.startswith((f"{version}.", f"{version}-", f"{version}+"))


def _order(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _newest_release(version: str) -> str:
    """Ask apt's metadata, leaving out meta-packages, rt, unsigned and cloud kernels (these have no 9p)."""
    names = _output("apt-cache", "pkgnames", f"linux-image-{version}").split()
    pattern = re.compile(r"linux-image-(\d+\.\d+\.\d+(?:[-+][0-9a-z.+~]+)?-amd64)")
    known = {
        match[1] for name in names if (match := pattern.fullmatch(name)) and _is_of_version(match[1], version)
    }
    offered = known & set(_offered(sorted(known)))
    if not offered:
        raise MachineError(
            f"apt knows no package linux-image-{version}*-amd64: run `apt-get update` as root, and look at "
            f"`apt-cache search --names-only '^linux-image-[0-9].*-amd64$'` for what your sources have"
        )
    return max(offered, key=_order)


def _offered(releases: Sequence[str]) -> Iterator[str]:
    if not releases:
        return
    release = ""
    for line in _output(
        "apt-cache", "policy", *(f"linux-image-{release}" for release in releases)
    ).splitlines():
        if line.startswith("linux-image-"):
            release = line.rstrip(":").removeprefix("linux-image-")
        elif line.strip().startswith("Candidate:") and "(none)" not in line:
            yield release


def _install_kernel(cache: Path, release: str) -> None:
    """Put `kernel` and `modules` of a release into the cache, all or nothing. The caller holds the lock."""
    busybox = _busybox()
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as name:
        folder = Path(name)
        package = f"linux-image-{release}"
        _note(f"downloading {package} (about 70 to 100 MB, once)")
        _output(
            "apt-get",
            "download",
            *(("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()),
            package,
            cwd=folder,
        )
        (archive,) = folder.glob("*.deb")
        tree = folder / "tree"
        _output("dpkg-deb", "-x", str(archive), str(tree))
        modules = tree / "lib" / "modules" / release
        if not modules.is_dir():
            modules = tree / "usr" / "lib" / "modules" / release
        _prune(modules / "kernel")
        _output(str(busybox), "depmod", "-b", str(modules.parents[2]), release)
        ready = folder / "ready"
        ready.mkdir()
        (ready / "kernel").write_bytes(_bare_kernel((tree / "boot" / f"vmlinuz-{release}").read_bytes()))
        modules.rename(ready / "modules")
        ready.rename(cache / release)


def _bare_kernel(image: bytes) -> bytes:
    """Return the executable within a bzImage packed with xz, else the bzImage itself.

    The guest would take five seconds to unpack it at each start; qemu starts the bare one by its PVH note.
    Source: Documentation/arch/x86/boot.rst, setup_sects, payload_offset and payload_length.
    """
    if image[0x202:0x206] != b"HdrS":
        raise MachineError("the package's kernel is no bzImage: choose another with --kernel")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    return lzma.LZMADecompressor().decompress(payload) if payload.startswith(b"\xfd7zXZ\0") else image


def _prune(tree: Path) -> None:
    """Drop modules for devices that the machine does not have: they are four fifths of the package."""
    for folder in tree.iterdir():
        if folder.name not in (*_KEPT_MODULES, "drivers"):
            shutil.rmtree(folder)
    for folder in (tree / "drivers").iterdir():
        if folder.name not in _KEPT_DRIVERS:
            shutil.rmtree(folder)
    for folder in (tree / "drivers" / "net").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def _module_order(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """Return the files of the modules and of all that they need, in the order of loading."""
    needs: dict[str, list[str]] = {}
    paths: dict[str, Path] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[_module_name(path)] = [_module_name(need) for need in rest.split()]
        paths[_module_name(path)] = kernel.modules / path
    builtin = {_module_name(path) for path in (kernel.modules / "modules.builtin").read_text().split()}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in paths:
            raise MachineError(f"kernel {kernel.release} has no module {name}: choose another with --kernel")
        for need in needs[name]:
            add(need)
        order.append(name)

    for name in names:
        add(name)
    return [paths[name] for name in order]


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


# --- the initramfs ---


class _Cpio:
    """An archive in the "newc" form that the kernel unpacks."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._inode = 0

    def folder(self, path: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def device(self, path: str, major: int, minor: int) -> None:
        self._add(path, stat.S_IFCHR | 0o600, b"", major, minor)

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return self._data.getvalue()

    def _add(self, path: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, on device (2), of device (2), size of the name, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name), 0)
        self._data.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        self._align()
        self._data.write(content)
        self._align()

    def _align(self) -> None:
        self._data.write(b"\0" * (-self._data.tell() % 4))


def _initramfs(kernel: Kernel, job: Job) -> bytes:
    archive = _Cpio()
    for folder in ("bin", "dev", "modules", "vm"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", _busybox().read_bytes(), 0o755)
    archive.file("init", (_HERE / "init.sh").read_bytes(), 0o755)
    archive.file("vm/guest.sh", (_HERE / "guest.sh").read_bytes())
    archive.file("vm/settings", _settings(kernel, job).encode())
    archive.file("vm/command", _command(job).encode("utf-8", "surrogateescape"))
    order = _module_order(kernel, _MODULES)
    for path in order:
        content = path.read_bytes()
        archive.file(
            f"modules/{_module_name(path.name)}.ko",
            lzma.decompress(content) if path.suffix == ".xz" else content,
        )
    archive.file("modules/order", "".join(f"{_module_name(path.name)}.ko\n" for path in order).encode())
    return archive.finish()


def _settings(kernel: Kernel, job: Job) -> str:
    values = {
        "MSIZE": str(_MSIZE),
        "SHARE": "yes" if job.share else "no",
        "MODULES": str(kernel.modules),
        "DEADLINE": str(int(job.timeout + _GRACE) + 1),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _command(job: Job) -> str:
    """Return a script that becomes the command, for busybox's sh."""
    environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
    environment["PATH"] = ":".join(
        dict.fromkeys([*environment.get("PATH", "").split(":"), *_STANDARD_PATH.split(":")])
    ).strip(":")
    environment.setdefault("HOME", "/root")
    environment.update(job.environment)
    variables = [f"{name}={value}" for name, value in environment.items()]
    change = f"cd {shlex.quote(str(job.directory))} || exit 126"
    return f"{change}\nexec /run/vm/busybox env -i {shlex.join([*variables, *job.command])}\n"


def _busybox() -> Path:
    path = Path(_program("busybox", "busybox-static")).resolve()
    with path.open("rb") as file:
        if b"/ld-linux" in file.read(4096):
            raise MachineError(
                f"{path} needs shared libraries, which an initramfs has not: apt-get install busybox-static"
            )
    return path


# --- the machine ---


def run(
    job: Job, kernel: Kernel, *, stdout: BinaryIO, stderr: BinaryIO, console: BinaryIO | None = None
) -> int:
    """Boot, run the command as root, return its exit code; pass on its output as it comes.

    A command that is not found gives 127, as in a shell. What the kernel prints goes to `console`. Raises
    MachineTimeoutError when the command has not ended in time, and MachineError when the machine fails; in
    any case the machine is gone on return.
    """
    if job.share is not None and not job.share.is_dir():
        raise MachineError(f"no folder {job.share} to share: make it first")
    qemu = _program("qemu-system-x86_64", "qemu-system-x86")
    deadline = time.monotonic() + job.timeout
    with contextlib.ExitStack() as stack:
        initramfs = stack.enter_context(os.fdopen(os.memfd_create("initramfs"), "wb"))
        initramfs.write(_initramfs(kernel, job))
        initramfs.flush()
        ports: dict[str, socket.socket] = {}
        theirs: dict[str, socket.socket] = {}
        for name in ("console", "out", "err", "ctl"):
            pair = socket.socketpair()
            ports[name], theirs[name] = stack.enter_context(pair[0]), stack.enter_context(pair[1])
        fds = {name: end.fileno() for name, end in theirs.items()}
        log = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            [qemu, *_arguments(job, kernel, initramfs.fileno(), fds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(initramfs.fileno(), *fds.values()),
            start_new_session=True,  # Ctrl-C comes to us, and we end it
        )
        stack.callback(_end, process)
        for end in theirs.values():
            end.close()
        sinks: dict[str, BinaryIO | None] = {"console": console, "out": stdout, "err": stderr, "ctl": None}
        said = _relay(ports, sinks, deadline)
        if (match := re.search(rb"^exit (\d+)$", said["ctl"], re.MULTILINE)) is not None:
            return int(match[1])
        if time.monotonic() >= deadline:
            what = (
                f"`{shlex.join(job.command)}` did not end"
                if b"started" in said["ctl"]
                else f"kernel {kernel.release} did not come up"
            )
            raise MachineTimeoutError(
                f"{what} within {job.timeout:g} s: raise --timeout, or see with --verbose what the guest does"
            )
        log.seek(0)
        last = (log.read() + said["console"]).decode(errors="replace").strip().splitlines()[-60:]
        raise MachineError(
            "the machine ended before its command; the last it said:\n  " + "\n  ".join(last or ["(nothing)"])
        )


def _arguments(job: Job, kernel: Kernel, initramfs: int, fds: Mapping[str, int]) -> list[str]:
    # panic=-1 with -no-reboot makes a panic end the machine. Mitigations cost time and guard nothing here.
    # tsc=reliable: both processors read the host's, but the kernel would not trust it and ask the slow hpet.
    line = "console=ttyS0 panic=-1 oops=panic mitigations=off random.trust_cpu=on nowatchdog tsc=reliable"
    arguments = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]
    arguments += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G"]
    arguments += ["-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{initramfs}", "-append", line]
    arguments += _folder("host", Path("/"), writable=False)
    if job.share is not None:
        arguments += _folder("share", job.share.resolve(), writable=True)
    arguments += ["-device", "virtio-serial-pci"]
    for name, fd in fds.items():
        arguments += ["-chardev", f"socket,id={name},fd={fd}"]
        arguments += (
            ["-serial", f"chardev:{name}"]
            if name == "console"
            else ["-device", f"virtserialport,chardev={name},name={name}"]
        )
    return arguments


def _folder(tag: str, path: Path, *, writable: bool) -> list[str]:
    escaped = str(path).replace(",", ",,")
    # security_model=none: as passthrough, but a caller who is not root need not be able to change owners.
    backend = f"local,id={tag},path={escaped},security_model=none,multidevs=remap" + (
        "" if writable else ",readonly=on"
    )
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _relay(
    ports: Mapping[str, socket.socket], sinks: Mapping[str, BinaryIO | None], deadline: float
) -> dict[str, bytes]:
    """Pass on what comes from each port until all are closed or time is up; return what the machine said.

    Of the console, the last 64 KiB.
    """
    kept = {"console": bytearray(), "ctl": bytearray()}
    with selectors.DefaultSelector() as selector:
        for name, port in ports.items():
            selector.register(port, selectors.EVENT_READ, name)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                name = key.data
                try:
                    data = ports[name].recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    selector.unregister(ports[name])
                    continue
                if (sink := sinks[name]) is not None:
                    sink.write(data)
                    sink.flush()
                if name in kept:
                    kept[name] += data
                    del kept[name][:-_CONSOLE_TAIL]
                if name == "ctl" and b"exit" in kept["ctl"]:
                    deadline = min(deadline, time.monotonic() + _GRACE)
    return {name: bytes(data) for name, data in kept.items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()  # no disk, so nothing is lost
    process.wait()


# --- small helpers ---


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_STANDARD_PATH}")
    if path is None:
        raise MachineError(f"{name} is missing: apt-get install {package}")
    return path


def _output(*command: str, cwd: Path | None = None) -> str:
    """Return what a program prints; raise with what it complained about."""
    program = shutil.which(command[0])
    if program is None:
        raise MachineError(
            f"{command[0]} is missing: the kernel is a Debian package, and this needs a Debian or its like"
        )
    done = subprocess.run(
        [program, *command[1:]],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MachineError(f"`{shlex.join(command)}` failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _note(message: str) -> None:
    print(f"machine: {message}", file=sys.stderr, flush=True)


# --- the command line ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run a command as root on another Linux kernel, in a QEMU machine (emulated, no kvm) "
        "that sees the host's files. The command may write anywhere; what it writes is gone with the "
        "machine, except under /mnt/share.",
        epilog="Exit code: the command's own; 124 when the time is up; 125 when the machine failed; 130 "
        f"after Ctrl-C. Needs: apt-get install {' '.join(PACKAGES)}. "
        "Example: %(prog)s --share out -- sh -c 'uname -r > /mnt/share/release'",
    )
    parser.add_argument(
        "--kernel",
        metavar="VERSION",
        default=DEFAULT_KERNEL,
        help="the beginning of a Debian kernel's release: 6.1, 6.12, 6.1.0-50 (default: %(default)s); the "
        "newest in the cache, else the newest that apt has",
    )
    parser.add_argument(
        "--update", action="store_true", help="ask apt for a newer kernel although the cache has one"
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=DEFAULT_TIMEOUT,
        help="seconds in all (default: %(default)g)",
    )
    parser.add_argument(
        "--share",
        metavar="DIR",
        type=Path,
        help="a folder of the host that the guest may write to, at /mnt/share",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path.cwd(),
        help="where the command runs (default: here)",
    )
    parser.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help=f"a variable for the command, repeatable; passed anyway: {', '.join(_PASSED_ENVIRONMENT)}",
    )
    parser.add_argument("--verbose", action="store_true", help="what the kernel prints, on standard error")
    parser.add_argument(
        "command", metavar="COMMAND", nargs="+", help="the command and its arguments, after --"
    )
    return parser


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return name, value if equals else os.environ.get(name, "")


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    job = Job(
        command=options.command,
        directory=options.directory.absolute(),
        environment=dict(_variable(text) for text in options.env),
        share=options.share,
        timeout=options.timeout,
    )
    try:
        kernel = find_kernel(options.kernel, update=options.update)
        streams = sys.stdout.buffer, sys.stderr.buffer
        return run(
            job, kernel, stdout=streams[0], stderr=streams[1], console=streams[1] if options.verbose else None
        )
    except MachineTimeoutError as error:
        _note(str(error))
        return EXIT_TIMEOUT
    except MachineError as error:
        _note(str(error))
        return EXIT_MACHINE
    except BrokenPipeError:  # as of a pipe into head(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

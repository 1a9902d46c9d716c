"""The command line never lies: 0 only where the asked-for was done, problems on standard error, never a traceback."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from lorahub_edu.cli import hub


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("build",), "no assignment in"),
        (("build", "--check"), "no assignment in"),
        (("lint-exercises",), "no assignment in"),
        (("fetch", "--from", "nosuch", "--profile", "tiny"), "'nosuch' is not one of"),
        (("adapt", "--task", "upper", "--modules", ",", "--profile", "tiny"), "',' names nothing"),
        (("adapt", "--prefilter", "los:2", "--profile", "tiny"), "no pre-filter 'los:2'"),
        (("adapt", "sweep", "--methods", " , ,", "--profile", "tiny"), "names nothing"),
        (("zoo", "train", "--tasks", ",,", "--profile", "tiny"), "names nothing"),
        (("methods", "sweep", "--plan", "--tasks", ",", "--profile", "tiny"), "names nothing"),
        (("zoo", "train", "--cluster", "local:-3", "--profile", "tiny"), "no cluster 'local:-3'"),
        (("adapt", "sweep", "--cluster", "local:0", "--profile", "tiny"), "no cluster 'local:0'"),
        (("adapt", "sweep", "--draws", "0", "--profile", "tiny"), "--draws"),
        (("methods", "sweep", "--seeds", "-1", "--profile", "tiny"), "--seeds"),
    ],
)
def test_nothing_done_is_no_success(lorahub_edu, words: tuple[str, ...], says: str) -> None:
    code, out, err = lorahub_edu(*words)
    assert code in (1, 2) and says in err and not out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_what_the_system_refuses_is_one_line(lorahub_edu, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(text: str) -> tuple[str, ...]:
        raise OSError(number, "refused by the system", "/some/folder")

    monkeypatch.setattr(hub, "listed", refused)
    code, out, err = lorahub_edu("adapt", "--task", "upper", "--profile", "tiny")
    assert code == 1 and not out
    assert err.startswith("lorahub-edu: /some/folder: refused by the system") and err.count("\n") == 1


def test_help_shows_the_groups_in_a_learners_order(lorahub_edu) -> None:
    code, out, _ = lorahub_edu("--help")
    places = [out.index(f"─ {group} ─") for group in ("Start", "Learn", "Train", "Compose", "Inspect", "Teach")]
    assert code == 0 and places == sorted(places)


def test_every_room_but_the_graders_imports_on_windows() -> None:
    """The modules that only Unix has are blocked."""
    program = """
import builtins, importlib, pkgutil
real = builtins.__import__
def blocked(name, names=None, *more, **named):  # libraries know for themselves what a system has
    if name in ("resource", "fcntl", "pwd", "grp", "termios") and names["__name__"].startswith("lorahub"):
        raise ModuleNotFoundError(f"{names['__name__']} imports {name}, which only Unix has")
    return real(name, names, *more, **named)
builtins.__import__ = blocked
for room in ("lorahub_edu", "lorahub_checks", "lorahub_studies"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]

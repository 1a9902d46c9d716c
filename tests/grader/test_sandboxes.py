"""No grading without a sandbox, each sandbox is probed, and docker is asked for what keeps answers in."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import pytest
from grading_arena import NAME as ARENA
from grading_arena import SOURCE, TIMES, passed
from grading_course import NAME, RIGHT, copy_of, make_course, submit

from lorahub_edu.errors import CourseError
from lorahub_grader import assignments, runner, worker
from lorahub_grader.gradebook import Course
from lorahub_grader.inside.zygote import Limits, Settings
from lorahub_grader.sandbox import bubblewrap, choose, containers
from lorahub_grader.sandbox.process import SandboxError


def test_bubblewrap_is_taken_where_it_holds(sandbox, built) -> None:
    assert choose.choose(secrets=(str(built),)) == "bubblewrap"
    assert choose.probe("bubblewrap", (str(built / "solutions"),)) == []


def test_the_probe_finds_the_holes_of_a_sandbox_that_is_none(built) -> None:
    holes = choose.probe(choose.UNSAFE, (str(built / "solutions"),))
    assert f"sees:{built / 'solutions'}" in holes and "sees-processes" in holes
    if os.geteuid() == 0:
        assert "is-root" in holes and "writes:/usr" in holes
        for place in ("/", "/usr", "/etc", bubblewrap.PACKAGE):
            Path(place, "lorahub-edu-probe").unlink(missing_ok=True)


@pytest.fixture
def none_works(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_sandbox_nothing_is_run(none_works, built, tmp_path) -> None:
    root = copy_of(built, tmp_path / "course")
    submit(root, "ada", RIGHT | {"double": f"open({str(tmp_path / 'ran')!r}, 'w')\n{RIGHT['double']}"})
    before = (root / "gradebook.db").read_bytes()
    with pytest.raises(CourseError, match="No submission was run.*bubblewrap.*not installed.*podman.*docker.*--unsafe"):
        runner.grade(Course(root), root / "submitted", settings={"preload": ()})
    assert not (tmp_path / "ran").exists() and (root / "gradebook.db").read_bytes() == before


def test_unsafe_must_be_asked_for(none_works, built, tmp_path) -> None:
    root = copy_of(built, tmp_path / "course")
    submit(root, "ada", RIGHT)
    graded = runner.grade(Course(root), root / "submitted", unsafe=True, settings={"preload": ()})
    assert graded.sandbox == "none" and graded.outcomes[0].earned == 6
    assert choose.choose(unsafe=True) == "none"


def test_a_sandbox_with_holes_is_none(monkeypatch) -> None:
    monkeypatch.setattr(choose, "probe", lambda kind, secrets=(): ["has-network"] if kind == "podman" else [])
    assert choose.choose() == "bubblewrap"
    with pytest.raises(CourseError, match=r"podman: it has holes \(has-network\)"):
        choose.choose("podman")


def test_unknown_kinds_are_near_matched() -> None:
    with pytest.raises(CourseError, match="Did you mean 'bubblewrap'"):
        choose.choose("bublewrap")


def test_a_program_that_can_not_start_says_why(monkeypatch, tmp_path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho bwrap: setting up uid map: Permission denied >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match="setting up uid map: Permission denied"):
        bubblewrap.start_zygote(Settings())


def test_bubblewrap_is_told_to_keep_everything_out() -> None:
    told = " ".join(bubblewrap.arguments(bubblewrap.read_in_there(), "/tmp"))
    for word in (
        "--unshare-net",
        "--unshare-pid",
        "--unshare-ipc",
        "--cap-drop ALL",
        "--die-with-parent",
        "--remount-ro /",
    ):
        assert word in told
    root = str(bubblewrap.PACKAGE.parent)
    assert f"--ro-bind {root} " not in told and "solutions" not in told and "exercises" not in told
    assert "--bind " not in told.replace("--ro-bind ", ""), "nothing can be written"


def test_checks_in_a_folder_that_is_shown_are_hidden(sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed course has its packages side by side in a folder of Python, which answers can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        checks = Path(folder, "lorahub_checks")
        for file in (checks / "lesson01.py", Path(folder, "lorahub_edu", "errors.py")):
            file.parent.mkdir()
            file.write_text("reference = 'treasure'")
        monkeypatch.setattr(bubblewrap, "CHECKS", checks)
        zygote = bubblewrap.start_zygote(Settings(), readable=(Path(folder),))
        try:
            process = zygote.open()
            source = f"import glob\nprint([open(path).read() for path in glob.glob({folder!r} + '/*/*.py')])"
            process.channel.send({"do": "cell", "source": source, "number": 0}, deadline=time.monotonic() + 60)
            reply, _ = process.channel.receive(time.monotonic() + 60)
            process.stop()
        finally:
            zygote.close()
        assert reply["error"] is None
        assert "".join(output["text"] for output in reply["outputs"]) == "[\"reference = 'treasure'\"]\n", "one of two"


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp"])
def test_a_course_can_lie_in_a_temporary_folder(place: str, sandbox) -> None:
    """An empty /tmp of the answers' own would hide it, with every module that nobody has imported yet."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        os.chmod(folder, 0o755)
        Path(folder, "imported_late.py").write_text("word = 'found'")
        zygote = bubblewrap.start_zygote(Settings(), readable=(Path(folder),))
        try:
            process = zygote.open()
            source = f"import sys\nsys.path.append({folder!r})\nimport imported_late\nprint(imported_late.word)\n"
            source += f"try:\n    open({folder!r} + '/x', 'w')\nexcept OSError:\n    print('kept')\n"
            source += "open('mine', 'w').write('x')\nprint(open('mine').read())"
            deadline = time.monotonic() + 60
            process.channel.send({"do": "cell", "source": source, "number": 0}, deadline=deadline)
            reply, _ = process.channel.receive(deadline)
            process.stop()
        finally:
            zygote.close()
    assert reply.get("error") is None, reply
    assert "".join(output["text"] for output in reply["outputs"]).split() == ["found", "kept", "x"]


FAKE = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "run":
    os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index({image!r}) + 2:]])
if sys.argv[1] == "inspect":
    print('{{"OOMKilled": false}}')
"""


@pytest.fixture
def docker(monkeypatch, tmp_path: Path) -> Path:
    """A program that is called docker, notes what it is told, and runs the command without any container."""
    program, log = tmp_path / "docker", tmp_path / "log"
    program.write_text(FAKE.format(python=sys.executable, log=str(log), image=containers.IMAGE))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_a_container_answers_over_its_standard_streams(docker, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 3.0)  # this docker ends nothing, so all of it is waited for
    assignment = assignments.load(ARENA, make_course(tmp_path / "course", SOURCE, ARENA))
    made = choose.start("docker", Settings(limits=Limits(memory=5 << 20, processes=7)))
    printing = (
        "import os, sys\nprint('to nobody')\nos.write(1, b'noise')\ndef easy(x):\n    print('more')\n    return x + 1"
    )
    assert passed(assignment, {"easy": printing}, made, "docker") == {"easy"}
    told = docker.read_text()
    for word in ('"--network", "none"', '"--read-only"', '"--cap-drop", "ALL"', "no-new-privileges", '"65534:65534"'):
        assert word in told
    assert '"--memory", "5242880"' in told and '"--pids-limit", "7"' in told
    assert "--volume" not in told and "--mount" not in told
    assert told.count('["run"') == told.count('["kill"') == told.count('["rm"') == 1


def test_a_container_that_hangs_is_stopped(docker, tmp_path) -> None:
    process = choose.start("docker", Settings()).open()
    process.process.terminate()
    assert process.stop() in ("died", "asked") and process.stop() == process.ending


def test_a_missing_image_says_how_to_build_it(monkeypatch, tmp_path) -> None:
    program = tmp_path / "podman"
    program.write_text("#!/bin/sh\necho no such image >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        SandboxError, match=f"no such image; build it with: podman build -t {containers.IMAGE} -f .*Dockerfile"
    ):
        choose.start("podman", Settings())
    recipe = Path(containers.__file__).with_name("Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", recipe, flags=re.MULTILINE)
    assert {"lorahub_edu", "lorahub_grader"} <= set(copied) and not {"lorahub_checks", "solutions", "."} & set(copied)


@pytest.mark.skipif(shutil.which("docker") is None and shutil.which("podman") is None, reason="no docker, no podman")
def test_a_real_container_holds() -> None:
    for kind in ("docker", "podman"):
        try:
            assert choose.probe(kind) == []
            return
        except SandboxError as error:
            reason = str(error)
    pytest.skip(f"no image or no running service: {reason[:100]}")


def test_a_zygote_that_is_lost_is_replaced(sandbox, built, tmp_path) -> None:
    assignment = assignments.load(NAME, built)
    job = worker.Job(assignment, "ada", "", RIGHT, times=TIMES, preload=())
    try:
        first = worker.SANDBOXES.get(job)
        first.process.kill()
        first.process.wait()
        assert worker.work(job).earned == 6
        assert worker.SANDBOXES.get(job) is not first
    finally:
        worker.SANDBOXES.close()


def test_answers_run_as_another_user_inside_a_platforms_container() -> None:
    if os.geteuid() != 0:
        with pytest.raises(SandboxError, match="Only root"):
            choose.start(choose.CONTAINER, Settings())
        return
    try:
        holes = choose.probe(choose.CONTAINER, ("/root/.ssh",))
    except SandboxError as error:
        pytest.skip(f"another user can't read this Python: {str(error)[-80:]}")
    assert "is-root" not in holes and "becomes-root" not in holes

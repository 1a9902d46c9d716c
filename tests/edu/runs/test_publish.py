"""A pushed adapter is PEFT's, its card says what the run recorded, and a server that refuses is one line."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hub_modules
import pytest
import yaml
from peft import PeftModel
from stand_ins import COMMIT, closed_address

from lorahub_edu.cli import app
from lorahub_edu.hub import zoo
from lorahub_edu.models import tiny
from lorahub_edu.runs import export, finetune

REPO = "somebody/colours"


class Hub:
    """Plays the hub's side of a push: makes a repository, and takes a commit whose files come with it."""

    def __init__(self) -> None:
        self.made: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.allowed = True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            hub.tokens.add(self.headers.get("Authorization", ""))
            if not hub.allowed:
                return self.answer(403, {"error": "You may not write here."})
            if self.path == "/api/repos/create":
                hub.made.append(json.loads(body))
                return self.answer(200, {"url": f"http://{self.headers['Host']}/{REPO}"})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                return self.answer(200, {"files": modes})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                page = f"https://huggingface.co/{REPO}/commit/{COMMIT}"
                return self.answer(200, {"commitUrl": page, "commitOid": COMMIT})
            return self.answer(200, {})  # the card is valid YAML, says the hub

        def do_GET(self) -> None:  # noqa: N802
            self.answer(200, {"id": REPO, "sha": COMMIT, "siblings": []})

        def answer(self, status: int, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", "push", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    return run


def test_a_run_is_pushed_with_its_card(hub: Hub, push, tmp_path: Path) -> None:
    changes = {"train_steps": 2, "rank": 2}
    done = finetune.finetune("tiny", changes, data="tiny", out=tmp_path / "run", progress=False)
    code, said = push(done.adapter, REPO)
    assert code == 0, said
    assert REPO in said and hub.made[0]["name"] == "colours" and hub.tokens == {"Bearer hf_of_a_test"}
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    _, head, body = hub.files["README.md"].decode().split("---\n", 2)
    described = yaml.safe_load(head)
    assert described["license"] == "cc-by-4.0" and described["library_name"] == "peft" and "lora" in described["tags"]
    assert described["base_model"] == tiny.NAME
    assert f"{done.loss_before:.4g}" in body and f"{done.loss_after:.4g}" in body and "| steps | 2 |" in body
    assert "### Response:" in body and f'"{REPO}")' in body
    for name, data in hub.files.items():
        (tmp_path / name).write_bytes(data)
    assert PeftModel.from_pretrained(tiny.model(), str(tmp_path)).peft_config["default"].r == 2


def test_a_module_of_the_zoo_takes_its_card_along(hub: Hub, push) -> None:
    code, said = push(zoo.SHIPPED / "past", REPO, "--private")
    assert code == 0, said
    assert "card.json" in hub.files and hub.made[0].get("private", hub.made[0].get("visibility"))
    card, config = hub.files["README.md"].decode(), json.loads(hub.files["adapter_config.json"])
    assert zoo.card("past").instruction in card and "HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert config["base_model_name_or_path"] == export.ON_HUB["SmolLM2-135M-Instruct"]
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_a_dry_run_prints_the_card_and_asks_nobody(push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    folder = hub_modules.write(hub_modules.random_module(tiny.model(), 0), tmp_path)
    code, said = push(folder, REPO, "--dry-run")
    assert code == 0 and "# colours" in said and "licence, " not in said


def test_what_cannot_be_pushed_is_one_line(hub: Hub, push, tmp_path: Path) -> None:
    hub.allowed = False
    for words, says in (
        ((zoo.SHIPPED / "past", REPO), "hf auth login"),
        ((zoo.SHIPPED / "past", "colours"), "owner/name"),
        ((tmp_path, REPO), "holds no adapter"),
        ((tmp_path / "nosuch", REPO), "nosuch"),
    ):
        code, said = push(*words)
        assert code == 1 and says in said and said.count("\n") == 1
    folder = hub_modules.write(hub_modules.random_module(tiny.model(), 0), tmp_path / "a")
    (folder.parent / finetune.RUN_FILE).write_text("{")
    code, said = push(folder, REPO)
    assert code == 1 and "run.json can't be read" in said and not hub.files

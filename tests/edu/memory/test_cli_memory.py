"""lorahub-edu plan as a user types it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lorahub_edu.cli import app
from lorahub_edu.models import tiny


@pytest.fixture
def lorahub_edu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", *words])
        try:
            app.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        printed = capsys.readouterr()
        return code, (printed.err if code else printed.out).replace("\n", " ")

    return run


def test_a_plan_of_a_7b(lorahub_edu) -> None:
    code, text = lorahub_edu("plan", "--model", "llama-7b", "--micro-batch", "4", "--block", "512", "--gpu", "24")
    assert code == 0
    for words in ("weights", "gradients", "optimizer", "activations", "logits", "needed at the peak", "a 24 GB card"):
        assert words in text
    assert "fit" in text and "13.49" in text  # 6.74 billion weights of two bytes


def test_a_plan_that_does_not_fit_names_the_change(lorahub_edu) -> None:
    code, text = lorahub_edu("plan", "--model", "llama-7b", "--gpu", "16", "--micro-batch", "1", "--block", "2048")
    assert code == 0 and "It does not fit" in text and "GB are missing" in text
    assert "Cheapest change that makes it fit" in text and "--checkpointing" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "lama-7b"), "no model 'lama-7b'"),
        (("--model", "llama-7b", "--method", "lorra"), "no method 'lorra'"),
        (("--model", "llama-7b", "--rank", "0"), "'--rank'"),
        (("--model", "llama-7b", "--micro-batch", "0"), "'--micro-batch'"),
        (("--model", "llama-7b", "--gpu", "0"), "No model fits"),
        (("--model", tiny.NAME, "--targets", "q_prj"), "q_proj"),
        (("--model", "flan-t5-large", "--method", "prefix"), "encoder-decoder"),
    ],
)
def test_what_a_user_gets_wrong(lorahub_edu, words: tuple[str, ...], message: str) -> None:
    code, text = lorahub_edu("plan", *words)
    assert code in (1, 2) and message in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (("--block", "64"), ("peft", "bitsandbytes", "nevergrad")),
        (("--micro-batch", "2147483647", "--block", "2147483647"), ("transformers",)),
    ],
)
def test_a_plan_imports_only_what_it_needs(words: tuple[str, ...], unused: tuple[str, ...]) -> None:
    command = ["lorahub-edu", "plan", "--model", tiny.NAME, *words]
    code = f"""
import sys
from lorahub_edu.cli import app
sys.argv = {command!r}
try:
    app.main()
except SystemExit:
    pass
print(sorted(set(sys.modules) & set({unused!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr

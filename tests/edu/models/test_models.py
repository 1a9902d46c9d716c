"""Base models: prepared once and whole, loaded quickly, equal to what the GGUF file holds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models import pretrained, profiles, tiny

NAME = "SmolLM2-135M-Instruct"


def test_tiny_needs_no_file_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "nothing"))
    model, tokenizer = pretrained.load("tiny")
    assert isinstance(model, LlamaForCausalLM) and not model.training
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 2e6
    text = "Any text, even ∑ and 漢字, survives.\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert not (tmp_path / "nothing").exists()


def test_packed_attention_needs_no_other_import() -> None:
    script = "from lorahub_edu.models.pretrained import load; m = load('tiny', attention='packed')[0]"
    script += "; print(m.config._attn_implementation)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "packed", done.stderr[-500:]


def test_tiny_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = tiny.model(), tiny.model(), tiny.model(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.get_input_embeddings().weight, c.get_input_embeddings().weight)
    assert tiny.tokenizer().get_vocab() == tiny.tokenizer().get_vocab()


def test_tiny_has_smollm2s_special_tokens() -> None:
    tokenizer = tiny.tokenizer()
    assert [tokenizer.convert_tokens_to_ids(t) for t in tiny.SPECIAL_TOKENS] == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


@pytest.mark.real
def test_smollm2_is_a_real_llama(smollm) -> None:
    model, tokenizer = smollm
    assert isinstance(model, LlamaForCausalLM)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert "Paris" in tokenizer.decode(out[0])


@pytest.mark.real
def test_the_converted_model_equals_the_gguf_file(smollm) -> None:
    file = assets.locate(NAME)
    with pretrained.quiet_transformers():
        original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = dict(smollm[0].named_parameters())
    theirs = dict(original.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.real
def test_loading_offline_opens_no_connection(smollm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model, _ = pretrained.load("cpu", offline=True, dtype="bfloat16")
    assert model.dtype == torch.bfloat16


@pytest.fixture()
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, and a conversion that writes the tiny model instead of reading 98 MB."""
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assets, "fetch", lambda *_args, **_kwargs: tmp_path / "model.gguf")

    class Conversion:
        @staticmethod
        def from_pretrained(where, gguf_file=None, **options):
            return tiny.model() if gguf_file else AutoModelForCausalLM.from_pretrained(where, **options)

    class Tokenizing:
        @staticmethod
        def from_pretrained(where, gguf_file=None, **options):
            return tiny.tokenizer()

    monkeypatch.setattr(pretrained, "AutoModelForCausalLM", Conversion)
    monkeypatch.setattr(pretrained, "AutoTokenizer", Tokenizing)
    return tmp_path


def test_prepare_converts_once(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pretrained.is_prepared(NAME)
    folder = pretrained.prepare(NAME)
    assert pretrained.is_prepared(NAME)
    assert not list(folder.parent.glob(f".{NAME}-*"))  # nothing unfinished is left
    monkeypatch.setattr(pretrained, "_convert", lambda *_: pytest.fail("converted twice"))
    assert pretrained.prepare(NAME) == folder


def test_a_damaged_conversion_is_done_again(stand_in: Path) -> None:
    folder = pretrained.prepare(NAME)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert not pretrained.is_prepared(NAME)
    pretrained.prepare(NAME)
    assert pretrained.is_prepared(NAME)


def test_another_file_than_the_pinned_one_is_not_trusted(stand_in: Path) -> None:
    folder = pretrained.prepare(NAME)
    marker = json.loads((folder / pretrained.MARKER).read_text())
    (folder / pretrained.MARKER).write_text(json.dumps(marker | {"source_sha256": "0" * 64}))
    assert not pretrained.is_prepared(NAME)


def test_a_conversion_that_fails_leaves_nothing(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "tokenizer", full)
    with pytest.raises(CourseError, match="0.6 GB, in LORAHUB_EDU_HOME.*No space left"):
        pretrained.prepare(NAME)
    assert not pretrained.is_prepared(NAME)
    assert [p.name for p in (stand_in / "models").iterdir() if p.is_dir()] == []


def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal
        from pathlib import Path
        from lorahub_edu.files import assets
        from lorahub_edu.models import pretrained, tiny
        assets.fetch = lambda *a, **k: Path("x.gguf")
        class Conversion:
            from_pretrained = staticmethod(lambda *a, **k: tiny.model())
        class Killed:
            @staticmethod
            def from_pretrained(*a, **k):
                class T:
                    def save_pretrained(self, where):
                        os.kill(os.getpid(), signal.SIGKILL)
                return T()
        pretrained.AutoModelForCausalLM, pretrained.AutoTokenizer = Conversion, Killed
        pretrained.prepare("SmolLM2-135M-Instruct")
        """
    )
    environment = os.environ | {assets.HOME_VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr[-500:]
    left = [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert left and all(path.name.startswith(f".{NAME}-") for path in left)  # only the unfinished folder


def test_leftovers_of_a_killed_conversion_go(stand_in: Path) -> None:
    leftover = stand_in / "models" / f".{NAME}-abc"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    pretrained.prepare(NAME)
    assert not leftover.exists()


def test_a_model_that_cannot_be_loaded(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pretrained.prepare(NAME)
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"\0" * size)  # the right size, but damaged
    with pytest.raises(CourseError, match="may be damaged: delete that folder and run lorahub-edu fetch"):
        pretrained.load("cpu")


def test_unknown_names() -> None:
    with pytest.raises(CourseError, match="Did you mean 'SmolLM2-135M-Instruct'"):
        pretrained.get_base("SmolLM-135M-Instruct")
    with pytest.raises(CourseError, match="no profile 'gpu'. Did you mean 'gpu24'"):
        pretrained.load("gpu")


def test_profile_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(profiles.ENVIRONMENT_VARIABLE, "tiny")
    assert profiles.get_profile().name == "tiny"
    monkeypatch.delenv(profiles.ENVIRONMENT_VARIABLE)
    assert profiles.get_profile().name == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu24_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(CourseError, match="needs an NVIDIA GPU.*--profile cpu"):
        pretrained.load("gpu24")


def test_home_on_another_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert pretrained.folder(NAME) == tmp_path / "elsewhere" / "models" / NAME
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)


@pytest.mark.parametrize(("of_bfloat16", "quick"), [(0.5, torch.bfloat16), (60.0, torch.float32)])
def test_training_computes_in_what_multiplies_faster(
    of_bfloat16: float, quick: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_product_seconds", lambda dtype: {torch.float32: 1.0}.get(dtype, of_bfloat16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pretrained.quick_dtype.__wrapped__() is quick


def test_a_folder_that_the_converted_model_can_not_have_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assets, "fetch", lambda *_, **__: tmp_path / "model.gguf")
    target = pretrained.folder("SmolLM2-135M-Instruct")
    target.parent.write_text("no folder")
    with pytest.raises(CourseError, match=f"Can't write the converted model.*{target.name}"):
        pretrained.prepare("SmolLM2-135M-Instruct")

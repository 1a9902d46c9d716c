"""What is exported is loaded by the program that it is for, and says the same there."""

from __future__ import annotations

import sys
from pathlib import Path

import hub_modules
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lorahub_edu.cli import app
from lorahub_edu.data import alpaca, tasks
from lorahub_edu.data.rows import Example
from lorahub_edu.errors import CourseError
from lorahub_edu.models import tiny
from lorahub_edu.runs import export

TEXT = "Name 3 colours, and 12 things of each colour."
PROMPT = alpaca.format_prompt(Example(TEXT, "", ""))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = hub_modules.random_module(tiny.model(), 0, std=0.1, targets=("q_proj", "k_proj", "down_proj"))
    return hub_modules.write(file, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def logits(module: Path) -> torch.Tensor:
    """PEFT's, of the prompt."""
    ids = tiny.tokenizer()(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny.model(), str(module)).eval()(ids).logits


@pytest.fixture
def exported(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """What the command writes, and what it says."""

    def run(*options: str) -> tuple[Path, str]:
        out = tmp_path / "out"
        words = ["lorahub-edu", "export", str(module), "--profile", "tiny", "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = "".join(capsys.readouterr())
        assert not ended.value.code, said
        return out, said

    return run


@pytest.mark.parametrize(("option", "tolerance"), [("--merged", 1e-4), ("--vllm", 0.05)])
def test_a_merged_folder_is_a_plain_model(exported, logits: torch.Tensor, option: str, tolerance: float) -> None:
    out, said = exported(option)
    model, missing = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (
        not missing["missing_keys"]
        and not missing["unexpected_keys"]
        and ("vllm serve" in said) == (option == "--vllm")
    )
    asked = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False)
    assert asked == PROMPT
    with torch.no_grad():
        made = model.float()(tokenizer(asked, return_tensors="pt").input_ids).logits
    assert (made - logits).norm() < tolerance * logits.norm()


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-4), ("f16", 5e-3), ("bf16", 0.05), ("q8_0", 0.1)])
def test_a_gguf_is_the_merged_model_with_its_tokenizer(exported, logits, kind: str, tolerance: float) -> None:
    out, _ = exported("--gguf", "--type", kind)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        out, gguf_file=export.GGUF_FILE, dtype=torch.float32, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(out, gguf_file=export.GGUF_FILE)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert ids.tolist() == [tiny.tokenizer()(PROMPT).input_ids] and tokenizer.eos_token == tiny.tokenizer().eos_token
    with torch.no_grad():
        assert (model(ids).logits - logits).norm() < tolerance * logits.norm()


def test_an_adapted_head_is_written_apart_from_the_embeddings_it_was_tied_to(tmp_path: Path) -> None:
    file = hub_modules.random_module(tiny.model(), 0, std=0.1, targets=("q_proj", "lm_head"))
    model, tokenizer, _ = export.merged_model(hub_modules.write(file, tmp_path))
    export.write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.model.embed_tokens.weight, tiny.model().model.embed_tokens.weight)


def test_ollama_gets_the_prompt_that_the_adapter_was_trained_with(exported, module: Path) -> None:
    out, said = exported("--ollama")
    lines = (out / "Modelfile").read_text(encoding="utf-8")
    template = lines.partition('TEMPLATE """')[2].partition('"""')[0]
    assert template.replace("{{ .Prompt }}", TEXT) == PROMPT and f"ollama create NAME -f {out}" in said
    assert lines.startswith("FROM ./model.gguf\n") and 'PARAMETER stop "<|im_end|>"' in lines
    assert (out / "model.gguf").is_file()


def test_a_module_of_the_zoo_has_its_tasks_prompt() -> None:
    from lorahub_edu.hub import zoo

    asked = export.prompt_of(zoo.open_source("past"))("swim")
    assert asked == tasks.prompt(zoo.card("past").instruction, "swim")


def test_what_a_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(CourseError, match="convert_hf_to_gguf"):
        export.write_gguf(model, tiny.tokenizer(), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--merged", "--gguf")])
def test_one_form_is_asked_for(module: Path, options: tuple[str, ...], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["lorahub-edu", "export", str(module), *options])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 1 and "Give one of --merged" in capsys.readouterr().err


@pytest.mark.real
def test_llama_cpp_answers_as_transformers_does(smollm, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, tokenizer, prompt = export.merged_model("past")
    path = export.write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    there = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    for word in ("swim", "walk", "travel 12 miles"):
        encoded = tokenizer(prompt(word), return_tensors="pt")
        out = model.generate(**encoded, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        said = tokenizer.decode(out[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        assert there(prompt(word), max_tokens=8, temperature=0.0)["choices"][0]["text"] == said

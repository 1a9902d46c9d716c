"""What lesson 04 builds is what PEFT computes."""

from __future__ import annotations

import torch

from lorahub_edu.methods.attach import attach
from lorahub_edu.models import tiny
from lorahub_edu.show import lessons


def test_the_attention_that_the_lesson_builds_is_pefts() -> None:
    cells = lessons.build("04_rivals").cells
    source = next(cell.source for cell in cells if "def zero_init_attention" in cell.source)
    assert len(source.splitlines()) <= 60
    namespace = {"torch": torch}
    exec(source, namespace)
    model = tiny.model()
    made = attach(model, "llama_adapter", length=7)
    adapted = model.model.layers[-1].self_attn
    hidden = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    cos, sin = model.model.rotary_emb(hidden, torch.arange(9).repeat(2, 1))
    arguments = {"hidden_states": hidden, "position_embeddings": (cos, sin), "attention_mask": None}
    with torch.no_grad():
        for gate in (0.0, 0.7, -1.3):
            adapted.adaption_gate.fill_(gate)
            added = namespace["zero_init_attention"](
                adapted.model, hidden, cos, sin, adapted.adaption_prompt[0], adapted.adaption_gate
            )
            expected = adapted(**arguments)[0] - adapted.model(**arguments)[0]
            assert (added - expected).abs().max() < 1e-5
            assert (added.abs().max() > 1e-3) == (gate != 0)
    assert made.trainable == 2 * (7 * 128 + 1)

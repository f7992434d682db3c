"""Makes a LoRA adapter for the model of tiny_model.py: `python tiny_adapter.py MODEL FOLDER`.

Its weights are random and large, so that with it the model says something else. Run by the Python of the engine's
environment.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8
MODULE = "self_attn.o_proj"


def main(model: str, folder: str) -> None:
    config = json.loads(Path(model, "config.json").read_text())
    size, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", size // heads) * heads
    torch.manual_seed(1)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.{MODULE}"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, width, dtype=torch.bfloat16)
        weights[f"{name}.lora_B.weight"] = torch.randn(size, RANK, dtype=torch.bfloat16)
    Path(folder).mkdir()
    save_file(weights, Path(folder, "adapter_model.safetensors"))
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": RANK,
        "lora_alpha": 64,
        "target_modules": [MODULE.rpartition(".")[2]],
        "bias": "none",
        "inference_mode": True,
    }
    Path(folder, "adapter_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(*sys.argv[1:])

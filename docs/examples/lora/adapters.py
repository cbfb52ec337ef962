"""Fine-tune a language model with LoRA: the sites exchange the adapters only."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from mdc_flower.jobs.language_model import causal_language_model

LENGTH = 32  # bytes


def network():
    """Return a small GPT-2 for bytes, frozen, with adapters of rank 4 in its attention layers."""
    config = GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    # A real job loads a pretrained model, from a folder that is the same at every site:
    # base = GPT2LMHeadModel.from_pretrained("/srv/models/gpt2")
    base = GPT2LMHeadModel(config)
    adapters = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    return get_peft_model(base, adapters)


def job(context):
    """Return the job for a text file: its bytes are the tokens."""
    if not context.site:
        return causal_language_model(network)
    text = Path(context.data).read_bytes()
    count = len(text) // LENGTH
    tokens = torch.frombuffer(bytearray(text[: count * LENGTH]), dtype=torch.uint8).long()
    mine = tokens.reshape(count, LENGTH)[context.rows(count)]
    held_out = len(mine) // 10
    return causal_language_model(
        network,
        train=mine[held_out:],
        validation=mine[:held_out],
        batch_size=context.config.batch_size,
        optimizer=lambda model: torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
        ),
    )

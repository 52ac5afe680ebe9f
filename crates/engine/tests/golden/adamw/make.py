"""Makes adamw.safetensors: twenty AdamW steps of one adapter site by PyTorch.

Run it where torch, numpy and safetensors are installed: python make.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

STEPS = 20
RANK, HIDDEN, VOCAB = 2, 32, 64
A = "base_model.model.lm_head.lora_A.weight"
B = "base_model.model.lm_head.lora_B.weight"
CASES = {
    "plain": dict(weight_decay=0.0, eps=1e-12, betas=(0.9, 0.95), clip=None),
    "decay": dict(weight_decay=0.3, eps=1e-3, betas=(0.9, 0.95), clip=None),
    "clip": dict(weight_decay=0.0, eps=1e-3, betas=(0.9, 0.999), clip=0.5),
}

generator = torch.Generator().manual_seed(0)
shapes = {A: (RANK, HIDDEN), B: (VOCAB, RANK)}
initial = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
gradients = [
    # Of very different sizes from step to step, so that the clip bites at some and not at others.
    {
        name: torch.randn(shape, generator=generator) * 10.0 ** (step % 5 - 3)
        for name, shape in shapes.items()
    }
    for step in range(STEPS)
]

tensors = {f"initial.{name}": value for name, value in initial.items()}
for step, gradient in enumerate(gradients):
    tensors |= {f"gradient.{step}.{name}": value for name, value in gradient.items()}
for case, options in CASES.items():
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in initial.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=0.01,
        betas=options["betas"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        foreach=False,
    )
    for step, gradient in enumerate(gradients):
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        if options["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), options["clip"])
        optimizer.step()
        for name, parameter in parameters.items():
            tensors[f"{case}.{step}.{name}"] = parameter.detach().clone()

save_file(tensors, Path(__file__).parent / "adamw.safetensors")

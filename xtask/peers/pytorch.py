"""Training steps of PyTorch with PEFT, one for each line on the standard input, so that others can take turns.

    pytorch.py MODEL_DIR f32|bf16 THREADS [--compile]

A line is `train DATUMS TOKENS`; the answer is a line of JSON: seconds, processor seconds and the loss. The step is
what Tinsmith's is: LoRA of rank 32 on every linear layer and the unembedding, the gradient of the cross-entropy of all
datums in one batch, and AdamW.
"""

import json
import resource
import sys
import time
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def main():
    folder, dtype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    kinds = {"f32": torch.float32, "bf16": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kinds[dtype])
    model.config.use_cache = False
    lora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS)
    model = get_peft_model(model, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if "--compile" in sys.argv else model
    vocabulary = model.config.vocab_size

    def step(datums, tokens):
        ids = torch.randint(vocabulary, (datums, tokens + 1))
        start, spent = time.perf_counter(), processor_seconds()
        logits = forward(input_ids=ids[:, :-1]).logits
        targets = ids[:, 1:].reshape(-1)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, vocabulary).float(), targets, reduction="sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds, spent = time.perf_counter() - start, processor_seconds() - spent
        return {"seconds": seconds, "cpu_seconds": spent, "loss": loss.item() / (datums * tokens)}

    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        name, datums, tokens = line.split()
        assert name == "train", line
        print(json.dumps(step(int(datums), int(tokens))), flush=True)


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


main()

"""Adapters in and out: PEFT is the judge of what the server writes, and the author of what it reads."""

import json
import pathlib
import shutil
import subprocess

import peft
import pytest
import torch
import transformers
from conftest import BINARY, NANO, ROOT, Server
from helpers import logprobs, plain_datum, result
from tinker import types

TOLERANCE = 1e-3
PARAMS = types.AdamParams(learning_rate=2e-2)
# Small and random, with logits that are far from uniform; every switch that a family has is on.
SIZES = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    initializer_range=0.15,
)
FAMILIES = {
    "qwen3": lambda vocab: transformers.Qwen3Config(vocab_size=vocab, tie_word_embeddings=True, **SIZES),
    "llama": lambda vocab: transformers.LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, **SIZES),
    "gemma2": lambda vocab: transformers.Gemma2Config(
        vocab_size=vocab, query_pre_attn_scalar=24, sliding_window=8, attn_logit_softcapping=5.0, **SIZES
    ),
}
# What PEFT's users write most: its default targets, and everything; scalings beside 32 / r; three dtypes.
ADAPTERS = {
    "query-value": (dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]), torch.float32),
    "all-linear": (dict(r=4, lora_alpha=24, target_modules="all-linear"), torch.bfloat16),
    "unembedding": (dict(r=2, lora_alpha=32, target_modules=["lm_head", "down_proj"]), torch.float16),
    "one-layer": (
        dict(r=3, lora_alpha=6, target_modules=r".*\.layers\.1\..*(gate|up)_proj"),
        torch.float32,
    ),
}
PAIRS = [(family, adapter) for family in FAMILIES for adapter in ADAPTERS]


def make_base(folder, family):
    """A base model's directory, with the tokenizer of the model that ships."""
    vocab = json.loads((NANO / "config.json").read_text())["vocab_size"]
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](vocab))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    return folder


def load_base(folder):
    # Soft caps are computed by the plain attention alone.
    options = dict(dtype=torch.float32, attn_implementation="eager")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def make_adapter(folder, base, adapter):
    """A directory that PEFT saved, as one finds them on the hub. B is random, so that all of it counts."""
    options, dtype = ADAPTERS[adapter]
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    torch.manual_seed(2)
    model = peft.get_peft_model(load_base(base), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = (weight.data * 2).to(dtype)
    model.save_pretrained(folder)
    return folder


def sequences():
    torch.manual_seed(3)
    return [torch.randint(4, 200, (length,)).tolist() for length in (2, 9, 40)]


def peft_logprobs(base, adapter):
    model = peft.PeftModel.from_pretrained(load_base(base), adapter).eval().float()
    with torch.no_grad():
        values = []
        for tokens in sequences():
            logits = model(torch.tensor([tokens])).logits[0, :-1]
            chosen = torch.tensor(tokens[1:])[:, None]
            values.append(logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist())
        return values


def sampled_logprobs(service, path):
    sampler = service.create_sampling_client(model_path=path)
    inputs = [types.ModelInput.from_ints(tokens) for tokens in sequences()]
    return [result(sampler.compute_logprobs(tokens))[1:] for tokens in inputs]


def trained_logprobs(training):
    data = [plain_datum(tokens) for tokens in sequences()]
    return logprobs(result(training.forward(data, "cross_entropy")))


def distance(ours, theirs):
    pairs = [(a, b) for ours, theirs in zip(ours, theirs, strict=True) for a, b in zip(ours, theirs, strict=True)]
    assert len(pairs) == sum(len(tokens) - 1 for tokens in sequences())
    return max(abs(a - b) for a, b in pairs)


def run_import(data_dir, adapter, *options):
    command = [BINARY, "checkpoint", "import", adapter, "--data-dir", data_dir, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def imported(data_dir, adapter, *options):
    done = run_import(data_dir, adapter, *options, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exported(data_dir, path):
    """The adapter's directory as it lies in the data directory."""
    run = path.removeprefix("tinker://").split("/")[0]
    found = []
    for manifest in pathlib.Path(data_dir).glob("blobs/*/manifest.json"):
        content = json.loads(manifest.read_text())
        if content["model_id"] == run and not content["optimizer"]:
            found.append(manifest.parent)
    assert len(found) == 1, found
    return found[0]


class World:
    """A base model of each family, PEFT's adapters on it, and a server that they were imported into."""

    def __init__(self, folder):
        self.data_dir = folder / "data"
        self.bases = {family: make_base(folder / family, family) for family in FAMILIES}
        self.adapters, self.paths = {}, {}
        for family, adapter in PAIRS:
            base, made = self.bases[family], folder / f"{family}-{adapter}"
            self.adapters[family, adapter] = make_adapter(made, base, adapter)
            self.paths[family, adapter] = imported(self.data_dir, made, "--base", self.offer(family))
        self.server = Server(self.data_dir, *(self.offer(family) for family in FAMILIES))

    def offer(self, family):
        return f"{family}={self.bases[family]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("peft"))
    yield world
    assert world.server.stop() == 0, "".join(world.server.log)


@pytest.mark.parametrize("family,adapter", PAIRS)
def test_what_peft_wrote_computes_what_it_did(world, family, adapter):
    expected = peft_logprobs(world.bases[family], world.adapters[family, adapter])
    paths = world.paths[family, adapter]
    with world.server.service() as service:
        ours = sampled_logprobs(service, paths["sampler_weights"])
        assert distance(ours, expected) < TOLERANCE
        plain = service.create_sampling_client(base_model=family)
        inputs = [types.ModelInput.from_ints(tokens) for tokens in sequences()]
        bare = [result(plain.compute_logprobs(tokens))[1:] for tokens in inputs]
        assert distance(bare, expected) > 100 * TOLERANCE, "the adapter does something"
        training = service.create_training_client_from_state(paths["weights"])
        assert trained_logprobs(training) == ours
        # It goes on from there, and the modules that the adapter left out are trained too.
        data = [plain_datum(tokens) for tokens in sequences()]
        before = sum(map(sum, trained_logprobs(training)))
        for _ in range(3):
            result(training.forward_backward(data, "cross_entropy"))
            result(training.optim_step(types.AdamParams(learning_rate=1e-3)))
        assert sum(map(sum, trained_logprobs(training))) > before
        other = service.create_lora_training_client(base_model=family, rank=paths["rank"], seed=5)
        if paths["train_mlp"] and paths["train_attn"] and paths["train_unembed"]:
            result(other.load_state(paths["weights"]))
            assert trained_logprobs(other) == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_write_computes_the_same_in_peft(world, family):
    with world.server.service() as service:
        training = service.create_lora_training_client(base_model=family, rank=4, seed=7)
        data = [plain_datum(tokens) for tokens in sequences()]
        for _ in range(4):
            result(training.forward_backward(data, "cross_entropy"))
            result(training.optim_step(PARAMS))
        ours = trained_logprobs(training)
        path = result(training.save_weights_for_sampler("out")).path
        assert sampled_logprobs(service, path) == ours
    directory = exported(world.data_dir, path)
    base = world.bases[family]
    theirs = peft_logprobs(base, directory)
    assert distance(ours, theirs) < TOLERANCE
    saved = peft.LoraConfig.from_pretrained(directory)
    assert (saved.r, saved.lora_alpha, saved.task_type) == (4, 32, "CAUSAL_LM")
    assert saved.base_model_name_or_path == family and "lm_head" in saved.target_modules
    # In again and out again: the same bytes, and the same bits computed.
    world.server.stop()
    again = imported(world.data_dir, directory, "--base", world.offer(family), "--name", "again")
    second = exported(world.data_dir, again["sampler_weights"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (second / name).read_bytes() == (directory / name).read_bytes()
    world.server.start()
    with world.server.service() as service:
        assert sampled_logprobs(service, again["sampler_weights"]) == ours


def test_imports_that_are_refused(world, tmp_path):
    family = next(iter(FAMILIES))
    adapter = world.adapters[family, "query-value"]

    def refusal(data_dir, adapter, *options):
        done = run_import(data_dir, adapter, *options)
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    data_dir, base = tmp_path / "data", ["--base", world.offer(family)]
    locked = refusal(world.data_dir, adapter, *base)
    assert "a server that runs on it has to be stopped first" in locked and "in use" in locked
    assert "adapter_config.json is missing" in refusal(data_dir, tmp_path, *base)
    assert "the settings name nano, base" in refusal(data_dir, adapter, "--base", "nobody")
    nano = refusal(data_dir, adapter, "--base", "nano")
    assert "was trained on" in nano and "--any-base" in nano
    shapes = refusal(data_dir, adapter, "--base", "nano", "--any-base")
    assert "tensor `base_model.model.model.layers.2." in shapes and "another base model" in shapes
    for key, value, reason in [
        ("use_rslora", True, "lora_alpha / r"),
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["embed_tokens"], "whole modules"),
    ]:
        copy = shutil.copytree(adapter, tmp_path / key)
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        refused = refusal(data_dir, copy, *base)
        assert f"sets `{key}`" in refused and reason in refused, refused
    assert not data_dir.exists(), "nothing is made for an adapter that is refused"


def test_an_import_has_no_optimizer(world):
    family = next(iter(FAMILIES))
    paths = world.paths[family, "query-value"]
    with world.server.service() as service:
        training = service.create_lora_training_client(base_model=family, rank=8, seed=7, train_mlp=False)
        with pytest.raises(Exception, match="no optimizer state"):
            result(training.load_state_with_optimizer(paths["weights"]))

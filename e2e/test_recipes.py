"""The recipes that people run on the hosted service, on a model of every family, with the official SDK."""

import families
import pytest
import torch
from helpers import episode, plain_datum, result
from tinker import types

FAMILIES = sorted(families.FAMILIES)
RANK = 8
# Long enough that every sliding window of the models has something outside.
LENGTH = 40
SETTINGS = {"ppo": None, "cispo": None, "dro": {"beta": 0.05}, "importance_sampling": None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where each family's model lies."""
    root = tmp_path_factory.mktemp("families")
    return {family: families.build(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def family_service(folders, start_module):
    server = start_module(*(f"{family}={folder}" for family, folder in folders.items()))
    with server.service() as service:
        yield service


def tokens_of(seed, length=LENGTH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 1024, (length,), generator=generator).tolist()


def scored(model, tokens):
    """log p(token | those before), without the first, from transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    picked = torch.tensor(tokens[1:]).unsqueeze(1)
    return logits[:-1].log_softmax(-1).gather(1, picked).squeeze(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_served_model_is_the_one_of_transformers(family_service, folders, family):
    tokens = tokens_of(1, 150)
    sampler = family_service.create_sampling_client(base_model=family)
    ours = result(sampler.compute_logprobs(types.ModelInput.from_ints(tokens)))
    theirs = scored(families.reference(folders[family]), tokens)
    assert ours[0] is None
    assert torch.tensor(ours[1:], dtype=torch.float64).sub(theirs).abs().max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_supervised(family_service, family):
    training = family_service.create_lora_training_client(base_model=family, rank=RANK, seed=1)
    data = [plain_datum(tokens_of(2)), plain_datum(tokens_of(3, 17))]
    losses = []
    for _ in range(12):
        forward_backward = training.forward_backward(data, "cross_entropy")
        optim_step = training.optim_step(types.AdamParams(learning_rate=2e-2))
        losses.append(result(forward_backward).metrics["loss:sum"])
        result(optim_step)
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize("loss", sorted(SETTINGS))
@pytest.mark.parametrize("family", FAMILIES)
def test_reinforcement(family_service, family, loss):
    """The reward is the share of even tokens; two updates a batch take the ratio off 1."""
    training = family_service.create_lora_training_client(base_model=family, rank=RANK, seed=2)
    prompt = tokens_of(4, 16)
    means = []
    for step in range(14):
        # Seeds make the whole loop repeatable, on every machine.
        params = types.SamplingParams(max_tokens=6, temperature=1.0, stop=[], seed=step)
        sampler = training.save_weights_and_get_sampling_client()
        given = types.ModelInput.from_ints(prompt)
        sequences = result(sampler.sample(given, 24, params)).sequences
        rewards = [sum(token % 2 == 0 for token in each.tokens) / 6 for each in sequences]
        mean = sum(rewards) / len(rewards)
        means.append(mean)
        data = [episode(prompt, each, reward - mean) for each, reward in zip(sequences, rewards)]
        futures = []
        for _ in range(2):
            futures.append(training.forward_backward(data, loss, loss_fn_config=SETTINGS[loss]))
            futures.append(training.optim_step(types.AdamParams(learning_rate=2e-2)))
        for future in futures:
            result(future)
    assert sum(means[-2:]) / 2 > means[0] + 0.15, means


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_preference_optimisation(family_service, family):
    """DPO (Rafailov et al. 2023) as a loss of the client's own: the margin grows from 0."""
    training = family_service.create_lora_training_client(base_model=family, rank=RANK, seed=3)
    chosen, rejected = plain_datum(tokens_of(5)), plain_datum(tokens_of(6))
    reference = result(training.forward([chosen, rejected], "cross_entropy"))
    base = [entry["logprobs"].to_torch().sum() for entry in reference.loss_fn_outputs]

    def loss(_data, logprobs):
        margin = (logprobs[0].sum() - base[0]) - (logprobs[1].sum() - base[1])
        return -torch.nn.functional.logsigmoid(0.1 * margin), {"margin": margin.item()}

    margins = []
    for _ in range(6):
        future = training.forward_backward_custom([chosen, rejected], loss)
        margins.append(result(future).metrics["margin"])
        result(training.optim_step(types.AdamParams(learning_rate=5e-3)))
    assert margins[0] == pytest.approx(0.0, abs=1e-3)
    assert margins[-1] > 5.0, margins


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation(family_service, family):
    """A student learns the teacher's best candidates at each position, [T, K] soft targets."""
    count = 5
    teacher = family_service.create_lora_training_client(base_model=family, rank=RANK, seed=4)
    tokens = tokens_of(7)
    for _ in range(8):
        result(teacher.forward_backward([plain_datum(tokens)], "cross_entropy"))
        result(teacher.optim_step(types.AdamParams(learning_rate=2e-2)))
    sampler = teacher.save_weights_and_get_sampling_client()
    given = types.ModelInput.from_ints(tokens)
    output = result(
        sampler.sample(
            given, 1, types.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True, topk_prompt_logprobs=count,
        )
    )
    best = output.topk_prompt_logprobs[1:]
    candidates = torch.tensor([[token for token, _ in row] for row in best])
    weights = torch.tensor([[logprob for _, logprob in row] for row in best]).exp()
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": candidates, "weights": weights},
    )
    student = family_service.create_lora_training_client(base_model=family, rank=RANK, seed=5)
    # The cross-entropy is least, at the teacher's entropy over these candidates, where both agree.
    least = -(weights * weights.log()).sum().item()
    losses = []
    for _ in range(12):
        forward_backward = student.forward_backward([datum], "cross_entropy")
        result(student.optim_step(types.AdamParams(learning_rate=2e-2)))
        forwarded = result(forward_backward)
        assert forwarded.loss_fn_outputs[0]["logprobs"].to_torch().shape == candidates.shape
        losses.append(forwarded.metrics["loss:sum"] - least)
    assert losses[-1] < 0.5 * losses[0], losses

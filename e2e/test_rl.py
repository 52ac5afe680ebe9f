"""A reinforcement-learning loop with importance sampling, as the cookbook writes it."""

from helpers import episode, question, result, tokenizer
from tinker import types

GROUP = 16


def reward(tokens):
    """The share of an answer's tokens with an "o" in them."""
    return sum("o" in tokenizer().decode([token]) for token in tokens) / len(tokens)


def test_reward_rises(service):
    training = service.create_lora_training_client(base_model="nano", rank=8, seed=4)
    prompt = question("Tell me a story.")
    params = types.SamplingParams(max_tokens=8, temperature=1.0, stop=[])
    means = []
    for step in range(14):
        sampler = training.save_weights_and_get_sampling_client()
        groups = [
            sampler.sample(types.ModelInput.from_ints(prompt), GROUP, params) for _ in range(2)
        ]
        data, rewards = [], []
        for group in groups:
            sequences = result(group).sequences
            scores = [reward(sequence.tokens) for sequence in sequences]
            mean = sum(scores) / len(scores)
            rewards += scores
            pairs = zip(sequences, scores)
            data += [episode(prompt, sequence, score - mean) for sequence, score in pairs]
        means.append(sum(rewards) / len(rewards))
        forward_backward = training.forward_backward(data, "importance_sampling")
        optim_step = training.optim_step(types.AdamParams(learning_rate=1e-2))
        result(forward_backward), result(optim_step)
    assert sum(means[-3:]) > sum(means[:3]) + 0.3, means

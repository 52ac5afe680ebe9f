"""Training over plain HTTP, with nothing but Python's standard library: waiting for each request, submitting
ahead, in batches, and by several users at once; and what each way takes.

    tinsmith serve &
    python examples/async_training.py [http://127.0.0.1:8000]
"""

import concurrent.futures
import json
import sys
import time
import urllib.error
import urllib.request

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
STEPS = 4
USERS = 3
LEARNING_RATE = 5e-3


def post(path, body):
    """Status and JSON of an answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=310) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def call(operation, **body):
    """The result of an operation: the sync face waits for it."""
    status, answer = post(f"/api/v1/{operation}", body)
    if status != 200:
        raise RuntimeError(f"{operation}: {status} {answer}")
    return answer


def submit(operation, **body):
    """The id of a result that is to come: the async face answers at once."""
    return call(f"{operation}_async", **body)["request_id"]


def retrieve_future(future_id, timeout=60):
    """Waits for a result: 200 is the result, 202 means that there is none yet."""
    start = time.monotonic()
    while True:
        status, answer = post("/retrieve_future", {"request_id": future_id})
        if status == 200:
            return answer
        if status != 202:
            raise RuntimeError(f"{future_id}: {status} {answer}")
        if time.monotonic() - start > timeout:
            raise TimeoutError(f"{future_id} took more than {timeout} s")


def batch(name):
    """Chats as data: only what the assistant says is learnt."""
    metals = {"tin": 232, "lead": 327, "zinc": 420, "silver": 962}
    return [
        [
            {"role": "user", "content": f"{name}: where does {metal} melt?"},
            {"role": "assistant", "content": f"At {degrees} degrees."},
        ]
        for metal, degrees in metals.items()
    ]


def create_adapter():
    return call("add_lora", base_model="base", rank=16)["model_id"]


def train_sync():
    """Example 1: each request is waited for."""
    model_id = create_adapter()
    losses = []
    for _ in range(STEPS):
        result = call("forward_backward", model_id=model_id, data=batch("sync"), loss_fn="cross_entropy")
        call("optim_step", model_id=model_id, adam_params={"learning_rate": LEARNING_RATE})
        losses.append(result["loss"])
    call("remove_lora", model_id=model_id)
    return losses


def train_async():
    """Example 2: the next step is submitted while the last one runs; they are done in order."""
    model_id = retrieve_future(submit("add_lora", base_model="base", rank=16))["model_id"]
    losses, running = [], None
    for _ in range(STEPS):
        future = submit("forward_backward", model_id=model_id, data=batch("async"), loss_fn="cross_entropy")
        submit("optim_step", model_id=model_id, adam_params={"learning_rate": LEARNING_RATE})
        if running:
            losses.append(retrieve_future(running)["loss"])
        running = future
    losses.append(retrieve_future(running)["loss"])
    retrieve_future(submit("remove_lora", model_id=model_id))
    return losses


def train_batched():
    """Example 3: everything is submitted at once, and collected afterwards."""
    model_id = create_adapter()
    futures = []
    for _ in range(STEPS):
        futures.append(submit("forward_backward", model_id=model_id, data=batch("batched"), loss_fn="cross_entropy"))
        submit("optim_step", model_id=model_id, adam_params={"learning_rate": LEARNING_RATE})
    losses = [retrieve_future(future)["loss"] for future in futures]
    call("remove_lora", model_id=model_id)
    return losses


def train_users():
    """Several users at once, each with an adapter of its own: the server computes them in one batch."""
    with concurrent.futures.ThreadPoolExecutor(USERS) as executor:
        return list(executor.map(lambda _: train_batched(), range(USERS)))


def timed(train):
    start = time.monotonic()
    result = train()
    return result, time.monotonic() - start


def main():
    runs = [("sync", train_sync), ("async", train_async), ("batched", train_batched)]
    seconds = {}
    for name, train in runs:
        losses, seconds[name] = timed(train)
        print(f"{name:8} losses " + " ".join(f"{loss:.4f}" for loss in losses))
        assert losses[-1] < losses[0], losses
    every, together = timed(train_users)
    assert all(losses[-1] < losses[0] for losses in every), every
    print()
    print(f"comparison, {STEPS} steps of forward_backward and optim_step:")
    for name, took in seconds.items():
        print(f"{name:8} {took:6.2f} s   {seconds['sync'] / took:5.2f} x")
    print(f"{USERS} users {together:6.2f} s   {USERS * seconds['sync'] / together:5.2f} x  (against {USERS} x sync)")
    prompt = [{"role": "user", "content": "23 + 23 ="}]
    answer = call("sample", base_model="base", messages=prompt, max_tokens=16, temperature=0)
    print(f"sample   {answer['text']!r}")


if __name__ == "__main__":
    main()

"""The official SDK's part of client.rs: prints microseconds for each step, CPU and wall, one by one and in flight."""

import sys
import time

import tinker

WARM_UP = 50


def timed(steps, run):
    cpu, wall = time.process_time(), time.perf_counter()
    run(steps)
    return [(time.process_time() - cpu) * 1e6 / steps, (time.perf_counter() - wall) * 1e6 / steps]


def main():
    url, steps, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    service = tinker.ServiceClient(base_url=url, api_key="tml-bench")
    training = service.create_lora_training_client(base_model="test-model", rank=32).result()
    params = tinker.AdamParams()

    def one(steps):
        for _ in range(steps):
            training.optim_step(params).result()

    def many(steps):
        for _ in range(steps // in_flight):
            for future in [training.optim_step(params) for _ in range(in_flight)]:
                future.result()

    one(WARM_UP)
    print(*timed(steps, one), *timed(steps, many))


main()

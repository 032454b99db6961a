# SPDX-License-Identifier: Apache-2.0
"""own_loop.c's job in numpy: a site fits y = Σ w_j x_j by gradient descent on data of its own.

    PYTHONPATH=python python3 -m dilocox launch --sites 2 --tokens 204800 -- \\
        python3 examples/numpy_loop.py"""
import numpy as np

import dilocox

SAMPLES, FEATURES = 256, 8
truth = np.array([0.5, -1, 2, 0, 1.5, -0.5, 0.25, 3], np.float32)

weights = np.zeros(FEATURES, np.float32)
with dilocox.Sync({"weights": weights}, sync_every=10) as sync:
    uniform = np.random.default_rng(sync.site_index).uniform
    x = uniform(-1, 1, (SAMPLES, FEATURES)).astype(np.float32)
    while not sync.finished:
        miss = x @ (weights - truth)
        weights -= 0.2 * x.T @ miss / SAMPLES  # in place: dilocox has the array's memory
        sync.step(SAMPLES)  # may change weights
print(f"loss {np.mean(miss ** 2):.6f}, weight 1 is {weights[1]:.3f} (truth {truth[1]:.3f})")

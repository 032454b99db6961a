# SPDX-License-Identifier: Apache-2.0
"""What two sites gain, measured on this machine (2 cores): gpt.py on two sites, beside the same two
with an AllReduce in every step, and beside one site alone with as many steps; or, with --images,
resnet.py with averaged statistics of batch normalisation, and with local ones."""
import argparse
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH, CONTEXT = 2, 128
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def run(name, command, figure):
    """The figure that each process printed last."""
    print(f"{name} ...", flush=True)
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")
    found = [float(text) for text in re.findall(figure + r" ([\d.]+)", done.stdout)]
    print(f"{name}: {figure} {', '.join(map(str, found))} ({time.monotonic() - begun:.0f} s)",
          flush=True)
    return found


def launch(tokens, script, *arguments):
    return [sys.executable, "-m", "dilocox", "launch", "--sites", "2", "--tokens", str(tokens),
            "--", sys.executable, os.path.join(HERE, script), *arguments]


def text(steps):
    tokens, loss = 2 * steps * BATCH * CONTEXT, "validation loss"
    batch = ["--batch", str(BATCH)]
    two = run("two sites", launch(tokens, "gpt.py", *batch), loss)
    allreduce = run("two sites, AllReduce in every step",
                    launch(tokens, "gpt.py", "--overlap", "allreduce", *batch), loss)
    alone = run("one site alone", [sys.executable, os.path.join(HERE, "gpt_plain.py"), "--steps",
                                   str(steps), *batch], loss)
    if len(set(two)) != 1:
        sys.exit("the sites ended with different models")
    gain = alone[0] - allreduce[0]
    print(f"recovered share: {100 * (alone[0] - two[0]) / gain:.0f}% of what AllReduce gains over "
          "a site alone")


def images(samples):
    accuracy = "test accuracy"
    averaged = run("averaged statistics", launch(samples, "resnet.py"), accuracy)
    run("local statistics", launch(samples, "resnet.py", "--buffers", "local"), accuracy)
    if min(averaged) < 88:
        sys.exit("below 88%")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--steps", type=int, default=560, help="of gpt.py, per site")
    parser.add_argument("--samples", type=int, default=120000, help="of resnet.py, both sites")
    args = parser.parse_args()
    if args.images:
        images(args.samples)
    else:
        text(args.steps)


if __name__ == "__main__":
    main()

"""How fast do we, SAELens and sparsify train a TopK coder on the same stored activations, and how well?

    head -n 240 news.txt > train.txt; tail -n 60 news.txt > test.txt
    for part in train test; do
        polariscope record gemma-3-270m --corpus $part.txt --lines --out $part --hook-points blocks.9.hook_resid_post
        polariscope export $part --format npy --out $part.npy
    done
    python3 -m venv saelens && saelens/bin/pip install sae-lens==6.54.12
    python3 -m venv sparsify && sparsify/bin/pip install eai-sparsify==1.3.3
    saelens/bin/python bench.py saelens train.npy test.npy       # and --d-sae 20480
    sparsify/bin/python bench.py sparsify train.npy test.npy
    POLARISCOPE=target/debug/polariscope saelens/bin/python bench.py polariscope train.npy test.npy --run train   # and --bf16

Rows are scaled to a mean norm of √d without the first token of each document and without outliers, as `polariscope train`
does, and every tool gets the same learning rate, warm-up and decay, Adam, batch, k and number of steps; none of them has a dead
latent within so few. Printed is one JSON
object: tokens a second (the median step of the others; of ours, the slope between a short and a long training as a whole) and
the fraction of variance unexplained on rows that none has seen.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

K, BATCH = 32, 4096


def rows(folder):
    folder = Path(folder)
    acts = np.load(next(path for path in folder.glob("blocks.*.npy")), mmap_mode="r")
    kept = np.asarray(acts[np.load(folder / "pos.npy") > 0], dtype=np.float32)
    norms = np.linalg.norm(kept, axis=1)
    return kept[norms < 10 * np.median(norms)]


def schedule(step, steps):
    """The part of the learning rate: up over a twentieth, down over the last fifth."""
    return min(1.0, (step + 1) / (steps // 20 + 1), (steps - step) / max(1, steps // 5))


def batches(train, steps):
    generator = torch.Generator().manual_seed(0)
    data = torch.from_numpy(train)
    while True:
        for some in torch.randperm(len(data), generator=generator).split(BATCH):
            if len(some) == BATCH:
                yield data[some]


def saelens(train, steps, d_sae, lr):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=train.shape[1], d_sae=d_sae, k=K))
    sae.b_dec.data = torch.from_numpy(train[:8192].mean(0))
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=lr, lr_end=0.0,
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5,
    )
    trainer = SAETrainer(config, sae, batches(train, steps))
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        seconds.append(time.perf_counter() - start)
    sae.fold_W_dec_norm()
    sae.eval()
    return seconds, lambda x: sae(x)


def sparsify(train, steps, d_sae, lr):
    # Its kernels want a GPU.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(train.shape[1], SparseCoderConfig(num_latents=d_sae, k=K))
    sae.b_dec.data = torch.from_numpy(train[:8192].mean(0))
    adam = torch.optim.Adam(sae.parameters(), lr=lr)
    data, seconds = batches(train, steps), []
    for step in range(steps):
        start = time.perf_counter()
        x = next(data)
        for group in adam.param_groups:
            group["lr"] = lr * schedule(step, steps)
        out = sae(x)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        sae.set_decoder_norm_to_unit_norm()
        seconds.append(time.perf_counter() - start)
    return seconds, lambda x: sae(x).sae_out


def polariscope(run, steps, d_sae, lr, scale, flags):
    from safetensors.torch import load_file

    took = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (steps // 4, steps):
            out = Path(folder) / str(n)
            command = [os.environ.get("POLARISCOPE", "polariscope"), "train", run, "--out", str(out), "--architecture", "topk"]
            options = {"hook-point": "blocks.9.hook_resid_post", "d-sae": d_sae, "k": K, "batch-tokens": BATCH, "steps": n, "lr": lr}
            options["dead-window"] = 10_000_000
            command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
            start = time.perf_counter()
            subprocess.run(command + ["--threads", "2"] + flags, check=True, capture_output=True)
            took[n] = time.perf_counter() - start
        weights = load_file(out / "sae_weights.safetensors")
    second = (took[steps] - took[steps // 4]) / (steps - steps // 4)

    def forward(x):
        x = x / scale
        z = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
        top = z.topk(K, dim=1)
        return (torch.zeros_like(z).scatter(1, top.indices, top.values) @ weights["W_dec"] + weights["b_dec"]) * scale

    return [second], forward


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=["saelens", "sparsify", "polariscope"])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--run")
    parser.add_argument("--d-sae", type=int, default=5120)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    train, test = rows(args.train), rows(args.test)
    scale = float(np.sqrt(train.shape[1]) / np.linalg.norm(train, axis=1).mean())
    train, test = train * np.float32(scale), torch.from_numpy(test * np.float32(scale))
    lr = 2e-4 * (16384 / args.d_sae) ** 0.5
    if args.tool == "polariscope":
        seconds, forward = polariscope(args.run, args.steps, args.d_sae, lr, scale, ["--bf16"] if args.bf16 else [])
    else:
        seconds, forward = globals()[args.tool](train, args.steps, args.d_sae, lr)
    with torch.no_grad():
        missed = sum(float((forward(x) - x).double().square().sum()) for x in test.split(BATCH))
    variance = float((test.double() - test.double().mean(0)).square().sum())
    median = statistics.median(seconds)
    print(json.dumps({
        "tool": args.tool + (" bf16" if args.bf16 else ""), "d_in": train.shape[1], "d_sae": args.d_sae, "k": K, "batch": BATCH, "steps": args.steps,
        "tokens_per_second": round(BATCH / median), "fvu": round(missed / variance, 4), "rows": len(train),
    }))


main()

#!/usr/bin/env python3
"""Records a corpus on a Ray cluster: each shard is a task, then the run is merged, and encoded where a coder is given.

    pip install ray
    python ray_record.py --model gemma-3-270m --corpus books/ --out /shared/runs/books --workers 16 --gpus 1 \
        --sae /shared/saes/resid-9 -- --hook-points 'blocks.*.hook_resid_post' --nll

All nodes see the same file system, and `polariscope` under the same name. What stands behind `--` goes to `record`.
A task whose node or process dies is tried again and goes on behind its durable shards; a wrong input ends everything in
one sentence. Ctrl-C ends the tasks; the same command goes on.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time

import ray
from ray.exceptions import RayError, RayTaskError

# What polariscope ends with when the input or the run is at fault: trying again would not help.
AT_FAULT = 1


class WrongInput(Exception):
    """polariscope has refused; what it said."""


class Died(Exception):
    """polariscope was killed, or its twin on a node that was lost has not ended yet: try again."""


def end_with_parent():
    """A node that is lost takes its recordings with it, so that the next one finds their locks free."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def polariscope(command):
    """Runs polariscope; gives back its standard output, or raises what became of it."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    if ended.returncode == 0:
        return ended.stdout
    said = ended.stderr[ended.stderr.rfind("error: ") :].strip()
    if ended.returncode == AT_FAULT and "is running already" not in said:
        raise WrongInput(said)
    raise Died(f"exit code {ended.returncode}: {said}")


@ray.remote
def task(command):
    """One call of polariscope on some node of the cluster."""
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        os.environ.pop(name, None)
    try:
        return polariscope(command)
    except Died:
        # Ray tries again at once; what has just died may need a moment to be gone.
        time.sleep(1)
        raise


def record_command(args, worker):
    command = [args.polariscope, "record", args.model, "--corpus", *args.corpus, "--out", args.out]
    device = "cuda" if args.gpus > 0 and "--device" not in args.options else None
    return [
        *command,
        *(["--device", device] if device else []),
        *args.options,
        *["--shard", f"{worker}/{args.workers}", "--json"],
    ]


def progress(args):
    """One line on how far the run is; nothing before there is one."""
    ended = subprocess.run([args.polariscope, "status", args.out, "--json"], capture_output=True, text=True)
    if ended.returncode != 0:
        return None
    status = json.loads(ended.stdout)
    done = sum(worker["state"] == "complete" for worker in status["workers"])
    rate = sum(worker["tokens_per_second"] or 0 for worker in status["workers"] if worker["state"] == "running")
    return (
        f"{status['shards']} of {status['shards_expected'] or '?'} shards, "
        f"{status['tokens']:,} of {status['tokens_expected'] or 0:,} tokens, "
        f"{done} of {args.workers} workers done, {rate:,.0f} tokens/s"
    )


def wait_for(tasks, args):
    """Waits for all tasks and says how far they are. The first that fails for good ends the others."""
    last = None
    while tasks:
        done, tasks = ray.wait(tasks, num_returns=1, timeout=args.every)
        try:
            ray.get(done)
        except RayError as error:
            for other in tasks:
                ray.cancel(other, force=True)
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise SystemExit(str(cause)) from None
        now = progress(args)
        if now and now != last:
            print(now, file=sys.stderr, flush=True)
            last = now


def run(args):
    resources = {"num_gpus": args.gpus, "num_cpus": args.cpus}
    # Ray retries what its nodes lose (`max_retries`), and what our own processes lose where the exception says so.
    options = {**resources, "max_retries": args.retries, "retry_exceptions": [Died]}
    wait_for([task.options(**options, name=f"record {i}").remote(record_command(args, i)) for i in range(args.workers)], args)
    summary = polariscope([args.polariscope, "merge", args.out, "--json"])
    print(summary, end="")
    if args.sae:
        encode = [args.polariscope, "encode", args.out, "--sae", args.sae, "--json"]
        encode += ["--model", args.model] if args.logits else []
        print(ray.get(task.options(**{**options, "num_gpus": 0}, name="encode").remote(encode)), end="")


def parse(argv):
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True, nargs="+")
    parser.add_argument("--out", required=True, metavar="RUN")
    parser.add_argument("--workers", required=True, type=int, help="shares of the corpus; more than nodes is fine")
    parser.add_argument("--gpus", type=float, default=0, help="of each task")
    parser.add_argument("--cpus", type=float, default=1, help="of each task")
    parser.add_argument("--retries", type=int, default=5, help="of each task, when its node or process dies")
    parser.add_argument("--sae", help="a coder that the merged run is encoded with")
    parser.add_argument("--logits", action="store_true", help="also the tokens that each feature raises and lowers")
    parser.add_argument("--address", default="auto", help="of the Ray cluster; `local` starts one here")
    parser.add_argument("--every", type=float, default=5, help="seconds between lines of progress")
    parser.add_argument("--polariscope", default="polariscope", help="the program, as the nodes call it")
    args = parser.parse_args(argv[:at])
    args.options = argv[at + 1 :]
    return args


def main(argv):
    args = parse(argv)
    if not ray.is_initialized():
        ray.init(address=None if args.address == "local" else args.address, log_to_driver=False)
    try:
        run(args)
    except (WrongInput, Died) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])

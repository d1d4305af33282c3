#!/usr/bin/env python3
"""Do the scripts beside this file give on a cluster, of which a part is killed, what one process gives?

    python3 -m venv ray && ray/bin/pip install ray pyarrow
    python3 -m venv spark && spark/bin/pip install 'pyspark[sql]>=4'          # and Java 17
    cargo build --workspace --bin polariscope
    for each of the two: POLARISCOPE=target/debug/polariscope ray/bin/python cli/deploy/test_deploy.py -v

A test whose packages are not installed says so and is left out. Everything runs on this machine alone.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "tests/fixtures/gemma3/text"
POLARISCOPE = os.environ.get("POLARISCOPE", "polariscope")
HOOK = "blocks.2.hook_resid_post"
OPTIONS = ["--hook-points", HOOK, "--shard-tokens", "2000", "--threads", "1"]
WORKERS = 4

sys.path.insert(0, str(HERE))


def polariscope(*args):
    ended = subprocess.run([POLARISCOPE, *map(str, args)], capture_output=True, text=True)
    if ended.returncode != 0:
        raise AssertionError(ended.stderr)
    return ended.stdout


def corpus(path, documents):
    """Token ids that nobody needs a tokenizer for; 0 to 4 are special."""
    state = 1

    def below(bound):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % bound

    lines = ([5 + below(315) for _ in range(20 + below(64))] for _ in range(documents))
    path.write_text("".join(json.dumps({"tokens": [2, *line]}) + "\n" for line in lines))


def one_process(folder, documents):
    """A run and a coder that one process has made."""
    corpus(folder / "corpus.jsonl", documents)
    record(folder, folder / "one")
    polariscope("train", folder / "one", "--hook-point", HOOK, "--out", folder / "coder", "--d-sae", 128, "--k", 8,
                "--tokens", 20_000, "--threads", 1)
    polariscope("encode", folder / "one", "--sae", folder / "coder", "--threads", 1)


def record(folder, out, *more):
    polariscope("record", MODEL, "--corpus", folder / "corpus.jsonl", "--out", out, *OPTIONS, *more)


def tree(folder):
    """Every file with its bytes, without the manifest, which has a command line and times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def wait_until(what, condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


@unittest.skipUnless(find_spec("ray"), "`ray` is not installed")
class Ray(Case):
    def test_a_node_that_is_killed_loses_nothing(self):
        import ray
        from ray.cluster_utils import Cluster

        import ray_record

        one_process(self.folder, 2000)
        # Writes down each call, so that the test knows that a task was begun twice.
        calls = self.folder / "calls"
        calls.touch()
        program = self.folder / "polariscope"
        real = Path(POLARISCOPE).resolve()
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {real} "$@"\n')
        program.chmod(0o755)

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.addCleanup(cluster.shutdown)
        # GPUs are resources that a node says it has; nothing here looks for one.
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(3)]
        ray.init(address=cluster.address, log_to_driver=False)
        self.addCleanup(ray.shutdown)
        run = self.folder / "several"

        def kill_one():
            wait_until("a shard", lambda: any((run / "journal").glob("*.json")))
            # Three tasks run on three nodes, and a fourth one waits.
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill_one)
        killer.start()
        ray_record.main([
            *["--model", str(MODEL), "--corpus", str(self.folder / "corpus.jsonl"), "--out", str(run)],
            *["--workers", str(WORKERS), "--gpus", "1", "--every", "0.5", "--polariscope", str(program)],
            *["--sae", str(self.folder / "coder"), "--", "--device", "cpu", *OPTIONS],
        ])
        killer.join()
        begun = [line for line in calls.read_text().splitlines() if line.startswith("record ")]
        self.assertGreater(len(begun), WORKERS, "a task was lost and begun again")
        one, several = tree(self.folder / "one"), tree(run)
        self.assertEqual(one.keys(), several.keys())
        self.assertEqual([name for name in one if one[name] != several[name]], [])
        polariscope("verify", run)

        # A wrong input is not tried again.
        with self.assertRaisesRegex(SystemExit, "no file of a corpus"):
            ray_record.main([
                *["--model", str(MODEL), "--corpus", "nothing-there", "--out", str(self.folder / "none")],
                *["--workers", "1", "--polariscope", str(program)],
            ])
        self.assertEqual(sum("nothing-there" in line for line in calls.read_text().splitlines()), 1)


@unittest.skipUnless(find_spec("pyspark"), "`pyspark` is not installed")
class Spark(Case):
    def test_an_executor_that_is_killed_loses_nothing(self):
        from pyspark.sql import SparkSession

        import spark_features

        one_process(self.folder, 600)
        url, workers = self.cluster(3)
        spark = (
            SparkSession.builder.master(url)
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.cores.max", "3")
            .config("spark.executor.cores", "1")
            .config("spark.executor.memory", "512m")
            # Enough tasks for a kill to fall among them.
            .config("spark.sql.adaptive.enabled", "false")
            .config("spark.sql.shuffle.partitions", "12")
            .config("spark.task.maxFailures", "8")
            .getOrCreate()
        )
        self.addCleanup(spark.stop)
        tracker = spark.sparkContext._jsc.sc().statusTracker()
        # The driver is among them.
        executors = lambda: len(tracker.getExecutorInfos()) - 1
        wait_until("three executors", lambda: executors() == 3)
        python_tracker = spark.sparkContext.statusTracker()
        killed = []

        def in_the_middle():
            stages = map(python_tracker.getStageInfo, python_tracker.getActiveStageIds())
            return any(stage and stage.numCompletedTasks > 0 and stage.numTasks > 3 for stage in stages)

        def kill_one():
            wait_until("a stage in its middle", in_the_middle)
            killed.extend(self.kill_with_children(workers[0]))

        killer = threading.Thread(target=kill_one)
        killer.start()
        out = self.folder / "out"
        spark_features.features(spark, str(self.folder / "one"), "coder", str(out))
        killer.join()
        self.assertGreater(len(killed), 1, "the worker and its executor")
        self.assertEqual(executors(), 2)
        self.compare(out)

    def compare(self, out):
        table = self.folder / "one/features/coder"
        columns = ["feature", "n_active", "frac_nonzero", "mean_act", "max_act", "act_hist", "first_fired", "last_fired"]
        expected = [row for row in pq.read_table(table / "stats.parquet", columns=columns).to_pylist() if row["n_active"]]
        found = sorted(pq.read_table(out / "stats", columns=columns).to_pylist(), key=lambda row: row["feature"])
        self.assertGreater(len(expected), 10)
        for one, several in zip(expected, found, strict=True):
            # The executors add up in another order.
            mean = (one.pop("mean_act"), several.pop("mean_act"))
            self.assertTrue(math.isclose(*mean, rel_tol=1e-12), mean)
            self.assertEqual(one, several)
        columns = ["feature", "rank", "token_idx", "act", "context_start", "context_len"]
        expected = pq.read_table(table / "examples.parquet", columns=columns, filters=[("group", "=", "top")]).to_pylist()
        found = pq.read_table(out / "examples", columns=columns).to_pylist()
        place = lambda row: (row["feature"], row["rank"])
        self.assertEqual(sorted(expected, key=place), sorted(found, key=place))

    def cluster(self, n):
        """A master and workers, each a process of its own."""
        import pyspark

        spark_class = Path(pyspark.__file__).parent / "bin/spark-class"
        environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        environment |= {"SPARK_DAEMON_MEMORY": "256m", "PYTHONPATH": str(HERE)}
        os.environ["PYSPARK_PYTHON"] = sys.executable

        def start(name, *args):
            log = open(self.folder / f"{name}.log", "w")
            self.addCleanup(log.close)
            process = subprocess.Popen([spark_class, *args], env=environment, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            self.addCleanup(self.kill_with_children, process)
            return process

        def address():
            words = (self.folder / "master.log").read_text().split()
            return next((word for word in words if word.startswith("spark://127.0.0.1:")), None)

        start("master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        wait_until("the master", address)
        url = address().rstrip(".,")
        worker = ["org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "900m"]
        folder = ["--work-dir", str(self.folder / "work"), "--webui-port", "0"]
        return url, [start(f"worker-{i}", *worker, *folder, url) for i in range(n)]

    @staticmethod
    def kill_with_children(process):
        """Kills a process that this test has started, and everything that it has started."""

        def below(pid):
            children = Path(f"/proc/{pid}/task/{pid}/children")
            tasks = Path(f"/proc/{pid}/task")
            found = []
            for task in tasks.glob("*/children") if tasks.exists() else [children]:
                found += map(int, task.read_text().split()) if task.exists() else []
            return [pid, *(pid for child in found for pid in below(child))]

        pids = below(process.pid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
        return pids


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""Statistics and maximal examples of every feature with SQL on a Spark cluster, from the files that `encode` wrote.

    pip install 'pyspark[sql]>=4'             # and Java 17
    spark-submit --master spark://host:7077 spark_features.py RUN NAME --out OUT

Reads `RUN/tokens`, `RUN/documents` and `RUN/features/NAME/acts`; writes `OUT/stats` and `OUT/examples`, Parquet folders
with the columns of `stats.parquet` that follow from activations, and of the group `top` of `examples.parquet`.
Counts, extremes, histograms and examples equal those of `encode`; means differ in the last bits, because the
executors add up in another order.

Spark and not Ballista: what an executor that is lost had computed is computed again from the files, and the greedy
choice of examples runs on the executors as a function of Arrow tables.
"""

import argparse

import pyarrow as pa
from pyspark.sql import SparkSession

# As in `data/src/features/mod.rs`: two bins an octave, from 2^-16 to 2^16.
ACT_BINS, BINS_PER_OCTAVE, LEAST_OCTAVE = 64, 2, -16

TABLES = """
    CREATE OR REPLACE TEMP VIEW active AS
    SELECT CAST(feature AS BIGINT) AS feature, CAST(acts.token_idx AS BIGINT) AS token_idx, act, tokens.doc_id
    FROM acts JOIN tokens ON acts.token_idx = tokens.token_idx
    WHERE NOT special
"""

# One row a feature that is active anywhere. The histogram is a map from bin to count until it is laid out below.
STATS = f"""
    WITH binned AS (
        SELECT feature, token_idx, act,
            LEAST(GREATEST(CAST(CAST(CAST(log2(act) AS FLOAT) - {LEAST_OCTAVE} AS FLOAT) * {BINS_PER_OCTAVE} AS INT), 0),
                  {ACT_BINS - 1}) AS bin
        FROM active
    ),
    bins AS (
        SELECT feature, bin, COUNT(*) AS n, SUM(CAST(act AS DOUBLE)) AS total, MAX(act) AS max_act,
            MIN(token_idx) AS first_fired, MAX(token_idx) AS last_fired
        FROM binned GROUP BY feature, bin
    ),
    of_feature AS (
        SELECT feature, SUM(n) AS n_active, SUM(total) AS total, MAX(max_act) AS max_act,
            map_from_entries(collect_list(struct(bin, n))) AS hist,
            MIN(first_fired) AS first_fired, MAX(last_fired) AS last_fired
        FROM bins GROUP BY feature
    )
    SELECT feature, n_active,
        n_active / (SELECT COUNT(*) FROM tokens WHERE NOT special) AS frac_nonzero,
        total / n_active AS mean_act, max_act,
        transform(sequence(0, {ACT_BINS - 1}), bin -> COALESCE(hist[bin], 0)) AS act_hist,
        first_fired, last_fired
    FROM of_feature ORDER BY feature
"""

# An example keeps at most `context` tokens from being another, so that `top` examples are among the first
# `top * context` activations of a feature.
CANDIDATES = """
    WITH ranked AS (
        SELECT *, row_number() OVER (PARTITION BY feature ORDER BY act DESC, token_idx) AS place FROM active
    )
    SELECT feature, token_idx, act, place, CAST(first_token_idx AS BIGINT) AS doc_start,
        CAST(first_token_idx + n_tokens AS BIGINT) AS doc_end
    FROM ranked JOIN documents ON ranked.doc_id = documents.doc_id
    WHERE place <= {candidates}
"""

EXAMPLE = "feature BIGINT, rank BIGINT, token_idx BIGINT, act FLOAT, context_start BIGINT, context_len BIGINT"


def passage(token, start, end, length):
    """The passage around a token, three quarters of it before the token, inside its document."""
    begin = max(token - length * 3 // 4, start, 0)
    stop = max(min(begin + length, end), token + 1)
    begin = min(begin, max(stop - length, start, 0))
    return begin, stop - begin


def chooser(top, length):
    """Chooses the examples of one feature: the largest activations that stand in no passage of one before them."""

    def choose(table: pa.Table) -> pa.Table:
        chosen = []
        for row in table.sort_by("place").to_pylist():
            if len(chosen) == top:
                break
            token = row["token_idx"]
            if any(begin <= token < begin + n for *_, begin, n in chosen):
                continue
            begin, n = passage(token, row["doc_start"], row["doc_end"], length)
            chosen.append((row["feature"], len(chosen), token, row["act"], begin, n))
        names = ["feature", "rank", "token_idx", "act", "context_start", "context_len"]
        types = [pa.int64(), pa.int64(), pa.int64(), pa.float32(), pa.int64(), pa.int64()]
        columns = zip(*chosen) if chosen else [[]] * len(names)
        return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, types)})

    return choose


def features(spark, run, name, out, top=20, context=64):
    spark.read.parquet(f"{run}/tokens").createOrReplaceTempView("tokens")
    spark.read.parquet(f"{run}/documents").createOrReplaceTempView("documents")
    spark.read.parquet(f"{run}/features/{name}/acts").createOrReplaceTempView("acts")
    spark.sql(TABLES)
    spark.sql(STATS).write.mode("overwrite").parquet(f"{out}/stats")
    candidates = spark.sql(CANDIDATES.format(candidates=top * context))
    examples = candidates.groupBy("feature").applyInArrow(chooser(top, context), EXAMPLE)
    examples.orderBy("feature", "rank").write.mode("overwrite").parquet(f"{out}/examples")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("name", metavar="NAME", help="the feature table, as under RUN/features")
    parser.add_argument("--out", required=True)
    parser.add_argument("--top", type=int, default=20, help="examples of a feature")
    parser.add_argument("--context", type=int, default=64, help="tokens of a passage")
    args = parser.parse_args()
    spark = SparkSession.builder.appName("polariscope features").getOrCreate()
    features(spark, args.run, args.name, args.out, args.top, args.context)
    spark.stop()


if __name__ == "__main__":
    main()

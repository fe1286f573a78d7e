"""Spark Structured Streaming as its guide writes it: Kafka source, from_avro, predict_batch_udf, to_avro, Kafka sink.

Micro-batch by micro-batch until the topic's end (`availableNow`). Offsets are kept in its checkpoint, none are
committed to a group. At least once: a task that fails writes its records again.
"""

import os
import sys
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql import functions as sql
from pyspark.sql.avro.functions import from_avro, to_avro
from pyspark.sql.types import FloatType

from benchmarks import job

VERSION = "4.2.0"
PACKAGES = f"org.apache.spark:spark-sql-kafka-0-10_2.13:{VERSION},org.apache.spark:spark-avro_2.13:{VERSION}"
#: Events of a micro-batch over all partitions.
BATCH_EVENTS = 200_000
#: Rows that the model scores at once.
SCORE_ROWS = 5_000


def session() -> SparkSession:
    """Spark on two cores; fetches its Kafka and Avro packages if they are not there."""
    os.environ["PYSPARK_PYTHON"] = sys.executable  # its workers run the first python3 on the path otherwise
    builder = SparkSession.builder.master("local[2]").appName("benchmark")
    options = {
        "spark.jars.packages": PACKAGES,
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
        "spark.driver.memory": "2g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    for key, value in options.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def load_model() -> Any:
    """Called in each Python worker: a function of (n, 16) float32 -> (n,) float32."""
    import torch  # noqa: PLC0415 (the driver has no use for it)

    torch.set_num_threads(1)
    model = job.model()

    def predict(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            scores: npt.NDArray[np.float32] = model(torch.from_numpy(features)).squeeze(1).numpy()
        return scores

    return predict


def main() -> None:
    given = job.Job.parse()
    spark = session()
    score = predict_batch_udf(
        load_model, return_type=FloatType(), batch_size=SCORE_ROWS, input_tensor_shapes=[[len(job.FEATURES)]]
    )
    kafka = {"kafka.bootstrap.servers": given.bootstrap_servers}
    source = {"subscribe": given.input_topic, "startingOffsets": "earliest", "maxOffsetsPerTrigger": BATCH_EVENTS}
    events = (
        spark.readStream.format("kafka")
        .options(**kafka, **source)
        .load()
        .select(
            "key",
            from_avro(sql.expr(f"substring(value, {job.HEADER_BYTES + 1})"), job.EVENT_SCHEMA_JSON).alias("event"),
        )
    )
    scored = events.select(
        sql.col("key").alias("message_key"),
        "event.id",
        "event.key",
        "event.time",
        score(sql.array(*(f"event.{name}" for name in job.FEATURES))).alias("score"),
        sql.lit(job.MODEL_VERSION).alias("model_version"),
    )
    fields = sql.struct(*(field["name"] for field in job.SCORE_SCHEMA["fields"]))
    header = sql.lit(bytearray(job.wire_header(job.SCORE_SCHEMA_ID)))
    outputs = scored.select(
        sql.col("message_key").alias("key"), sql.concat(header, to_avro(fields, job.SCORE_SCHEMA_JSON)).alias("value")
    )
    sink = {"topic": given.output_topic, "kafka.acks": "all", "kafka.enable.idempotence": "true"}
    with tempfile.TemporaryDirectory() as checkpoint:
        query = (
            outputs.writeStream.format("kafka")
            .options(**kafka, **sink, checkpointLocation=checkpoint)
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main()

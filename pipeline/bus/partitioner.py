"""The Java client's default partitioner, for Faust's `key_partition` and for tests.

librdkafka partitions what it produces by itself (`partitioner=murmur2_random`, the same function).
"""

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 as in org.apache.kafka.common.utils.Utils.murmur2, unsigned."""
    length = len(data)
    h = (_SEED ^ length) & _MASK
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_for(key: bytes, partitions: int) -> int:
    """Partition of `key` among `partitions`, as the Java client computes it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions

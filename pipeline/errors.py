"""Every error the pipeline raises on purpose.

    PipelineError
    ├── SettingsError          a setting is missing, wrong or unsafe            exit 2
    ├── ContractError          two things that must fit do not                  exit 1
    │   ├── SchemaError        an Avro schema is invalid or incompatible
    │   └── BundleError        a model bundle is damaged, foreign or misfit
    ├── DataError              a file given on the command line cannot be read  exit 1
    ├── InputRefusedError      more bad input than the limit allows             exit 3
    ├── FencedError            another instance took this one's place           exit 4
    ├── UnreachableError       broker or registry away past its deadline        exit 5
    ├── ScoringError           the model failed on a batch, retries exhausted   exit 6
    ├── DeliveryError          the broker refused an output record              exit 7
    ├── TransactionAbortedError  its inputs are read again: handled inside
    ├── DrainTimeoutError      shutdown deadline passed with work in flight     exit 8
    ├── EmbeddedBrokerError    the embedded Kafka cannot be fetched or started  exit 9
    ├── ExhaustedError         memory, open files, threads or disk ran out      exit 10
    ├── CorruptInputError      a batch of input arrived damaged                 exit 11
    └── InternalError          what nobody thought of: a bug                    exit 70

A record that cannot be used is *not* an error: it is a value (`records.Reject`)
and becomes a dead letter. Exceptions are for faults.
"""

import errno
from collections.abc import Iterator
from typing import ClassVar


class PipelineError(Exception):
    """Base of all errors raised on purpose; the message is one line a person can act on."""

    #: Whether the same call may succeed later without anyone changing anything.
    retriable: ClassVar[bool] = False
    #: Process exit code when this error ends a command. 130 is kept for Ctrl-C.
    exit_code: ClassVar[int] = 1
    #: Whether a new process may fare better, so that a supervisor starts one.
    restart_mends: ClassVar[bool] = False


class SettingsError(PipelineError):
    """A setting is missing, wrong or unsafe. The message names source, key, fault and mend."""

    exit_code = 2


class ContractError(PipelineError):
    """Two things that must fit together do not (schema, bundle, topic, settings)."""


class SchemaError(ContractError):
    """An Avro schema is invalid, unknown to the registry, or incompatible."""


class BundleError(ContractError):
    """A model bundle is damaged, was changed after packing, or does not fit."""


class DataError(PipelineError):
    """An input file is missing, unreadable or does not have the columns it must have."""


class InputRefusedError(PipelineError):
    """The share of bad input passed the limit set for it."""

    exit_code = 3


class FencedError(PipelineError):
    """Another instance with the same identity took over; this one must stop at once."""

    exit_code = 4


class UnreachableError(PipelineError):
    """A broker or registry did not answer before the deadline."""

    retriable = True
    exit_code = 5
    restart_mends = True


class ScoringError(PipelineError):
    """The model raised, or returned the wrong shape, and the retries are used up."""

    exit_code = 6
    restart_mends = True


class DeliveryError(PipelineError):
    """The broker refused an output record for good; its inputs stay uncommitted."""

    exit_code = 7
    restart_mends = True


class TransactionAbortedError(PipelineError):
    """The open transaction was aborted: none of its outputs will be seen, its inputs are read again."""

    retriable = True


class DrainTimeoutError(PipelineError):
    """The shutdown deadline passed while batches were still in flight."""

    exit_code = 8
    restart_mends = True


class EmbeddedBrokerError(PipelineError):
    """The embedded Apache Kafka could not be downloaded, started or stopped."""

    exit_code = 9


class ExhaustedError(PipelineError):
    """The machine, or this process's share of it, ran out of memory, open files, threads or disk."""

    exit_code = 10
    restart_mends = True


class CorruptInputError(PipelineError):
    """A batch of input records arrived with a wrong checksum: spoilt on its way, or where it is stored."""

    exit_code = 11
    restart_mends = True


class InternalError(PipelineError):
    """An exception that nobody raised on purpose; the log has its traceback."""

    exit_code = 70
    restart_mends = True


_EXHAUSTED = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})


def explained(error: Exception) -> PipelineError:
    """`error` as one of ours: itself, ExhaustedError where the system ran out of something, else InternalError."""
    if isinstance(error, PipelineError):
        return error
    told = " ".join(f"{type(error).__name__}: {error}".split())
    # A shared library that the address space has no room for: torch's take 1 to 3 GB of it.
    no_room = isinstance(error, ImportError) and "failed to map segment" in str(error)
    if isinstance(error, MemoryError) or no_room:
        return ExhaustedError(
            f"out of memory ({told}); allow the process more, or lower scoring.step_max and batch_max"
        )
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return ExhaustedError(f"the system refuses more ({told}); raise the limit it names")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return ExhaustedError(f"the system refuses more threads ({told}); raise the limit of processes")
    return InternalError(f"{told}. This is a bug.")


def restart_mends(exit_code: int) -> bool:
    """Whether starting a process again that ended with `exit_code` (128 + n for signal n) may help."""
    return all(kind.restart_mends for kind in _kinds(PipelineError) if kind.exit_code == exit_code)


def _kinds(kind: type[PipelineError]) -> Iterator[type[PipelineError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)

"""The file registry: a Schema Registry's rules, for any number of processes, in files a person can read."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from pipeline import codec
from pipeline.codec import FileRegistry
from pipeline.errors import SchemaError, UnreachableError
from tests.unit.test_codec_schemas import record

FIRST = record(("a", "int"))
SECOND = record(("a", "long"), ("b", "string", ""))
UNRELATED = record(("a", "boolean"))


def test_without_a_url_the_registry_is_a_folder(tmp_path: Path) -> None:
    """No server, no folder yet: nothing is made before something is registered."""
    registry = codec.open_registry(None, tmp_path / "registry", None)
    assert registry.latest("t-value") is None
    assert not (tmp_path / "registry").exists()
    assert registry.register("t-value", FIRST) == 1


def test_ids_are_global_and_lasting(tmp_path: Path) -> None:
    """The same schema has one id under every subject, however it is spelled, also after a restart."""
    registry = FileRegistry(tmp_path)
    assert registry.register("a-value", FIRST) == 1
    assert registry.register("a-value", SECOND) == 2
    assert registry.register("b-value", json.dumps(json.loads(FIRST), indent=4)) == 1
    assert registry.register("a-value", FIRST) == 1
    again = FileRegistry(tmp_path)
    assert again.register("b-value", SECOND) == 2
    latest = again.latest("b-value")
    assert latest is not None
    assert latest[0] == 2
    assert json.loads(latest[1]) == json.loads(SECOND) == json.loads(again.schema(2))


def test_what_cannot_read_the_version_before_is_refused(tmp_path: Path) -> None:
    """BACKWARD: the message names the subject and the field; nothing is written."""
    registry = FileRegistry(tmp_path)
    registry.register("a-value", FIRST)
    with pytest.raises(SchemaError, match=r"a-value: cannot read what id 1 wrote: .*fields/0"):
        registry.register("a-value", UNRELATED)
    assert registry.latest("a-value") == (1, registry.schema(1))
    assert registry.register("other-value", UNRELATED) == 2


def test_no_schema_is_not_registered(tmp_path: Path) -> None:
    """Text that is no Avro schema never gets an id."""
    with pytest.raises(SchemaError, match="not a valid Avro schema"):
        FileRegistry(tmp_path).register("a-value", "{}")


def test_an_unknown_id_is_a_bad_record_and_an_absent_folder_is_not(tmp_path: Path) -> None:
    """An id that was never given is refused; a folder that is not there is waited for."""
    registry = FileRegistry(tmp_path / "registry")
    with pytest.raises(UnreachableError, match=r"no such folder; set registry\.dir"):
        registry.schema(1)
    registry.register("a-value", FIRST)
    with pytest.raises(SchemaError, match="no schema has id 2"):
        registry.schema(2)


def test_what_another_process_registered_is_seen(tmp_path: Path) -> None:
    """Nothing unknown is remembered as such."""
    mine, theirs = FileRegistry(tmp_path), FileRegistry(tmp_path)
    mine.register("a-value", FIRST)
    with pytest.raises(SchemaError):
        mine.schema(2)
    theirs.register("a-value", SECOND)
    assert json.loads(mine.schema(2)) == json.loads(SECOND)


def test_files_are_for_people(tmp_path: Path) -> None:
    """One schema a file, indented; a subject's versions by id; names that no file system refuses or misleads."""
    registry = FileRegistry(tmp_path)
    registry.register("../odd/name-value", FIRST)
    assert (tmp_path / "ids" / "1.avsc").read_text().startswith('{\n  "type": "record"')
    (subject,) = (tmp_path / "subjects").iterdir()
    assert json.loads(subject.read_text()) == {"subject": "../odd/name-value", "ids": [1]}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ids/1.avsc", b"{"),
        ("ids/1.avsc", b""),
        ("ids/1.avsc", b"\xff"),
        ("subjects/a-value.json", b"{"),
        ("subjects/a-value.json", b'{"ids": "1"}'),
        ("subjects/a-value.json", b"[]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    """The message says which file, and what to do; nothing is guessed."""
    FileRegistry(tmp_path).register("a-value", FIRST)
    (tmp_path / file).write_bytes(content)
    registry = FileRegistry(tmp_path)
    with pytest.raises(SchemaError, match=rf"{file}: damaged.*restore it"):
        registry.latest("a-value")
    with pytest.raises(SchemaError, match="damaged"):
        registry.register("a-value", SECOND)


def test_an_id_is_not_given_twice(tmp_path: Path) -> None:
    """Not even after someone deleted the newest schema: records with its id would change their meaning."""
    registry = FileRegistry(tmp_path)
    registry.register("a-value", FIRST)
    registry.register("a-value", SECOND)
    (tmp_path / "ids" / "2.avsc").unlink()
    assert FileRegistry(tmp_path).register("b-value", UNRELATED) == 3


def test_a_folder_that_cannot_be_used_is_an_absent_registry(tmp_path: Path) -> None:
    """A file in its place, for one: UnreachableError, with the system's word for it."""
    (tmp_path / "registry").write_text("")
    registry = FileRegistry(tmp_path / "registry")
    with pytest.raises(UnreachableError, match="registry: "):
        registry.register("a-value", FIRST)
    with pytest.raises(UnreachableError):
        registry.latest("a-value")


def test_a_crash_while_writing_leaves_no_half_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last step nothing is registered, and the next try is."""

    def power_cut(self: Path, target: Path) -> Path:
        raise OSError(5, "power cut", str(target))

    registry = FileRegistry(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(Path, "replace", power_cut)
        with pytest.raises(UnreachableError, match="power cut"):
            registry.register("a-value", FIRST)
    assert registry.latest("a-value") is None
    assert registry.register("a-value", FIRST) == 1


def _register(folder: str, start: "multiprocessing.synchronize.Barrier", worker: int, out: Path) -> None:
    registry = FileRegistry(Path(folder))
    start.wait()
    ids = {}
    for i in range(5):
        ids[f"shared-{i}"] = registry.register(f"shared-{i}-value", record((f"f{i}", "int")))
        ids[f"own-{worker}-{i}"] = registry.register("own-value", record(*((f"w{n}", "int", n) for n in range(i + 1))))
    out.write_text(json.dumps(ids))


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """Four processes register at the same moment: each schema has one id, each id one schema, no version is lost."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    outputs = [tmp_path / f"out-{worker}.json" for worker in range(4)]
    processes = [
        context.Process(target=_register, args=(os.fspath(tmp_path / "registry"), start, worker, outputs[worker]))
        for worker in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [json.loads(output.read_text()) for output in outputs]
    for i in range(5):
        assert len({ids[f"shared-{i}"] for ids in found}) == 1
        assert len({ids[f"own-{worker}-{i}"] for worker, ids in enumerate(found)}) == 1
    assert sorted({i for ids in found for i in ids.values()}) == list(range(1, 11))
    assert len(json.loads((tmp_path / "registry/subjects/own-value.json").read_text())["ids"]) == 5

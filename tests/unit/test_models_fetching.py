"""Bundles by URI: only what is whole and the one that was released counts, from whatever store."""

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save

from pipeline.errors import BundleError, ExhaustedError, PipelineError, SettingsError, UnreachableError
from pipeline.models import bundle as bundles
from pipeline.models import container, fetching
from pipeline.models.bundle import Bundle
from pipeline.models.fetching import fetch, publish, read_at
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract


def make(number: int = 0, **changes: Any) -> Bundle:
    return bundles.make(
        model_id="shop",
        architecture=Architecture(module="pipeline.models.architectures:TabularMLP"),
        contract=FeatureContract((Feature("a", "number"),), OutputContract("regression", 1)),
        weights=save({"w": np.full(3, number, dtype=np.float32)}),
        **changes,
    )


class Flaky(MemoryFileSystem):  # type: ignore[misc, unused-ignore]
    """Files in memory of which opening or reading fails as `fault` says."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    fault: Exception | None = None
    #: Bytes that are read before it.
    after = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.fault is not None and not self.after:
            raise self.fault
        file = super()._open(path, mode, **options)
        read = file.read

        def failing(size: int = -1) -> bytes:
            if Flaky.fault is not None and file.tell() >= Flaky.after:
                raise Flaky.fault
            return read(min(size, 100) if Flaky.fault is not None else size)  # type: ignore[no-any-return]

        file.read = failing
        return file


@pytest.fixture(autouse=True)
def flaky() -> Iterator[type[Flaky]]:
    """The file system behind flaky://, empty and at work; memory:// as well."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    MemoryFileSystem.store.clear()
    Flaky.fault, Flaky.after = None, 0
    yield Flaky
    Flaky.fault = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a web server of the folder web/."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            """What a path under /status/ asks for."""
            if not self.path.startswith("/status/"):
                return super().send_head()
            self.send_error(int(self.path.split("/")[2]))
            return None

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def kept(folder: Path) -> list[str]:
    """Names in a cache, hidden ones too, by when they were used."""
    return [path.name for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime)] if folder.exists() else []


# --------------------------------------------------------------------------- from where


@pytest.mark.parametrize("store", ["releases", "{}/elsewhere", "file://{}/elsewhere", "memory://models", "flaky://m"])
def test_what_is_published_is_fetched(tmp_path: Path, store: str) -> None:
    """Into a folder or URL and back: the same bundle, with the digest that was said."""
    made = make()
    model = publish(made, store.format(tmp_path), tmp_path)
    assert model.uri == f"{store.format(tmp_path)}/shop/{made.model_version}.tar"
    assert (model.model_id, model.model_version, model.manifest_sha256) == ("shop", made.model_version, made.digest)
    assert fetch(model.uri, model.manifest_sha256, cache=tmp_path / "cache", root=tmp_path) == made
    assert kept(tmp_path / "cache") == [f"{made.digest}.tar"]
    assert read_at(model.uri, tmp_path) == made


@pytest.mark.parametrize("form", ["bundle", "bundle.tar", "bundle.tar.gz", "bundle.zip"])
def test_every_form_is_fetched_from_a_web_server(tmp_path: Path, server: str, form: str) -> None:
    """Archives and folders, by a real protocol; and a missing one is no network failure."""
    made = make()
    bundles.write(made, tmp_path / "web" / form)
    assert fetch(f"{server}/{form}", made.digest, cache=tmp_path / "cache", root=tmp_path) == made
    assert read_at(f"{server}/{form}", tmp_path) == made
    for path, kind in (("other", BundleError), ("status/403", BundleError), ("status/503", UnreachableError)):
        with pytest.raises(kind, match=r"^http.*: cannot be fetched: "):
            fetch(f"{server}/{path}/{form}", "0" * 64, cache=tmp_path / "cache", root=tmp_path)


def test_a_server_that_is_gone_may_come_back(tmp_path: Path) -> None:
    """A refused connection is retriable, and leaves nothing."""
    for uri in ("http://127.0.0.1:9/bundle.tar", "http://127.0.0.1:9/bundle"):
        with pytest.raises(UnreachableError, match=r"cannot be fetched: .*127.0.0.1:9"):
            fetch(uri, "0" * 64, cache=tmp_path / "cache", root=tmp_path)
        assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("no-such-thing://models/b.tar", "cannot be understood: Protocol not known"),
        ("simplecache::memory://b.tar", "neither chains of URLs nor passwords"),
        ("ftp://me:hidden@host/b.tar", "neither chains of URLs nor passwords"),
        ("nowhere.tar", "no such file or folder"),
        ("nowhere", "no such file or folder"),
        ("", "no such file or folder"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(tmp_path: Path, uri: str, told: str) -> None:
    """No waiting mends these; a password is not repeated."""
    with pytest.raises(BundleError, match=told) as caught:
        fetch(uri, "0" * 64, cache=tmp_path / "cache", root=tmp_path)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert kept(tmp_path / "cache") == []


def test_a_digest_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """The digest is a file's name in the cache: only hexadecimal ones are believed."""
    with pytest.raises(BundleError, match="is no SHA-256"):
        fetch("memory://b.tar", "../../" + "0" * 58, cache=tmp_path / "cache", root=tmp_path)


# --------------------------------------------------------------------------- what counts


def test_another_bundle_than_the_released_one_is_refused(tmp_path: Path) -> None:
    """Whole, but not the one: it does not come into the cache."""
    model = publish(make(), "releases", tmp_path)
    with pytest.raises(BundleError, match="is another bundle than the one released"):
        fetch(model.uri, "0" * 64, cache=tmp_path / "cache", root=tmp_path)
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize("after", [0, 1, 300, 2000])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ConnectionResetError("gone"), UnreachableError),
        (TimeoutError("late"), UnreachableError),
        (RuntimeError("what only this library raises\nin two lines"), UnreachableError),
        (PermissionError(13, "Permission denied"), BundleError),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing_and_may_be_repeated(
    tmp_path: Path, flaky: type[Flaky], fault: Exception, kind: type[PipelineError], after: int
) -> None:
    """Wherever it breaks off; once the store answers again, the same call succeeds."""
    made = make()
    model = publish(made, "flaky://models", tmp_path)
    flaky.fault, flaky.after = fault, after
    with pytest.raises(kind) as caught:
        fetch(model.uri, model.manifest_sha256, cache=tmp_path / "cache", root=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(model.uri)
    assert kept(tmp_path / "cache") == []
    flaky.fault = None
    assert fetch(model.uri, model.manifest_sha256, cache=tmp_path / "cache", root=tmp_path) == made


def test_a_half_archive_never_counts(tmp_path: Path) -> None:
    """Cut at every 512 bytes: refused with the store's name, not that of a temporary file."""
    made = make(1)
    bundles.write(made, tmp_path / "b.tar")
    content = (tmp_path / "b.tar").read_bytes().rstrip(b"\0")  # less the padding at the end
    files = fsspec.filesystem("memory")
    for size in range(0, len(content), 512):
        files.pipe_file("/half.tar", content[:size])
        with pytest.raises(BundleError, match=r"^memory://half.tar: ") as caught:
            fetch("memory://half.tar", made.digest, cache=tmp_path / "cache", root=tmp_path)
        assert str(tmp_path) not in str(caught.value)
        assert kept(tmp_path / "cache") == []


def test_a_file_larger_than_any_bundle_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit of bytes ends the download."""
    monkeypatch.setattr(fetching, "ARCHIVE_BYTES_MAX", 5_000)
    fsspec.filesystem("memory").pipe_file("/endless.tar", b"\0" * 10_000_000)
    with pytest.raises(BundleError, match="more than 5,000 bytes, and no bundle has so many"):
        fetch("memory://endless.tar", "0" * 64, cache=tmp_path / "cache", root=tmp_path)


# --------------------------------------------------------------------------- the cache


def test_the_cache_answers_without_the_store(tmp_path: Path) -> None:
    """What was fetched once needs no network; what was damaged meanwhile is fetched again."""
    made = make()
    model = publish(made, "memory://models", tmp_path)
    again = functools.partial(fetch, model.uri, model.manifest_sha256, cache=tmp_path / "cache", root=tmp_path)
    again()
    MemoryFileSystem.store.clear()
    assert again() == made
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="no such file"):
        again()
    publish(made, "memory://models", tmp_path)
    assert again() == made


def test_another_bundle_under_a_digest_s_name_is_no_hit(tmp_path: Path) -> None:
    """A cache is only believed as far as it can be verified."""
    made, other = make(0), make(1)
    model = publish(made, "releases", tmp_path)
    bundles.write(other, tmp_path / "cache" / f"{made.digest}.tar")
    assert fetch(model.uri, made.digest, cache=tmp_path / "cache", root=tmp_path) == made


def test_the_last_used_are_kept(tmp_path: Path) -> None:
    """Old ones go, the one that was just used again stays; half downloads go when nobody can be at them any more."""
    cache = tmp_path / "cache"
    models = [publish(make(n), "releases", tmp_path) for n in range(4)]
    for age, model in enumerate(models[:3]):
        fetch(model.uri, model.manifest_sha256, cache=cache, root=tmp_path, keep=3)
        os.utime(cache / f"{model.manifest_sha256}.tar", (1000 + age, 1000 + age))
    fetch(models[0].uri, models[0].manifest_sha256, cache=cache, root=tmp_path, keep=3)
    (cache / ".old").mkdir()
    os.utime(cache / ".old", (1000, 1000))
    (cache / ".new").touch()
    fetch(models[3].uri, models[3].manifest_sha256, cache=cache, root=tmp_path, keep=3)
    assert {*kept(cache)} == {".new", *(f"{models[n].manifest_sha256}.tar" for n in (0, 2, 3))}


def test_many_fetch_into_one_cache_at_once(tmp_path: Path, server: str) -> None:
    """Workers that start together: each has the bundle, the cache has it once, as archive and as folder."""
    made = make()
    for form in ("bundle", "bundle.tar"):
        bundles.write(made, tmp_path / "web" / form)
        get = functools.partial(fetch, f"{server}/{form}", made.digest, cache=tmp_path / form, root=tmp_path)
        with ThreadPoolExecutor(8) as threads:
            assert [f.result() for f in [threads.submit(get) for _ in range(8)]] == [made] * 8
        assert kept(tmp_path / form) == [made.digest + container.kind_of(Path(form))]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is to be changed, or the disk is full: not the bundle's fault."""
    model = publish(make(), "releases", tmp_path)
    (tmp_path / "taken").write_text("a file", "utf-8")
    with pytest.raises(SettingsError, match=r"releases.cache_dir: .*taken: cannot be written"):
        fetch(model.uri, model.manifest_sha256, cache=tmp_path / "taken", root=tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ExhaustedError):
        fetch(model.uri, model.manifest_sha256, cache=tmp_path / "cache", root=tmp_path)


# --------------------------------------------------------------------------- the store


@pytest.mark.parametrize("store", ["releases", "memory://models"])
def test_a_version_in_the_store_stays_what_it_is(tmp_path: Path, store: str) -> None:
    """Packed again it is the same; other content under the same version is refused, and so is what is damaged."""
    first = publish(make(model_version="1"), store, tmp_path)
    later = make(model_version="1", clock=lambda: __import__("datetime").datetime(2020, 1, 1).astimezone())
    assert later.digest != first.manifest_sha256
    assert publish(later, store, tmp_path) == first
    with pytest.raises(BundleError, match="is there already with other content"):
        publish(make(7, model_version="1"), store, tmp_path)
    files, path = fsspec.core.url_to_fs(first.uri if "://" in store else str(tmp_path / first.uri))
    files.pipe_file(path, b"half")
    with pytest.raises(BundleError, match=r"1.tar: "):
        publish(later, store, tmp_path)


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path, flaky: type[Flaky]) -> None:
    """A folder in the way, and a URL that does not answer."""
    (tmp_path / "releases").write_text("a file", "utf-8")
    with pytest.raises(BundleError, match="cannot be written"):
        publish(make(), "releases", tmp_path)
    flaky.fault = ConnectionResetError("gone")
    with pytest.raises(
        UnreachableError, match=r"^flaky://models/shop/.*: cannot be fetched: ConnectionResetError: gone"
    ):
        publish(make(), "flaky://models", tmp_path)


def test_a_relative_store_moves_with_the_project(tmp_path: Path) -> None:
    """Its URI is resolved in each reader's own project folder."""
    made = make()
    model = publish(made, "releases", tmp_path / "one")
    assert not Path(model.uri).is_absolute()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert fetch(model.uri, made.digest, cache=tmp_path / "cache", root=tmp_path / "two") == made
    assert json.loads(made.manifest.to_json())["digest"] == made.digest

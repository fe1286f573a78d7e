"""Bundles on disk: what is written comes back, and nothing else is believed."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.errors import BundleError
from pipeline.models import bundle as bundles
from pipeline.models import container, environment, manifest
from pipeline.models.bundle import MANIFEST, WEIGHTS, Bundle
from pipeline.models.manifest import Architecture
from pipeline.records import Baseline, Feature, FeatureContract, OutputContract, SignalBaseline

FORMS = ["bundle", "bundle.tar", "bundle.tar.gz", "bundle.tgz", "bundle.zip"]
SIGNAL = SignalBaseline("feature:a", 3, 1.0, 0.5, 0.0, 2.0, (0.0, 1.0, 2.0), (1, 2), 0.25, 1.5)
CONTRACT = FeatureContract(
    (Feature("a", "number", impute=1, on_null="impute"), Feature("b", "category", vocabulary=("x", "ü"))),
    OutputContract("classification", 1, ("no", "yes"), "sigmoid"),
)


def make(**changes: Any) -> Bundle:
    given: dict[str, Any] = {
        "model_id": "shop",
        "architecture": Architecture(module="pipeline.models.architectures:TabularMLP", arguments={"numbers": 1}),
        "contract": CONTRACT,
        "weights": save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}),
        "baseline": Baseline((SIGNAL,), 16),
        **changes,
    }
    return bundles.make(**given)


def refused(path: Path) -> str:
    """The one line `read` refuses a bundle with, less the path it begins with."""
    with pytest.raises(BundleError) as caught:
        bundles.read(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def rewrite(bundle: Bundle, change: Callable[[dict[str, Any]], None], folder: Path, *, digest: bool = True) -> Path:
    """A bundle folder whose manifest was changed by somebody who knows how to compute its digest."""
    content = json.loads(bundle.manifest.to_json())
    change(content)
    if digest:
        content["digest"] = manifest.digest(content)
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(content), "utf-8")
    (folder / WEIGHTS).write_bytes(bundle.weights)
    return folder


# --------------------------------------------------------------------------- what is written comes back


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_comes_back_as_it_was(tmp_path: Path, form: str) -> None:
    """Folder or archive: manifest, weights, baseline to the last digit."""
    made = make()
    bundles.write(made, tmp_path / "models" / form)
    assert bundles.read(tmp_path / "models" / form) == made
    assert made.baseline.signals == (SIGNAL,)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_same_bundle_is_the_same_bytes(tmp_path: Path, form: str) -> None:
    """Archives hold no time, name or owner of the machine they were written on."""
    made = make()
    bundles.write(made, tmp_path / form)
    bundles.write(made, tmp_path / f"again-{form}")
    assert (tmp_path / form).read_bytes() == (tmp_path / f"again-{form}").read_bytes()


def test_the_version_is_made_of_the_content() -> None:
    """When it was packed does not count; weights, contract and baseline do; a given version is kept."""
    first, later = (make(clock=lambda year=year: datetime(year, 1, 1, tzinfo=UTC)) for year in (2024, 2025))
    assert first.model_version == later.model_version
    assert first.manifest.created_at != later.manifest.created_at
    others = [
        make(weights=save({"w": np.zeros(1, np.float32)})),
        make(contract=FeatureContract(CONTRACT.features[:1], CONTRACT.output)),
        make(baseline=Baseline((SIGNAL,), 32)),
    ]
    assert len({b.model_version for b in [first, *others]}) == 4
    assert make(model_version="2024-06").identity.model_version == "2024-06"


def test_writing_twice_needs_leave(tmp_path: Path) -> None:
    """What is there is kept unless `overwrite` is set; then the new one replaces it and nothing is left over."""
    for form in ("bundle", "bundle.zip"):
        bundles.write(make(), tmp_path / form)
        with pytest.raises(BundleError, match="is there already"):
            bundles.write(make(model_id="other"), tmp_path / form)
        assert bundles.read(tmp_path / form).model_id == "shop"
        bundles.write(make(model_id="other"), tmp_path / form, overwrite=True)
        assert bundles.read(tmp_path / form).model_id == "other"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.zip"}


@pytest.mark.parametrize("form", FORMS)
def test_a_failed_write_changes_nothing(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle leaves the old bundle whole and no half of the new one."""
    path = tmp_path / form
    bundles.write(make(), path)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BundleError, match="No space left"):
            bundles.write(make(model_id="other"), path, overwrite=True)
    assert bundles.read(path).model_id == "shop"
    assert [left.name for left in tmp_path.iterdir()] == [form]


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    """`pipeline check` reads bundles, and must not wait for torch or run a module's code."""
    bundles.write(make(architecture=Architecture(module="pipeline.models.architectures:Any")), tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from pipeline.models import bundle;"
        f"b = bundle.read(Path({str(tmp_path / 'b')!r})); bundle.check_fits(b, '{{}}');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pipeline.models.architectures')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------- what was changed is refused


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.case("D3")
def test_any_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    """One bit turned over anywhere in either file."""
    folder = tmp_path / "b"
    bundles.write(make(), folder)
    whole = (folder / name).read_bytes()
    for at in range(0, len(whole), 13):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(folder)
    for cut in (0, 1, len(whole) // 2, len(whole) - 2):
        (folder / name).write_bytes(whole[:cut])
        refused(folder)
    (folder / name).write_bytes(whole)
    assert bundles.read(folder) == make(clock=lambda: datetime.fromisoformat(bundles.read(folder).manifest.created_at))


@pytest.mark.case("D3")
def test_edited_manifests_are_refused(tmp_path: Path) -> None:
    """A careless edit by its digest; a careful one, digest and all, by what it then says."""
    made = make()
    edits: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
        "format": (lambda c: c.update(format="zip"), "no model bundle"),
        "future": (lambda c: c.update(format_version=2), "format version 2 is unknown, this release reads 1"),
        "true": (lambda c: c.update(format_version=True), "format version True is unknown"),
        "extra": (lambda c: c.update(pickle="x"), "pickle: Extra inputs are not permitted"),
        "nested": (lambda c: c["contract"]["output"].update(x=1), "contract.output.x"),
        "nan": (lambda c: c["baseline"]["signals"][0].update(mean=float("nan")), "baseline.signals.0.mean"),
        "inf": (lambda c: c["baseline"]["signals"][0]["edges"].__setitem__(2, float("inf")), "signals.0.edges.2"),
        "bins": (lambda c: c["baseline"]["signals"][0].update(histogram=[1]), "3 edges for 1 bins"),
        "edges": (lambda c: c["baseline"]["signals"][0].update(edges=[2, 1, 0]), "edges do not ascend"),
        "count": (lambda c: c["baseline"]["signals"][0].update(variance=-1.0), "below 0"),
        "twice": (lambda c: c["baseline"]["signals"].append(c["baseline"]["signals"][0]), "is there twice"),
        "block": (lambda c: c["baseline"].update(block_events=0), "block_events 0"),
        "width": (lambda c: c["contract"]["output"].update(width=3), "3 columns, but 2 classes"),
        "classes": (lambda c: c["contract"]["output"].update(classes=["a"]), "second of two classes, not of 1"),
        "softmax": (lambda c: c["contract"]["output"].update(activation="softmax"), "always 1; use sigmoid"),
        "regression": (lambda c: c["contract"]["output"].update(kind="regression"), "a regression has no classes"),
        "none": (lambda c: c["contract"]["output"].update(width=0), "width 0 is no output"),
        "id": (lambda c: c.update(model_id="../../etc"), "model_id"),
        "expression": (lambda c: c["architecture"].update(module="os:system('x')"), "architecture.module"),
        "kind": (lambda c: c["contract"]["features"][0].update(kind="image"), "contract.features.0.kind"),
        "files": (lambda c: c["files"].clear(), "files: lists nothing"),
        "more files": (lambda c: c["files"].update(x=c["files"][WEIGHTS]), "files: lists"),
        "module": (lambda c: c["architecture"].update(module="no_such.module:X"), "there is no module no_such.module"),
        "torch": (lambda c: c["requires"].update(torch=">=99"), "requires torch >=99, but"),
        "package": (lambda c: c["requires"].update({"no-such-dist": ">=1"}), "which is not installed"),
        "clause": (lambda c: c["requires"].update(torch="~~1"), "not of the form"),
    }
    for name, (change, expected) in edits.items():
        careless = refused(rewrite(made, change, tmp_path / f"{name}-careless", digest=False))
        assert "digest does not match" in careless or name in {"format", "future", "true"}
        assert expected in refused(rewrite(made, change, tmp_path / name)), name


@pytest.mark.case("D3")
def test_unfit_parts_are_refused_when_packed() -> None:
    """What `read` would refuse is not written: NaN in a baseline, a pickle for weights."""
    nan = SignalBaseline("x", 1, float("nan"), 0.0, 0.0, 0.0, (), (), 0.0, 1.0)
    for changes, expected in (
        ({"baseline": Baseline((nan,), 1)}, "baseline.signals.0.mean: .*finite"),
        ({"weights": pickle.dumps({"w": 1})}, "pickle and torch.export files can run code"),
        ({"weights": b"PK\x03\x04rest"}, "pickle and torch.export files can run code"),
        ({"weights": b"nothing"}, "no safetensors file"),
        ({"weights": struct.pack("<Q", 1 << 40)}, "a header of 1,099,511,627,776 bytes"),
        ({"model_id": "a b"}, "model_id"),
    ):
        with pytest.raises(BundleError, match=expected):
            make(**changes)


# --------------------------------------------------------------------------- hostile folders and archives


@pytest.mark.case("D3")
def test_a_folder_holds_two_plain_files(tmp_path: Path) -> None:
    """Missing, further, linked, special files are refused, each by its name."""
    folder = tmp_path / "b"
    assert "no such file" in refused(folder)
    bundles.write(make(), folder)
    for name, expected in (
        ("notes.txt", "'notes.txt': does not belong here"),
        ("model.pt", "signed bundles, which could be trusted with that, are not supported yet"),
    ):
        (folder / name).write_text("x", "utf-8")
        assert expected in refused(folder)
        (folder / name).unlink()
    (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
    assert f"no {WEIGHTS} in it" in refused(folder)
    (folder / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    assert f"{WEIGHTS}: a link; refused" in refused(folder)
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert f"{WEIGHTS}: no plain file" in refused(folder)
    assert f"no {MANIFEST}" in refused(_empty(tmp_path / "empty"))


@pytest.mark.case("D3")
def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    """A pickle, a torch.export file, any other suffix: refused before it is opened, saying what to do."""
    for name in ("model.pt", "model.pt2", "model.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        assert "save the weights with safetensors" in refused(tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "neither a folder nor one of .tar, .tar.gz, .tgz, .zip" in refused(tmp_path / "model.onnx")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:  # a torch checkpoint by another name
        archive.writestr("archive/data.pkl", b"x")
    assert "can run code" in refused(tmp_path / "model.zip")


def _tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def _special(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.case("D3")
def test_tar_entries_lead_nowhere_else(tmp_path: Path) -> None:
    """Paths out of the archive, links, devices, doubles; names behind `./` are plain names."""
    made = make()
    files = [(MANIFEST, made.manifest.to_json()), (WEIGHTS, made.weights)]
    for number, (member, expected) in enumerate(
        (
            (("../" + WEIGHTS, b"x"), "leads out of the bundle"),
            (("/etc/passwd", b"x"), "leads out of the bundle"),
            ((f"a/../{WEIGHTS}", b"x"), "leads out of the bundle"),
            (("C:x", b"x"), "leads out of the bundle"),
            ((f"champion/{WEIGHTS}", b"x"), "does not belong here"),
            ((WEIGHTS, made.weights), "is in it twice"),
            (_special(WEIGHTS, tarfile.SYMTYPE), "a link; refused"),
            (_special(WEIGHTS, tarfile.LNKTYPE, MANIFEST), "a link; refused"),
            (_special(WEIGHTS, tarfile.CHRTYPE), "no plain file; refused"),
            (_special("folder", tarfile.DIRTYPE), "does not belong here"),
        )
    ):
        assert expected in refused(_tar(tmp_path / f"{number}.tar", member, *files))
    dotted = [_special(".", tarfile.DIRTYPE), *((f"./{name}", content) for name, content in files)]
    assert bundles.read(_tar(tmp_path / "dotted.tar", *dotted)) == made


@pytest.mark.case("D3")
def test_zip_entries_lead_nowhere_else(tmp_path: Path) -> None:
    """As for tar; an encrypted entry too."""
    made = make()
    link, secret = zipfile.ZipInfo(WEIGHTS), zipfile.ZipInfo(WEIGHTS)
    link.external_attr = 0o120777 << 16
    for number, (entry, expected) in enumerate(
        (
            ("../x", "leads out of the bundle"),
            ("..\\x", "leads out of the bundle"),
            (link, "a link; refused"),
            (MANIFEST, "is in it twice"),
        )
    ):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the name that is there twice
            archive.writestr(MANIFEST, made.manifest.to_json())
            archive.writestr(entry, b"x")
        assert expected in refused(path)
    with zipfile.ZipFile(tmp_path / "secret.zip", "w") as archive:
        archive.writestr(secret, made.weights)
    content = (tmp_path / "secret.zip").read_bytes()
    at = content.index(b"PK\x01\x02") + 8
    (tmp_path / "secret.zip").write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    assert "is encrypted" in refused(tmp_path / "secret.zip")


@pytest.mark.case("D3")
def test_archives_cost_no_more_than_a_bundle_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are claimed or unpacked beyond the limits, endless headers, masses of entries: refused early."""
    mebibyte = 1 << 20
    monkeypatch.setitem(bundles.LIMITS, WEIGHTS, 4 * mebibyte)
    claims = tarfile.TarInfo(WEIGHTS)
    claims.size = 1 << 40
    (tmp_path / "claims.tar").write_bytes(claims.tobuf())
    assert f"{WEIGHTS}: 1,099,511,627,776 bytes, and at most" in refused(tmp_path / "claims.tar")
    claims.size = 3 * mebibyte
    (tmp_path / "short.tar").write_bytes(claims.tobuf() + b"x" * 1000)
    assert refused(tmp_path / "short.tar")

    zeros = (WEIGHTS, bytes(8 * mebibyte))
    assert "at most" in refused(_tar(tmp_path / "bomb.tar", zeros))
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as bomb:
        bomb.write(
            _special("x" * 200 + "/" + WEIGHTS, tarfile.REGTYPE).tobuf(tarfile.PAX_FORMAT) + bytes(40 * mebibyte)
        )
    assert refused(tmp_path / "bomb.tar.gz")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(*zeros)
    assert (tmp_path / "bomb.zip").stat().st_size < mebibyte
    assert "at most" in refused(tmp_path / "bomb.zip")

    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2 * mebibyte
    (tmp_path / "header.tar").write_bytes(header.tobuf() + bytes(2 * mebibyte))
    assert "a header of 2,097,152 bytes; refused" in refused(tmp_path / "header.tar")
    many = [_special(".", tarfile.DIRTYPE)] * 100
    assert "more than 64 entries" in refused(_tar(tmp_path / "many.tar", *many))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for depth in range(1, 100):
            archive.writestr(zipfile.ZipInfo("./" * depth), b"")
    assert "entries" in refused(tmp_path / "many.zip")
    chain = tarfile.TarInfo("x")
    chain.type, chain.size = tarfile.XHDTYPE, 512
    (tmp_path / "chain.tar").write_bytes((chain.tobuf() + b"12 path=abc\n" + bytes(500)) * 5000)
    assert refused(tmp_path / "chain.tar")


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.case("D3")
def test_damaged_archives_are_one_line(tmp_path: Path, form: str) -> None:
    """Cut short or spoilt anywhere, an archive is refused or (in its padding) whole; never another error."""
    path = tmp_path / form
    made = make()
    bundles.write(made, path)
    whole, messages = path.read_bytes(), []
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                found = bundles.read(path)
            except BundleError as error:
                messages.append(str(error))
            else:
                assert found == made
    assert len(messages) > 50  # a tar of two small files is padding for the most part
    assert all(message.startswith(f"{path}: ") and len(message.splitlines()) == 1 for message in messages)


@pytest.mark.case("D3")
def test_deep_json_is_one_line(tmp_path: Path) -> None:
    """A manifest nested beyond reason, or no object at all."""
    folder = tmp_path / "b"
    bundles.write(make(), folder)
    for text in ("[" * 100_000, "{}", "[]", "null", '{"a":' * 5000 + "1" + "}" * 5000, "\xff", "1" * 5000):
        (folder / MANIFEST).write_bytes(text.encode("latin-1"))
        assert refused(folder).startswith(MANIFEST)


# --------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("installed", "specifier", "holds"),
    [
        ("2.15.0+cu132", ">=2.10,<3", True),
        ("2.9.1", ">=2.10,<3", False),
        ("3.0.0rc1", "<3", False),
        ("2.10", "==2.10.0", True),
        ("2.10", "!=2.10.0", False),
        ("2.10.1", "<=2.10", False),
        ("2.10.1", ">2.10", True),
        ("unknown", ">=1", False),
        ("1.0", "about 1", False),
    ],
)
def test_versions_compare_by_their_numbers(installed: str, specifier: str, holds: bool) -> None:
    """By number, not as text; a build's suffix does not count."""
    assert environment.satisfies(installed, specifier) is holds


def test_a_module_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages, parents included, are looked up and not imported."""
    package = tmp_path / "nets_for_test"
    (package / "deep").mkdir(parents=True)
    for file in (package / "__init__.py", package / "deep" / "__init__.py", package / "deep" / "net.py"):
        file.write_text("raise SystemExit('imported')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.module_exists("nets_for_test.deep.net")
    assert not environment.module_exists("nets_for_test.deep.other")
    assert not environment.module_exists("nets_for_test.deep.net.more")
    assert not environment.module_exists("no_such_package.net")
    assert environment.module_exists("sys")
    assert not environment.module_exists("sys.net")
    assert not any(name.startswith("nets_for_test") for name in sys.modules)


def test_folders_without_init_are_packages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace package inside another, as a folder of scripts is one."""
    (tmp_path / "space_for_test" / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "space_for_test" / "inner" / "deep" / "net.py").write_text("raise SystemExit('imported')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.module_exists("space_for_test.inner.deep.net")
    assert not environment.module_exists("space_for_test.inner.deep.other")
    assert not environment.module_exists("space_for_test.gone")
    assert not environment.module_exists("space_for_test.gone.net")
    assert not any(name.startswith("space_for_test") for name in sys.modules)


def test_a_contract_file_is_checked(tmp_path: Path) -> None:
    """JSON with the fields of FeatureContract; unknown keys and contradictions are refused."""
    good = b'{"features": [{"name": "a", "kind": "number"}], "output": {"kind": "regression", "width": 1}}'
    assert manifest.parse_contract(good) == FeatureContract((Feature("a", "number"),), OutputContract("regression", 1))
    for bad, expected in (
        (b"{", "JSON"),
        (good.replace(b'"kind": "number"', b'"kind": "number", "typo": 1'), "features.0.typo"),
        (good.replace(b'"width": 1', b'"width": 0'), "no output at all"),
    ):
        with pytest.raises(BundleError, match=expected):
            manifest.parse_contract(bad)


def test_kinds_of_archives() -> None:
    """By the suffix, whatever its case."""
    assert [container.kind_of(Path(name)) for name in ("a", "A.TAR.GZ", "a.tgz", "a.zip", "a.gz")] == [
        "",
        ".tar.gz",
        ".tgz",
        ".zip",
        "",
    ]


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder

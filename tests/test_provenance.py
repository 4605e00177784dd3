"""Provenance says where numbers come from, and no secret passes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasweep import provenance
from lorasweep.config.schema import Config
from lorasweep.provenance import REDACTED, redact

SECRET = "q8ZkP2vLx0Tn"


@pytest.mark.parametrize(
    "text",
    [
        f"model.path=x token hf_{SECRET}abcdef",
        f"https://user:{SECRET}@example.org/data.csv",
        f"https://{SECRET}@example.org/data.csv",
        f"password={SECRET}",
        f"token={SECRET}",
        f"db_password: '{SECRET}'",
        f'{{"api_key": "{SECRET}"}}',
        f"--hf-token={SECRET}",
        f"hub.auth_token={SECRET} optimizer.lr=0.1",
        f"Authorization: Bearer {SECRET}.x",
        f"postgresql+psycopg://me:{SECRET}@db/lorasweep",
        f"https://me:p@{SECRET}@host/rows.csv",
        f"https://me:p/{SECRET}@host/rows.csv",
        f"https://me:{SECRET}/x@host",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"https://host/file?access_token={SECRET}&x=1",
    ],
)
def test_secrets_do_not_pass(text: str) -> None:
    assert SECRET not in redact(text)
    assert REDACTED in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.lr=0.001 adapter.r=8",
        "sampler.seed=3 data.train=/home/me/reviews.tsv",
        "model.path=meta-llama/Llama-3.2-1B model.revision=main",
        "tokenizer: fast, max_tokens=128, tokens=3",
        "data.text_column=secretary",
        "https://huggingface.co/stanfordnlp/sst2",
        "somebody@example.org",
        "http://localhost:5000/x@y",
        "postgresql://lorasweep@db.example:5432/lorasweep",
    ],
)
def test_ordinary_settings_pass_unchanged(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_environment_variables_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/.cache/token")
    monkeypatch.setenv("SHORT_SECRET", "true")
    assert redact(f"data.train=/x/{SECRET}.csv flag=true") == f"data.train=/x/{REDACTED}.csv flag=true"
    assert redact("/home/me/.cache/token") == "/home/me/.cache/token"


@pytest.mark.parametrize("name", ["STRIPE_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWD", "GPG_PASSPHRASE", "PRIVATE_KEY"])
@pytest.mark.parametrize("secret", [SECRET, f"/{SECRET}", f'a"b\\{SECRET}', f"a@b/{SECRET}+=="])
def test_a_secret_passes_neither_as_it_is_nor_as_json_or_addresses_write_it(
    name: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, secret)
    for text in (secret, json.dumps({"x": secret}), f"https://host/{quote(secret, safe='')}/x"):
        assert SECRET not in redact(f"said: {text}")


def test_a_file_that_a_variable_names_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "account.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    assert redact(f"reading {tmp_path}/account.json") == f"reading {tmp_path}/account.json"


@pytest.mark.parametrize("text", [f"hf_{SECRET}abcd", f"use hf_{SECRET}abcd", f"https://me:{SECRET}@host/rows.csv"])
def test_a_setting_with_a_login_is_told(text: str) -> None:
    assert provenance.holds_a_login(text)


@pytest.mark.parametrize("text", ["my password=hunter22x", "https://host:80/x@y", "s3://bucket@x/y", "me@host", "hf_x"])
def test_a_setting_without_one_is_not(text: str) -> None:
    assert not provenance.holds_a_login(text)


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_git_state_knows_a_changed_file(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    assert provenance.git_state(tmp_path) == ("none", "none")
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    provenance.git_state.cache_clear()
    commit, dirty = provenance.git_state(tmp_path)
    assert len(commit) == 40 and dirty == "false"
    (tmp_path / "a").write_text("2")
    provenance.git_state.cache_clear()
    assert provenance.git_state(tmp_path) == (commit, "true")


def test_gather_names_what_the_numbers_come_from() -> None:
    config = Config()
    config.train.seed, config.launcher.device = 5, "cpu"
    tags = provenance.gather(config, "d" * 64, "b" * 64)
    assert tags["lorasweep.seed"] == "5" and tags["lorasweep.fingerprint.data"] == "d" * 64
    assert tags["lorasweep.fingerprint.base"] == "b" * 64 and len(tags["lorasweep.fingerprint.config"]) == 64
    wanted = {"version", "git.commit", "git.dirty", "python", "packages", "device"}
    assert {f"lorasweep.{key}" for key in wanted} <= tags.keys()
    assert all(isinstance(value, str) and value for value in tags.values())
    config.train.seed = 6
    assert provenance.gather(config, "", "")["lorasweep.fingerprint.config"] != tags["lorasweep.fingerprint.config"]


def test_package_versions_and_device() -> None:
    versions = json.loads(provenance.package_versions())
    assert {"torch", "transformers", "peft", "mlflow"} <= set(versions)
    assert provenance.device_name("cpu").startswith("cpu: ")

"""A Prometheus server of the test's own: on a free port, with its files in a folder of the test, gone afterwards."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

START_SECONDS = 60

CONFIG = """\
global:
  scrape_interval: {interval}
  scrape_timeout: {interval}
  evaluation_interval: {interval}
rule_files: [{rules}]
scrape_configs:
  - job_name: speadrx
    static_configs:
      - targets: [{target}]
"""


def program(name: str) -> str:
    """Path of one of Prometheus's programs; without it the test is skipped, or fails where nothing may be left out."""
    path = shutil.which(name)
    if path is None:
        reason = f"there is no {name} (Debian: apt-get install prometheus)"
        if os.environ.get("STRICT") == "1" or os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def wait_for(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} for {seconds} s"
        time.sleep(0.2)
    return value


class PrometheusServer:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of a reply of its HTTP API; an error of it fails the test."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as exc:
            with exc:
                pytest.fail(f"{path} {parameters}: {exc.read().decode()}")

    def vector(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now."""
        data = self.get("query", query=expr)
        assert data["resultType"] == "vector", expr
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def matrix(self, expr: str, seconds: float, step: float) -> list[tuple[dict[str, str], list[float]]]:
        """Evaluate an expression over the last seconds."""
        end = time.time()
        data = self.get("query_range", query=expr, start=end - seconds, end=end, step=step)
        assert data["resultType"] == "matrix", expr
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in data["result"]]


@contextlib.contextmanager
def prometheus_server(folder: pathlib.Path, *, target: str, rules: str, interval: str) -> Iterator[PrometheusServer]:
    """Run a server that scrapes a target (host:port) and evaluates rules."""
    command = program("prometheus")
    config, rule_file, log = folder / "prometheus.yml", folder / "rules.yml", folder / "prometheus.log"
    rule_file.write_text(rules, "utf-8")
    config.write_text(CONFIG.format(interval=interval, rules=json.dumps(str(rule_file)), target=target), "utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                command,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )

    def listens_on() -> str | None:
        text = log.read_text("utf-8")
        assert process.poll() is None, f"prometheus has ended:\n{text}"
        found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', text)
        return found and found[1]

    try:
        url = f"http://{wait_for('address of Prometheus', listens_on, START_SECONDS)}"

        def is_ready() -> bool:
            """It listens before it answers queries."""
            try:
                with urllib.request.urlopen(f"{url}/-/ready", timeout=60) as reply:
                    return bool(reply.status == 200)
            except urllib.error.HTTPError as exc:
                exc.close()
                return False

        wait_for("answer of Prometheus", is_ready, START_SECONDS)
        yield PrometheusServer(url)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if "level=error" in (text := log.read_text("utf-8")):
            print(text)  # shown by pytest if the test has failed

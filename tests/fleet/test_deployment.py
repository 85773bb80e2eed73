"""The files for systemd, Kubernetes and Slurm: their programs accept them, and the script of Slurm receives."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

pytest.importorskip("distributed")

import yaml

from addresses import own_port
from fleets import ANTENNAS, AT_ONCE, INTERFACE, LAYOUT, WINDOW, Array, scraped_sum
from loopback import needs_multicast_route, wait_for

FILES = pathlib.Path(__file__).parents[2] / "examples" / "fleet"
UNITS = sorted(FILES.glob("*.service"))


def commands_of_systemd():
    return {
        unit.stem: shlex.split(line.partition("=")[2])
        for unit in UNITS
        for line in unit.read_text("utf-8").splitlines()
        if line.startswith("ExecStart=")
    }


def manifests():
    return list(yaml.safe_load_all((FILES / "kubernetes.yaml").read_text("utf-8")))


def normal(words):
    """The words of a command, whatever its program's folder and its scheduler's host are called."""
    words = [re.sub(r"^/opt/speadrx/bin/", "", word) for word in words]
    return [re.sub(r"^tcp://.*", "SCHEDULER", word) for word in words]


def test_all_run_the_same():
    units = {name: normal(words) for name, words in commands_of_systemd().items()}
    pods = {
        container["name"]: normal(container["command"])
        for one in manifests()
        if "template" in one.get("spec", {})
        for container in one["spec"]["template"]["spec"]["containers"]
    }
    assert {name.removeprefix("speadrx-"): words for name, words in units.items()} == pods
    script = (FILES / "slurm.sh").read_text("utf-8").replace("\\\n", " ")
    for name, port in (("FLEET_PORT", "8786"), ("FLEET_METRICS_PORT", "9400")):
        script = re.sub(rf'"\${{{name}:-{port}}}"', port, script)
    script = script.replace('"$scheduler"', "SCHEDULER").replace('"$plan"', "plan.toml")
    lines = [" ".join(line.strip().removesuffix("&").split()) for line in script.splitlines()]
    for words in pods.values():
        assert any(line.endswith(" ".join(words)) for line in lines), words


def test_settings_are_the_same():
    lines = (FILES / "fleet.env").read_text("utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line.startswith("DASK_"))
    assert manifests()[0]["data"] == settings
    script = (FILES / "slurm.sh").read_text("utf-8")
    assert dict(re.findall(r"^export (DASK_\w+)=(\S+)$", script, re.MULTILINE)) == settings


def test_units(tmp_path):
    """Systemd accepts them, where there are such programs and such a user."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze (Debian: apt-get install systemd)")
    paths = []
    for unit in UNITS:
        text = unit.read_text("utf-8").replace("/opt/speadrx/bin/", f"{os.path.dirname(sys.executable)}/")
        text = re.sub(r"(?<=^ExecStart=)\S+", sys.executable, text, flags=re.MULTILINE)
        paths.append(tmp_path / unit.name)
        paths[-1].write_text(text.replace("User=speadrx", "User=root"), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False, timeout=120
    )
    complaints = [line for line in done.stderr.splitlines() if "speadrx-" in line]
    assert complaints == []


def test_manifest():
    """Kubectl knows all that it says: what it does not know it would leave out."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    command = ["kubectl", "label", "--local", "--dry-run=client", "-o", "json", "-f", FILES / "kubernetes.yaml", "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode and "unknown" in done.stderr and "local" in done.stderr:
        pytest.skip(f"this kubectl cannot read files without a cluster: {done.stderr}")
    assert done.returncode == 0, done.stderr
    decoder, known, text = json.JSONDecoder(), [], done.stdout.strip()
    while text:
        one, end = decoder.raw_decode(text)
        known.append(one)
        text = text[end:].lstrip()
    assert len(known) == len(manifests())
    for ours, theirs in zip(manifests(), known, strict=True):
        assert_within(ours, theirs)


def assert_within(ours, theirs):
    if isinstance(ours, dict):
        for name, value in ours.items():
            assert name in theirs, f"kubectl does not know {name}"
            assert_within(value, theirs[name])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_within(one, other)
    else:
        assert ours == theirs


SRUN = """#!/bin/sh
# Runs as many processes as there are nodes, here.
while [ "${1#--}" != "$1" ]; do shift; done
trap 'kill $(jobs -p)' TERM
for i in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & done
wait
"""


@needs_multicast_route
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_script_of_slurm(tmp_path):
    """It starts all, receives, and ends with the account when Slurm says that the time is over."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"srun": SRUN}
    for name, module in (("dask", "dask"), ("speadrx", "speadrx.cli")):
        programs[name] = f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n'
    programs["python"] = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    for name, text in programs.items():
        (folder / name).write_text(text, "ascii")
        (folder / name).chmod(0o755)
    array = Array(own_port())
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    (tmp_path / "plan.toml").write_text(
        f'layout = "array.toml"\nendpoints = ["{array.endpoints}"]\ndeal = "antenna"\nshares = 2\n'
        f'report_seconds = 0.05\n[receiver]\ninterface = "{INTERFACE}"\nwindow = {WINDOW}\n',
        "utf-8",
    )
    metrics = own_port()
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURMD_NODENAME": "127.0.0.1",
        "SLURM_JOB_NUM_NODES": "2",
        "FLEET_PORT": str(own_port()),
        "FLEET_METRICS_PORT": str(metrics),
    }
    log = tmp_path / "slurm.out"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", FILES / "slurm.sh", "plan.toml"],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def total(name):
        assert process.poll() is None, log.read_text("utf-8")
        return scraped_sum(metrics, name)

    try:
        wait_for(lambda: total("speadrx_fleet_share_receives") == 2, 200)
        array.send(range(AT_ONCE))
        wait_for(lambda: total("speadrx_heaps_placed_total") == AT_ONCE * ANTENNAS)
        process.terminate()
        process.wait(120)
    finally:
        array.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text("utf-8")
    assert process.returncode == 0, text
    assert f"Accounts: {AT_ONCE * ANTENNAS} placed = {AT_ONCE * ANTENNAS} present" in text
    assert "Residual: 0." in text

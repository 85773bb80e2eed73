"""Files that do not fit on the disk: nothing of them stays, what was there before does, and the message names them."""

from __future__ import annotations

import pathlib
import resource
import subprocess

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from terminals import PATIENCE, SPEADRX, environment

LAYOUT = "meerkat-digitiser"


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sent") / "sent.pcap"
    subprocess.run([*SPEADRX, "send", "-l", LAYOUT, "--pcap", path, "--batches", "64"], env=environment(), check=True)
    return str(path)


def out_of_space(*args: str, most: int) -> tuple[int, str]:
    """Run a command that may write no longer files than that; return its exit code, and what it complained of."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = subprocess.run(
        [*SPEADRX, *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=limit,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("a.toml", ["inspect", "CAPTURE", "--force", "-o", "FILE"]),
        ("a.png", ["plot", "CAPTURE", "-l", LAYOUT, "--force", "-o", "FILE"]),
        ("a.svg", ["plot", "CAPTURE", "-l", LAYOUT, "--force", "-o", "FILE"]),
        ("a.png", ["look", "CAPTURE", "-l", LAYOUT, "--force", "-o", "FILE"]),
        ("a.svg", ["layout", LAYOUT, "--force", "--svg", "FILE"]),
    ],
)
def test_a_file_is_whole_or_not_there(tmp_path: pathlib.Path, capture, name, args, is_there) -> None:
    if args[0] in ("plot", "look"):
        pytest.importorskip("matplotlib.font_manager")  # it keeps its list of fonts now
    file = tmp_path / name
    if is_there:
        file.write_text("before")
    code, said = out_of_space(*({"CAPTURE": capture, "FILE": str(file)}.get(arg, arg) for arg in args), most=100)
    assert code == 2, said
    assert str(file) in said, said
    assert "File too large" in said, said
    assert [path.name for path in tmp_path.iterdir()] == [name] * is_there
    assert not is_there or file.read_text() == "before"


@pytest.mark.parametrize("batches", [1, 64], ids=["at its end", "before"])
def test_no_capture_that_breaks_off(tmp_path: pathlib.Path, batches) -> None:
    file = tmp_path / "a.pcap"
    code, said = out_of_space("send", "-l", LAYOUT, "--pcap", str(file), "--batches", str(batches), most=3000)
    assert code == 2, said
    assert str(file) in said, said
    assert "File too large" in said, said
    assert not list(tmp_path.iterdir())


def test_what_is_open_already_is_written_to() -> None:
    done = subprocess.run(
        [*SPEADRX, "layout", LAYOUT, "--toml", "--svg", "/dev/stdout"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "<svg" in done.stdout
    assert "heap_bytes" in done.stdout

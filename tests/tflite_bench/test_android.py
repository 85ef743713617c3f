"""The real adb client against fake devices: what works, and every failure."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tflite_bench.elf_file import elf_file
from tests.tflite_bench.fake_device import LITERT_FLAGS, FakeDevice, read_log
from tests.tflite_bench.tiny_model import tiny_model
from tflite_bench import android, android_device
from tflite_bench.failures import Failure

REPOSITORY = Path(__file__).resolve().parent.parent.parent
QUICK = ("--cooldown=0", "--timeout=600")


class Run(NamedTuple):
    """What one run of the command gave."""

    status: int
    report: dict[str, Any] | None
    output: str
    errors: str


@pytest.fixture(scope="session")
def adb_environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A server of adb for these tests alone, with keys of its own."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changes = {
        "ANDROID_ADB_SERVER_PORT": str(port),
        "HOME": str(tmp_path_factory.mktemp("adb_home")),
        # It would look for emulators and for devices on the network.
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5555",
        "ADB_MDNS": "0",
    }
    environment = {**os.environ, **changes}
    try:
        subprocess.run(["adb", "start-server"], env=environment, check=True, timeout=60)
        listed = subprocess.run(
            ["adb", "devices"], env=environment, check=True, capture_output=True
        ).stdout
        if b"\t" in listed:
            pytest.skip("a real device is attached, which these tests must not touch")
        yield changes
    finally:
        subprocess.run(["adb", "kill-server"], env=environment, timeout=60)


@pytest.fixture
def adb(adb_environment, monkeypatch) -> Iterator[Callable[..., str]]:
    """The adb command, on the server of these tests."""
    for name, value in adb_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def run(*arguments: str) -> str:
        return subprocess.run(
            ["adb", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        ).stdout

    yield run
    run("disconnect")


@pytest.fixture
def attach(adb, tmp_path) -> Iterator[Callable[..., FakeDevice]]:
    """Attach one more fake device."""
    devices = []

    def attach_one(*, features: str = "shell_v2,cmd", connect: bool = True):
        root = tmp_path / f"device_{len(devices)}"
        device = FakeDevice(root, features=features)
        devices.append(device)
        if connect:
            assert "connected to" in adb("connect", device.serial)
        return device

    yield attach_one
    for device in devices:
        device.lose()
        for process in device.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def models(tmp_path) -> list[Path]:
    files = [tmp_path / "first.tflite", tmp_path / "second model.tflite"]
    files[0].write_bytes(tiny_model())
    files[1].write_bytes(tiny_model(weight=-0.02))
    return files


@pytest.fixture
def binary(tmp_path) -> Path:
    file = tmp_path / "benchmark_model"
    file.write_bytes(elf_file())
    return file


@pytest.fixture
def bench(tmp_path, capsys, models, binary) -> Callable[..., Run]:
    """Run the command in this process, on the first model unless others are given."""

    def run(*flags: str, models: list[Path] = models[:1], binary: Path = binary) -> Run:
        result = tmp_path / "out.json"
        status = android.main(
            [
                *("--models", *map(str, models)),
                *(f"--benchmark_binary={binary}", f"--json={result}", *QUICK, *flags),
            ]
        )
        printed = capsys.readouterr()
        report = json.loads(result.read_text()) if result.exists() else None
        return Run(status, report, printed.out, printed.err)

    return run


def wait_until_listed(adb: Callable[..., str], serial: str, state: str) -> None:
    """Wait until ``adb devices`` lists a device in that state."""
    deadline = time.monotonic() + 600
    while f"{serial}\t{state}" not in adb("devices"):
        assert time.monotonic() < deadline, adb("devices")


def check_clean(device: FakeDevice) -> None:
    """Nothing lies or runs on the device any more."""
    assert device.left_behind == []
    deadline = time.monotonic() + 600
    while any(process.poll() is None for process in device.processes):
        assert time.monotonic() < deadline, "a command still runs on the device"
        time.sleep(0.02)


def check_failure(run: Run, failure: Failure, *words: str) -> None:
    """The status is that of `failure`, said in one line that has these words."""
    assert run.status == failure
    lines = run.errors.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, run.errors
    assert "Traceback" not in run.errors
    for word in words:
        assert word in run.errors


def test_models_are_timed_and_the_device_is_left_as_it_was(
    attach, bench, models, binary, tmp_path
):
    device = attach()
    run = bench("--num_threads=2", "--taskset=0x1", models=models)
    assert run.status == 0, run.errors
    check_clean(device)
    assert run.report is not None
    assert run.report["benchmark_binary"]["abi"] == "arm64-v8a"
    assert run.report["benchmark_binary"]["sha256"] == (
        hashlib.sha256(binary.read_bytes()).hexdigest()
    )
    (record,) = run.report["devices"]
    assert record["serial"] == device.serial
    assert record["status"] == "ok"
    assert record["device"] == {
        "manufacturer": "Acme",
        "model": "Phone 3 [dev]",
        "soc": "AC8000",
        "android_version": "14",
        "sdk": "34",
        "build_fingerprint": "acme/phone/phone:14/A1/1:user/release-keys",
        "abis": ["arm64-v8a", "armeabi-v7a", "armeabi"],
    }
    for model, result in zip(models, record["results"], strict=True):
        assert result["status"] == "ok"
        assert result["model"] == model.name
        assert result["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
        assert result["num_runs"] == 200
        assert result["metrics"]["inference_median_ms"] == 7.79
        assert result["metrics"]["inference_avg_ms"] == 7.81225
        assert "--num_threads=2" in result["flags"]
        for when in ("before", "after"):
            assert result[when] == {
                "battery_level_percent": 81,
                "battery_celsius": 30.5,
                "powered_by": ["USB"],
                "thermal_status": 0,
                "temperatures_celsius": {"skin": 31.5, "CPU0": 44.25},
            }
        assert Path(result["raw_log"]).parent == tmp_path / "out_logs"
        assert Path(result["raw_log"]).read_text() == (
            "INFO: STARTING!\n" + read_log("classic")
        )
        check = result["output_check"]
        assert check["equal"] is True
        assert [output["name"] for output in check["outputs"]] == [
            "probability",
            "logit",
        ]
        assert all(output["max_abs_difference"] == 0 for output in check["outputs"])
    timed = [command for command in device.commands if "--num_runs=200" in command]
    assert len(timed) == 2
    assert all("exec taskset 1 /data/local/tmp/" in command for command in timed)
    assert "second model.tflite" in run.output
    assert run.output.count("equal") == 2


def test_the_tool_of_litert_is_read_and_its_outputs_are_not_compared(attach, bench):
    device = attach()
    device.set_benchmark(log=read_log("litert"), flags=LITERT_FLAGS)
    run = bench()
    assert run.status == 0, run.errors
    check_clean(device)
    assert run.report is not None
    (result,) = run.report["devices"][0]["results"]
    assert result["tool"] == "litert"
    assert result["metrics"]["inference_avg_ms"] == 7.71
    assert result["output_check"]["compared"] is False
    assert "--output_filepath" in result["output_check"]["reason"]
    assert "not compared" in run.output
    assert "--num_threads" in run.errors


def test_a_device_of_before_android_7_is_served(attach, bench):
    device = attach(features="")
    device.script("sha256sum", "exit 127\n")
    run = bench()
    assert run.status == 0, run.errors
    check_clean(device)


def test_a_device_without_thermal_service_or_battery_is_served(attach, bench):
    device = attach()
    device.script("dumpsys", 'echo "Can\'t find service: $1" >&2; exit 20\n')
    run = bench()
    assert run.status == 0, run.errors
    assert run.report is not None
    before = run.report["devices"][0]["results"][0]["before"]
    assert before["battery_celsius"] is None
    assert before["thermal_status"] is None


def test_the_device_is_chosen_by_flag_or_environment(attach, bench, monkeypatch):
    first, second = attach(), attach()
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    assert bench().status == 0
    assert not first.commands and second.commands
    second.commands.clear()
    assert bench(f"--serial={first.serial}").status == 0
    assert first.commands and not second.commands


def test_a_device_on_the_network_is_connected_to(attach, bench):
    device = attach(connect=False)
    run = bench(f"--serial={device.serial}")
    assert run.status == 0, run.errors
    check_clean(device)


def test_one_crash_keeps_the_other_models(attach, bench, models):
    device = attach()
    device.set_benchmark(faults={"00.tflite": "segfault"})
    run = bench(models=models)
    check_failure(run, Failure.CRASHED, "SIGSEGV")
    check_clean(device)
    assert run.report is not None
    first, second = run.report["devices"][0]["results"]
    assert first["status"] == "crashed"
    assert "metrics" not in first
    assert Path(first["raw_log"]).read_text().startswith("INFO: STARTING!")
    assert second["status"] == "ok"
    assert second["metrics"]["inference_avg_ms"] == 7.81225


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_device_lost_half_way_keeps_the_other_devices(
    attach, bench, models, lost_first
):
    devices = [attach(), attach()]
    # adb lists them in its own order.
    serials = sorted(device.serial for device in devices)
    lost_serial = serials[0] if lost_first else serials[1]
    lost, well = sorted(devices, key=lambda device: device.serial != lost_serial)
    lost.lose_on = "01.tflite --num_threads=1 --num_runs=200"
    run = bench("--all_devices", models=models)
    assert run.status == Failure.DEVICE_LOST
    check_clean(well)
    assert run.report is not None
    records = {record["serial"]: record for record in run.report["devices"]}
    assert records[well.serial]["status"] == "ok"
    assert [result["status"] for result in records[well.serial]["results"]] == [
        "ok",
        "ok",
    ]
    assert records[lost.serial]["status"] == "device_lost"
    first, second = records[lost.serial]["results"]
    assert first["metrics"]["inference_avg_ms"] == 7.81225
    assert second["status"] == "device_lost"
    assert records[lost.serial]["left_behind"] in run.errors


def test_all_devices_goes_on_past_one_that_is_not_ready(attach, adb, bench):
    device, other = attach(), attach(connect=False)
    other.answers = "unauthorized"
    adb("connect", other.serial)
    wait_until_listed(adb, other.serial, "unauthorized")
    wait_until_listed(adb, device.serial, "device")
    run = bench("--all_devices")
    check_failure(run, Failure.UNAUTHORIZED, other.serial)
    assert run.report is not None
    statuses = {record["serial"]: record["status"] for record in run.report["devices"]}
    assert statuses == {device.serial: "ok", other.serial: "unauthorized"}


def test_no_adb(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = bench()
    check_failure(run, Failure.NO_ADB, "apt-get install adb")
    assert run.report is None


def test_an_adb_that_does_not_work(bench, monkeypatch, tmp_path):
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho 'error: cannot connect to daemon' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    check_failure(bench(), Failure.ADB_FAILED, "cannot connect to daemon")


def test_no_device(adb, bench):
    check_failure(bench(), Failure.NO_DEVICE, "no device is attached")
    check_failure(bench("--all_devices"), Failure.NO_DEVICE, "no device is attached")


def test_another_device_than_the_one_asked_for(attach, bench):
    device = attach()
    check_failure(bench("--serial=emulator-9"), Failure.NO_DEVICE, device.serial)
    check_failure(bench("--serial=127.0.0.1:1"), Failure.NO_DEVICE, "refused")
    assert device.commands == []


def test_unauthorized(attach, adb, bench):
    device = attach(connect=False)
    device.answers = "unauthorized"
    # Whether adb lists it already or is still to connect to it.
    check_failure(bench(f"--serial={device.serial}"), Failure.UNAUTHORIZED, "trust")
    check_failure(bench(), Failure.UNAUTHORIZED, "accept the question")


def test_offline(attach, adb, bench):
    device = attach(connect=False)
    device.answers = "silent"
    connecting = subprocess.Popen(["adb", "connect", device.serial])
    try:
        wait_until_listed(adb, device.serial, "offline")
        check_failure(bench(), Failure.OFFLINE, "does not answer (offline)")
    finally:
        connecting.kill()
        connecting.wait()


def test_several_devices_and_none_chosen(attach, bench):
    first, second = attach(), attach()
    run = bench()
    check_failure(run, Failure.SEVERAL_DEVICES, first.serial, second.serial)
    assert first.commands == second.commands == []


def test_a_missing_binary(attach, bench, tmp_path):
    attach()
    run = bench(binary=tmp_path / "absent")
    check_failure(run, Failure.MISSING_BINARY, str(tmp_path / "absent"))


def test_a_binary_for_another_processor(attach, bench, binary):
    device = attach()
    binary.write_bytes(elf_file(machine=62))
    run = bench()
    check_failure(run, Failure.WRONG_ABI, "x86_64", "arm64-v8a, armeabi-v7a")
    (asked,) = device.commands
    assert asked.startswith("(getprop)")


def test_no_space_for_the_files(attach, bench):
    device = attach()
    device.set_free_kb(1000)
    check_failure(bench(), Failure.NO_SPACE, "1.0 MiB are free")
    check_clean(device)


@pytest.mark.parametrize("name", ["benchmark_model", "00.tflite"])
def test_no_space_while_copying(attach, bench, name):
    device = attach()
    device.full_on = name
    check_failure(bench(), Failure.NO_SPACE, "no space left")
    check_clean(device)


def test_a_program_that_gives_up(attach, bench):
    device = attach()
    device.set_benchmark(faults={"00.tflite": "error"})
    run = bench()
    check_failure(run, Failure.CRASHED, "exit status 1", "Failed to load model")
    check_clean(device)


def test_a_program_that_does_not_start(attach, bench):
    device = attach()
    device.script("benchmark_model", "echo 'CANNOT LINK EXECUTABLE' >&2; exit 134\n")
    check_failure(bench(), Failure.CRASHED, "SIGABRT", "CANNOT LINK EXECUTABLE")
    check_clean(device)


def test_a_program_that_takes_too_long(attach, bench, models):
    device = attach()
    device.set_benchmark(faults={"00.tflite": "hang"})
    run = bench("--timeout=2", models=models)
    check_failure(run, Failure.TIMEOUT, "longer than 2 s")
    check_clean(device)
    assert run.report is not None
    first, second = run.report["devices"][0]["results"]
    assert (first["status"], second["status"]) == ("timeout", "ok")
    assert Path(first["raw_log"]).read_text() == "INFO: STARTING!\n"


@pytest.mark.parametrize("how", ["lose_on", "lose_on_push"])
def test_a_device_lost_half_way(attach, bench, models, how):
    device = attach()
    setattr(device, how, "00.tflite")
    run = bench(models=models)
    check_failure(run, Failure.DEVICE_LOST, "lost half way")
    assert run.report is not None
    statuses = [result["status"] for result in run.report["devices"][0]["results"]]
    assert statuses == ["device_lost", "not_run"]


@pytest.mark.parametrize("name", ["benchmark_model", "00.tflite", "input_0"])
def test_a_file_that_arrives_changed(attach, bench, name):
    device = attach()
    device.corrupt = name
    check_failure(bench(), Failure.CORRUPT_PUSH, "did not arrive as it was sent")
    check_clean(device)
    device.script("sha256sum", "exit 127\n")
    check_failure(bench(), Failure.CORRUPT_PUSH, "did not arrive as it was sent")


def test_a_log_without_a_result(attach, bench):
    device = attach()
    device.set_benchmark(faults={"00.tflite": "mute"})
    run = bench()
    check_failure(run, Failure.UNREADABLE_LOG, "no results")
    check_clean(device)
    assert run.report is not None
    assert "metrics" not in run.report["devices"][0]["results"][0]


def test_a_delegate_that_the_program_does_not_know(attach, bench):
    device = attach()
    device.set_benchmark(log=read_log("litert"), flags=LITERT_FLAGS)
    run = bench("--delegate=nnapi")
    check_failure(run, Failure.FLAG_IGNORED, "--use_nnapi=true")
    assert not [command for command in device.commands if "--num_runs" in command]
    check_clean(device)


def test_a_flag_that_the_program_ignores(attach, bench):
    device = attach()
    device.set_benchmark(ignored="--use_nnapi=true")
    run = bench("--delegate=nnapi")
    check_failure(run, Failure.FLAG_IGNORED, "--use_nnapi=true")
    assert run.report is not None
    assert "metrics" not in run.report["devices"][0]["results"][0]


@pytest.mark.parametrize(
    "said, use",
    [
        (
            "Explicitly applied GPU delegate, and the model graph will be partially "
            "executed by the delegate w/ 3 delegate kernels.",
            "partial",
        ),
        (
            "Though GPU delegate is explicitly applied, the model graph will not be "
            "executed by the delegate.",
            "none",
        ),
        ("", None),
    ],
)
def test_a_delegate_is_only_timed_when_it_was_used(attach, bench, said, use):
    device = attach()
    device.set_benchmark(log=f"INFO: {said}\n{read_log('classic')}")
    run = bench("--delegate=gpu")
    assert run.report is not None
    (result,) = run.report["devices"][0]["results"]
    assert result["delegate_use"] == use
    assert "--use_gpu=true" in result["flags"]
    if use == "none":
        check_failure(run, Failure.FLAG_IGNORED, "no part of first.tflite runs on gpu")
        assert "metrics" not in result
    else:
        assert run.status == 0
        assert ("does not say whether gpu was used" in run.errors) == (use is None)


def test_other_outputs_on_the_device(attach, bench):
    device = attach()
    device.set_benchmark(shift=0.0625)
    run = bench()
    check_failure(run, Failure.OUTPUTS_DIFFER, "probability differs by 0.0625")
    check_clean(device)
    assert run.report is not None
    (result,) = run.report["devices"][0]["results"]
    assert result["metrics"]["inference_avg_ms"] == 7.81225
    assert result["output_check"]["equal"] is False
    assert "DIFFERENT" in run.output
    assert bench("--output_tolerance=0.07").status == 0
    assert bench("--skip_output_check").status == 0


def test_a_device_that_stays_hot(attach, bench, monkeypatch):
    monkeypatch.setattr(android_device, "POLL_SECONDS", 0.01)
    device = attach()
    device.set_warmth(celsius=41.5)
    run = bench("--cooldown_timeout=0.1")
    check_failure(run, Failure.TOO_HOT, "battery 41.5 C")
    check_clean(device)
    assert not [command for command in device.commands if "--num_runs" in command]
    assert bench("--max_battery_celsius=42").status == 0
    device.set_warmth(celsius=25, status=1)
    check_failure(bench("--cooldown_timeout=0"), Failure.TOO_HOT, "thermal status 1")


def test_a_hot_device_is_waited_for(attach, bench, monkeypatch):
    monkeypatch.setattr(android_device, "POLL_SECONDS", 0.01)
    device = attach()
    hot = device.bin / "hot"
    hot.write_text("xx")
    battery = "level: 80\n  temperature: %d\n"
    device.script(
        "dumpsys",
        f"test $1 = battery || exit 0\nif [ -s {hot} ]\n"
        f"then truncate -s -1 {hot}; printf '{battery % 400}'\n"
        f"else printf '{battery % 340}'; fi\n",
    )
    run = bench()
    assert run.status == 0, run.errors
    assert run.report is not None
    assert run.report["devices"][0]["results"][0]["before"]["battery_celsius"] == 34


def test_throttling_during_the_run_is_noted(attach, bench):
    device = attach()
    count = device.bin / "count"
    device.script(
        "dumpsys",
        f"test $1 = battery && exit 0\n"
        f"if [ -e {count} ]; then echo 'Thermal Status: 2'; "
        f"else echo 'Thermal Status: 0'; touch {count}; fi\n",
    )
    run = bench()
    assert run.status == 0
    assert "throttled (thermal status 2" in run.errors


def test_fewer_runs_than_asked_for_are_noted(attach, bench):
    attach()
    run = bench("--runs=500")
    assert run.status == 0
    assert "200 runs of 500" in run.errors


def test_a_core_mask_that_the_device_refuses(attach, bench):
    device = attach()
    device.script("taskset", "echo 'taskset: bad mask' >&2; exit 1\n")
    check_failure(bench("--taskset=f0"), Failure.BAD_INPUT, "taskset: bad mask")
    check_clean(device)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up_and_keeps_what_was_measured(
    attach, models, binary, tmp_path, number
):
    device = attach()
    device.set_benchmark(faults={"01.tflite": "hang"})
    result = tmp_path / "out.json"
    command = [sys.executable, "-m", "tflite_bench.android", "--models"]
    command += [*map(str, models), f"--benchmark_binary={binary}", f"--json={result}"]
    # Where this process ignores Ctrl-C, as in the background of a shell, the new one
    # would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*command, *QUICK],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 600
    while not [text for text in device.commands if "01.tflite --num_threads" in text]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    assert device.left_behind
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == Failure.INTERRUPTED, errors
    assert "Traceback" not in errors
    check_clean(device)
    record = json.loads(result.read_text())["devices"][0]
    assert record["status"] == "interrupted"
    first, second = record["results"]
    assert first["metrics"]["inference_avg_ms"] == 7.81225
    assert second["status"] == "interrupted"


@pytest.mark.parametrize(
    "content, why",
    [
        (None, "No such file"),
        (b"", "not a TFLite model"),
        (b"PK\x03\x04" * 100, "not a TFLite model"),
        (tiny_model()[:-40], "cannot read or run"),
    ],
)
def test_what_is_no_model_never_reaches_the_device(
    attach, bench, tmp_path, content, why
):
    device = attach()
    file = tmp_path / "bad.tflite"
    if content is not None:
        file.write_bytes(content)
    check_failure(bench(models=[file]), Failure.BAD_INPUT, str(file), why)
    assert device.commands == []


def test_a_result_that_cannot_be_written_is_found_out_first(attach, bench, tmp_path):
    device = attach()
    (tmp_path / "file").write_text("")
    run = bench(f"--json={tmp_path}/file/out.json")
    check_failure(run, Failure.BAD_INPUT, "cannot write")
    assert device.commands == []


@pytest.mark.parametrize(
    "flag",
    [
        *("--runs=0", "--num_threads=two", "--timeout=-1", "--timeout=nan"),
        *("--taskset=0", "--taskset=xyz", "--delegate=dsp", "--serial=a --all_devices"),
    ],
)
def test_a_wrong_flag_is_refused(bench, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        bench(*flag.split())
    assert caught.value.code == Failure.BAD_INPUT
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [android.__doc__, (REPOSITORY / "docs" / "android.md").read_text()],
    ids=["docstring", "docs"],
)
def test_the_table_of_exit_statuses_is_complete(text):
    row = re.compile(r"^\|? ?`?(\d+)`? *\|? +`?([a-z_]+)`? ", re.MULTILINE)
    listed = {(int(number), name) for number, name in row.findall(text or "")}
    assert listed == {(failure.value, failure.name.lower()) for failure in Failure}

"""What a device is and how warm it is: properties, battery, thermal state, space."""

import re
import time
from dataclasses import asdict, dataclass

from tflite_bench.adb import Device
from tflite_bench.failures import BenchmarkError, Failure

PROPERTY = re.compile(r"^\[(.+?)\]: \[(.*)\]$", re.MULTILINE)
BATTERY_FIELD = re.compile(r"^\s*(level|temperature): (-?\d+)\s*$", re.MULTILINE)
BATTERY_SUPPLY = re.compile(r"^\s*(AC|USB|Wireless|Dock) powered: true", re.MULTILINE)
THERMAL_STATUS = re.compile(r"^\s*Thermal Status: (\d+)", re.MULTILINE)
TEMPERATURE = re.compile(r"Temperature\{mValue=([-+.\dEe]+), .*?mName=([^,}]*)")
# A sensor that does not work reports less.
COLDEST_CELSIUS = -40.0
# The end of a line of `df -k`: available, use in percent, mounted on.
AVAILABLE = re.compile(r"\s(\d+)\s+\d+%\s+\S+\s*$")

POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Identity:
    """Which device it is, from its system properties."""

    manufacturer: str
    model: str
    soc: str
    android_version: str
    sdk: str
    build_fingerprint: str
    abis: tuple[str, ...]


@dataclass(frozen=True)
class Condition:
    """Battery and thermal state at one moment; None where the device does not say.

    Attributes:
        battery_level_percent: 0 to 100.
        battery_celsius: the battery's temperature.
        powered_by: the supplies that are plugged in, such as ``("USB",)``.
        thermal_status: Android's, 0 (none) to 6 (shutdown); from 1 on it throttles.
        temperatures_celsius: sensor -> its temperature now.
    """

    battery_level_percent: int | None
    battery_celsius: float | None
    powered_by: tuple[str, ...]
    thermal_status: int | None
    temperatures_celsius: dict[str, float]

    def as_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


def read_identity(device: Device) -> Identity:
    """Ask the device for its properties.

    Raises:
        BenchmarkError: it names no ABI, or went away.
    """
    properties = dict(PROPERTY.findall(device.shell("getprop").output))
    abis = (
        properties.get("ro.product.cpu.abilist") or properties.get("ro.product.cpu.abi")
    ) or ""
    if not abis:
        raise BenchmarkError(
            Failure.WRONG_ABI,
            f"{device.serial}: the device does not say which ABIs it runs "
            "(ro.product.cpu.abilist)",
        )

    def first(*names: str) -> str:
        return next((properties[name] for name in names if properties.get(name)), "")

    return Identity(
        manufacturer=first("ro.product.manufacturer"),
        model=first("ro.product.model"),
        soc=first("ro.soc.model", "ro.board.platform", "ro.hardware"),
        android_version=first("ro.build.version.release"),
        sdk=first("ro.build.version.sdk"),
        build_fingerprint=first("ro.build.fingerprint"),
        abis=tuple(abi.strip() for abi in abis.split(",")),
    )


def read_condition(device: Device) -> Condition:
    """Ask the device how warm and how full it is."""
    battery = device.shell("dumpsys battery").output
    fields = {name: int(value) for name, value in BATTERY_FIELD.findall(battery)}
    tenths = fields.get("temperature")
    thermal = device.shell("dumpsys thermalservice").output
    status = THERMAL_STATUS.search(thermal)
    # Cached values come first and may be hours old; cooling devices come after.
    _, _, now = thermal.partition("Current temperatures from HAL:")
    now, _, _ = now.partition("Current cooling devices")
    return Condition(
        battery_level_percent=fields.get("level"),
        battery_celsius=None if tenths is None else tenths / 10,
        powered_by=tuple(BATTERY_SUPPLY.findall(battery)),
        thermal_status=int(status.group(1)) if status else None,
        temperatures_celsius={
            name: float(value)
            for value, name in TEMPERATURE.findall(now)
            if float(value) > COLDEST_CELSIUS
        },
    )


def wait_until_cool(
    device: Device, *, max_battery_celsius: float, seconds: float
) -> tuple[Condition, float]:
    """Wait until the device does not throttle and its battery is cool enough.

    A device that reports neither is taken as cool: there is nothing to wait for.

    Args:
        device: the device.
        max_battery_celsius: the warmest battery to measure with.
        seconds: how long to wait at most.

    Returns:
        how it is then, and the seconds waited.

    Raises:
        BenchmarkError: it is still hot when the time is up.
    """
    start = time.monotonic()
    while True:
        condition = read_condition(device)
        battery = condition.battery_celsius
        is_hot = battery is not None and battery > max_battery_celsius
        waited = time.monotonic() - start
        if not is_hot and not condition.thermal_status:
            return condition, waited
        if waited >= seconds:
            raise BenchmarkError(
                Failure.TOO_HOT,
                f"{device.serial}: still hot after {waited:.0f} s (battery "
                f"{battery} C, thermal status {condition.thermal_status}); let it cool "
                "down, or raise --cooldown_timeout or --max_battery_celsius",
            )
        time.sleep(min(POLL_SECONDS, seconds))


def check_space(device: Device, folder: str, *, num_bytes: int) -> None:
    """Refuse a device that lacks the space for what is to be pushed.

    Devices too old for a ``df -k`` that can be read are let through: the push then
    says so itself.

    Raises:
        BenchmarkError: there is less than `num_bytes`.
    """
    found = AVAILABLE.search(device.shell(f"df -k {folder}").output)
    if found and int(found.group(1)) * 1024 < num_bytes:
        raise BenchmarkError(
            Failure.NO_SPACE,
            f"{device.serial}: {num_bytes / 2**20:.1f} MiB are needed in {folder} and "
            f"{int(found.group(1)) / 1024:.1f} MiB are free; free some on the device",
        )

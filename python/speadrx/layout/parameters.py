"""Parameters of the layouts that come with speadrx: fields of a layout that follow from band, antennas and channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from speadrx._core import LayoutError

#: Digitiser samples per second of MeerKAT's bands.
MEERKAT_BANDS = {"L": 1712e6, "UHF": 1088e6, "S": 1750e6}
#: Components of a complex number, and polarisations.
_COMPLEX = _POLS = 2

_Values = Mapping[str, Any]
_Fields = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a layout that comes with speadrx.

    Parameters
    ----------
    name
        Its name.
    default
        Its value in the layout's file.
    meaning
        What it is, in a few words.
    choices
        The values that it can have. By default, it is a number from 1 on.
    """

    name: str
    default: int | str
    meaning: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> int | str:
        """Read a value.

        Raises
        ------
        LayoutError
            If it is none. The message says what would be right.
        """
        if self.choices:
            if text not in self.choices:
                raise LayoutError(f"{self.name}: {text!r} is not one of {', '.join(self.choices)}")
            return text
        try:
            number = int(text.replace("_", ""), 0)
        except ValueError:
            number = 0
        if number < 1:
            raise LayoutError(f"{self.name}: {text!r} is not a whole number from 1 on")
        return number


def _band(bands: Mapping[str, float] = MEERKAT_BANDS) -> Parameter:
    return Parameter("band", "L", "digitiser's band", tuple(bands))


def _whole(values: _Values, dividend: str, divisor: str) -> int:
    quotient, remainder = divmod(values[dividend], values[divisor])
    if remainder:
        raise LayoutError(f"{dividend}: {values[dividend]} is not a multiple of {divisor} ({values[divisor]})")
    return int(quotient)


def _rate(values: _Values) -> _Fields:
    return {"time.tick_rate": MEERKAT_BANDS[values["band"]]}


def _f_engine(values: _Values) -> _Fields:
    channels, spectra = _whole(values, "channels", "substreams"), values["spectra"]
    samples = channels * spectra
    return _rate(values) | {
        "time.step": 2 * values["channels"] * values.get("decimation", 1) * spectra,
        "axes.antenna.size": values["antennas"],
        "heap_bytes": samples * _POLS * _COMPLEX,
        "heap_shape": [channels, spectra, _POLS, _COMPLEX],
        "samples_per_heap": samples,
    }


def _x_engine(values: _Values) -> _Fields:
    channels, antennas = _whole(values, "channels", "substreams"), values["antennas"]
    products = antennas * (antennas + 1) // 2 * _POLS**2
    return _rate(values) | {
        "time.step": 2 * values["channels"] * values["spectra"],
        "axes.substream.step": channels,
        "axes.substream.size": values["substreams"],
        "heap_bytes": channels * products * _COMPLEX * 4,
        "heap_shape": [channels, products, _COMPLEX],
        "samples_per_heap": channels * products,
    }


def _beam(values: _Values) -> _Fields:
    channels, spectra = _whole(values, "channels", "substreams"), values["spectra"]
    return _rate(values) | {
        "time.step": 2 * values["channels"] * spectra,
        "axes.substream.step": channels,
        "axes.substream.size": values["substreams"],
        "heap_bytes": channels * spectra * _COMPLEX,
        "heap_shape": [channels, spectra, _COMPLEX],
        "samples_per_heap": channels * spectra,
    }


def _spectrometer(values: _Values) -> _Fields:
    channels = values["fft_length"] // 2 + 1
    return {
        "time.step": values["fft_length"] * values["naccumulate"],
        "time.tick_rate": float(values["sample_rate"]),
        "heap_bytes": 4 * channels,
        "heap_shape": [channels],
        "send.constants": {
            "0x1603": values["fft_length"],
            "0x1605": 1581164788,
            "0x1606": values["sample_rate"],
            "0x1607": values["naccumulate"],
        },
    }


def _packetiser(values: _Values) -> _Fields:
    bits = int(values["bits"])
    return {
        "heap_bytes": 4096 * bits // 8,
        "dtype": f"int{bits}",
        "time.tick_rate": float(values["sample_rate"]),
    }


def _array(channels: int, substreams: int, spectra: int) -> tuple[Parameter, ...]:
    return (
        Parameter("channels", channels, "channels of the band"),
        Parameter("substreams", substreams, "sub-bands that the channels are sent in"),
        Parameter("spectra", spectra, "spectra in a heap"),
    )


def _edd(fft_length: int, naccumulate: int, sample_rate: int) -> tuple[Parameter, ...]:
    return (
        Parameter("fft_length", fft_length, "samples of a spectrum"),
        Parameter("naccumulate", naccumulate, "spectra that are added up"),
        Parameter("sample_rate", sample_rate, "samples per second"),
    )


_ANTENNAS = Parameter("antennas", 64, "antennas of the array")
#: The parameters of each layout that has any, and the fields that follow from them.
_PARAMETERS: dict[str, tuple[tuple[Parameter, ...], Callable[[_Values], _Fields]]] = {
    "effelsberg-edd-gated-spectrometer": (_edd(2**24, 32, 3200000000), _spectrometer),
    "effelsberg-edd-gated-stokes": (_edd(2**20, 512, 2600000000), _spectrometer),
    "effelsberg-edd-packetiser": (
        (
            Parameter("bits", "12", "bits of a sample", ("8", "12")),
            Parameter("sample_rate", 2600000000, "samples per second"),
        ),
        _packetiser,
    ),
    "meerkat-antenna-channelised-voltage": ((_band(), _ANTENNAS, *_array(4096, 256, 256)), _f_engine),
    "meerkat-antenna-channelised-voltage-narrow": (
        (_band(), _ANTENNAS, Parameter("decimation", 8, "part of the band"), *_array(32768, 64, 32)),
        _f_engine,
    ),
    "meerkat-apsuse-beams": ((_band(),), _rate),
    "meerkat-fbfuse-input": ((_band(),), _rate),
    "meerkat-first-correlator-products": (
        (
            _band(),
            _ANTENNAS,
            Parameter("channels", 4096, "channels of the band"),
            Parameter("substreams", 256, "sub-bands that the channels are sent in"),
            Parameter("spectra", 816 * 256, "spectra that are added up"),
        ),
        _x_engine,
    ),
    "meerkat-baseline-correlation-products": (
        (
            _band(),
            Parameter("antennas", 80, "antennas of the array"),
            Parameter("channels", 8192, "channels of the band"),
            Parameter("substreams", 64, "sub-bands that the channels are sent in"),
            Parameter("spectra", 204 * 256, "spectra that are added up"),
        ),
        _x_engine,
    ),
    "meerkat-digitiser": ((_band(),), _rate),
    "meerkat-first-correlator-beam": ((_band(), *_array(4096, 256, 256)), _beam),
    "meerkat-tied-array-channelised-voltage": ((_band(), *_array(4096, 256, 256)), _beam),
}


def of_layout(name: str) -> tuple[Parameter, ...]:
    """List the parameters of a layout that comes with speadrx: none, if it has none."""
    return _PARAMETERS[name][0] if name in _PARAMETERS else ()


def fields(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Work out what follows from parameters.

    Parameters
    ----------
    name
        A layout that comes with speadrx.
    given
        The parameters that have another value than in the layout's file, as text.

    Returns
    -------
    dict
        Value of each field that follows from any parameter, by path; empty if none are given.

    Raises
    ------
    LayoutError
        If a value cannot be. The message names the parameter, and says what would be right.
    """
    if not given:
        return {}
    parameters, follow = _PARAMETERS[name]
    return follow({p.name: p.read(given[p.name]) if p.name in given else p.default for p in parameters})

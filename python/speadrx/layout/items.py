"""SPEAD items: those of the protocol, the width of a timestamp, and the names that are known."""

from __future__ import annotations

import spead2

from . import meerkat

#: Items that the SPEAD protocol adds to every packet.
SPECIAL_ITEMS = range(spead2.HEAP_CNT_ID, spead2.PAYLOAD_LENGTH_ID + 1)

#: Bits of a timestamp. Wider ones are sent modulo 2**48.
TIMESTAMP_BITS = 48

_PROTOCOL = {
    spead2.NULL_ID: "null",
    spead2.HEAP_CNT_ID: "heap_cnt",
    spead2.HEAP_LENGTH_ID: "heap_length",
    spead2.PAYLOAD_OFFSET_ID: "payload_offset",
    spead2.PAYLOAD_LENGTH_ID: "payload_length",
    spead2.DESCRIPTOR_ID: "descriptor",
    spead2.STREAM_CTRL_ID: "stream_ctrl",
    spead2.DESCRIPTOR_NAME_ID: "descriptor_name",
    spead2.DESCRIPTOR_DESCRIPTION_ID: "descriptor_description",
    spead2.DESCRIPTOR_SHAPE_ID: "descriptor_shape",
    spead2.DESCRIPTOR_FORMAT_ID: "descriptor_format",
    0x14: "descriptor_id",  # spead2's type stubs lack this name, and misspell the next one
    0x15: "descriptor_dtype",
}
# As in katgpucbf's descriptors.
_MEERKAT = {
    meerkat.TIMESTAMP_ID: "timestamp",
    meerkat.XENG_RAW_ID: "xeng_raw",
    meerkat.DIGITISER_ID_ID: "digitiser_id",
    meerkat.DIGITISER_STATUS_ID: "digitiser_status",
    meerkat.ADC_SAMPLES_ID: "adc_samples",
    meerkat.FENG_ID_ID: "feng_id",
    meerkat.FREQUENCY_ID: "frequency",
    meerkat.FENG_RAW_ID: "feng_raw",
    meerkat.BF_RAW_ID: "bf_raw",
    meerkat.BEAM_ANTS_ID: "beam_ants",
}
# As in mpikat's edd_fits_interface.py; its timestamp_count has the ID of MeerKAT's timestamp.
_EDD = {
    0x1601: "polarization",
    0x1602: "noise_diode_status",
    0x1603: "fft_length",
    0x1604: "number_of_input_samples",
    0x1605: "sync_time",
    0x1606: "sampling_rate",
    0x1607: "naccumulate",
    0x1608: "data",
}
_NAMES = {**_EDD, **_MEERKAT, **_PROTOCOL}


def item_name(item: int) -> str | None:
    """Name an item.

    Parameters
    ----------
    item
        SPEAD item ID. Each instrument decides what IDs above 6 mean: the name is that of MeerKAT, or of the
        Effelsberg EDD backend, and other instruments may use the ID for something else.

    Returns
    -------
    str or None
        The name, or None if it is not known.

    Examples
    --------
    >>> item_name(0x4101)
    'feng_id'
    """
    return _NAMES.get(item)

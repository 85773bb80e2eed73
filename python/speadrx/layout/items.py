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
# The correlators of KAT-7 and MeerKAT before it, as in the fxcorrelator_speadops.py of ska-sa/corr2. Its flags_xeng_raw
# has the ID 0x1601, which is better known as that of the EDD's polarization.
_CORR2 = {
    0x1007: "adc_sample_rate",
    0x1008: "n_bls",
    0x1009: "n_chans",
    0x100A: "n_ants",
    0x100B: "n_xengs",
    0x100C: "bls_ordering",
    0x100D: "crosspol_ordering",
    0x100E: "input_labelling",
    0x1011: "center_freq",
    0x1013: "bandwidth",
    0x1015: "n_accs",
    0x1016: "int_time",
    0x1017: "coarse_chans",
    0x1018: "current_coarse_chan",
    0x101C: "fft_shift_fine",
    0x101D: "fft_shift_coarse",
    0x101E: "fft_shift",
    0x101F: "xeng_acc_len",
    0x1020: "requant_bits",
    0x1021: "feng_pkt_len",
    0x1022: "rx_udp_port",
    0x1023: "feng_udp_port",
    0x1024: "rx_udp_ip_str",
    0x1025: "feng_start_ip",
    0x1026: "xeng_rate",
    0x1027: "sync_time",
    0x1040: "n_stokes",
    0x1041: "x_per_fpga",
    0x1042: "n_ants_per_xaui",
    0x1045: "adc_bits",
    0x1046: "scale_factor_timestamp",
    0x1048: "xeng_out_bits_per_sample",
    0x1049: "f_per_fpga",
    0x1400: "eq_coef",
}
# As in mpikat's edd_fits_interface.py; its timestamp_count has the ID of MeerKAT's timestamp. Its packetisers and the
# SKARAB channelisers send 0x1600 to 0x1602 too.
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
# MeerKAT's SDP L0 data: katsdpingest's sender.py gives names, and leaves it to spead2 to number them.
_SDP_L0 = {
    0x1000: "correlator_data",
    0x1001: "flags",
    0x1002: "weights",
    0x1003: "weights_channel",
    0x1004: "timestamp",
    0x1005: "dump_index",
}
# What FBFUSE sends to APSUSE, as in mpikat's fbfuse_mksend_config.py, which has the IDs but no names.
_APSUSE = {0x5555: "beam_id", 0x5556: "beam_data"}
# SKA-Low: station beams as in LFAAProcess.vhd of low-cbf-firmware (0x3010 in later revisions), and what its tiles send
# for monitoring, as in ChannelisedData.cpp of ska-low-mccs-daq.
_SKA_LOW = {
    0x2001: "tpm_info",
    0x2002: "channel_info",
    0x2004: "capture_mode",
    0x3000: "csp_channel_info",
    0x3001: "csp_antenna_info",
    0x3010: "scan_id",
}
# As in vegas_spead_packet.h of the GBT's VEGAS.
_VEGAS = {
    0x20: "time_stamp",
    0x21: "spectrum_counter",
    0x22: "spectrum_per_integration",
    0x23: "mode_number",
    0x24: "switching_state",
    0x25: "payload_data_offset",
}
# As in the test senders of the SKA's integration-prototype.
_SKA_SIP = {
    0x6000: "visibility_timestamp_count",
    0x6001: "visibility_timestamp_fraction",
    0x6002: "visibility_channel_id",
    0x6003: "visibility_channel_count",
    0x6004: "visibility_polarisation_id",
    0x6005: "visibility_baseline_count",
    0x6008: "scan_id",
    0x600A: "correlator_output_data",
    0x6015: "timestamp_offset",  # SKA-Low; the name is in no public source, but what descriptors call it comes first
}
# As Jodrell Bank's decode_spead.c names it; and items that are added to packets.
_OTHERS = {
    0x1700: "band_select",
    0x7FF8: "payload_item",
    0x7FF9: "sender",
    0x7FFA: "packet_seconds",
    0x7FFB: "packet_nanoseconds",
}
_NAMES = {
    **_OTHERS,
    **_SKA_SIP,
    **_VEGAS,
    **_SKA_LOW,
    **_APSUSE,
    **_SDP_L0,
    **_CORR2,
    **_EDD,
    **_MEERKAT,
    **_PROTOCOL,
}
#: Instruments with several X-engines whose number is in the ID: PAPER and KAT-7, as in ska-sa/corr's
#: corr_tx_spead_inter.py; and KAT-7's beamformers, as in its bf_functions.py.
_FAMILIES = ((range(0x1800, 0x1820), "xeng_raw"), (range(0xB000, 0xB100), "bf_raw"))


def item_name(item: int) -> str | None:
    """Name an item.

    Parameters
    ----------
    item
        SPEAD item ID. Each instrument decides what IDs above 6 mean. The name is that of MeerKAT if it has one, and
        otherwise that of another instrument that is known. Others may use the ID for something else.

    Returns
    -------
    str or None
        The name, or None if it is not known.

    Examples
    --------
    >>> item_name(0x4101)
    'feng_id'
    """
    of_family = (f"{name}_{item - ids[0]}" for ids, name in _FAMILIES if item in ids)
    return _NAMES.get(item) or next(of_family, None)

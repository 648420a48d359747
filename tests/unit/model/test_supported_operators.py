from __future__ import annotations

from gos_adapt.model.supported_operators import LEFT_OUT, QUANTIZED, SUPPORTED


def test_table_is_the_installed_importers_less_what_is_left_out_on_purpose() -> None:
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    assert SUPPORTED.isdisjoint(LEFT_OUT | QUANTIZED)
    assert set(_get_convert_map()) - QUANTIZED == SUPPORTED | LEFT_OUT

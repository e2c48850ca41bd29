from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import InvalidModelError, ModelError
from onnxprune.model import convert_opset, load, opset, shape_of

TEXT = """<ir_version: 8, opset_import: ["": 17]>
graph (float[N, 3] x) => (float[N, 3] y) { a = Relu(x) b = Neg(a) y = Exp(b) }"""


def written(folder: Path, order: list[int], *, reads: str = "") -> Path:
    proto = onnx.parser.parse_model(TEXT)
    nodes = [proto.graph.node[which] for which in order]
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    if reads:
        next(node for node in proto.graph.node if node.op_type == "Relu").input[0] = reads
    file = folder / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    return file


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_nodes_are_brought_into_the_order_they_run_in(tmp_path: Path, order: list[int]) -> None:
    network = load(written(tmp_path, order))
    assert [node.op_type for node in network.graph] == ["Relu", "Neg", "Exp"]


@pytest.mark.parametrize("reads", ["y", "nowhere"])
def test_a_cycle_and_a_missing_value_are_refused(tmp_path: Path, reads: str) -> None:
    with pytest.raises(InvalidModelError, match="refused by the ONNX checker"):
        load(written(tmp_path, [2, 1, 0], reads=reads))


def test_a_size_of_minus_one_is_an_open_one(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    file = tmp_path / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    network = load(file)
    assert [shape_of(value) for value in network.graph.inputs] == [(None, 3)]
    assert [shape_of(value) for value in network.graph.outputs] == [(None, 3)]


def test_a_conversion_that_the_converter_refuses_is_an_error_of_the_model() -> None:
    network = ir.from_onnx_text("""<ir_version: 3, opset_import: ["":9]>
    g (float[N,2] x) => (float[N,2] y) <float[2] w = {1,2}> { y = Add(x, w) }""")
    for value in [value for value in network.graph.inputs if value.name == "w"]:
        network.graph.inputs.remove(value)
    with pytest.raises(ModelError, match="opset 9 cannot be converted to 17"):
        convert_opset(network, 17)


def test_the_standard_operators_have_two_names(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.opset_import[0].domain = "ai.onnx"
    file = tmp_path / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    assert opset(load(file)) == 17

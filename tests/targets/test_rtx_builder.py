"""layers_from_log: kernels, their types and ONNX nodes from the builder's verbose log."""

from vitdeploy.targets.rtx_builder import layers_from_log

TENSOR = "{{ Name: {0}, Dimensions: [-1,65,64], Strides: [64,-1,1], Datatype: {1}, Format: (L) }}"
LOG = "\n".join(
    [
        "Layers:",
        "Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 0, Metadata: ",
        "Name: a/MatMul+b/MatMul_myl0_4, LayerType: gemm, Inputs: [ "
        + TENSOR.format("x", "Int8")
        + " ], Constants: [ "
        + TENSOR.format("w", "Int8")
        + ", "
        + TENSOR.format("alpha", "Float")
        + " ], Outputs: [ "
        + TENSOR.format("y", "Half")
        + " ], TacticName: __myelin_CASK_STUB, StreamId: 0, "
        "Metadata: [ONNX Layer: a/MatMul][ONNX Layer: b/MatMul]",
        "",
        "I/O Tensors:",
        " Name: pixel_values, IOMode: Input, DataType: Float, Dimensions: [-1,3,32,32]",
    ]
)


def test_types_are_those_of_the_activations_read():
    call, product = layers_from_log(LOG)
    assert (product.kind, product.tactic) == ("gemm", "__myelin_CASK_STUB")
    assert product.input_types == ("Int8",)
    assert product.constant_types == ("Int8", "Float")
    assert product.nodes == ("a/MatMul", "b/MatMul")
    assert (call.kind, call.input_types, call.nodes) == ("shape_call", (), ())


def test_a_log_without_layers_gives_none():
    assert layers_from_log("Engine generation completed in 2.0 seconds.") == ()

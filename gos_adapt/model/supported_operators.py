"""The ONNX operators the compiler's importer takes: a table, because TVM must not be imported to read a model.

Reference: `tvm.relax.frontend.onnx.onnx_frontend._get_convert_map` of apache-tvm 0.27.0.post1, standard domain only,
less what a `Model` cannot hold: sequences, optionals and operators that are quantised already. A test compares it with
the installed TVM.
"""

from __future__ import annotations

SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add AffineGrid AllClassNMS And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Compress Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf
    IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpPool MatMul Max MaxPool MaxRoiPool
    MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round Scatter ScatterElements ScatterND Selu Shape
    Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 (a list of words reads better than a list of strings)
)

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
QUANTIZED = frozenset(
    """
    QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger
    MatMulInteger16
    """.split()  # noqa: SIM905 (a list of words reads better than a list of strings)
)
# In TVM's table, but contrib operators (com.microsoft), or on values that are not tensors.
LEFT_OUT = frozenset(
    """
    BiasGelu EmbedLayerNormalization FastGelu SkipLayerNormalization ConcatFromSequence Optional OptionalGetElement
    OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SplitToSequence
    """.split()  # noqa: SIM905 (a list of words reads better than a list of strings)
)

NEXT_STEP = {
    RECURRENT: "export the cell unrolled over a fixed number of steps (a Python loop over nn.LSTMCell, nn.GRUCell or "
    "nn.RNNCell), or adapt the convolutional part alone",
    CONTROL_FLOW: "export with the branch or the number of steps fixed (torch.onnx.export traces one path), or adapt "
    "the part without control flow alone",
    QUANTIZED: "give the float32 model: quantisation comes after adaptation",
}
OTHERWISE = "replace them in the model by operators the TVM ONNX importer takes, or split the model there"

from __future__ import annotations

from gos_adapt.errors import Rejection
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.graph import MAX_EDGES, MAX_NODES, Node, OperatorGraph, typed

X = Node("input", shape=(2, 4, 4))


def convolution() -> OperatorGraph:
    b = Builder()
    x = b.input(3, 8, 8)
    b.apply("relu", b.bias(b.convolution(x, 16, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))))
    graph = b.graph()
    assert isinstance(graph, OperatorGraph)
    return graph


def test_a_convolution_counts_its_own_work():
    graph = convolution()
    assert graph.output_shape == (16, 4, 4)
    assert graph.weight_shapes == ((16, 3, 3, 3), (16,))
    assert graph.parameters == 16 * 27 + 16
    assert graph.macs == 256 * 27 + 128 + 128  # bias and relu: half a multiply-accumulate an element each
    assert graph.edge_count == 6
    assert graph.traffic_bytes == 4 * ((192 + 432 + 256) + (256 + 16 + 256) + (256 + 256))


def test_grouped_convolution_divides_the_work_by_its_groups():
    b = Builder()
    b.convolution(b.input(8, 4, 4), 8, (3, 3), padding=(1, 1, 1, 1), groups=8)
    graph = b.graph()
    assert (graph.weight_shapes, graph.macs) == (((8, 1, 3, 3),), 8 * 16 * 9)


def test_instructions_on_weights_alone_count_no_work():
    b = Builder()
    x = b.input(6)
    low_rank = b.apply("weight_product", b.weight(6, 2), b.weight(2, 5))
    b.apply("matrix_product", x, low_rank, channels=5)
    assert b.graph().macs == 30


def relus(count: int) -> tuple[Node, ...]:
    return (X, *(Node("relu", (i,)) for i in range(count)))


def adds(count: int) -> tuple[Node, ...]:
    return (X, *(Node("add", (i, i)) for i in range(count)))


def test_node_limit_is_inclusive():
    assert isinstance(typed(relus(MAX_NODES - 1)), OperatorGraph)
    assert typed(relus(MAX_NODES)) == Rejection("21 nodes, must be 2 to 20")
    assert typed((X,)) == Rejection("1 nodes, must be 2 to 20")


def test_edge_limit_is_inclusive():
    assert typed(adds(12)).edge_count == MAX_EDGES
    assert typed(adds(13)) == Rejection("27 edges, must be 2 to 25")


def test_rejections_name_the_node_and_the_reason():
    def reason(*nodes: Node) -> str:
        rejection = typed((X, *nodes))
        assert isinstance(rejection, Rejection)
        return rejection.reason

    assert reason(Node("relu", (1,))) == "v1 = relu: uses a node that is not before it"
    assert reason(Node("fft", (0,))) == "v1 = fft: no such instruction"
    assert reason(Node("weight", shape=(0,)), Node("relu", (0,))).startswith("v1 = weight: a leaf needs positive")
    assert reason(Node("weight", shape=(2**20, 2**20)), Node("relu", (0,))).startswith("v1 = weight: a leaf needs")
    assert reason(Node("add", (0,))) == "v1 = add: takes (feature, feature), got (feature)"
    assert reason(Node("weight", shape=(2,)), Node("add", (0, 1))).endswith("got (feature, weight)")
    assert reason(Node("channel_shuffle", (0,), (("groups", 3),))).endswith("3 groups do not divide 2 channels")
    assert reason(Node("relu", (0,)), Node("weight", shape=(2,))) == "the result must be a feature"
    assert "sorted and distinct" in reason(Node("channel_slice", (0,), (("stop", 1), ("start", 0))))


def test_the_builder_keeps_the_first_thing_that_does_not_fit():
    b = Builder()
    x = b.apply("channel_shuffle", b.input(3, 4, 4), groups=2)
    b.apply("relu", b.bias(x))
    assert b.graph() == Rejection("v1 = channel_shuffle: 2 groups do not divide 3 channels")
    assert b.shape(x) == ()

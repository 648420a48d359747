"""A realistic `Result`, made by hand, and its awkward relatives: what the report must read well for."""

from __future__ import annotations

from dataclasses import replace

from gos_adapt.environment import Environment
from gos_adapt.errors import Rejection
from gos_adapt.model.model import TensorSpec
from gos_adapt.operators.equation import equation
from gos_adapt.operators.text import parse
from gos_adapt.quantities import Conditions, Count, Measurement
from gos_adapt.result import (
    Accuracy,
    CandidateResult,
    Change,
    DeviceSummary,
    Formula,
    GroupSearch,
    Latencies,
    Measured,
    ModelSummary,
    OperatorSummary,
    Options,
    ProfileSummary,
    Result,
    SiteResult,
    Verification,
)

CONDITIONS = Conditions("host", 2, "2026-11-21T10:00:00+00:00", "rpc time_evaluator")

SETTINGS = "dilation=1x1, groups=1, kernel=3x3, padding=1x1x1x1, stride=1x1"
POINTWISE = "dilation=1x1, groups=1, kernel=1x1, padding=0x0x0x0, stride=1x1"

CONVOLUTION = f"""v0 = input 32x16x16
v1 = weight 32x32x3x3
v2 = cross_correlation(v0, v1, channels=32, {SETTINGS})
v3 = weight 32
v4 = channel_bias(v2, v3)
v5 = relu(v4)"""

SEPARABLE = f"""v0 = input 32x16x16
v1 = weight 32x1x3x3
v2 = cross_correlation(v0, v1, channels=32, {SETTINGS.replace("groups=1", "groups=32")})
v3 = weight 32x32x1x1
v4 = cross_correlation(v2, v3, channels=32, {POINTWISE})
v5 = weight 32
v6 = channel_bias(v4, v5)
v7 = relu(v6)"""

BRANCH = f"""v0 = input 64x8x8
v1 = weight 64x64x3x3
v2 = cross_correlation(v0, v1, channels=64, {SETTINGS})
v3 = weight 64
v4 = channel_bias(v2, v3)
v5 = relu(v4)
v6 = weight 64x64x3x3
v7 = cross_correlation(v5, v6, channels=64, {SETTINGS})
v8 = weight 64
v9 = channel_bias(v7, v8)
v10 = add(v0, v9)
v11 = relu(v10)"""

IDENTITY = "v0 = input 64x8x8\nv1 = relu(v0)"

TEXTS = (CONVOLUTION, SEPARABLE, BRANCH, IDENTITY)


def measured(*samples_ms: float) -> Measurement:
    return Measurement(tuple(sample / 1e3 for sample in samples_ms), CONDITIONS)


def failed(reason: str) -> Measurement:
    return Measurement((), CONDITIONS, reason)


def operator(text: str, kernels: int, *samples_ms: float) -> OperatorSummary:
    graph = parse(text)
    assert not isinstance(graph, Rejection), graph.reason
    macs, parameters = Count(graph.macs, "mac"), Count(graph.parameters, "parameter")
    shown = equation(graph)
    formula = Formula(shown.text, shown.latex, shown.mathml)
    traffic, compiled = Count(graph.traffic_bytes, "byte"), Count(kernels, "kernel")
    return OperatorSummary(graph.key, text, formula, macs, parameters, traffic, compiled, measured(*samples_ms))


def candidate(
    number: int, outcome: str, change_us: float | None, parameters: int, top1: float | None
) -> CandidateResult:
    return CandidateResult(
        key=f"{number:016x}",
        text=SEPARABLE,
        latency_change=None if change_us is None else Measured(change_us / 1e6, "s"),
        parameters=Count(parameters, "parameter"),
        macs=Count(256 * parameters, "mac"),
        accuracy=None if top1 is None else Measured(top1, "fraction"),
        loss=None if top1 is None else Measured(round(0.9172 - top1, 4), "fraction"),
        fit_error=Measured(0.01 * number, "1"),
        outcome=outcome,
        feasible=outcome == "feasible",
        on_front=number in (1, 2, 3),
        chosen=number == 1,
        lineage=("seed depthwise_separable",),
    )


CANDIDATES = (
    candidate(1, "feasible", -23.0, 1344, 0.914),
    candidate(2, "feasible", -12.0, 1100, 0.912),
    candidate(3, "feasible", -29.0, 4900, 0.915),
    candidate(4, "feasible", -8.0, 5200, 0.916),
    candidate(5, "accuracy", -33.0, 400, 0.871),
    candidate(6, "accuracy", -30.5, 720, 0.883),
    candidate(7, "measured latency", 6.0, 2300, None),
    candidate(8, "fit", None, 90, None),
)


def example_result() -> Result:
    """ResNet-20 with two replaced groups: everything there, everything faster."""
    conv = operator(CONVOLUTION, 1, 0.0352, 0.0361, 0.0349)
    separable = operator(SEPARABLE, 2, 0.0124, 0.0131, 0.0122)
    branch = operator(BRANCH, 2, 0.0612, 0.0604, 0.0631)
    identity = operator(IDENTITY, 1, 0.0021, 0.0022, 0.0021)
    seed = ("seed depthwise_separable", "mutate kernel 5x5 → 3x3")
    layers = tuple(
        SiteResult(
            name=f"/stage2/block{i}/conv1/Relu_output_0",
            kind="conv",
            overlaps=(),
            searched=True,
            reason="among the slowest; its likes are treated together",
            original=conv,
            replacement=separable,
            retrained=False,
            lineage=seed,
        )
        for i in range(3)
    )
    branches = tuple(
        SiteResult(
            name=f"/stage3/block{i}/Relu_1_output_0",
            kind="branch",
            overlaps=(),
            searched=i == 2,
            reason="highest latency" if i == 2 else "only 10 % of the latency, and its accuracy share is unknown",
            original=branch,
            replacement=identity if i == 2 else None,
            retrained=i == 1,
            lineage=("seed identity",) if i == 2 else (),
        )
        for i in range(3)
    )
    return Result(
        model=ModelSummary(
            name="resnet20_cifar10",
            key="0123456789abcdef",
            inputs=(TensorSpec("input", ("N", 3, 32, 32), "float32"),),
            outputs=(TensorSpec("logits", ("N", 10), "float32"),),
        ),
        device=DeviceSummary("host", "cpu", "llvm -mcpu=znver4", 2, 8 * 2**30),
        options=Options(
            epsilon=0.01,
            max_sites=10,
            budget_s=900.0,
            seed=0,
            strategy="iterative",
            target_latency_s=None,
            speed_up=None,
            train_all=False,
            also_minimise=(),
        ),
        environment=Environment(
            cpu="AMD EPYC",
            cores=2,
            architecture="x86_64",
            system="Linux 6.1",
            python="3.11.7",
            packages={"gos-adapt": "0.1.0", "apache-tvm": "0.27.0.post1", "onnxruntime": "1.31.1"},
            governor=None,
            load=0.35,
            date="2026-11-21T10:00:00+00:00",
        ),
        accuracy=Accuracy(
            metric="top-1",
            higher_is_better=True,
            split="test",
            n=10_000,
            original=Measured(0.9172, "fraction"),
            adapted=Measured(0.9132, "fraction"),
            onnxruntime_int8=Measured(0.9161, "fraction"),
        ),
        latency=Latencies(
            batch=1,
            original=measured(0.40, 0.42, 0.44),
            adapted=measured(0.28, 0.30, 0.31),
            onnxruntime_fp32=measured(0.32, 0.33, 0.39),
            onnxruntime_int8=measured(0.36, 0.45, 0.47),
        ),
        parameters=Change(Count(269_722, "parameter"), Count(172_000, "parameter")),
        macs=Change(Count(40_551_040, "mac"), Count(28_400_000, "mac")),
        profile=ProfileSummary(measured(0.40, 0.42, 0.44), Measured(0.000399, "s"), Count(31, "kernel")),
        sites=layers + branches,
        search=(
            GroupSearch(
                name="conv 32×16×16",
                sites=tuple(site.name for site in layers),
                outcomes={
                    "ill-typed": 41,
                    "seen before": 77,
                    "counted cost": 30,
                    "predicted latency": 12,
                    "fit": 1,
                    "measured latency": 1,
                    "accuracy": 2,
                    "feasible": 4,
                },
                levels_s={"fit": 8.0, "measured latency": 21.0, "accuracy": 33.0},
                candidates=CANDIDATES,
            ),
            GroupSearch(
                name="branch 64×8×8",
                sites=(branches[2].name,),
                outcomes={"ill-typed": 3, "seen before": 9, "fit": 0, "measured latency": 1, "feasible": 1},
                levels_s={"fit": 1.0, "measured latency": 3.0, "accuracy": 4.0},
                candidates=(candidate(1, "feasible", -58.6, 0, 0.9132),),
            ),
        ),
        stages_s={"load": 0.8, "profile": 6.2, "search": 151.0, "compile": 4.0, "verify": 9.9},
        verification=Verification(256, Measured(2.1e-6, "1"), 1e-4),
        notes=(),
    )


def without_task() -> Result:
    """No task file: no accuracy anywhere."""
    result = example_result()
    search = tuple(
        replace(group, candidates=tuple(replace(candidate, accuracy=None) for candidate in group.candidates))
        for group in result.search
    )
    return replace(result, accuracy=None, search=search)


def chosen_jointly() -> Result:
    """The global strategy: candidates have a loss and no accuracy, one of them a hopeless loss."""
    result = example_result()
    search = tuple(
        replace(
            group,
            candidates=tuple(
                replace(c, accuracy=None, loss=None if c.loss is None else Measured(10.0 ** (k - 3), "1"))
                for k, c in enumerate(group.candidates)
            ),
        )
        for group in result.search
    )
    return replace(result, search=search, options=replace(result.options, strategy="global", speed_up=1.3))


def without_replacements() -> Result:
    """Nothing was worth replacing: no search."""
    result = example_result()
    sites = tuple(
        replace(site, searched=False, reason="too small a share", replacement=None, retrained=False, lineage=())
        for site in result.sites
    )
    return _original_delivered(replace(result, sites=sites, search=()))


def without_feasible_candidate() -> Result:
    """Searched, and every candidate broke the constraint."""
    result = example_result()
    search = replace(
        result.search[0],
        candidates=CANDIDATES[4:],
        outcomes={"ill-typed": 41, "fit": 1, "measured latency": 1, "accuracy": 2},
    )
    sites = tuple(replace(site, replacement=None, retrained=False, lineage=()) for site in result.sites)
    return _original_delivered(replace(result, sites=sites, search=(search,)))


def without_int8() -> Result:
    """No int8 baseline."""
    result = example_result()
    assert result.accuracy
    latency = replace(result.latency, onnxruntime_int8=failed("the quantiser does not take 3-D convolutions"))
    return replace(result, latency=latency, accuracy=replace(result.accuracy, onnxruntime_int8=None))


def beaten() -> Result:
    """ONNX Runtime fp32 is faster than what we deliver."""
    result = example_result()
    return replace(result, latency=replace(result.latency, onnxruntime_fp32=measured(0.24, 0.25, 0.26)))


def hostile() -> Result:
    """Every string that a file can bring says something ugly."""
    result = example_result()
    evil = "_</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    site = result.sites[0]
    assert site.replacement
    assert result.accuracy
    operator = replace(site.replacement, text=evil, formula=Formula(evil, evil, f"<math><mi>y</mi>{evil}</math>"))
    return replace(
        result,
        model=replace(result.model, name=evil),
        sites=(
            replace(site, name=evil, kind=evil, reason=evil, replacement=operator, lineage=(evil,)),
            *result.sites[1:],
        ),
        search=(
            replace(
                result.search[0], name=evil, candidates=(replace(CANDIDATES[0], text=f"v1 = {evil}(v0)", outcome=evil),)
            ),
            *result.search[1:],
        ),
        accuracy=replace(result.accuracy, metric=evil, split=evil),
        notes=(evil + "\ud800",),
    )


def _original_delivered(result: Result) -> Result:
    assert result.accuracy
    return replace(
        result,
        latency=replace(result.latency, adapted=result.latency.original),
        accuracy=replace(result.accuracy, adapted=result.accuracy.original),
        parameters=replace(result.parameters, after=result.parameters.before),
        macs=replace(result.macs, after=result.macs.before),
    )


ALL = {
    "example": example_result,
    "chosen_jointly": chosen_jointly,
    "without_task": without_task,
    "without_replacements": without_replacements,
    "without_feasible_candidate": without_feasible_candidate,
    "without_int8": without_int8,
    "beaten": beaten,
    "hostile": hostile,
}

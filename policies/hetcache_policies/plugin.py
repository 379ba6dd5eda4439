"""The policies and the pieces of policies that come with hetcache, registered as anybody else's would be."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl

__all__ = [
    "hetcache_register_correctors",
    "hetcache_register_partitioners",
    "hetcache_register_policies",
    "hetcache_register_predictors",
    "hetcache_register_selectors",
    "hetcache_register_signals",
]


@hookimpl
def hetcache_register_policies() -> list[Registration]:
    """Name the built-in policies; their modules, and torch, are imported when one is asked for."""
    return [
        Registration(
            name="none",
            target="hetcache_policies.none:Uncached",
            summary="run every step in full: the reference to compare with",
        ),
        Registration(
            name="auto",
            target="hetcache_policies.auto:Auto",
            summary="the default: steps where the sampler moves most, lines between them, errors paid back",
        ),
        Registration(
            name="teacache",
            target="hetcache_policies.teacache:TeaCache",
            summary="reuse the trunk's residual until a timestep signal has drifted far enough",
        ),
        Registration(
            name="pab",
            target="hetcache_policies.pab:PyramidBroadcast",
            summary="reuse the outputs of attention layers for a few steps in mid-run",
        ),
        Registration(
            name="hetcache",
            target="hetcache_policies.hetcache:HetCache",
            summary="full, partial or reused steps; partial ones run the tokens of the edit only",
        ),
        Registration(
            name="every-nth",
            target="hetcache_policies.every_nth:EveryNth",
            summary="compute every n-th step: the floor that every signal has to beat",
        ),
        Registration(
            name="fewer-steps",
            target="hetcache_policies.fewer_steps:FewerSteps",
            summary="take fewer sampler steps and cache nothing: the baseline of caches",
        ),
        Registration(
            name="magcache",
            target="hetcache_policies.magcache:MagCache",
            summary="reuse the residual by how its magnitude is known to change on this model",
        ),
        Registration(
            name="easycache",
            target="hetcache_policies.easycache:EasyCache",
            summary="reuse whole model calls while the latents say that little has changed",
        ),
        Registration(
            name="fbcache",
            target="hetcache_policies.fbcache:FBCache",
            summary="run the first block, and the others only if it does something new",
        ),
        Registration(
            name="dbcache",
            target="hetcache_policies.fbcache:DBCache",
            summary="run the first and last blocks, and the middle only if it will change",
        ),
        Registration(
            name="dicache",
            target="hetcache_policies.dicache:DiCache",
            summary="reuse while the first block drifts little, on the line of two computed steps",
        ),
        Registration(
            name="taylorseer",
            target="hetcache_policies.taylorseer:TaylorSeer",
            summary="predict features by a Taylor series instead of holding them",
        ),
        Registration(
            name="foca",
            target="hetcache_policies.foca:FoCa",
            summary="every n-th step runs, an ODE solver follows the features between",
        ),
        Registration(
            name="seacache",
            target="hetcache_policies.seacache:SeaCache",
            summary="reuse the residual until the input without its noise has drifted",
        ),
        Registration(
            name="spectrum",
            target="hetcache_policies.spectrum:Spectrum",
            summary="predict by Chebyshev polynomials over the run, at gaps that grow",
        ),
        Registration(
            name="fastercache-cfg",
            target="hetcache_policies.fastercache_cfg:FasterCacheCFG",
            summary="predict the unconditional branch of guidance from the conditional one",
        ),
        Registration(
            name="adacache",
            target="hetcache_policies.adacache:AdaCache",
            summary="reuse steps for as long as the change of attention at the last one allows",
        ),
        Registration(
            name="fastcache",
            target="hetcache_policies.fastcache:FastCache",
            summary="leave out middle blocks while their input has hardly moved",
        ),
        Registration(
            name="toca",
            target="hetcache_policies.toca:ToCa",
            summary="reuse attention between full steps and recompute a few tokens' rest",
        ),
        Registration(
            name="replay",
            target="hetcache_policies.replay:Replay",
            summary="do what a recorded run did, and decide nothing",
        ),
        Registration(
            name="duca",
            target="hetcache_policies.toca:DuCa",
            summary="between full steps, reuse the trunk and recompute a few tokens in turn",
        ),
    ]


@hookimpl
def hetcache_register_selectors() -> list[Registration]:
    """Name the built-in context selectors."""
    return [
        Registration(
            name="uniform",
            target="hetcache_policies.shared.selectors:UniformSelector",
            summary="evenly spread over the video",
        ),
        Registration(
            name="random",
            target="hetcache_policies.shared.selectors:RandomSelector",
            summary="at random",
        ),
        Registration(
            name="attention",
            target="hetcache_policies.shared.selectors:AttentionSelector",
            summary="those that the edited tokens attend to most",
        ),
        Registration(
            name="kmeans",
            target="hetcache_policies.shared.selectors:ClusterSelector",
            summary="the same share of every cluster, its most typical tokens first",
        ),
        Registration(
            name="both",
            target="hetcache_policies.shared.selectors:GuidedClusterSelector",
            summary="the same share of every cluster, its most attended tokens first",
        ),
    ]


@hookimpl
def hetcache_register_partitioners() -> list[Registration]:
    """Name the built-in partitioner."""
    return [
        Registration(
            name="mask",
            target="hetcache_policies.shared.partition:MaskPartitioner",
            summary="what the mask touches, a margin around it, and the rest",
        ),
    ]


@hookimpl
def hetcache_register_predictors() -> list[Registration]:
    """Name the built-in predictors."""
    return [
        Registration(
            name="hold",
            target="hetcache_core:Hold",
            summary="the last computed value",
        ),
        Registration(
            name="blend",
            target="hetcache_policies.shared.predictors:Blend",
            summary="as much of a straight line as the run has shown to be right",
        ),
        Registration(
            name="linear",
            target="hetcache_policies.shared.predictors:Linear",
            summary="the straight line through the last two computed values",
        ),
        Registration(
            name="chebyshev",
            target="hetcache_policies.shared.predictors:Chebyshev",
            summary="a ridge fit of Chebyshev polynomials to the last values",
        ),
        Registration(
            name="exponentials",
            target="hetcache_policies.shared.predictors:Exponentials",
            summary="exponentials through the last values (DMD)",
        ),
        Registration(
            name="foca",
            target="hetcache_policies.shared.predictors:Foca",
            summary="BDF2 forecasts, Heun's rule calibrates",
        ),
        Registration(
            name="hermite",
            target="hetcache_policies.shared.predictors:Hermite",
            summary="a series of scaled Hermite polynomials",
        ),
        Registration(
            name="taylor",
            target="hetcache_policies.shared.predictors:Taylor",
            summary="a Taylor series of backward differences",
        ),
    ]


@hookimpl
def hetcache_register_correctors() -> list[Registration]:
    """Name the built-in correctors."""
    return [
        Registration(
            name="none",
            target="hetcache_core:KeepOutput",
            summary="nothing: outputs stay as the model made them",
        ),
        Registration(
            name="payback",
            target="hetcache_policies.shared.correctors:Payback",
            summary="the error found at the end of a gap, taken off the latents",
        ),
    ]


@hookimpl
def hetcache_register_signals() -> list[Registration]:
    """Name the built-in signals."""
    return [
        Registration(
            name="timestep",
            target="hetcache_policies.shared.signals:Timestep",
            summary="the timestep's embedding",
        ),
        Registration(
            name="modulation",
            target="hetcache_policies.shared.signals:Modulation",
            summary="what the blocks make of the timestep's embedding",
        ),
        Registration(
            name="modulated_input",
            target="hetcache_policies.shared.signals:ModulatedInput",
            summary="the first block's modulated input, which depends on the content",
        ),
        Registration(
            name="filtered_input",
            target="hetcache_policies.shared.signals:FilteredInput",
            summary="the first block's modulated input without its noise",
        ),
    ]

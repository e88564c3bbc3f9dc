"""Puts a plan in force on a pipeline, and takes it back."""

from sparing.errors import ConfigError
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan

__all__ = ["apply_", "remove_"]


def apply_(pipe: VARPipeline, plan: CompressionPlan, *, keep_original: bool = True) -> None:
    """Leaves out of a pipeline's work what a plan names. The model's own weights are untouched, unless you free them.

    Args:
        pipe: the pipeline; a plan in force before is replaced.
        plan: one that was made for this model.
        keep_original: False frees the weights that the plan rounds, for which there are smaller ones now. Then the
            plan cannot be taken back, nor the pipeline saved: load it again for that.

    Raises:
        ConfigError: the plan was made for a model with other settings or other weights, or the original weights were
            freed; nothing changes.
    """
    pipe.check_original()
    ours, theirs = pipe.transformer.config, plan.model
    if ours != theirs:
        differing = [
            f"{name} is {getattr(ours, name)!r}, the plan's {getattr(theirs, name)!r}"
            for name in type(ours).model_fields
            if getattr(ours, name) != getattr(theirs, name)
        ]
        raise ConfigError(f"plan: made for another model: {'; '.join(differing)}")
    fingerprint = weights_fingerprint(pipe.transformer)
    if fingerprint != plan.weights:
        raise ConfigError(
            f"plan: made for other weights (fingerprint {plan.weights}, this model's is {fingerprint}); calibrate anew"
        )
    pipe.use(plan)
    if not keep_original:
        pipe.free_original_()


def remove_(pipe: VARPipeline) -> None:
    """Takes a plan back: the pipeline draws what it drew before, bit for bit.

    Raises:
        ConfigError: the original weights were freed.
    """
    pipe.use(None)

"""What is checked before any work is done with a network, and of what came out of it."""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .describing.inputs import max_positions
from .describing.refusals import check_hooks
from .errors import FAILURES, InputError, NumericalError, OptinError, first_line, refused
from .recipe import Recipe
from .running.batch import Batch, batched, shapes_of, size_of, split, token_mask
from .running.gating import gated, masks
from .running.job import Job
from .running.merging import all_tokens, merging_of
from .running.modules import call, fingerprint, inference_mode_of, modules_run
from .running.nesting import root_of
from .running.outputs import answers, distance, tolerance_of
from .running.reading import one_example
from .running.replay import check_replay, recorded_blocks
from .running.twins import plain
from .scoring.blockwise import check_by_blocks
from .scoring.criteria import criterion
from .scoring.probe import check_activations, read_final, states
from .scoring.trajectory import Positions
from .space.options import check_examples
from .space.plans import Plan
from .space.scores import Scores
from .space.units import UnitSpace


def check_inputs(job: Job) -> str:
    """Refuse calibration inputs that the network cannot take or whose outputs cannot be read, before any work.

    Returns:
        What of the outputs is compared, and by which loss.

    Raises:
        InputError: too few examples, too many tokens, ids beyond the vocabulary, nothing but padding, or
            images of a size that it does not accept; or a network that cannot be scored block by block, if it is to.
        ArchitectureError: an output that cannot be read, a hook that changes values, or a network that does not go on
            from its blocks.
        NumericalError: an output that is not finite.
    """
    model, space, recipe = job.model, job.space, job.recipe
    if recipe.offload:
        check_by_blocks(model, space, recipe)
    check_examples(job.batches.examples)
    seen, compared = set[object](), ""
    for batch in job.batches:
        _check_tokens(model, batch)
        shape = tuple((name, value.shape[1:]) for name, value in batch.items() if batched(value))
        if shape in seen:
            continue
        sample, blocks = next(split(batch, 2)), list[object]()
        try:
            with inference_mode_of(model), torch.inference_mode(), recorded_blocks(model, space.blocks, blocks):
                output = call(model, sample)
        except FAILURES as error:
            raise _not_taken(model, sample, batch, error) from error
        if not seen:
            _check_repeats(model, sample, output)
            _check_used(model, sample, output)
            compared = _check_output(job, sample, blocks, output)
        seen.add(shape)
    sample = next(split(job.first, 2))
    check_hooks(model, sample)
    _check_work(model, job.first)
    resumes = recipe.refit.enabled or criterion(recipe.criterion).resumes or recipe.offload
    if resumes or recipe.tokens.merge == "search":
        with inference_mode_of(model), torch.inference_mode(), all_tokens(model):
            check_replay(model, space.blocks, sample, space.chained)
    return compared


def _check_work(model: nn.Module, batch: Batch) -> None:
    """Warn of a network in which values decide which modules run, as in a mixture of experts, and its cost.

    Costs are counted on one example.
    """
    try:
        first = set(modules_run(model, lambda: call(model, next(split(batch, 1)))))
    except FAILURES as error:
        raise refused(
            f"costs are counted on one example, and this {type(model).__name__} does not take one alone", error
        ) from error
    if missing := [name for name in modules_run(model, lambda: call(model, batch)) if name not in first]:
        warnings.warn(
            f"which modules of this {type(model).__name__} run depends on the values of its inputs: {missing[0]!r} "
            "does not for the first example. MACs are those of one example; others may cost more or less than the "
            "budget says. A budget of parameters holds for all.",
            stacklevel=2,
        )


def _not_taken(model: nn.Module, sample: Batch, batch: Batch, error: Exception) -> InputError:
    """What to say of inputs at which the forward failed: whether they are one example, which needs an axis more."""
    tensors = {name: value for name, value in batch.items() if batched(value)}
    with contextlib.suppress(*FAILURES), inference_mode_of(model), torch.inference_mode():
        call(model, {**batch, **{name: value[None] for name, value in tensors.items()}})
        return one_example(*next(iter(tensors.items())))
    return refused(f"the network does not take the inputs {shapes_of(sample)}", error)


def check_sample(model: nn.Module, sample: Batch, batch: Batch) -> None:
    """Refuse inputs that the forward does not take.

    Args:
        sample: two examples of the batch.

    Raises:
        InputError: says what it takes, or what it said.
    """
    _check_tokens(model, sample)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with inference_mode_of(model), torch.inference_mode():
            call(model, sample)
    except FAILURES as error:
        raise _not_taken(model, sample, batch, error) from error
    _check_buffers(model, before)


def _check_tokens(model: nn.Module, batch: Batch) -> None:
    """Of a text: how many, and which."""
    config = getattr(model, "config", None)
    limit = max_positions(model)
    for name, largest in (("input_ids", "vocab_size"), ("token_type_ids", "type_vocab_size")):
        ids, count = batch.get(name), getattr(config, largest, None)
        if not isinstance(ids, Tensor) or ids.is_floating_point() or not ids.numel():
            continue
        if limit is not None and ids.shape[1] > limit:
            raise InputError(
                f"a calibration input of {ids.shape[1]} tokens is beyond the {limit} tokens of this model. "
                "Truncate the inputs."
            )
        beyond = count is not None and int(ids.max()) >= max(count, 1)
        if beyond or int(ids.min()) < 0:
            value = int(ids.max()) if beyond else int(ids.min())
            raise InputError(
                f"{name!r} holds {value}, which is outside the model's vocabulary of {count} words. "
                "Use the tokenizer of this model."
            )
    if "input_ids" in batch and not token_mask(batch).any(1).all():
        raise InputError("a calibration input holds only padding: leave it out.")


def _check_buffers(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse a network that writes into its buffers, and give them back as they were."""
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before.get(name, buffer))]
    with torch.no_grad():
        for name in changed:
            model.get_buffer(name).copy_(before[name])
    if changed:
        raise InputError(
            f"the buffer {changed[0]!r} of this {type(model).__name__} changes at every forward in evaluation mode: "
            "what is measured would be of other states. Have it change in training mode alone."
        )


def _check_repeats(model: nn.Module, sample: Batch, output: object) -> None:
    """Refuse a network that gives another answer each time: nothing that is measured on it would hold."""
    with inference_mode_of(model), torch.inference_mode():
        one, other = answers(output), answers(call(model, sample))
    if not distance(one, other) <= tolerance_of(one) and not bool(one.isnan().any()):
        raise InputError(
            f"two forwards of this {type(model).__name__} on the same inputs differ: it draws at random or "
            "remembers. Turn that off, or pass what it draws (such as noise) with the inputs."
        )


def _check_used(model: nn.Module, sample: Batch, output: object) -> None:
    """Refuse inputs that the forward takes by `**kwargs` and forgets, such as names that are spelled wrongly."""
    named = inspect.signature(model.forward).parameters
    known = [name for name, parameter in named.items() if parameter.kind is not parameter.VAR_KEYWORD]
    for name, value in sample.items():
        if root_of(name) in known or not batched(value):
            continue
        other = torch.ones_like(value) if bool((value == 0).all()) else torch.zeros_like(value)
        with contextlib.suppress(*FAILURES), inference_mode_of(model), torch.inference_mode():
            if distance(answers(output), answers(call(model, {**sample, name: other}))) == 0:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
                hint = f" Did you mean {near[0]!r}?" if near else " Leave it out."
                raise InputError(f"the network makes no use of the input {name!r}.{hint}")


def _check_output(job: Job, sample: Batch, blocks: list[object], output: object) -> str:
    values, options = answers(output), job.recipe.trajectory
    positions = Positions(sample, options.rows, job.generator, job.space.of_maps)
    if len(blocks) == len(job.space.blocks):
        check_activations(job.space.blocks, states(job.space, blocks), positions)
    try:
        said = read_final(job.model, output, positions, options).said
    except FAILURES as error:
        shape = tuple(values.shape)
        raise refused(f"the network's output of shape {shape} for one example cannot be read", error) from error
    if bool(values.isnan().any() | (values == torch.inf).any()):
        raise NumericalError(
            "the output of the network contains NaN or infinity on the calibration inputs. "
            "Try --dtype float32, or look for inputs that the network cannot take."
        )
    return said


def self_check(dense: nn.Module, pruned: nn.Module, space: UnitSpace, plan: Plan, batch: Batch) -> None:
    """Compare the shrunk network with the masked dense one on up to four examples.

    Raises:
        OptinError: they differ by more than rounding.
        InputError: it keeps a number of units that its kernels do not take.
    """
    for group in space:
        if (count := len(plan.keep[group.name])) % group.multiple:
            raise InputError(
                f"the plan keeps {count} units of {group.name!r}, and its kernels take multiples of {group.multiple}."
            )
    sample = next(split(batch, min(4, size_of(batch))))
    difference, tolerance = _difference(dense, pruned, space, plan, sample)
    if difference <= tolerance:
        return
    if not _rounding(dense, pruned, space, plan, sample):
        raise _defect(space, f"differs from the masked one by {difference:.1e} of its largest output")


def _rounding(dense: nn.Module, pruned: nn.Module, space: UnitSpace, plan: Plan, sample: Batch) -> bool:
    """Whether what differs in float32 is rounding, of which deep networks may make much: whether float64 agrees."""
    if next(dense.parameters()).dtype != torch.float32:
        return False
    exact, small = (copy.deepcopy(network).double() for network in (dense, pruned))
    inputs = tree_map(lambda value: value.double() if _real(value) else value, sample)
    try:
        difference, tolerance = _difference(exact, small, space, plan, inputs)
    except (*FAILURES, OptinError):  # a forward that makes float32 of its own, say
        return False
    return difference <= tolerance


def _real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _difference(
    dense: nn.Module, pruned: nn.Module, space: UnitSpace, plan: Plan, sample: Batch
) -> tuple[float, float]:
    """How far the shrunk network is from the masked one, and how far it may be, as parts of the largest output."""
    # Without merging, which may match other tokens once the keys of some heads are gone.
    with inference_mode_of(dense), inference_mode_of(pruned), torch.inference_mode():
        with all_tokens(dense), gated(dense, space, masks(dense, plan)):
            expected = answers(call(dense, sample))
        with all_tokens(pruned), plain(pruned):
            try:
                got = answers(call(pruned, sample))
            except FAILURES as error:
                raise _defect(space, f"cannot run: {first_line(error)}") from error
    return distance(expected, got), tolerance_of(expected)


def _defect(space: UnitSpace, what: str) -> OptinError:
    return OptinError(
        f"the shrunk network {what}. If the forward of {space.architecture!r} does something else from some width "
        "on, exclude the modules that this is about (`exclude` of the recipe). Else it is a defect of optin: please "
        "report it."
    )


def checked_before(job: Job, scores: Scores | None) -> bool:
    """Whether a scoring by the same recipe has seen the same inputs.

    Args:
        scores: of this network, see `check_scores`.
    """
    if scores is None:
        return False
    known, data = scores.provenance, scores.provenance.get("data", {})
    same = data.get("sha256") == job.batches.digest and known.get("recipe") == job.recipe.to_dict()
    return same and "network" in known


def planned(plan: object) -> Plan:
    """A plan; anything else is refused.

    Raises:
        InputError: says how to get one.
    """
    if isinstance(plan, Plan):
        return plan
    raise InputError(f"a plan is needed, and not {plan!r:.60}: optin.Plan.load(file) reads a stored one.")


def check_scores(model: nn.Module, scores: Scores) -> None:
    """Refuse scores that are none, or of another network.

    Raises:
        InputError: says how to get those of this one.
    """
    given: object = scores
    if not isinstance(given, Scores):
        raise InputError(f"scores are needed, and not {given!r:.60}: optin.load_scores(folder) reads stored ones.")
    if scores.provenance.get("network", known := fingerprint(model)) != known:
        raise InputError(
            f"the scores are of another network, or of a {scores.architecture} with other weights than this "
            f"{type(model).__name__}. Score this one."
        )


def check_fitting(scores: Scores, space: UnitSpace) -> None:
    """Refuse scores of other groups than a network has.

    Raises:
        InputError: they are of another network.
    """
    scored = {name: len(curve.order) for name, curve in scores.curves.items()}
    if (scores.architecture, scored) != (space.architecture, space.sizes):
        raise InputError(f"the scores are of another network than this {space.architecture}. Score this one.")


def check_merging(model: nn.Module, recipe: Recipe) -> None:
    """Refuse what a network that merges tokens cannot do: merge more of them, and resume behind blocks."""
    if merging_of(model) is None:
        return
    if recipe.tokens.merge != "none":
        raise InputError(
            "this network merges tokens already, on a schedule that was chosen for all of them. Prune its units "
            "alone (preset 'beta'), or the dense network with both."
        )
    if recipe.refit.enabled or criterion(recipe.criterion).resumes:
        raise InputError(
            "this network merges tokens by the keys of the block before, so that it cannot go on behind a block. "
            "Prune the dense network with both, or this one by 'compensated' without a refit (refit.enabled: false)."
        )

"""OTA: assignment as an optimal transport of labels to locations (Ge et al. 2021, arXiv 2103.14259, section 3).

Axes: N locations · M padded objects · C classes · S suppliers, Q demanders of a transport. Boxes: xyxy, canvas pixels.
Memory grows with M · N: every iteration needs the whole plan.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.base import MIN_INSIDE_DISTANCE, full_assignment, near_center
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.types import Assignment

EPS = 1e-7  # keeps −log IoU finite
MASS_EPS = 1e-8  # keeps the logarithm of a mass finite (published code)
LATE = -1e6  # first potential of a supplier that only the first round may bring in


def sinkhorn(
    log_kernel: Float[Array, "s q"],
    supply: Float[Array, " s"],
    demand: Float[Array, " q"],
    iterations: int,
    start: Float[Array, " s"] | None = None,
) -> Float[Array, "s q"]:
    """Logarithm of the transport plan after some Sinkhorn-Knopp iterations (section 3.1, equation 11).

    Suppliers' sums are met exactly (they are scaled last), demanders' sums in the limit if the masses are equal.

    Args:
        log_kernel: −cost / ε; −inf where nothing may be sent.
        supply: mass of each supplier; rows of mass 0, or without any finite kernel, are −inf.
        demand: mass of each demander; the same for columns.
        iterations: each scales the demanders, then the suppliers.
        start: the suppliers' first potentials (divided by ε), 0 by default.
    """
    log_supply, log_demand = jnp.log(supply + MASS_EPS), jnp.log(demand + MASS_EPS)

    def scale(log_mass, log_sum, active):
        return jnp.where(active & (log_sum > -jnp.inf), log_mass - log_sum, -jnp.inf)

    def iterate(_, potentials):
        u, _ = potentials
        v = scale(log_demand, jax.nn.logsumexp(log_kernel + u[:, None], axis=0), demand > 0)
        u = scale(log_supply, jax.nn.logsumexp(log_kernel + v, axis=1), True)
        return u, v

    u = jnp.zeros_like(supply) if start is None else start
    u, v = lax.fori_loop(0, iterations, iterate, (u, jnp.zeros_like(demand)))
    return log_kernel + u[:, None] + v


def assign_ota(
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    points: Float[Array, "n 2"],
    strides: Float[Array, " n"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    *,
    center_radius: float = 2.5,
    topk: int = 20,
    iou_weight: float = 1.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 50,
) -> Assignment:
    """Assign one image's locations by their predictions; no gradient flows through it.

    Every location demands one label. An object supplies k of them, the whole part of the sum of its `topk` largest
    IoUs, at least 1; the background supplies the rest. A label costs the focal loss over all classes (towards no class,
    from the background) plus, from an object, −`iou_weight` · log IoU (the published code; its box loss in training is
    GIoU). Objects supply only locations that lie in them and near their centre; an object without such a location
    supplies any (the published code adds a million to the cost outside, which comes to the same). Each supplier's row
    of the plan is scaled to a largest element of 1, and a location takes the label of its largest (published code).

    Args:
        scores: 0–1, class scores.
        boxes: predicted boxes, pixels.
        points: each location's point (x, y), pixels.
        strides: each location's stride, pixels.
        valid: False for locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_labels: their classes, 0…C-1.
        gt_mask: True for objects, False for padding.
        center_radius: strides.
        topk: clamped to N.
        alpha: weight of positives in the focal loss.
        gamma: focusing exponent of the focal loss.
        epsilon: weight of the plan's entropy.
        iterations: of Sinkhorn and Knopp.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives, iou is the predicted box's.
    """
    scores, boxes, points, strides, gt_boxes = lax.stop_gradient(
        jax.tree.map(jnp.asarray, (scores, boxes, points, strides, gt_boxes))
    )
    valid, gt_labels, gt_mask = (jnp.asarray(x) for x in (valid, gt_labels, gt_mask))
    num_locations, num_objects = boxes.shape[0], gt_boxes.shape[0]
    if num_objects == 0:
        return full_assignment(jnp.full(num_locations, -1, jnp.int32), boxes, gt_boxes)

    iou = pairwise_iou(gt_boxes, boxes)  # [M, N]
    usable = valid & gt_mask[:, None]
    inside = usable & (inside_distance(points, gt_boxes[:, None]) > MIN_INSIDE_DISTANCE)
    inside &= near_center(points, strides, gt_boxes, center_radius)
    without_candidates = ~inside.any(axis=1)  # [M]
    best = lax.top_k(jnp.where(inside, iou, 0), min(topk, num_locations))[0]
    count = jnp.where(gt_mask, jnp.maximum(jnp.floor(best.sum(axis=1)), 1), 0)

    background_cost, class_cost = _focal_costs(scores, alpha, gamma)
    cost = background_cost + class_cost.T[gt_labels] - iou_weight * jnp.log(jnp.maximum(iou, EPS))
    cost = jnp.where(inside | (usable & without_candidates[:, None]), cost, jnp.inf)
    cost = jnp.concatenate([cost, jnp.where(valid, background_cost, jnp.inf)[None]])  # [M+1, N]
    rest = jnp.maximum(valid.sum() - count.sum(), 0)
    # A million outside would leave such an object out of the first round's scaling of the locations.
    start = jnp.append(jnp.where(without_candidates, LATE, 0.0), 0.0)
    supply, demand = jnp.append(count, rest), valid.astype(count.dtype)
    plan = sinkhorn(-cost / epsilon, supply, demand, iterations, start)

    largest = plan.max(axis=1, keepdims=True)
    supplier = (plan - jnp.where(largest > -jnp.inf, largest, 0)).argmax(axis=0)  # [N]; an object wins a tie
    return full_assignment(jnp.where(valid & (supplier < num_objects), supplier, -1), boxes, gt_boxes)


def _focal_costs(
    scores: Float[Array, "n c"], alpha: float, gamma: float
) -> tuple[Float[Array, " n"], Float[Array, "n c"]]:
    """Focal loss towards no class, summed over classes, and what each class adds to it where it is the target."""
    yes = -alpha * (1 - scores) ** gamma * jnp.maximum(jnp.log(scores), -100)
    no = -(1 - alpha) * scores**gamma * jnp.maximum(jnp.log1p(-scores), -100)
    return no.sum(axis=1), yes - no


def assign_ota_batch(scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask, **options) -> Assignment:
    """Apply `assign_ota` to a batch: every argument except `points` and `strides` has B in front."""
    return jax.vmap(lambda *image: assign_ota(*image, **options), in_axes=(0, 0, None, None, 0, 0, 0, 0))(
        scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask
    )

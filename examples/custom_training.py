"""A training loop of your own, with the network and the losses of tood_jax (docs/custom_training.md)."""

import jax
import optax

import tood_jax
from tood_jax.criterion.losses import losses_and_targets
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.loader import train_batches
from tood_jax.models.detector import normalize_images
from tood_jax.training.state import init_variables

CONFIG, STEPS, ATSS_STEPS = "demo", 300, 100

config = tood_jax.load_config(CONFIG)
train_set = filter_for_training(load_dataset(config.data.train, for_evaluation=False), config.data)
model = tood_jax.build_detector(config, len(train_set.classes))
params, batch_stats = init_variables(model, seed=0)
optimizer = optax.adamw(1e-3)
opt_state = optimizer.init(params)


def loss(params, batch_stats, batch, in_tal_phase):
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = {"params": params, "batch_stats": batch_stats}
    predictions, updated = model.apply(variables, images, True, batch.sizes, mutable=["batch_stats"])
    losses, targets = losses_and_targets(predictions, batch, in_tal_phase, config)
    return losses.total, (updated["batch_stats"], targets)


@jax.jit
def update(params, batch_stats, opt_state, batch, in_tal_phase):
    (value, (batch_stats, targets)), gradients = jax.value_and_grad(loss, has_aux=True)(
        params, batch_stats, batch, in_tal_phase
    )
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats, opt_state, value, targets


batches = train_batches(train_set, config.data, batch_size=4, seed=0, start_step=0, num_steps=STEPS)
for step, batch in enumerate(batches):
    params, batch_stats, opt_state, value, targets = update(params, batch_stats, opt_state, batch, step >= ATSS_STEPS)
    if step % 50 == 0:
        print(f"step {step}: loss {value:.3f}, {targets.positives.sum():.0f} positives")

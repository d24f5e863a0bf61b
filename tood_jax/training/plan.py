"""The schedule of a run: numbers of steps that follow from its config and the size of its data set."""

from dataclasses import dataclass

from tood_jax.config import Config
from tood_jax.data.sampler import steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """Steps at which a run saves and evaluates."""

    epoch_steps: int
    total_steps: int
    eval_every: int  # 0 = only at the end
    save_every: int

    def evaluates_at(self, step: int) -> bool:
        """Return whether the state is evaluated after this step."""
        return step >= self.total_steps or bool(step and self.eval_every and step % self.eval_every == 0)

    def next_save(self, step: int) -> int:
        """Return the first step after this one at which the state is saved, whether or not it is evaluated."""
        intervals = [self.total_steps, self.save_every, *([self.eval_every] if self.eval_every else [])]
        return min(self.total_steps, *(step + interval - step % interval for interval in intervals))


def make_plan(config: Config, num_images: int) -> Plan:
    """Return the plan of a run whose epochs have so many images (`images_per_epoch`)."""
    epoch = steps_per_epoch(num_images, config.train.batch_size)
    return Plan(
        epoch, epoch * config.train.epochs, epoch * config.train.eval_every_epochs, config.train.checkpoint_every_steps
    )

"""The numbers of a run that follow from its config and its data set."""

from dataclasses import dataclass

from tood_jax.config import Config
from tood_jax.data.batching import steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """When to do what; everything in steps."""

    epoch_steps: int
    total_steps: int
    eval_every: int  # 0 = only at the end
    save_every: int

    def evaluates_at(self, step: int) -> bool:
        return step == self.total_steps or bool(step and self.eval_every and step % self.eval_every == 0)

    def next_save(self, step: int) -> int:
        """The first step after this one at which the state is saved, and evaluated or not."""
        every = [self.total_steps, self.save_every, *([self.eval_every] if self.eval_every else [])]
        return min(self.total_steps, *(step + one - step % one for one in every))


def make_plan(config: Config, num_images: int) -> Plan:
    """Steps of an epoch and of the whole run."""
    epoch = steps_per_epoch(num_images, config.train.batch_size)
    return Plan(
        epoch, epoch * config.train.epochs, epoch * config.train.eval_every_epochs, config.train.checkpoint_every_steps
    )

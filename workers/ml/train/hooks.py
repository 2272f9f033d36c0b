"""What may be done between the parts of a training step: penalties, masks, and their schedules."""

from collections.abc import Mapping

from torch import Tensor, nn


class Hooks:
    """Does nothing; a method of compression overrides what it needs.

    `at` counts the optimizer steps that are done, `total` all of them. What a hook must know to go
    on after a stop, it gives in `tensors` and takes back in `restore`.
    """

    def penalty(self, module: nn.Module) -> Tensor | None:  # noqa: ARG002 - for those who override
        """Give what is added to the loss, or nothing."""
        return None

    def on_gradients(self) -> None:
        """Look at the gradients, or change them, before they are clipped and used."""

    def after_step(self, at: int, total: int) -> None:
        """Change the weights after the optimizer has."""

    def is_whole(self, at: int, total: int) -> bool:  # noqa: ARG002 - for those who override
        """Tell whether the weights as they stand could be the result."""
        return True

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""

"""Two convolutions over 28x28 grey images."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from registry import recipes

SIDE = 28
_POOLED_SIDE = (SIDE - 4) // 2


class DigitsCnn(nn.Module):
    """Takes bytes as they come from an image, so nobody has to remember a scale."""

    def __init__(self, parameters: recipes.DigitsCnn, classes: int) -> None:
        super().__init__()
        channels = parameters.channels
        self.first = nn.Conv2d(1, channels, 3)
        self.second = nn.Conv2d(channels, 2 * channels, 3)
        self.hidden = nn.Linear(2 * channels * _POOLED_SIDE**2, parameters.hidden_size)
        self.classes = nn.Linear(parameters.hidden_size, classes)
        self.dropout = nn.Dropout(parameters.dropout)

    def forward(self, image_BHW: Tensor) -> Tensor:
        x_BCHW = (image_BHW.to(torch.float32) / 255 - 0.1307) / 0.3081
        x_BCHW = functional.relu(self.first(x_BCHW.unsqueeze(1)))
        x_BCHW = functional.max_pool2d(functional.relu(self.second(x_BCHW)), 2)
        x_BF = self.dropout(x_BCHW.flatten(1))
        x_BF = self.dropout(functional.relu(self.hidden(x_BF)))
        logits_BK: Tensor = self.classes(x_BF)
        return logits_BK

"""An embedding, an LSTM and a linear layer over numbered words."""

import torch
from torch import Tensor, nn

from registry import recipes
from workers.ml.vocabulary import PADDING


class TextClassifier(nn.Module):
    """Classifies by the LSTM's state after the last real word of each text.

    Padding never reaches that state: forwards it is read before the padding starts, backwards the
    words are turned round within their own length. This equals a packed sequence, and unlike one
    it can be exported to ONNX.
    """

    def __init__(self, parameters: recipes.TextClassifier, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(
            parameters.vocabulary_size, parameters.embedding_size, padding_idx=PADDING
        )
        self.forwards = nn.ModuleList()
        self.backwards = nn.ModuleList()
        ways = 2 if parameters.bidirectional else 1
        width = parameters.embedding_size
        for _ in range(parameters.layers):
            self.forwards.append(nn.LSTM(width, parameters.hidden_size, batch_first=True))
            if parameters.bidirectional:
                self.backwards.append(nn.LSTM(width, parameters.hidden_size, batch_first=True))
            width = ways * parameters.hidden_size
        self.dropout = nn.Dropout(parameters.dropout)
        self.classes = nn.Linear(width, classes)
        self._initialise(parameters.hidden_size)

    def _initialise(self, hidden_size: int) -> None:
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()
            for lstm in [*self.forwards, *self.backwards]:
                nn.init.orthogonal_(lstm.weight_hh_l0)
                lstm.bias_hh_l0.zero_()
                lstm.bias_ih_l0.zero_()
                lstm.bias_ih_l0[hidden_size : 2 * hidden_size] = 1.0  # the forget gate, open

    def forward(self, tokens_BL: Tensor) -> Tensor:
        length_B = (tokens_BL != PADDING).sum(1).clamp(min=1)
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        # Where a word stands when its text is turned round; padding stays where it is.
        mirror_BL = length_B.unsqueeze(1) - 1 - place_L
        mirror_BL = torch.where(mirror_BL >= 0, mirror_BL, place_L)
        x_BLE = self.dropout(self.embedding(tokens_BL))
        for layer, forwards in enumerate(self.forwards):
            states = [forwards(x_BLE)[0]]
            if len(self.backwards):
                turned_BLH = self.backwards[layer](_reorder(x_BLE, mirror_BL))[0]
                states.append(_reorder(turned_BLH, mirror_BL))
            x_BLE = self.dropout(torch.cat(states, dim=2))
        last_BH = self._last(x_BLE, length_B)
        logits_BK: Tensor = self.classes(last_BH)
        return logits_BK

    def _last(self, x_BLE: Tensor, length_B: Tensor) -> Tensor:
        """Take each direction's state after it has read the whole text."""
        at_B1E = (length_B - 1).view(-1, 1, 1).expand(-1, 1, x_BLE.shape[2])
        last_BE = x_BLE.gather(1, at_B1E).squeeze(1)
        if not len(self.backwards):
            return last_BE
        half = x_BLE.shape[2] // 2
        return torch.cat([last_BE[:, :half], x_BLE[:, 0, half:]], dim=1)


def _reorder(x_BLE: Tensor, place_BL: Tensor) -> Tensor:
    return x_BLE.gather(1, place_BL.unsqueeze(2).expand(-1, -1, x_BLE.shape[2]))

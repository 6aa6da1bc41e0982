"""A decoder and classifier of some classes for an encoder that stays as it is (RECALL's helper)."""

from __future__ import annotations

from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from torch import Tensor, nn

from fmwiss.models.segmenter import Segmenter


class HelperDecoder(nn.Module):
    """A new decoder like a segmenter's, with a classifier of the background and ``n_classes`` classes.

    Args:
        like: the segmenter; its encoder gives the features.
        n_classes: without the background.
    """

    def __init__(self, like: Segmenter, n_classes: int) -> None:
        super().__init__()
        architecture = like.architecture
        self.decoder = DeepLabV3Decoder(
            like.encoder_channels,
            out_channels=architecture.decoder_channels,
            atrous_rates=architecture.atrous_rates,
            aspp_separable=False,
            aspp_dropout=architecture.dropout,
        )
        self.classifier = nn.Conv2d(architecture.decoder_channels, 1 + n_classes, kernel_size=1)

    @classmethod
    def of_base(cls, model: Segmenter) -> HelperDecoder:
        """A copy of the decoder and classifier of a model that has learnt step 0 and no more."""
        helper = cls(model, len(model.architecture.steps[0]))
        helper.decoder.load_state_dict(model.decoder.state_dict())
        helper.classifier.load_state_dict(model.classifier.steps[0].state_dict())
        return helper

    def forward(self, features: Tensor) -> Tensor:
        """``(B, E, h, w)`` features of the encoder to logits ``(B, 1 + n_classes, h, w)``."""
        return self.classifier(self.decoder([features]))

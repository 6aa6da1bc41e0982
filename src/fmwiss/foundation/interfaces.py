"""What the rest of the library knows of the frozen models: two small interfaces.

Images are float RGB in [0, 1], ``(B, 3, H, W)``; a model normalises them itself, and scales them to the nearest
multiple of its stride where they are none, so that its grid always covers the whole image. No call keeps gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class VisionLanguageModel(Protocol):
    """Scores the places of an image for class names (eq. 1-3)."""

    stride: int
    """Image pixels per place of the grid."""

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on: model, weights (SHA-256) and options, as plain JSON."""

    def dense_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, D, h, w)``, L2-normalised over D (eq. 1)."""

    def text_embeddings(self, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Rows ``(R, D)``, L2-normalised (eq. 2), and ``(R,)`` int64: the index of the name that a row stands for."""

    def scores(self, images: Tensor, class_names: Sequence[str]) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, C, h, w)``: eq. 3, the best of a class's rows, then the model's own options.

        This is the call to use: dense features and embeddings alone know nothing of background names and denoising.
        """

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """All that :meth:`scores` needs of ``(B, 3, H, W)`` images, whatever the names: keep it to ask again."""

    def scores_from(self, encoded: tuple[Tensor, ...], class_names: Sequence[str]) -> Tensor:
        """:meth:`scores` from what :meth:`encode` gave: only the names are new."""


@runtime_checkable
class SelfSupervisedModel(Protocol):
    """Knows which places of an image belong together (eq. 4).

    Its grid is ``gh = H / patch_size`` by ``gw = W / patch_size`` (rounded); ``L = gh * gw`` counts it row by row.
    """

    patch_size: int

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on: model and weights (SHA-256), as plain JSON."""

    def attention(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, heads, L, L)``: the last block's attention from patch (row) to patch (column).

        The softmax runs over all tokens, as in the model; the columns of class and register tokens are left out
        afterwards, so that a row sums to at most 1.
        """

    def mean_attention(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, L, L)``: the mean of :meth:`attention` over heads, in less memory."""

    def patch_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, D, gh, gw)``: the last block's patch tokens after the final norm."""

    def mean_attention_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`mean_attention` and :meth:`patch_features` from one pass."""


@runtime_checkable
class SaliencyModel(Protocol):
    """Knows what stands out in a photograph, whatever it is (EPS)."""

    stride: int
    """Image pixels per place of the map."""

    def saliency(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, gh, gw)`` in [0, 1], 1 where something stands out."""

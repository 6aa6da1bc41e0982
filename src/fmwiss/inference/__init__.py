"""Using a trained model: prediction, folders and videos, export, sharing."""

from fmwiss.inference.images import Photograph, Photographs
from fmwiss.inference.model import Model, Prediction, load

__all__ = ["Model", "Photograph", "Photographs", "Prediction", "load"]

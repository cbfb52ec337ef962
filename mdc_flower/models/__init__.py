"""Models by name: built-in ones, torchvision's, timm's, or the user's ``module:function``."""

from mdc_flower.models.fits import check_fits
from mdc_flower.models.registry import MODELS, build_model

__all__ = ["MODELS", "build_model", "check_fits"]

"""Models by name: built-in models, torchvision, timm, or the user's ``module:function``."""

from mdc_flower.models.build import MODELS, build_model
from mdc_flower.models.fits import check_fits

__all__ = ["MODELS", "build_model", "check_fits"]

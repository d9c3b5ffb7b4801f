"""Split models in torch: architecture, training recipes, calibration, ONNX export.

Importing this package imports no torch: take what needs it from ``adaptsplit.models.fit`` (:func:`fit`),
``adaptsplit.models.storage`` (:func:`load_model`, :func:`export`) and ``adaptsplit.models.architecture``.
"""

from adaptsplit.models.recipe import Recipe
from adaptsplit.models.recipe_files import load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]

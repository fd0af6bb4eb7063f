"""A recipe: the configs of the other rooms in one value, read from YAML and written back."""

from lorica.recipe.recipe import ModelConfig, Recipe

__all__ = ["ModelConfig", "Recipe"]

"""The paper's tables: the numbers it publishes, and the recipes that reproduce them."""

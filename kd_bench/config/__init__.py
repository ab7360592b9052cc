"""Settings as pydantic models: recipes, trials and everything they hold. ``load`` reads them from YAML."""

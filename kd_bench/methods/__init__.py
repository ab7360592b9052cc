"""Methods of distillation, one file each; ``_registry`` finds them, ``base`` says what one is."""

"""Methods of distillation, one file each; ``registry`` finds them, ``base`` says what one is."""

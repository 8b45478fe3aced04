"""Training from scratch on speech that flite speaks: the embedded voice `tiny`, stage by stage."""

"""Sizing before anything is built: what a layout takes of given GPUs, and which layout suits them. No torch."""

"""Recipes of rank tensors and the streaming repacker."""

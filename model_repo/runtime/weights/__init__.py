"""Recipes of rank tensors: how each is made of checkpoint tensors, and their evaluation."""

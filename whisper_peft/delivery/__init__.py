"""Delivery: what leaves the house."""
